"""Detections in pixels of the original images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from effbackbones.contracts import Detections
from effbackbones.images.geometry import Size
from effbackbones.images.video import Moment
from effbackbones.inference.boxes import FoundBoxes, restore_boxes
from effbackbones.inference.results import Boxes
from tasks.data.batch import Batch
from tasks.report.spool import Spool


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image, in pixels of the original: ``size`` (H, W), ``boxes`` float64 [n, 4] as x, y, width, height,
    ``scores`` float64 [n], ``labels`` int64 [n] in 0..K-1. ``id`` of the image; ``file``: where it lies, if that is known; ``moment`` of a
    frame of a video."""

    id: str
    size: Size
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    file: str = ""
    moment: Moment | None = None


class KnownImages(Protocol):
    """What a results file may speak of: ``ids`` and ``files`` of images (in the same order), their ``sizes`` [I, 2] (H, W), and
    ``category_ids``, the number in files of each label."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def files(self) -> Sequence[str]: ...

    @property
    def sizes(self) -> NDArray[np.integer[Any]]: ...

    @property
    def category_ids(self) -> Sequence[int]: ...


def restore(batch: Batch, detections: Detections) -> list[ImageDetections]:
    """Detections of a batch in original pixels, by :func:`effbackbones.inference.boxes.restore_boxes`.

    An image that was transformed in a way that cannot be undone raises :class:`UserError`.
    """
    return merged(batch, restore_boxes(detections, batch.plans()))


def merged(batch: Batch, found: Sequence[FoundBoxes]) -> list[ImageDetections]:
    """The same of boxes that are in original pixels already."""
    return [
        ImageDetections(meta.id, meta.original, _xywh(one.corners), one.scores, one.labels, meta.path)
        for meta, one in zip(batch.meta, found, strict=True)
    ]


def detections_of(result: Boxes) -> ImageDetections:
    """What a predictor found, in the form of a results file."""
    boxes, moment = _xywh(result.boxes), result.moment
    file = "" if moment is not None and moment.live else result.source
    return ImageDetections(result.source, result.size, boxes, result.scores, result.labels, file, moment)


def _xywh(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # infinite less infinite
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def finite_rows(boxes: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which detections are all finite: boxes [n, 4], scores [n] -> bool [n]."""
    return np.isfinite(boxes).all(1) & np.isfinite(scores)


class SpooledDetections:
    """Detections of any number of images, which wait in a file; each is made again whenever it is wanted."""

    def __init__(self, path: Path) -> None:
        self._spool = Spool(path)

    def add(self, image: ImageDetections) -> None:
        """Put one at the end."""
        moment = image.moment and image.moment.to_row()
        found = image.boxes.tolist(), image.scores.tolist(), image.labels.tolist()
        self._spool.add([image.id, image.size, *found, image.file, moment])

    def __iter__(self) -> Iterator[ImageDetections]:
        for id_, (height, width), boxes, scores, labels, file, moment in self._spool:
            arrays = (
                np.array(boxes, np.float64).reshape(-1, 4),
                np.array(scores, np.float64),
                np.array(labels, np.int64),
            )
            yield ImageDetections(id_, (height, width), *arrays, file, moment and Moment.of_row(moment))

    def close(self) -> None:
        """Forget all of them."""
        self._spool.close()
