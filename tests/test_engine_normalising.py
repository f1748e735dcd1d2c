"""A batch in pieces, or shared by processes, has the losses and gradients of the same batch in one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from test_heads_segmentation import SMALL
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from effbackbones import list_heads
from effbackbones.conformance.case import HeadCase, default_spec, default_targets
from effbackbones.contracts import BoxTargets, ImageSizes, Labelled
from effbackbones.model import Model, MultiHead
from effbackbones.multihead import combine_needs
from effbackbones.registry import HEADS, TASKS
from tasks.data.batch import Batch
from tasks.engine.optimizers import SGD
from tasks.engine.order import Share
from tasks.engine.state import RunState
from tasks.engine.stepping import LateReader, Stepper, Supervised
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config

OPTIONS: dict[str, dict[str, Any]] = SMALL | {
    "efficientdet": {"channels": 16, "cells": 1, "repeats": 1, "levels": [3, 4, 5], "num_scales": 1},
    "retinanet": {"channels": 16, "repeats": 1, "levels": [3, 4, 5], "num_scales": 1},
    "ssd": {"levels": [3, 4, 5, 6], "extra_channels": [16]},
    "fcos": {"channels": 64, "repeats": 1, "levels": [3, 4, 5]},
    "yolo": {"channels": 16, "depth": 1, "repeats": 1},
    "classification": {"channels": 0},
    "sed": {},
}
QUICK = ("classification", "efficientdet", "unet", "fpn", "dpt", "segformer")
"""One of each kind of decoder; the others are slow."""
KINDS: list[Any] = [
    *(pytest.param(name, {}, 3, marks=[pytest.mark.slow] * (name not in QUICK)) for name in list_heads()),
    ("efficientdet", {"iou_loss": "ciou", "delta_loss": None, "crowd_ignore": True, "label_smoothing": 0.1}, 3),
    ("fcos", {"weigh_boxes": True, "crowd_ignore": True}, 3),
    ("yolo", {"nms_free": True, "dfl_bins": 4, "crowd_ignore": True, "alpha": 0.25}, 3),
    ("fpn", {"loss": ["cross_entropy", "focal*0.5"], "class_weights": [0.2, 3.0, 0.7], "label_smoothing": 0.1}, 3),
    ("fpn", {"loss": ["cross_entropy", "focal"], "mode": "multilabel", "class_weights": [0.2, 3.0, 0.7]}, 3),
    ("fpn", {"loss": ["cross_entropy", "focal"], "class_weights": [0.2, 3.0]}, 1),
    ("classification", {"channels": 0, "multilabel": True, "label_smoothing": 0.1}, 3),
]


def case(name: str, options: Mapping[str, Any], classes: int) -> HeadCase:
    head, options = HEADS.get(name), {**OPTIONS[name], **options}
    return HeadCase(head, default_spec(head, options), classes, options, default_targets(head.task))


def uneven(targets: Any, classes: int, options: Mapping[str, Any]) -> Any:
    """Of four images one has nearly all that there is to learn, and one nothing."""
    if isinstance(targets, BoxTargets):
        labels = targets.labels.clone()
        labels[0, 1:], labels[2, 2:] = -1, -1
        return targets._replace(labels=labels)
    if targets.ndim == 1:
        return F.one_hot(targets, classes).float() if options.get("multilabel") else targets
    masks = (targets % 2) if classes == 1 else targets
    masks[0, :, 3:], masks[2, 8:] = 255, 255
    if options.get("mode") != "multilabel":
        return masks
    several = F.one_hot(masks.clamp(max=2), 3).movedim(3, 1).float()
    return several.masked_fill((masks == 255)[:, None], 255.0)


def data(built: HeadCase, size: int = 4) -> Batch:
    torch.manual_seed(3)
    height, width = built.size(built.build())
    images = torch.rand(size, 3, height - 5, width)  # which most heads pad
    sizes = ImageSizes.of(images)
    made = built.make_targets(sizes, max(built.num_classes, 2), False)
    return Batch(images, sizes, uneven(made, built.num_classes, built.options))


def cut(batch: Batch, pieces: int) -> list[Batch]:
    rows = torch.arange(len(batch)).reshape(pieces, -1)
    return [part(batch, chosen) for chosen in rows]


def part(batch: Batch, rows: Tensor) -> Batch:
    targets = pytree.tree_map_only(Tensor, lambda tensor: tensor[rows], batch.targets)
    return Batch(batch.images[rows], batch.sizes.select(rows), targets)


def backward(
    model: Model, pieces: Sequence[Batch], config: Config | None = None, share: Share | None = None, tell: Any = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of the engine's step on a batch in ``pieces``."""
    model.zero_grad()
    state = RunState(model, SGD(model.parameters(), lr=0.1), None, None, share or Share(accumulate=len(pieces)))
    objective = Supervised(TASKS.get(model.head.task), config or Config())
    fabric = Fabric(accelerator="cpu", devices=1)
    stepper = Stepper(fabric, state, objective, LateReader(), lambda: 0, lambda step: 1.0, None, 0, tell=tell)
    losses, _ = stepper._backward(pieces)
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def agree(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        distance = float((found[name].double() - value.double()).abs().max())
        assert distance <= tolerance * max(float(value.abs().max()), 1e-3), (name, distance, value.abs().max())


def apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    return max(float((found[n] - v).abs().max() / v.abs().max().clamp(min=1e-9)) for n, v in expected.items())


@pytest.mark.parametrize(("name", "options", "classes"), KINDS)
def test_pieces_equal_the_whole_batch(name: str, options: dict[str, Any], classes: int) -> None:
    """Batch norm frozen, nothing dropped: losses and gradients to rounding, for every head of the registry."""
    built = case(name, options, classes)
    model, batch = built.model().eval(), data(built)
    told: list[str] = []
    losses, gradients = backward(model, [batch])
    for pieces in (2, 4):
        found, own = backward(model, cut(batch, pieces), tell=told.append)
        agree(found, losses, 3e-6)  # sums in another order
        agree(own, gradients)
    assert not told


def shared(rank: int) -> list[float]:
    """How far losses and gradients are from those of a single process: of a detector and of a joint model. For one of two processes
    (:mod:`test_engine_two_processes`)."""
    return [worst for model, batch in (detector(), joint()) for worst in apart_on(rank, model, batch)]


def shared_by_detectors(rank: int) -> list[float]:
    """The same of all dense detectors."""
    found = []
    for name, options in (*((name, {}) for name in ("retinanet", "fcos", "ssd", "yolo")), ("yolo", {"nms_free": True})):
        found += apart_on(rank, *detector(name, options))
    return found


def apart_on(rank: int, model: Model, batch: Batch) -> list[float]:
    """How far losses, and gradients, of one of two processes are from those of a single one."""
    losses, gradients = backward(model, [batch])
    quarters = [0, 3] if rank == 0 else [2, 1]
    pieces = [part(batch, torch.tensor([row])) if model.head.task == "det" else of(batch, [row]) for row in quarters]
    found, own = backward(model, pieces, share=Share(rank, 2, 2))
    worst = []
    for ours, theirs in ((found, losses), (own, gradients)):
        mean = {name: ours.get(name, torch.zeros_like(value)).clone() for name, value in theirs.items()}
        for value in mean.values():
            torch.distributed.all_reduce(value)
            value /= 2
        worst.append(apart(mean, theirs))
    return worst


def detector(name: str = "efficientdet", options: Mapping[str, Any] = {}) -> tuple[Model, Batch]:
    torch.manual_seed(0)
    built = case(name, options, 3)
    return built.model().eval(), data(built)


def joint(weights: Any = None, loss: Sequence[str] = ("cross_entropy",)) -> tuple[Model, Batch]:
    """Boxes in all of four images, masks in the first and the third, classes in the first three."""
    torch.manual_seed(0)
    names = {"det": "efficientdet", "seg": "fpn", "cls": "classification"}
    options = OPTIONS | {"fpn": {**OPTIONS["fpn"], "loss": loss}}
    needs = combine_needs({task: HEADS.get(name).requires(**options[name]) for task, name in names.items()})
    spec = default_spec(type("Needing", (), {"requires": staticmethod(lambda **_: needs)}), {})  # type: ignore[arg-type]
    heads = {}
    for task, name in names.items():
        levels = HEADS.get(name).requires(**options[name]).levels
        heads[task] = HEADS.get(name)(spec.select(levels), 3, **options[name])
    multi = MultiHead(spec, heads, weights)
    model = HeadCase(MultiHead, spec, 3, {}, lambda *_: None)._replace(head_class=lambda *_: multi).model().eval()  # type: ignore[arg-type]
    torch.manual_seed(3)
    images = torch.rand(4, 3, 64, 96)
    sizes = ImageSizes.of(images)
    made = {task: uneven(default_targets(task)(sizes, 3, False), 3, {}) for task in names}
    rows = {"det": [0, 1, 2, 3], "seg": [0, 2], "cls": [0, 1, 2]}
    targets = {task: Labelled(torch.tensor(rows[task]), part_of(made[task], rows[task])) for task in names}
    return model, Batch(images, sizes, targets)


def part_of(targets: Any, rows: list[int]) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[rows], targets)


