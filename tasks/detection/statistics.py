"""What the boxes of a data set are like."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effbackbones.contracts import BoxTargets, Head, ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan, Size
from effbackbones.model import Model
from tasks.data.boxes.table import BoxTable, xyxy
from tasks.data.dataset import Dataset
from tasks.data.sampling import spread
from tasks.settings.sections import Config

LOOKED_AT = 1000
"""Images whose boxes are held against the anchors."""
READ = 32
"""Images that are read where a data set has no table."""
_CHUNK = 64  # boxes, padding included, that are compared with all anchors at once: 0.3 GB at D7x


@dataclass(frozen=True)
class BoxStatistics:
    """What the boxes of a data set are like. Sides [N, 2] (width, height) float64: ``original`` in pixels of the files,
    ``network`` in pixels as the network sees them. ``best_iou`` [N]: IoU with the best anchor, empty where the head has none.
    ``repairs``: what was dropped or clipped on reading, a row for each kind. ``anchors`` int64 [N]: how many anchors or points are to
    predict each, empty where that depends on what is predicted. ``contested`` and ``too_large`` bool [N]: boxes that share their only
    point, and those that no point can say, empty where the head does not tell."""

    original: NDArray[np.float64]
    network: NDArray[np.float64]
    best_iou: NDArray[np.float64]
    repairs: Sequence[Mapping[str, Any]] = field(default_factory=list)
    anchors: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    contested: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    too_large: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def statistics(config: Config, model: Model, dataset: Dataset) -> BoxStatistics:
    """Sides of the boxes in original pixels and as the network sees them, and what the head says of its anchors for them; over at most
    :data:`LOOKED_AT` images, crowds left out."""
    originals, resized = [np.zeros((0, 2))], [np.zeros((0, 2))]
    ious, given = [np.zeros(0)], [np.zeros(0, np.int64)]
    contested, too_large = [np.zeros(0, np.bool_)], [np.zeros(0, np.bool_)]
    size, table = model.image_spec.size, getattr(dataset, "table", None)
    limit = LOOKED_AT if isinstance(table, BoxTable) else READ
    for chunk in _chunks(dataset, size, min(limit, max(READ, _budget(size))), config.data.on_error):
        boxes = np.concatenate([plan.apply_boxes(boxes) for plan, boxes in chunk])
        resized.append(boxes[:, 2:] - boxes[:, :2])
        originals.append(np.concatenate([boxes[:, 2:] - boxes[:, :2] for _, boxes in chunk]))
        figures = _figures(model.head, chunk, size)
        ious.append(figures.get("best_anchor_iou", ious[0]).astype(np.float64))
        given.append(figures.get("anchors", given[0]))
        contested.append(figures.get("contested", contested[0]))
        too_large.append(figures.get("too_large", too_large[0]))
    repairs = table.repairs.rows() if isinstance(table, BoxTable) else []
    return BoxStatistics(
        original=np.concatenate(originals),
        network=np.concatenate(resized),
        best_iou=np.concatenate(ious),
        repairs=repairs,
        anchors=np.concatenate(given),
        contested=np.concatenate(contested),
        too_large=np.concatenate(too_large),
    )


_Chunk = list[tuple[ResizePlan, NDArray[np.float32]]]


def _budget(size: Size) -> int:
    """Images whose boxes can be compared with all anchors of a size in seconds: all of :data:`LOOKED_AT` up to 640 pixels."""
    return LOOKED_AT * 640 * 640 // (size[0] * size[1])


def _chunks(dataset: Dataset, size: Size, limit: int, on_error: str) -> Iterator[_Chunk]:
    """Boxes [m, 4] xyxy of images spread over the data set, with their letterbox, at most :data:`_CHUNK` boxes at a time, none
    empty; images without boxes, and with ``on_error`` ``skip`` unreadable ones, are left out."""
    chunk: _Chunk = []
    for index in spread(len(dataset), limit).tolist():
        try:
            boxes, original = _boxes_of(dataset, index)
        except UserError:
            if on_error == "stop":
                raise
            continue
        plan = ResizePlan.letterbox(original, size)
        for part in np.array_split(boxes, -(-len(boxes) // _CHUNK)) if len(boxes) else ():
            if chunk and (len(chunk) + 1) * max(len(part), *(len(found) for _, found in chunk)) > _CHUNK:
                yield chunk
                chunk = []
            chunk.append((plan, part))
    if chunk:
        yield chunk


def _boxes_of(dataset: Dataset, index: int) -> tuple[NDArray[np.float32], Size]:
    """Boxes float32 [m, 4] xyxy of one image, crowds left out, and its size; from the table where that knows the size."""
    table = getattr(dataset, "table", None)
    if isinstance(table, BoxTable) and (table.sizes[index] > 0).all():
        rows = table.rows(index)
        return xyxy(table.boxes[rows][~table.crowd[rows]]).astype(np.float32), (
            int(table.sizes[index, 0]),
            int(table.sizes[index, 1]),
        )
    sample = dataset[index]
    height, width = sample.image.shape[:2]
    if sample.boxes is None:
        return np.zeros((0, 4), np.float32), (height, width)
    return (sample.boxes if sample.crowd is None else sample.boxes[~sample.crowd]), (height, width)


def _figures(head: Head, chunk: _Chunk, size: Size) -> dict[str, NDArray[Any]]:
    """What the head says of its anchors for each box of a chunk, by name."""
    most = max(len(boxes) for _, boxes in chunk)
    boxes, labels = torch.zeros(len(chunk), most, 4), torch.full((len(chunk), most), -1)
    for row, (plan, found) in enumerate(chunk):
        boxes[row, : len(found)] = torch.from_numpy(plan.apply_boxes(found))
        labels[row, : len(found)] = 0
    valid = torch.tensor([plan.valid for plan, _ in chunk])
    device = next(head.parameters()).device
    targets = BoxTargets(boxes.to(device), labels.to(device), torch.zeros_like(labels, dtype=torch.bool, device=device))
    figures = head.diagnose(targets, ImageSizes(size, valid.to(device)))
    return {name: values.cpu()[labels >= 0].numpy() for name, values in figures.items()}
