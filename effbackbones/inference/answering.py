"""From a batch of prepared images to one result for each: the network, and the way back to original pixels."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from effbackbones.contracts import Detections, ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.classsets import members
from effbackbones.images.geometry import IGNORE
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.boxes import FoundBoxes, restore_boxes
from effbackbones.inference.finite import NOT_FINITE, REMEDY, finite_rows
from effbackbones.inference.masks import Segmented, mask_of_tiles, restore_mask
from effbackbones.inference.preparing import Placed
from effbackbones.inference.results import RESULTS, Boxes, Classes, Mask, Masks, Result, Values
from effbackbones.inference.thresholds import BOXES, SURE, thresholds_of
from effbackbones.inference.timelines import Timeline, stitched
from effbackbones.model import Model
from effbackbones.multihead import MultiHead

LIMITED = frozenset({"cls", "det", "seg"})
"""Tasks whose results a threshold, or a number of them, can limit."""
Answer = Result | dict[str, Result] | UserError
"""A result, of several heads a dict by task, or what is wrong."""


@dataclass(frozen=True)
class Wishes:
    """How results are wanted: ``threshold`` (a score, or None for the model's own,
    :mod:`effbackbones.inference.thresholds`), ``top_k`` of an image, ``probabilities``
    (of every class in every pixel)."""

    threshold: float | None = None
    top_k: int | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError("threshold", f"expected 0 to 1, got {self.threshold}", "correct it")
        if self.top_k is not None and self.top_k < 1:
            raise UserError("top_k", f"expected at least 1, got {self.top_k}", "correct it")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of a prediction: ``fp32``, ``bf16``, ``fp16``, or ``auto``, bf16 on a GPU that has it, as the commands do."""
    known = {"auto", "fp32", "bf16", "fp16"}
    if precision not in known:
        raise UserError("precision", f"unknown value {precision!r}", f"one of {', '.join(sorted(known))}")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision", "fp16 needs a GPU", "set it to fp32 or bf16")
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@torch.no_grad()
def answers(
    model: Model,
    images: Tensor,
    batch: Sequence[Placed],
    classes: Any,
    wishes: Wishes,
    *,
    reading: ReadingSpec,
    batch_size: int,
) -> list[Answer]:
    """A result for each of ``images`` [B, C, H, W], which ``batch`` says the places of, or what is wrong with its prediction."""
    images = images.to(device_of(model), non_blocking=True, memory_format=torch.channels_last)
    fine, frames = [True] * len(batch), None
    if reading.tile is not None and model.head.task == "seg":
        keep, overlap = wishes.probabilities, reading.tile_overlap
        over = over_of(model, "seg", wishes)
        found: Any = [
            mask_of_tiles(model, image, reading.tile, overlap, batch_size, keep=keep, over=over) for image in images
        ]
    else:
        found, fine, frames = asked(model, images, batch)
    rows = results_of(model, found, batch, classes, wishes)
    if frames is not None:
        rows = [timed(model, row, [part], [one]) for row, part, one in zip(rows, frames, batch, strict=True)]
    return [row if ok else not_finite(one) for row, ok, one in zip(rows, fine, batch, strict=True)]


def over_of(model: Model, word: str, wishes: Wishes) -> tuple[float, ...] | None:
    """The thresholds of the classes of a model's head; None where it has none."""
    found = thresholds_of(model, wishes.threshold).get(word)
    return None if found is None else found.values


def device_of(model: Model) -> torch.device:
    """Where a model is."""
    return next(model.parameters()).device


class Asked(NamedTuple):
    """What a head predicts of a batch, for which images its raw output is finite, and where it says when something is heard the scores of
    frames [B, K, F]."""

    found: Any
    fine: list[bool]
    frames: Tensor | None


def asked(model: Model, images: Tensor, batch: Sequence[Placed]) -> Asked:
    """What a network predicts of ``images`` [B, C, H, W]."""
    valid = torch.tensor([one.plan.valid for one in batch], dtype=torch.int64, device=images.device)
    height, width = images.shape[-2:]
    sizes = ImageSizes((height, width), valid)
    raw = model(images, sizes)
    # A score that is no number is below every threshold: looked at before anything is selected.
    fine = finite_rows(raw, len(batch))
    return Asked(model.head.predict(raw, sizes), fine, model.head.timeline(raw, sizes))


def timed(model: Model, result: Answer, frames: Sequence[Tensor], windows: Sequence[Placed]) -> Answer:
    """The result of a recording with the scores of frames [K, F] of its windows."""
    rate = model.image_spec.rate
    if rate is None or not isinstance(result, Classes):
        return result
    step, centre, length = model.head.frame_step, model.head.frame_centre, windows[0].plan.original[1]
    parts = [part.detach().float().cpu().numpy() for part in frames]
    scores = stitched(parts, [one.plan.offset[1] for one in windows], step, centre, length)
    return replace(result, timeline=Timeline(scores, step / rate, length / rate, centre / rate))