def of(batch: Batch, rows: list[int]) -> Batch:
    """Some images of a joint batch; of tasks that label none of them, nothing."""
    targets: dict[str, Any] = {}
    for task, (known, own) in batch.targets.items():
        places = [known.tolist().index(row) for row in rows if row in known]
        kept = torch.tensor([at for at, row in enumerate(rows) if row in known])
        targets[task] = Labelled(kept, part_of(own, places)) if places else None
    return Batch(batch.images[rows], batch.sizes.select(torch.tensor(rows)), targets)


@pytest.mark.parametrize("weights", [{"seg": 0.3}, "uncertainty"], ids=str)
def test_each_task_has_its_own_count(weights: Any) -> None:
    """Also where images, or whole pieces, have no labels of a task; learned weights too. Dice is of each piece by itself."""
    model, batch = joint(weights, ["cross_entropy", "dice"])
    losses, gradients = backward(model, [batch])
    for pieces in ([[0], [1, 3], [2]], [[3, 0], [2, 1]]):
        told: list[str] = []
        found, own = backward(model, [of(batch, rows) for rows in pieces], tell=told.append)
        dice = "seg/dice"
        assert found[dice] == pytest.approx(losses[dice], rel=0.5)
        agree({name: found[name] for name in losses if name != dice}, {n: v for n, v in losses.items() if n != dice})
        assert [line.split(":")[1].split(";")[0] for line in told] == [
            " seg/dice (MultiHead) is the mean of what each has by itself"
        ]
        task = {name: g for name, g in gradients.items() if ".det." in name or ".cls." in name or "log_v" in name}
        agree(
            {name: own[name] for name in task if "seg" not in name}, {n: g for n, g in task.items() if "seg" not in n}
        )


