"""What all dense detectors share: from raw output to losses and detections. A head adds its network and its numbers.

A detector is dense if every cell of its maps says something of every class: with anchors (RetinaNet, SSD, EfficientDet) or
without (FCOS, YOLOX), whose points are then anchors of one stride's side. What differs between them are six attributes of
:class:`DenseHead`, and for those that rate their boxes or match by what they predict, methods that are a few lines each.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from effbackbones.contracts import BoxTargets, Detections, FeatureSpec, Head, ImageSizes, ImageSpec
from effbackbones.errors import UserError
from heads.detection.anchors import Assignment, Deltas, IouMatching, anchor_grid, areas, box_slices, pairwise_iou
from heads.detection.criteria import BoxLosses, ClassLoss, Coder, Focal, Matched
from heads.detection.losses import LEAST_AREA, iou_loss
from heads.detection.nms import Selection, candidates
from heads.detection.variants import letterboxed, variant_for
from heads.options import require_pictures, taken
from heads.targets import check_boxes
from heads.teaching import quality_focal_sum, sigmoid_divergence, softmax_divergence

DISTILLED = ("distill", "distill_box")
"""Losses against a teacher, by the normaliser of the class loss."""
_FIXED_POINT = 2.0**32  # units of the anchor shapes, so that `.half()` cannot round them
Matching = Callable[[Tensor, Tensor, Tensor, Tensor | None], Assignment]
"""Anchors [A, 4], boxes [B, M, 4], usable bool [B, M] and crowds, bool [B, M] or None, to what each anchor is to predict."""


class DetRaw(NamedTuple):
    """Raw output: ``logits`` [B, A, K], ``deltas`` [B, A, 4] as the head's coder writes them (EfficientDet: ty, tx, th, tw),
    ``anchors`` float32 [A, 4] xyxy pixels."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor


class RatedRaw(NamedTuple):
    """As :class:`DetRaw`, and a logit [B, A] of each box's ``quality``: centerness, objectness."""

    logits: Tensor
    deltas: Tensor
    quality: Tensor
    anchors: Tensor


pytree._register_namedtuple(DetRaw, serialized_type_name="heads.DetRaw")
pytree._register_namedtuple(RatedRaw, serialized_type_name="heads.RatedRaw")