def results_of(model: Model, found: Any, batch: Sequence[Placed], classes: Any, wishes: Wishes) -> list[Answer]:
    """Results of images by what a head predicts of them; of several heads by task."""
    head: Any = model.head
    if not isinstance(head, MultiHead):
        over = over_of(model, head.task, wishes)
        return list(_of_task(head, head.task, found, batch, classes, wishes, over))
    parts = {
        word: _of_task(head.heads[word], word, found[word], batch, classes[word], wishes, over_of(model, word, wishes))
        for word in found
    }
    return [_by_task({word: rows[row] for word, rows in parts.items()}) for row in range(len(batch))]


def not_finite(one: Placed) -> UserError:
    """What is wrong with an image whose prediction means nothing."""
    return UserError(one.source.name, NOT_FINITE, REMEDY)


def _by_task(found: dict[str, Result | UserError]) -> Answer:
    """The results of an image by task; what is wrong with one of them, if anything is."""
    results: dict[str, Result] = {}
    for word, result in found.items():
        if isinstance(result, UserError):
            return result
        results[word] = result
    return results


def _of_task(
    head: Any,
    task: str,
    found: Any,
    batch: Sequence[Placed],
    classes: tuple[str, ...],
    wishes: Wishes,
    over: tuple[float, ...] | None,
) -> list[Result | UserError]:
    """The results of one head, whose classes count from ``over`` on."""
    if task in _MAKERS and task not in RESULTS:
        return _MAKERS[task](head, found, batch, classes, wishes, over)
    rows: list[Result | UserError] = []
    for row, one in enumerate(batch):
        mine = pytree.tree_map(lambda tensor, row=row: tensor[row].detach().cpu(), found)
        about: dict[str, Any] = {"source": one.source.name, "size": one.plan.original}
        about |= {"classes": classes, "original": one.source}
        registered = RESULTS.get(task)
        rows.append(registered(prediction=mine, plan=one.plan, **about) if registered else Values(**about, values=mine))
    return rows


def _classes(
    head: Any,
    found: Tensor,
    batch: Sequence[Placed],
    classes: tuple[str, ...],
    wishes: Wishes,
    over: tuple[float, ...] | None,
) -> list[Result | UserError]:
    several = bool(getattr(head, "multilabel", False))
    limits = over or (SURE if wishes.threshold is None else wishes.threshold,) * len(classes)
    rows: list[Result | UserError] = []
    for one, values in zip(batch, found.detach().float().cpu().numpy(), strict=True):
        if np.isfinite(values).all():
            about = (one.source.name, one.plan.original, classes, one.source)
            rows.append(Classes(*about, values.copy(), several, limits, wishes.top_k))
        else:
            rows.append(not_finite(one))
    return rows


def _boxes(
    head: Any,
    found: Detections | Sequence[FoundBoxes],
    batch: Sequence[Placed],
    classes: tuple[str, ...],
    wishes: Wishes,
    over: tuple[float, ...] | None,
) -> list[Result | UserError]:
    """``found``: detections of the images that the network got, or boxes of the original ones."""
    if isinstance(found, Detections):
        found = restore_boxes(found, [one.plan for one in batch])
    rows: list[Result | UserError] = []
    for one, boxes in zip(batch, found, strict=True):
        if not boxes.finite.all():
            rows.append(not_finite(one))
            continue
        chosen = np.flatnonzero(boxes.scores >= (wishes.threshold or 0.0))
        order = chosen[np.argsort(-boxes.scores[chosen], kind="stable")][: wishes.top_k]
        arrays = boxes.corners[order], boxes.scores[order], boxes.labels[order]
        about = (one.source.name, one.plan.original, classes, one.source)
        rows.append(Boxes(*about, *arrays, over[0] if over else BOXES))
    return rows


def _masks(
    head: Any,
    found: Any,
    batch: Sequence[Placed],
    classes: tuple[str, ...],
    wishes: Wishes,
    over: tuple[float, ...] | None,
) -> list[Result | UserError]:
    names = ("background", "foreground") if len(classes) == 1 and over is None else classes
    rows: list[Result | UserError] = []
    for one, scores in zip(batch, found, strict=True):
        if not isinstance(scores, Segmented):
            scores = restore_mask(scores, one.plan, keep=wishes.probabilities, name=one.source.name, over=over)
        labels, confidence = scores.labels.cpu().numpy(), scores.confidence.cpu().numpy()
        if not np.isfinite(confidence).all():
            rows.append(not_finite(one))
            continue
        kept = None if scores.probabilities is None else scores.probabilities.numpy()
        about = (one.source.name, one.plan.original, names, one.source)
        if over is not None:
            rows.append(Masks(*about, members(labels, len(names)), over, kept))
            continue
        labels = _decided(labels, confidence, wishes.threshold, binary=head.num_classes == 1)
        rows.append(Mask(*about, labels, confidence, kept))
    return rows


def _decided(labels: Any, confidence: Any, threshold: float | None, *, binary: bool) -> Any:
    """Labels by a threshold: of one channel the probability from which it is foreground; of several that below which a pixel has no
    class. What is not finite has none."""
    if threshold is not None and binary:
        labels = np.where(labels == 1, confidence, 1 - confidence) > threshold
    sure = confidence >= (0.0 if threshold is None or binary else threshold)  # False for NaN
    decided: Any = np.where(sure, labels, IGNORE).astype(np.uint8)
    return decided


_MAKERS: dict[str, Callable[..., list[Result | UserError]]] = {"cls": _classes, "det": _boxes, "seg": _masks}
