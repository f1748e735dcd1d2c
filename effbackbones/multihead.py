"""Several heads made one head: what they share, how their losses are weighed, and batches that are labelled in part."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effbackbones.contracts import BackboneNeeds, FeatureSpec, Head, ImageSizes, ImageSpec, Labelled
from effbackbones.errors import UserError, nearest

UNCERTAINTY = "uncertainty"
_BY_IMAGES = ("", UNCERTAINTY, "unlabelled")  # "": whatever else a task has
LossWeights = Mapping[str, float] | Literal["uncertainty"] | None


class MultiHead(Head):
    """Several heads on one backbone, as one head: raw output, targets and predictions are dicts by task.

    ``heads`` by task, each built on a selection of ``spec``. The targets of a task are those of all images, a :class:`Labelled`
    where only some have them, and None or missing where none has: its head and the backbone then get gradients from this task
    that are zero and never missing, as DDP requires.

    ``weights`` of the losses: a factor >= 0 by task (default 1), or ``"uncertainty"``: each task has a log-variance s, learned
    from 0 on in ``log_variances``, and adds exp(-s) L + s (Kendall, Gal and Cipolla 2018, arXiv:1705.07115, with s for log
    sigma^2). That is twice their form for regression, eq. 7, and is used for every task; in their form for classification,
    eq. 10, the second term is s / 2. Its minimum over s is at exp(s) = L.
    """

    task: ClassVar[str] = "multi"

    def __init__(self, spec: FeatureSpec, heads: Mapping[str, Head], weights: LossWeights = None) -> None:
        super().__init__(spec, sum(head.num_classes for head in heads.values()))
        self.heads = nn.ModuleDict(heads)
        self.weights = _factors(weights, heads)
        self.log_variances = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(())) for task in heads if weights == UNCERTAINTY}
        )
        self.size_divisor = math.lcm(*(head.size_divisor for head in heads.values()))
        self.min_size = max(head.min_size for head in heads.values())
        self.counted = tuple(f"{task}/{name}" for task, head in heads.items() for name in (*head.counted, *_BY_IMAGES))
        self.distilled = tuple(f"{task}/{name}" for task, head in heads.items() for name in head.distilled)
        self._levels = {task: [spec.names.index(name) for name in head.spec.names] for task, head in heads.items()}

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        """What the heads make of ``spec``, one after the other."""
        for _, head in self._items():
            spec = head.image_spec(spec)
        return spec

    def _items(self) -> list[tuple[str, Head]]:
        return [(task, cast(Head, head)) for task, head in self.heads.items()]

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> dict[str, Any]:
        """Raw output of each head on its own levels."""
        return {task: head([features[i] for i in self._levels[task]], sizes) for task, head in self._items()}

    def loss(self, raw: dict[str, Any], targets: Mapping[str, Any], sizes: ImageSizes) -> dict[str, Tensor]:
        """Losses named ``task/name``, weighted by task; a task without labels adds ``task/unlabelled``, 0. With learned weights
        ``task/uncertainty`` is its log-variance, whose gradient is zero where the task has no labels."""
        losses = {}
        for task, head in self._items():
            labels = _split(targets.get(task), sizes)
            log_variance = self.log_variances[task].float() if task in self.log_variances else None
            if labels is None:
                losses[f"{task}/unlabelled"] = torch.stack(
                    [_nothing(leaf) for leaf in pytree.tree_leaves(raw[task])]
                ).sum()
            else:
                rows, own, own_sizes = labels
                parts = head.loss(raw[task] if rows is None else head.select(raw[task], rows), own, own_sizes)
                factor = self.weights[task] if log_variance is None else torch.exp(-log_variance)
                losses |= {f"{task}/{name}": factor * value for name, value in parts.items()}
            if log_variance is not None:
                losses[f"{task}/{UNCERTAINTY}"] = (
                    log_variance if labels else log_variance.detach() + _nothing(log_variance)
                )
        return losses

    def count(self, targets: Mapping[str, Any], sizes: ImageSizes) -> dict[str, Tensor]:
        """The counts of each head, 0 where no image has its labels. ``task/``: images with labels of the task, by which its other
        losses are averaged; the log-variance too."""
        batch = self.padded(sizes.batch[0]), self.padded(sizes.batch[1])
        sizes = sizes._replace(batch=batch)  # as all heads see them
        counts = {name: sizes.valid.new_zeros(()) for name in (*self.counted, *self.distilled)}
        for task, head in self._items():
            if labels := _split(targets.get(task), sizes):
                _, own, own_sizes = labels
                counts |= {f"{task}/{name}": value for name, value in head.count(own, own_sizes).items()}
                counts |= {f"{task}/{name}": sizes.valid.new_full((), len(own_sizes.valid)) for name in _BY_IMAGES}
        return counts

    def prepare(self, raw: dict[str, Any], targets: Mapping[str, Any], sizes: ImageSizes) -> dict[str, Any]:
        """What each head makes of the targets of its task, on the images that have them."""
        prepared = dict(targets)
        for task, head in self._items():
            if labels := _split(targets.get(task), sizes):
                rows, own, own_sizes = labels
                made = head.prepare(raw[task] if rows is None else head.select(raw[task], rows), own, own_sizes)
                prepared[task] = made if rows is None else Labelled(rows, made)
        return prepared

    def check_targets(self, targets: Any, sizes: ImageSizes) -> None:
        """Those of each task, by its own head."""
        if not isinstance(targets, Mapping):
            what = f"expected a dict by task, got {type(targets).__name__}"
            raise UserError("targets", what, f"give them for {', '.join(self.heads)}")
        for task in targets:
            if task not in self.heads:
                raise UserError(f"targets[{task!r}]", "is not among the tasks", nearest(str(task), self.heads))
        for task, head in self._items():
            if labels := _split(targets.get(task), sizes):
                head.check_targets(*labels[1:])

    def divisor(self, name: str, count: Tensor) -> Tensor:
        """As the task's own head has it."""
        task, _, own = name.partition("/")
        head = cast(Head, self.heads[task])
        return super().divisor(name, count) if own in _BY_IMAGES else head.divisor(own, count)

    def check_teacher(self, teacher: Head) -> None:
        """The heads of the tasks that both have, one at least. The teacher pads images as this head does from here on."""
        shared = self._taught(list(teacher.heads) if isinstance(teacher, MultiHead) else [])
        if not shared:
            remedy = f"give a teacher of {' or '.join(self.heads)}"
            raise UserError("optim.distill.teacher", f"is for {teacher.task}, none of these tasks", remedy)
        for task, head in shared:
            head.check_teacher(cast(MultiHead, teacher).heads[task])  # type: ignore[arg-type]  # a head
        # A model pads for all of its heads together, not for each of them.
        teacher.size_divisor, teacher.min_size = self.size_divisor, self.min_size

    def distill(
        self,
        raw: dict[str, Any],
        teacher: Mapping[str, Any],
        targets: Any,
        sizes: ImageSizes,
        temperature: float | None = None,
    ) -> dict[str, Tensor]:
        """Losses named ``task/name``, weighted as :meth:`loss` weighs its own, of the tasks that the teacher has, on the images that
        have labels of the task."""
        losses: dict[str, Tensor] = {}
        for task, head in self._taught(teacher):
            if labels := _split(targets.get(task), sizes):
                rows, own, own_sizes = labels
                ours, theirs = (
                    each[task] if rows is None else head.select(each[task], rows) for each in (raw, teacher)
                )
                parts = head.distill(ours, theirs, own, own_sizes, temperature)
                factor = torch.exp(-self.log_variances[task].float()) if self.log_variances else self.weights[task]
                losses |= {f"{task}/{name}": factor * value for name, value in parts.items()}
        return losses

    def _taught(self, teacher: Collection[str]) -> list[tuple[str, Head]]:
        return [(task, head) for task, head in self._items() if task in teacher]

    def predict(self, raw: dict[str, Any], sizes: ImageSizes) -> dict[str, Any]:
        """Predictions of each head."""
        return {task: head.predict(raw[task], sizes) for task, head in self._items()}

    def select(self, raw: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """Each head's own selection."""
        return {task: head.select(raw[task], rows) for task, head in self._items()}

    def diagnose(self, targets: Mapping[str, Any], sizes: ImageSizes) -> dict[str, Tensor]:
        """Figures named ``task/name`` of the heads whose targets are there, on the images that have them."""
        figures: dict[str, Tensor] = {}
        for task, head in self._items():
            if labels := _split(targets.get(task), sizes):
                _, own, own_sizes = labels
                figures |= {f"{task}/{name}": value for name, value in head.diagnose(own, own_sizes).items()}
        return figures

    def fit_to_data(self, box_sides: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
        """Options by task of the heads that have any to suggest."""
        found = {task: head.fit_to_data(box_sides, image_size) for task, head in self._items()}
        return {task: options for task, options in found.items() if options}


def combine_needs(needs: Mapping[str, BackboneNeeds]) -> BackboneNeeds:
    """What serves all of ``needs`` (by the name of a head): the union of levels. Contradicting strides or taps raise
    :class:`UserError` naming both heads."""
    (first, combined), *others = needs.items()
    for name, need in others:
        for field in ("output_stride", "tap"):
            ours, theirs = getattr(combined, field), getattr(need, field)
            if ours != theirs:
                raise UserError(
                    f"heads {first!r} and {name!r}",
                    f"need {field} {ours} and {theirs}",
                    f"set backbone_options.{field}",
                )
        combined = replace(combined, levels=tuple(sorted({*combined.levels, *need.levels})))
    return combined


def _split(targets: Any, sizes: ImageSizes) -> tuple[Tensor | None, Any, ImageSizes] | None:
    """Rows of a batch (None: all), their targets and their sizes; None where no image has any."""
    if not isinstance(targets, Labelled):
        return None if targets is None else (None, targets, sizes)
    return (targets.rows, targets.targets, sizes.select(targets.rows)) if len(targets.rows) else None


def _nothing(leaf: Tensor) -> Tensor:
    """0 with a zero gradient to all of ``leaf``, whatever stands there, NaN included."""
    return leaf[None][:0].float().sum()


def _factors(weights: LossWeights, tasks: Collection[str]) -> dict[str, float]:
    """The factor of each task; an unknown task, and anything but a number from 0 up, raise :class:`UserError` naming it."""
    if not (weights is None or weights == UNCERTAINTY or isinstance(weights, Mapping)):
        raise UserError(
            "loss_weights", f"unknown value {str(weights)[:60]!r}", f'give a factor by task, or "{UNCERTAINTY}"'
        )
    given = weights if isinstance(weights, Mapping) else {}
    for task, value in given.items():
        if task not in tasks:
            raise UserError(f"loss_weights[{task!r}]", "is not among the tasks", nearest(task, tasks))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(
                f"loss_weights[{task!r}]", f"expected a number from 0 up, got {value!r}", "0 switches a task off"
            )
    return {task: float(given.get(task, 1.0)) for task in tasks}