def test_mixed_targets_and_smoothing_count_images() -> None:
    built = case("classification", {}, 3)
    model, batch = built.model().eval(), data(built)
    config = Config(data=DataConfig(mixup=0.4))
    losses, gradients = backward(model, [part(batch, torch.tensor([0, 0, 3, 3]))], config)
    pieces = [part(batch, torch.tensor([row, row])) for row in (0, 3)]  # mixed within a piece: with itself
    found, own = backward(model, pieces, replace(config))
    assert set(found) == set(losses) == {"cross_entropy"}
    assert own.keys() == gradients.keys()
    images = Supervised(TASKS.get("cls"), config).count(model.head, batch, 5)
    assert int(images["cross_entropy"]) == 4


def test_the_published_local_normaliser_is_an_option() -> None:
    """Each piece by its own positives plus 1, averaged: what detection did before, and what effdet does for each process."""
    model, batch = detector()
    whole, _ = backward(model, [batch])
    for option in (False, True):
        model.head.counted = () if option else model.head.counted
        told: list[str] = []
        found, _ = backward(model, cut(batch, 4), tell=told.append)
        means = torch.stack([torch.stack(list(model.loss(*triple(piece)).values())) for piece in cut(batch, 4)]).mean(0)
        wanted = dict(zip(whole, means.detach(), strict=True)) if option else whole
        agree(found, wanted, 1e-6)
        assert bool(told) == option
    assert apart(found, whole) > 0.2
    local = case("efficientdet", {"local_normaliser": True}, 3).build()
    assert local.counted == ()
    assert local.count(batch.targets, batch.sizes) == {}


def triple(batch: Batch) -> tuple[Tensor, Any, ImageSizes]:
    return batch.images, batch.targets, batch.sizes


@pytest.mark.parametrize("side", [64, 97, 130])
@pytest.mark.parametrize("levels", [[3, 4, 5], [2, 3, 4, 5, 6]])
def test_positives_are_counted_on_the_anchors_that_the_network_has(side: int, levels: list[int]) -> None:
    """The count that comes before the forward pass is that which the loss divides by, at sizes that are padded too."""
    torch.manual_seed(side)
    built = case("efficientdet", {"levels": levels, "crowd_ignore": True}, 3)
    model = built.model().eval()
    images = torch.rand(3, 3, side, side + 31)
    sizes = ImageSizes.of(images)
    targets = default_targets("det")(sizes, 3, False)
    with torch.no_grad():
        matched = model.head.matched(model(images, sizes), targets)
    assert {int(n) for n in model.head.count(targets, sizes).values()} == {int(matched.positive.sum())}
