"""Segmentation scores over a whole set: every figure comes from counts of all pixels, never from a mean over images."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask
from tasks.data.sample import IGNORE
from tasks.scoring.calibration import calibration_error, counted, mean, nothing_counted, ratio, reliability
from tasks.segmentation.anatomy import anatomy
from tasks.segmentation.results import Segmented

_BORDER = 0.02  # of the diagonal: the width of the bands along borders, as in the paper
_CHUNK = 2**20  # so many pixels are counted at once; no figure depends on it
_OUTSIDE = 300  # no label


class SegmentationMetrics(Metric):
    """Mean IoU, boundary IoU, calibration and confusion of pixels, in original pixels, without those whose truth is 255.

    ``update(predictions, masks)`` takes one :class:`Segmented` and one true mask uint8 [H, W] per image; None: no truth, not
    scored. ``compute()`` gives, JSON-like, fractions in 0..1 and ``None`` for what is undefined, which is left out of means:

    * ``images``, ``pixels``, ``non_finite`` (pixels).
    * ``miou``, ``dice``, ``boundary_iou``: means over the classes that are true or predicted somewhere. ``pixel_accuracy``.
    * ``ece``, ``reliability``: as in :class:`tasks.classification.metrics.ClassificationMetrics`, a pixel being a sample.
    * ``per_class``: name -> ``iou``, ``dice``, ``precision``, ``recall``, ``boundary_iou``, ``pixels`` (true ones).
    * ``confusion``: rows true, columns predicted; non-finite predictions are in no column.

    Boundary IoU (Cheng et al. 2021, Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, eq. 3) is the IoU of
    bands: of the pixels of a class within ``max(1, round(0.02 * diagonal))`` pixels of another class, ignored pixels or the edge of
    the image, intersection and union being summed over the set.

    A pixel whose prediction is not finite might have been any class: it is missed by its own, counts as predicted wrongly
    for all others, and its surroundings match no band that there is without it. So it can lower a score but never raise it.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    cells: Tensor
    calibration: Tensor
    images: Tensor
    invalid: Tensor
    latest: list[Tensor]
    """Of each scored image of the last update the counts int64 [5, K] that its part of the scores comes from."""

    def __init__(self, classes: Sequence[str], bins: int = 15) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or not 0 < len(classes) <= IGNORE or bins < 1:
            got = f"got {len(classes)}, {len(set(classes))} of them distinct, and {bins}"
            raise UserError("metrics", f"expected 1 to {IGNORE} distinct class names and at least one bin, {got}")
        self.classes = tuple(classes)
        self.bins, self.latest = bins, []
        k = len(classes)
        # Pixels by true class; predicted class, the last one for what is not finite; whether they are in the true band; whether
        # in the predicted one: no, only if what is not finite were another class, yes.
        self.add_state("cells", torch.zeros(k, k + 1, 2, 3, dtype=torch.int64), "sum")
        self.add_state("calibration", nothing_counted(bins), "sum")
        self.add_state("images", torch.tensor(0), "sum")
        self.add_state(
            "invalid", torch.zeros(3, dtype=torch.int64), "sum"
        )  # true labels, predicted labels, confidences

    def update(self, predictions: Sequence[Segmented], masks: Sequence[Mask | None]) -> None:
        """Count images; nothing is copied to the host. A mask of another size than its prediction raises :class:`UserError`."""
        if len(predictions) != len(masks):
            raise UserError("metrics", f"{len(predictions)} predicted images, {len(masks)} masks")
        self.latest = []
        for found, mask in zip(predictions, masks, strict=True):
            if mask is None:
                continue
            if (
                mask.dtype != np.uint8
                or mask.shape != found.labels.shape
                or found.labels.shape != found.confidence.shape
            ):
                sizes = f"the mask is {mask.dtype} {list(mask.shape)}, the prediction {list(found.labels.shape)}"
                raise UserError(
                    "metrics",
                    f"expected a mask uint8 of the prediction's size; {sizes}",
                    "compare both in original pixels",
                )
            before = self.cells
            truth = torch.tensor(mask).to(found.labels.device, non_blocking=True)
            rows = max(1, _CHUNK // mask.shape[1])
            for top in range(0, len(mask), rows):
                self._count(found.labels, found.confidence, truth, top, min(len(mask), top + rows))
            self.images = self.images + 1
            self.latest.append(_table(self.cells - before))

    def _count(self, labels: Tensor, confidence: Tensor, truth: Tensor, top: int, bottom: int) -> None:
        """Add the rows ``top`` to ``bottom`` of an image."""
        true_band, predicted_band = _bands(labels, confidence, truth, top, bottom)
        labels, confidence, truth = labels[top:bottom], confidence[top:bottom], truth[top:bottom]
        k = len(self.classes)
        valid, finite = truth != IGNORE, confidence.isfinite()
        outside = finite & (
            (confidence < -1e-4) | (confidence > 1 + 1e-4)
        )  # interpolation leaves 0..1 by rounding errors
        bad = torch.stack([truth >= k, finite & (labels >= k), outside]) & valid
        self.invalid = self.invalid + bad.sum((1, 2)).to(self.invalid.device)
        true, predicted = truth.clamp(max=k - 1).long(), labels.clamp(max=k - 1).long()
        cells = ((true * (k + 1) + torch.where(finite, predicted, k)) * 2 + true_band) * 3 + predicted_band
        counts = torch.zeros(self.cells.numel(), dtype=torch.int64, device=cells.device)
        counts.scatter_add_(0, cells.flatten(), valid.flatten().long())
        self.cells = self.cells + counts.view_as(self.cells).to(self.cells.device)
        self.calibration = counted(
            self.calibration, confidence.flatten(), (predicted == true).flatten(), (valid & finite).flatten()
        )

    def compute(self) -> dict[str, Any]:
        """The scores of all images so far. Labels that are no class and impossible confidences raise :class:`UserError`."""
        k = len(self.classes)
        true, predicted, outside = self.invalid.tolist()
        if true:
            raise UserError(
                "metrics",
                f"{true} true pixels are neither one of {k} classes nor {IGNORE}",
                "check the masks of this split",
            )
        if predicted:
            raise UserError(
                "metrics",
                f"{predicted} predicted pixels are none of {k} classes",
                "score with the classes of the model",
            )
        if outside:
            raise UserError(
                "metrics", f"{outside} confidences lie outside of 0..1", "predict must give probabilities, not logits"
            )
        cells = self.cells.cpu()
        counts = cells.sum((2, 3))
        pixels, lost = int(counts.sum()), int(counts[:, k].sum())
        per_class = self._per_class(_table(cells))
        rows = per_class.values()
        return {
            "images": int(self.images),
            "pixels": pixels,
            "non_finite": lost,
            "miou": mean([row["iou"] for row in rows]),
            "pixel_accuracy": ratio(int(counts.diagonal().sum()), pixels),
            "dice": mean([row["dice"] for row in rows]),
            "boundary_iou": mean([row["boundary_iou"] for row in rows]),
            "ece": calibration_error(self.calibration, pixels, lost),
            "per_class": per_class,
            "confusion": counts[:, :k].tolist(),
            "reliability": reliability(self.calibration),
        }

    def anatomy(self) -> dict[str, Any]:
        """Where the errors of all images so far lie, of all processes: see :func:`tasks.segmentation.anatomy.anatomy`."""
        with self.sync_context():
            return anatomy(self.cells.sum(3).cpu().numpy(), self.classes)

    def _per_class(self, table: Tensor) -> dict[str, dict[str, Any]]:
        """Scores by class from a table [5, K] of counts."""
        rows = {}
        for name, tp, fp, true, both, union in zip(self.classes, *table.tolist(), strict=True):
            rows[name] = {
                "iou": ratio(tp, fp + true),
                "dice": ratio(2 * tp, tp + fp + true),
                "precision": (tp / (tp + fp) if tp else 0.0) if fp + true else None,
                "recall": ratio(tp, true),
                "boundary_iou": ratio(both, union),
                "pixels": true,
            }
        return rows


def _table(cells: Tensor) -> Tensor:
    """From counts of pixels [K, K + 1, 2, 3] those by class that scores need, int64 [5, K], in the order of
    :mod:`tasks.scoring.pixels`; they add up over images."""
    counts, finite = cells.sum((2, 3)), cells[:, :-1]
    lost, hits = counts[:, -1], counts.diagonal()
    extra = counts[:, :-1].sum(0) - hits + lost.sum() - lost
    both = finite.diagonal()[1]  # [3, K]: true and predicted class, in the true band, by the predicted one
    union = finite[:, :, 1].sum((1, 2)) + finite[..., 1:].sum((0, 2, 3)) - both[1:].sum(0) + cells[:, -1].sum()
    return torch.stack([hits, extra, counts.sum(1), both[2], union])


def _bands(labels: Tensor, confidence: Tensor, truth: Tensor, top: int, bottom: int) -> tuple[Tensor, Tensor]:
    """Which pixels of the rows ``top`` to ``bottom`` are in the bands along borders, int64 [rows, W]: in the true one 0 or 1; in
    the predicted one 0, 2, or 1 where that hangs on what is not finite.

    A pixel is outside of the bands if all labels in the square around it are equal: if the largest is the smallest.
    """
    height, width = truth.shape
    reach = border_of(height, width)
    part = slice(max(0, top - reach), bottom + reach)
    truth, found = truth[part].short(), labels[part].short()
    found = torch.where(truth == IGNORE, truth, found)
    lost = ~confidence[part].isfinite() & (truth != IGNORE)
    low, high = ((found * sign).masked_fill(lost, -_OUTSIDE) for sign in (-1, 1))
    maps = torch.stack([-truth, truth, low, high, lost.short()])
    beyond = (reach, reach, max(0, reach - top), max(0, bottom + reach - height))
    largest = largest_around(F.pad(maps, beyond, value=_OUTSIDE), reach)
    true_band, certain = (largest[i] + largest[i + 1] > 0 for i in (0, 2))
    return true_band.long(), torch.where(certain, 2, (largest[4] > 0).long())


def border_of(height: int, width: int) -> int:
    """How many pixels wide the bands along borders are in an image."""
    return max(1, round(_BORDER * math.hypot(height, width)))


def largest_around(maps: Tensor, reach: int) -> Tensor:
    """The largest value [N, H, W] in the square around each pixel of ``maps``, which are larger by ``reach`` on each side."""
    return _largest(_largest(maps, reach, 1), reach, 2)


def _largest(maps: Tensor, reach: int, axis: int) -> Tensor:
    """The largest of every ``2 * reach + 1`` neighbours along ``axis``, which gets shorter by ``2 * reach``."""
    count, width = 2 * reach + 1, 1
    while 2 * width <= count:  # windows of twice the width from two that touch
        maps = torch.maximum(
            maps.narrow(axis, 0, maps.shape[axis] - width), maps.narrow(axis, width, maps.shape[axis] - width)
        )
        width *= 2
    step = count - width
    return torch.maximum(
        maps.narrow(axis, 0, maps.shape[axis] - step), maps.narrow(axis, step, maps.shape[axis] - step)
    )


def image_iou(labels: NDArray[np.uint8], mask: Mask, num_classes: int) -> float | None:
    """Mean IoU of one image over the classes that are true or predicted in it; None if every pixel is ignored.

    Labels and true values uint8 [H, W] in 0..num_classes - 1, true ones also 255; others, and other sizes, raise :class:`UserError`.
    """
    if labels.shape != mask.shape:
        sizes = f"the mask is {list(mask.shape)}, the prediction {list(labels.shape)}"
        raise UserError("metrics", sizes, "compare both in original pixels")
    valid = mask != IGNORE
    true, predicted = mask[valid].astype(np.int64), labels[valid].astype(np.int64)
    if max(true.max(initial=0), predicted.max(initial=0)) >= num_classes:
        raise UserError(
            "metrics", f"an image has labels that are none of {num_classes} classes", "check its mask and the classes"
        )
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
    hits = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hits
    return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else None
