"""The objective of a run, and the one that has a teacher: a trained model that the network learns from beside the labels.

The teacher sees the images that the student sees, after augmentation, prepared with its own mean and deviation; it is in eval mode, its
batch norms folded, and nothing of it changes. Its forward pass is its own also where the student began from it: the two backbones
are equal only while the student's is frozen as a whole, and then there is no smaller network to train.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effbackbones.checkpoint import load_model
from effbackbones.contracts import Head
from effbackbones.errors import UserError, nearest
from effbackbones.model import Model
from effbackbones.multihead import MultiHead
from effbackbones.registry import TASKS
from tasks.data.batch import Batch
from tasks.engine.assembly import checkpoint_file
from tasks.engine.cost import multiply_adds
from tasks.engine.stepping import Supervised
from tasks.engine.student import Adapters
from tasks.settings.distill import DistillConfig
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import say

TEACHER = "optim.distill.teacher"
FEATURES = "distill_features"
"""The loss of the maps."""
_LEAST_POWER = 1e-6  # of a teacher's map per value, so that one that is 0 everywhere divides by something


@dataclass
class Distilled(Supervised):
    """The head's losses against the targets, and those against what ``teacher`` says of the same images.

    ``adapters``: of the maps that are compared; ``digest`` of the teacher's file, which a continued run must still have.
    """

    said: DistillConfig
    teacher: Model
    adapters: Adapters | None
    digest: str

    def __call__(self, model: Any, batch: Batch, step: int) -> Mapping[str, Tensor]:
        images, targets = self.task.augment(self.config, batch, model.head.num_classes, step)
        with torch.no_grad():  # first, for nothing of it is kept
            weighed = self.said.weight > 0
            shown, theirs = (
                self.teacher.with_features(images, batch.sizes) if weighed else (self.teacher.maps(images), None)
            )
        given = model(images, batch.sizes)
        raw, maps = given if self.adapters else (given, {})
        if self.said.weight:
            targets = model.head.prepare(raw, targets, batch.sizes)  # once for both
        losses = dict(model.head.loss(raw, targets, batch.sizes))
        if self.said.weight:
            found = model.head.distill(raw, theirs, targets, batch.sizes, self.said.temperature)
            losses |= {name: self.said.weight * value for name, value in found.items()}
        if maps:
            named = dict(zip(self.teacher.backbone.feature_spec.names, shown, strict=True))
            apart = [distance(own, named[level]) for level, own in maps.items()]
            losses[FEATURES] = self.said.features_weight * torch.stack(apart).mean()
        return losses

    @torch.no_grad()
    def count(self, head: Head, batch: Batch, step: int) -> Mapping[str, Tensor]:
        _, targets = self.task.augment(self.config, batch, head.num_classes, step)
        counts = dict(head.count(targets, batch.sizes))
        if self.adapters:
            counts[FEATURES] = batch.sizes.valid.new_full((), len(batch))
        return counts

    def divisor(self, head: Head, name: str, count: Tensor) -> Tensor:
        return count if name == FEATURES else super().divisor(head, name, count)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two maps [B, C, H, W] as a share of the teacher's own square, averaged over images: 1 for a student that says
    0 everywhere. What one is larger by, because its images were padded further, is left out. Float32.

    Romero et al., "FitNets: hints for thin deep nets", 2015, equation 3; as a share, so that a weight means the same on each level.
    """
    height, width = (min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
    own, wanted = (each[..., :height, :width].float() for each in (student, teacher.detach()))
    power = wanted.square().mean((1, 2, 3)).clamp(min=_LEAST_POWER)
    return ((own - wanted).square().mean((1, 2, 3)) / power).mean()


def objective_of(task: TaskSpec, config: Config, model: Model, tell: Callable[[str], None] = say) -> Supervised:
    """What a run of ``config`` makes smaller, on the device that ``model`` is on. A teacher that cannot be one raises
    :class:`UserError`."""
    said = config.optim.distill
    if said.teacher is None:
        return Supervised(task, config)
    file = checkpoint_file(said.teacher)
    teacher = _read(file, said)
    names = teacher.classes
    if said.weight:
        teacher = _for_heads(teacher, model)
    sizes = [sum(p.numel() for p in one.parameters()) / 1e6 for one in (teacher, model)]
    # A copy: what it is told of padding is not for the model that others may hold. Nets that only trained it teach their like.
    teacher = teacher.folded_copy(whole=True)
    for where, own, theirs in _differences(model, teacher):
        tell(f"the teacher was trained on {where} {theirs}, and sees {own}")
    channels = len(teacher.image_spec.mean), len(model.image_spec.mean)
    if channels[0] != channels[1]:
        what = f"{file} takes images of {channels[0]} channels, the student's have {channels[1]}"
        raise UserError(TEACHER, what, "give a teacher that was trained on such images")
    if said.weight:
        model.head.check_teacher(teacher.head)
        _check_classes(model, teacher, names, tell)
    _check_levels(said.features, model, teacher)
    device = next(model.parameters()).device
    adapters = Adapters(said.features, model.backbone, teacher.backbone).to(device) if said.features else None
    teacher = teacher.to(device)
    for line in _told(file, model, teacher, sizes, adapters):
        tell(line)
    return Distilled(task, config, said, teacher, adapters, _digest(file))


def _read(file: Path, said: DistillConfig) -> Model:
    try:
        return load_model(file)
    except UserError as error:
        raise UserError(f"{TEACHER}: {error}") from None


def _for_heads(teacher: Model, student: Model) -> Model:
    """The teacher with the heads that the student has: one of several, or one as if it were several."""
    ours, theirs = student.config["task"], teacher.config["task"]
    head: Any = teacher.head
    if isinstance(ours, str) and not isinstance(theirs, str) and ours in theirs:
        head = head.heads[ours]
    elif not isinstance(ours, str) and isinstance(theirs, str):
        head = MultiHead(head.spec, {theirs: head})
    if not set(_words(ours)) & set(_words(theirs)):
        what = f"is a model for {_named(theirs)}, the student is for {_named(ours)}"
        raise UserError(TEACHER, what, "give a teacher of the same task, or learn from its features alone (weight 0)")
    made = Model(teacher.backbone, head, image_spec=teacher.image_spec, config=teacher.config)
    made.reading = teacher.reading
    return made


def _words(task: Any) -> tuple[str, ...]:
    return (task,) if isinstance(task, str) else tuple(task)


def _named(task: Any) -> str:
    return " and ".join(TASKS.get(word).command if word in TASKS.names() else word for word in _words(task))


def _by_task(model: Model, classes: Any) -> dict[str, Any]:
    return dict(classes) if isinstance(classes, Mapping) else {_words(model.config["task"])[0]: classes}


def _check_classes(model: Model, teacher: Model, names: Any, tell: Callable[[str], None]) -> None:
    """Refuse a teacher whose classes have other names or another order; tell where it has no names, and what it does not know."""
    ours, theirs = _by_task(model, model.classes), _by_task(teacher, names)
    for word, own in ours.items():
        if word not in theirs:
            tell(f"the teacher knows nothing of {_named(word)}, which learns from its labels alone")
        elif theirs[word] is None or own is None:
            tell(
                f"warning: the teacher does not name its classes: {model.head.num_classes} in the student's order are assumed"
            )
        elif tuple(theirs[word]) != tuple(own):
            first = next((pair for pair in zip(own, theirs[word], strict=False) if pair[0] != pair[1]), None)
            known = "in another order" if sorted(theirs[word]) == sorted(own) else "others"
            shown = f", such as {first[1]!r} where the student has {first[0]!r}" if first else ""
            what = f"its {len(theirs[word])} classes are {known} than the student's {len(own)}{shown}"
            raise UserError(TEACHER, what, "give a teacher that was trained on the same classes")


def _check_levels(levels: tuple[str, ...], model: Model, teacher: Model) -> None:
    """Refuse levels that one of the two lacks, or has at another stride."""
    where, specs = "optim.distill.features", (model.backbone.feature_spec, teacher.backbone.feature_spec)
    for level in levels:
        for whose, spec in zip(("student", "teacher"), specs, strict=True):
            if level not in spec.names:
                raise UserError(where, f"the {whose}'s backbone does not give {level}", nearest(level, spec.names))
        ours, theirs = (spec.strides[spec.names.index(level)] for spec in specs)
        if ours != theirs:
            what = f"{level} has stride {theirs} in the teacher and {ours} in the student"
            raise UserError(where, what, "name another level, or give both the same output_stride and stem_stride")


def _differences(model: Model, teacher: Model) -> list[tuple[str, Any, Any]]:
    """What of the images is not as the teacher was trained: told, for it is no reason to stop."""
    found: list[tuple[str, Any, Any]] = []
    if teacher.image_spec.size != model.image_spec.size:
        ours, theirs = (f"{one.image_spec.size[0]} x {one.image_spec.size[1]}" for one in (model, teacher))
        found.append(("images of", ours, theirs))
    if teacher.reading is not None and model.reading is not None and teacher.reading != model.reading:
        found.append(("images read as", model.reading, teacher.reading))
    return found


def _told(file: Path, model: Model, teacher: Model, counts: Sequence[float], adapters: Adapters | None) -> list[str]:
    """Who teaches, and what that costs; ``counts``: millions of parameters of teacher and student as they were made."""
    size, training = model.image_spec.size, model.training
    model.eval()  # batch norms are not to learn from an image of zeros
    work = [multiply_adds(one, *size) / 1e9 for one in (teacher, model)]
    model.train(training)
    names = [one.config.get("backbone") for one in (teacher, model)]
    line = f"teacher {file}: {names[0]}, {counts[0]:.2f} M parameters, student {names[1]}, {counts[1]:.2f} M"
    cost = f"a step takes {work[0]:.3g} G multiply-adds an image more, beside about {3 * work[1]:.3g} G of the student there and back"
    lines = [f"{line}; {cost}"]
    if adapters:
        extra = sum(p.numel() for p in adapters.parameters())
        lines.append(
            f"maps of {', '.join(adapters)} through adapters of {extra:,} parameters, which no model file keeps"
        )
    return lines


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