class DenseHead(Head):
    """A head whose raw output is :class:`DetRaw` or :class:`RatedRaw`. Its numbers are attributes, of a class or of an object:

    * ``matching``: which box each anchor is to predict. ``coder``: how boxes are written relative to anchors.
    * ``class_loss``, ``box_losses``: what trains the two; ``selection``: which pairs become detections.
    * ``option_records``: which of these are options of the head, under the names of their fields, defaults as set.

    A subclass builds its network, calls :meth:`place` with the anchors of its levels, and gives :meth:`anchors` as the last
    part of its raw output. Options of all: ``crowd_ignore``, whether anchors inside crowds are left out of the class loss (crowds
    are never positives); ``local_normaliser``, whether each piece of a batch, in each process, is divided by its own count of
    positives, as released code does, instead of by that of the whole batch.

    A head that adds losses of its own names them in ``counted`` too, if they are divided by :meth:`normaliser`; what is divided by
    something else it says in :meth:`counts`.
    """

    task: ClassVar[str] = "det"
    option_records: ClassVar[tuple[str, ...]] = ("class_loss", "box_losses", "selection")
    prediction_options: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Selection))
    matching: Matching = IouMatching()
    coder: Coder = Deltas()
    class_loss: ClassLoss = Focal()
    box_losses: BoxLosses = BoxLosses()
    selection: Selection = Selection()

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        crowd_ignore: bool = False,
        local_normaliser: bool = False,
        **options: Any,
    ) -> None:
        records = {name: taken(getattr(self, name), options) for name in self.option_records}
        super().__init__(spec, num_classes, **options)
        require_pictures(spec, "detection")
        self.crowd_ignore = crowd_ignore
        for name, record in records.items():
            setattr(self, name, record)
        self.merge_iou, self.merge_most = self.selection.nms_iou, self.selection.max_detections
        # What looks at predictions to find the positives cannot count them before there are any.
        known = self._matches_first() and not local_normaliser
        self.counted = ("class", *self.box_losses.names) if known else ()
        self.distilled = DISTILLED if self.counted else ()

    def resting(self) -> dict[str, str]:
        """What its records say of their own fields in a method of that name."""
        found: dict[str, str] = {}
        for name in self.option_records:
            own = getattr(getattr(self, name), "resting", None)
            found |= own() if own else {}
        return found

    # --- anchors -----------------------------------------------------------------------------------------------------

    def place(
        self, strides: Sequence[int], shapes: Sequence[Sequence[tuple[float, float]]], center: float = 0.5
    ) -> None:
        """Say where anchors are: the ``strides`` of the levels in pixels, finest first, for each level the ``shapes`` of the
        anchors of a cell, (width, height) in strides, and their ``center``, in strides from the corner of the cell. Images are
        padded to the coarsest stride of the backbone; coarser maps are of any size."""
        self.strides, self.center = tuple(strides), center
        self.size_divisor = self.spec.strides[-1]
        self._counts = [len(level) for level in shapes]
        flat = torch.tensor([shape for level in shapes for shape in level], dtype=torch.float64)
        self.register_buffer("_shapes", (flat * _FIXED_POINT).round().long(), persistent=False)

    def anchors(self, features: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
        """Anchors float32 [A, 4] of the cells of ``maps``, one per level, made of the backbone's ``features``."""
        height, width = (cells * self.spec.strides[0] for cells in features[0].shape[-2:])
        return self._grid((height, width), [m.shape[-2:] for m in maps])

    def _grid(self, image: tuple[int, int], maps: Sequence[Sequence[int]]) -> Tensor:
        return anchor_grid(image, maps, self.shapes_of_levels(), self.center)

    def shapes_of_levels(self) -> Sequence[Tensor]:
        """What :meth:`place` was told, [S, 2] for each level, as precise as the device can."""
        shapes = cast(Tensor, self._shapes)
        precise = torch.float32 if shapes.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        return torch.split(shapes.to(precise) / _FIXED_POINT, self._counts)

    def _anchors_for(self, sizes: ImageSizes) -> Tensor:
        """The anchors of images of these sizes, which no network has seen yet."""
        image = (self.padded(sizes.batch[0]), self.padded(sizes.batch[1]))
        return self._grid(image, map_sizes(image, self.strides))

    def cell_sides(self, image: tuple[int, int]) -> list[tuple[float, float]]:
        """(x, y) sides in pixels of a cell of each level, for images of (H, W) pixels."""
        return [(image[1] / w, image[0] / h) for h, w in map_sizes(image, self.strides)]

    # --- the loss ----------------------------------------------------------------------------------------------------

    def loss(self, raw: Any, targets: BoxTargets | Matched, sizes: ImageSizes) -> dict[str, Tensor]:
        """``class``: the sum of the class loss; ``box`` and ``iou``, those asked for: the sums of the losses of positive anchors'
        boxes; all divided by :meth:`normaliser`. Computed in float32."""
        return self.losses(raw, self.prepare(raw, targets, sizes))

    def prepare(self, raw: Any, targets: BoxTargets | Matched, sizes: ImageSizes) -> Matched:
        """What each anchor is to say (:meth:`matched`)."""
        return targets if isinstance(targets, Matched) else self.matched(raw, targets)

    def losses(self, raw: Any, matched: Matched, share: Tensor | None = None) -> dict[str, Tensor]:
        """Those of :meth:`loss`, to which a head adds its own; ``share`` [B, A] weighs the boxes (:meth:`BoxLosses.terms`)."""
        logits, deltas, count = raw.logits.float(), raw.deltas.float(), self.normaliser(matched)
        scores = {"class": self.class_loss.sum(logits, matched.labels, matched.ignored) / count}
        return scores | self.box_losses.terms(deltas, raw.anchors, matched, self.coder, count, share)

    def normaliser(self, matched: Matched) -> Tensor:
        """What losses are divided by: the number of positive anchors in the batch, by :meth:`divisor`."""
        return self.divisor("class", matched.positive.sum()).float()

    @torch.no_grad()
    def count(self, targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        """Positive anchors, of each loss in ``counted`` and ``distilled``; what :meth:`counts` says otherwise."""
        if not self.counted:
            return {}
        targets, anchors = at_least_one(targets), self._anchors_for(sizes).to(targets.boxes)
        matched = matched_to(anchors, targets, *self._matching(anchors, targets))
        counts = self.counts(matched, anchors)
        return counts | dict.fromkeys(self.distilled, matched.positive.sum())

    def counts(self, matched: Matched, anchors: Tensor) -> dict[str, Tensor]:
        """By what the losses in ``counted`` are divided: the number of positive anchors."""
        return dict.fromkeys(self.counted, matched.positive.sum())

    def check_targets(self, targets: BoxTargets, sizes: ImageSizes) -> None:
        """Labels 0..K-1 or -1 for padding, boxes x1 y1 x2 y2 in pixels, finite, with corners in that order."""
        check_boxes(targets, sizes, self.num_classes)

    def matched(self, raw: Any, targets: BoxTargets) -> Matched:
        """What each anchor is to say."""
        targets = at_least_one(targets)
        return matched_to(raw.anchors, targets, *self.assignment(raw, targets))

    def assignment(self, raw: Any, targets: BoxTargets) -> Assignment:
        """The box of each anchor, by ``matching``. A head that matches by what it predicts (SimOTA) overrides this; targets have
        at least one row."""
        return self._matching(raw.anchors, targets)

    def _matching(self, anchors: Tensor, targets: BoxTargets) -> Assignment:
        boxes, labels, crowd = targets
        return self.matching(anchors, boxes, (labels >= 0) & ~crowd, crowd if self.crowd_ignore else None)

    def select(self, raw: Any, rows: Tensor) -> Any:
        """Rows of all but the anchors, which are those of every image."""
        parts = {
            name: super(DenseHead, self).select(part, rows) for name, part in raw._asdict().items() if name != "anchors"
        }
        return raw._replace(**parts)

    # --- the teacher -------------------------------------------------------------------------------------------------

    def check_teacher(self, teacher: Head) -> None:
        """As :meth:`Head.check_teacher`: the same anchors, logits and way of writing boxes. The teacher pads images as this head does from
        here on, so that their cells are the same."""
        super().check_teacher(teacher)
        if not isinstance(teacher, DenseHead):
            what = f"{type(teacher).__name__} is not dense: it has no anchors to compare with"
            raise UserError("optim.distill.teacher", what, "give a dense detector")
        ours, theirs = (
            (head.strides, head._counts, head.center, cast(Tensor, head._shapes).tolist()) for head in (self, teacher)
        )
        if ours != theirs:
            told = [f"strides {list(head.strides)} with {head._counts} a cell" for head in (teacher, self)]
            same = told[0] == told[1]
            what = (
                "its anchors have other sides or places"
                if same
                else f"its anchors are {told[0]}, the student's {told[1]}"
            )
            both = "head with the same options" if type(teacher) is type(self) else "head"
            remedy = f"give both the same {both}, or set optim.distill.weight 0 and name optim.distill.features"
            raise UserError("optim.distill.teacher", what, remedy)
        kinds = [(head.coder, type(head.class_loss).__name__) for head in (self, teacher)]
        if kinds[0] != kinds[1]:
            what = f"writes boxes and classes as {kinds[1]}, the student as {kinds[0]}"
            raise UserError("optim.distill.teacher", what, "give a teacher with the same head")
        teacher.size_divisor, teacher.min_size = self.size_divisor, self.min_size

    def distill(
        self, raw: Any, teacher: Any, targets: BoxTargets | Matched, sizes: ImageSizes, temperature: float | None = None
    ) -> dict[str, Tensor]:
        """``distill``: the focal form on all class logits (of a softmax its divergence), and where boxes are rated the divergence of the
        ratings of positives; ``distill_box``: GIoU between the boxes of student and teacher at positive anchors, as Wang et al.,
        "CrossKD", 2023, pull boxes. All divided by :meth:`normaliser`, anchors in crowds left out as :meth:`loss` does."""
        matched, warmth = self.prepare(raw, targets, sizes), temperature or self.distill_temperature
        positive, count = matched.positive, self.normaliser(matched)
        if raw.logits.shape[2] == self.num_classes:  # no column of background
            scores = quality_focal_sum(raw.logits, teacher.logits, warmth, matched.ignored)
        else:
            each = softmax_divergence(raw.logits, teacher.logits, warmth, 2)
            scores = (each if matched.ignored is None else each.masked_fill(matched.ignored, 0.0)).sum()
        if hasattr(raw, "quality"):
            rated = sigmoid_divergence(raw.quality, teacher.quality, warmth)
            scores = scores + torch.where(positive, rated, 0.0).sum()
        ours, theirs = (
            self.coder.decode(torch.where(positive[..., None], each.float(), 0.0), raw.anchors)
            for each in (raw.deltas, teacher.deltas.detach())
        )
        # A box without extent overlaps nothing, not even itself.
        sound = positive & (theirs[..., 2:] > theirs[..., :2]).all(-1) & (areas(theirs) > LEAST_AREA)
        apart = torch.where(sound, iou_loss(ours, theirs, "giou"), 0.0).sum()
        return {"distill": scores / count, "distill_box": apart / count}

    # --- the detections ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, raw: Any, sizes: ImageSizes) -> Detections:
        """``max_detections`` rows per image, clipped to its valid extent before suppression. Anchors whose output is not finite
        are passed over. Computed in float32."""
        evidence, deltas, count = self.evidence(raw), raw.deltas.float(), self.selection.pre_nms
        decode, probability = self.coder.decode, self.probability
        found = candidates(evidence, deltas, raw.anchors, sizes.valid, count, decode=decode, probability=probability)
        return self.selection(found, self.num_classes)

    def evidence(self, raw: Any) -> Tensor:
        """Values float32 [B, A, K] by which anchor-class pairs are ranked."""
        return self.class_loss.evidence(raw.logits.float())

    def probability(self, evidence: Tensor) -> Tensor:
        """Scores of such values, rising with them. A head that overrides :meth:`evidence` overrides this too."""
        return self.class_loss.probability(evidence)

    # --- the data ----------------------------------------------------------------------------------------------------

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        """The size of the EfficientDet that was published on the backbone, letterboxed, bilinear; mean and std of its weights."""
        return letterboxed(spec, variant_for(self.spec.backbone).resolution)

    @torch.no_grad()
    def diagnose(self, targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        """``best_anchor_iou`` float32 [B, M]: each box's IoU with the anchor that fits it best, of a head that matches by overlap.
        ``anchors`` int64 [B, M]: how many are to predict it, of one that matches before it predicts. -1 for padding and crowds."""
        rows, targets = targets.labels.shape[1], at_least_one(targets)
        boxes, labels, crowd = targets
        anchors, usable, figures = self._anchors_for(sizes).to(boxes), (labels >= 0) & ~crowd, {}
        if isinstance(self.matching, IouMatching):
            best = [pairwise_iou(boxes[:, part], anchors).amax(2) for part in box_slices(boxes, anchors)]
            figures["best_anchor_iou"] = torch.where(usable, torch.cat(best, 1), -1.0)[:, :rows]
        if self._matches_first():
            match = self._matching(anchors, targets).match
            given = torch.zeros(len(boxes), boxes.shape[1] + 1, dtype=torch.int64, device=boxes.device)
            given.scatter_add_(1, match + 1, torch.ones_like(match))
            figures["anchors"] = torch.where(usable, given[:, 1:], -1)[:, :rows]
        return figures

    @classmethod
    def _matches_first(cls) -> bool:
        """Whether anchors get their boxes before anything is predicted."""
        return cls.assignment is DenseHead.assignment and cls.matched is DenseHead.matched


def matched_to(anchors: Tensor, targets: BoxTargets, match: Tensor, ignored: Tensor | None) -> Matched:
    """Anchors [A, 4] with the boxes and labels that ``match`` [B, A] says."""
    positive, index = match >= 0, match.clamp(min=0)
    own = torch.where(positive[..., None], targets.boxes.gather(1, index[..., None].expand(-1, -1, 4)), anchors)
    return Matched(positive, own, torch.where(positive, targets.labels.gather(1, index), -1), ignored)


def joint_evidence(logits: Tensor, quality: Tensor) -> Tensor:
    """Logarithm of sigmoid(``logits``) [B, A, K] times sigmoid(``quality``) [B, A]: float32 [B, A, K]."""
    return F.logsigmoid(logits.float()) + F.logsigmoid(quality.float())[..., None]


def map_sizes(image: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Cells (h, w) of each level of an image of (H, W) pixels."""
    return [(-(-image[0] // stride), -(-image[1] // stride)) for stride in strides]


def at_least_one(targets: BoxTargets) -> BoxTargets:
    """The same targets with a row of padding if they have no row at all."""
    if targets.labels.shape[1]:
        return targets
    boxes, labels, crowd = targets
    return BoxTargets(F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1), F.pad(crowd, (0, 1)))
