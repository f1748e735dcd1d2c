"""From several looks at images to what each of them is found to be, in original pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from effbackbones.contracts import Detections
from effbackbones.errors import UserError
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.answering import Wishes, asked, device_of, not_finite, over_of
from effbackbones.inference.boxes import FoundBoxes, clipped, unbatched
from effbackbones.inference.fusing import fuse_boxes
from effbackbones.inference.masks import mask_of_tiled_views, mask_of_views
from effbackbones.inference.preparing import Placed, Prepared
from effbackbones.inference.results import Failed
from effbackbones.inference.slicing import merge_slices
from effbackbones.inference.views import Looks
from effbackbones.model import Model
from effbackbones.multihead import MultiHead


@dataclass(frozen=True)
class Merged:
    """An image, and what was ``found`` in it in its own pixels: probabilities [K], :class:`FoundBoxes`, a :class:`Segmented`, or these by
    task; where it means nothing, what is wrong. ``windows`` of a recording and the ``frames`` [K, F] of each, where the head says when
    something is heard."""

    place: Placed
    found: Any
    frames: Sequence[Tensor] = ()
    windows: Sequence[Placed] = ()


@torch.no_grad()
def merge_looks(
    model: Model, batch: Prepared, looks: Looks, wishes: Wishes, *, reading: ReadingSpec, batch_size: int
) -> list[Merged | Failed]:
    """One for each image of a batch whose places are the views of ``looks``, image by image.

    Probabilities of classes, of an image or of each of its pixels, are averaged over the looks. Slices of a look become boxes by
    :func:`effbackbones.inference.slicing.merge_slices`, and boxes of several looks by
    :func:`effbackbones.inference.fusing.fuse_boxes`, with the overlap at which the head itself suppresses. The network gets at most
    ``batch_size`` views at once.
    """
    tiled = reading.tile is not None and model.head.task == "seg"
    seen: dict[int, Any] = {}
    frames: dict[int, Tensor] = {}
    for row, found, times in _pictures(batch) if tiled else _predictions(model, batch, batch_size):
        seen[row] = found
        if times is not None:
            frames[row] = times
    merged: list[Merged | Failed] = []
    for _, group in groupby(range(len(batch)), key=lambda row: _image_of(batch.places[row], row)):
        rows = list(group)
        views = [one for row in rows if isinstance(one := batch.places[row], Placed)]
        if isinstance(failed := batch.places[rows[0]], Failed):
            merged.append(failed)
        elif any(seen[row] is None for row in rows):
            merged.append(Merged(views[0], not_finite(views[0])))
        elif tiled:
            merged.append(
                Merged(views[0], _tiled(model, [seen[row] for row in rows], views, wishes, reading, batch_size))
            )
        else:
            found = _of_heads(model, [seen[row] for row in rows], views, looks, wishes)
            merged.append(Merged(views[0], found, [frames[row] for row in rows if row in frames], views))
    return merged


def _image_of(place: Placed | Failed, row: int) -> int:
    """What tells the images of a batch apart: the views of one have the same source."""
    return id(place.source) if isinstance(place, Placed) else -row - 1


def _pictures(batch: Prepared) -> Iterator[tuple[int, Tensor, None]]:
    """Each view's own pixels, which are predicted in tiles."""
    for rows, images in batch.groups:
        yield from ((row, image, None) for row, image in zip(rows, images, strict=True))


def _predictions(model: Model, batch: Prepared, batch_size: int) -> Iterator[tuple[int, Any, Tensor | None]]:
    """What the network predicts of each view, in its pixels, None where that is not finite; and its scores of frames, if any."""
    device = device_of(model)
    for rows, images in batch.groups:
        for first in range(0, len(rows), batch_size):
            some = rows[first : first + batch_size]
            part = images[first : first + batch_size].to(device, non_blocking=True, memory_format=torch.channels_last)
            views = [one for row in some if isinstance(one := batch.places[row], Placed)]
            found, fine, frames = asked(model, part, views)
            fit = [one if ok else None for one, ok in zip(_rows(found), fine, strict=True)]
            yield from zip(some, fit, [None] * len(some) if frames is None else frames, strict=True)


def _rows(found: Any) -> list[Any]:
    """Predictions of a batch, one by one."""
    if isinstance(found, dict):
        parts = {word: _rows(one) for word, one in found.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    return unbatched(found) if isinstance(found, Detections) else list(found)


def _of_heads(model: Model, found: list[Any], views: Sequence[Placed], looks: Looks, wishes: Wishes) -> Any:
    """What each head's predictions of the views of an image make together, or what is wrong with them."""
    head: Any = model.head
    if not isinstance(head, MultiHead):
        return _of_head(head, found, views, looks, wishes, over_of(model, head.task, wishes))
    parts = {
        word: _of_head(
            head.heads[word], [one[word] for one in found], views, looks, wishes, over_of(model, word, wishes)
        )
        for word in found[0]
    }
    wrong = [one for one in parts.values() if isinstance(one, UserError)]
    return wrong[0] if wrong else parts


def _of_head(
    head: Any,
    found: list[Any],
    views: Sequence[Placed],
    looks: Looks,
    wishes: Wishes,
    over: tuple[float, ...] | None,
) -> Any:
    if head.task == "cls":
        return torch.stack([one.detach().float() for one in found]).mean(0)
    if head.task == "seg":
        pairs = [(one.detach(), view.plan) for one, view in zip(found, views, strict=True)]
        return mask_of_views(pairs, keep=wishes.probabilities, name=views[0].source.name, over=over)
    if not all(one.finite.all() for one in found):
        return not_finite(views[0])
    if looks.slices:
        boxes = _sliced(found, views, looks, head.merge_iou)
        return boxes[0] if len(boxes) == 1 else fuse_boxes(boxes, head.merge_iou)
    return fuse_boxes(_restored(found, views), head.merge_iou).first(head.merge_most)


def _restored(found: Sequence[FoundBoxes], views: Sequence[Placed]) -> list[FoundBoxes]:
    """The boxes of each view in original pixels."""
    return [
        one._replace(corners=clipped(view.plan.restore_boxes(one.corners), view.plan.original))
        for one, view in zip(found, views, strict=True)
    ]


def _sliced(found: list[FoundBoxes], views: Sequence[Placed], looks: Looks, iou: float) -> list[FoundBoxes]:
    """The boxes of each scan of slices in original pixels."""
    merged, first = [], 0
    for scan in looks.scans(views[0].plan.original):
        mine = found[first : first + len(scan.views)]
        assert scan.grid is not None
        assert scan.back is not None
        overview = None
        if scan.overview:
            whole = mine.pop()
            corners = scan.back.apply_boxes(scan.views[-1].restore_boxes(whole.corners))
            overview = whole._replace(corners=clipped(corners, scan.back.scaled))
        boxes = merge_slices(scan.grid, mine, iou, overview)
        corners = clipped(scan.back.restore_boxes(boxes.corners), scan.back.original)
        merged.append(boxes._replace(corners=corners))
        first += len(scan.views)
    return merged


def _tiled(
    model: Model,
    found: list[Tensor],
    views: Sequence[Placed],
    wishes: Wishes,
    reading: ReadingSpec,
    batch_size: int,
) -> Any:
    """The classes of an image from looks that are predicted in tiles."""
    assert reading.tile is not None
    pairs = [(image, view.plan) for image, view in zip(found, views, strict=True)]
    over = over_of(model, "seg", wishes)
    return mask_of_tiled_views(
        model, pairs, reading.tile, reading.tile_overlap, batch_size, keep=wishes.probabilities, over=over
    )
