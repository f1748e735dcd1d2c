"""Segmentation scores where classes overlap: each class by itself is in a pixel or not, counted over a whole set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from effbackbones.errors import UserError
from effbackbones.images.classsets import MOST, UNKNOWN, Sets, are_sets
from effbackbones.images.geometry import Mask
from tasks.scoring.calibration import mean, ratio
from tasks.segmentation.results import Segmented
from tasks.segmentation.setanatomy import anatomy_of_sets, counted

STEPS = 100
"""Of probability, at whose edges a threshold may lie."""
_CHUNK = 2**22  # so many entries are counted at once; no figure depends on it


class SetMetrics(Metric):
    """IoU and Dice of classes that overlap, in original pixels, without those whose truth is unknown.

    ``update(predictions, masks)`` takes one :class:`Segmented` of sets and one true mask int32 [H, W] of sets
    (:mod:`effbackbones.images.classsets`) per image; None: no truth, not scored. ``compute()`` gives, JSON-like, fractions in 0..1 and
    ``None`` for what is undefined, which is left out of means:

    * ``images``, ``pixels``, ``non_finite`` (pixels).
    * ``miou``, ``dice``: means over the classes that are true or predicted somewhere.
    * ``pixel_accuracy``: share of the pixels whose whole set of classes is the true one.
    * ``per_class``: name -> ``iou``, ``dice``, ``precision``, ``recall``, ``pixels`` (true ones).

    In a pixel whose prediction is not finite every class is predicted wrongly, so that it can lower a score but never raise it.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    counts: Tensor
    others: Tensor
    images: Tensor
    ranked: Tensor
    kinds: Tensor
    swaps: Tensor
    latest: list[tuple[Tensor, Tensor]]
    """Of each scored image of the last update what it added to ``counts`` and ``others``."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or not 0 < len(classes) <= MOST:
            what = (
                f"expected 1 to {MOST} distinct class names, got {len(classes)}, {len(set(classes))} of them distinct"
            )
            raise UserError("metrics", what, "choose some by data.options.classes")
        self.classes, self.latest = tuple(classes), []
        # Of each class pixels that are rightly there, wrongly there, wrongly not there.
        self.add_state("counts", torch.zeros(3, len(classes), dtype=torch.int64), "sum")
        # Labelled pixels, those of the right set, those not finite, and those whose truth or prediction is no set of these classes.
        self.add_state("others", torch.zeros(5, dtype=torch.int64), "sum")
        self.add_state("images", torch.tensor(0), "sum")
        # Sampled pixels without and with each class, by its probability.
        # For the anatomy of errors: :func:`tasks.segmentation.setanatomy.counted`.
        self.add_state("kinds", torch.zeros(len(classes), 2, 4, dtype=torch.int64), "sum")
        self.add_state("swaps", torch.zeros(len(classes), len(classes), dtype=torch.int64), "sum")
        self.add_state("ranked", torch.zeros(2, len(classes), STEPS, dtype=torch.int64), "sum")

    def update(self, predictions: Sequence[Segmented], masks: Sequence[Mask | None]) -> None:
        """Count images; nothing is copied to the host. A mask of another size or kind than its prediction raises :class:`UserError`."""
        if len(predictions) != len(masks):
            raise UserError("metrics", f"{len(predictions)} predicted images, {len(masks)} masks")
        self.latest = []
        for found, mask in zip(predictions, masks, strict=True):
            if mask is None:
                continue
            if not are_sets(mask) or found.labels.dtype != torch.int32:
                what = f"is true, but the masks are {mask.dtype} and the predictions {found.labels.dtype}, where both are sets, int32"
                raise UserError("data.multilabel", what, "set it as the model was trained, and give masks that fit")
            if mask.shape != found.labels.shape:
                sizes = f"the mask is {list(mask.shape)}, the prediction {list(found.labels.shape)}"
                raise UserError("metrics", sizes, "compare both in original pixels")
            before = self.counts, self.others
            truth = torch.tensor(mask).to(found.labels.device, non_blocking=True)
            rows = max(1, _CHUNK // (mask.shape[1] * len(self.classes)))
            for top in range(0, len(mask), rows):
                part = slice(top, top + rows)
                self._count(found.labels[part], found.confidence[part].isfinite(), truth[part])
            kinds, swaps = counted(found.labels, truth, found.confidence.isfinite(), len(self.classes))
            self.kinds, self.swaps = self.kinds + kinds.to(self.kinds.device), self.swaps + swaps.to(self.swaps.device)
            if found.samples is not None:
                self._rank(found.samples, truth[:: found.step, :: found.step].to(found.samples.device))
            self.images = self.images + 1
            self.latest.append((self.counts - before[0], self.others - before[1]))

    def _count(self, labels: Tensor, finite: Tensor, truth: Tensor) -> None:
        """Add some rows of an image."""
        count = len(self.classes)
        valid = truth != UNKNOWN
        bits = torch.arange(count, dtype=torch.int32, device=labels.device)[:, None, None]
        true, found = (truth >> bits & 1) > 0, (labels >> bits & 1) > 0
        found = torch.where(finite, found, ~true)
        counts = torch.stack([true & found, ~true & found, true & ~found]) & valid
        self.counts = self.counts + counts.sum((2, 3)).to(self.counts.device)
        kinds = torch.stack(
            [
                valid,
                valid & finite & (labels == truth),
                valid & ~finite,
                truth >> count > 0,
                finite & (labels >> count != 0),
            ]
        )
        kinds = kinds & valid
        self.others = self.others + kinds.sum((1, 2)).to(self.others.device)

    def _rank(self, samples: Tensor, truth: Tensor) -> None:
        """Add probabilities [K, h, w] of pixels whose classes are known."""
        count = len(self.classes)
        known = (truth != UNKNOWN) & samples.isfinite().all(0)
        steps = (samples[:, known].float() * STEPS).long().clamp(0, STEPS - 1)
        bits = torch.arange(count, dtype=torch.int32, device=truth.device)[:, None]
        there = truth[known] >> bits & 1
        places = (there.long() * count + bits) * STEPS + steps
        ranked = torch.bincount(places.flatten(), minlength=self.ranked.numel())
        self.ranked = self.ranked + ranked.view_as(self.ranked).to(self.ranked.device)

    def ranks(self) -> NDArray[np.int64]:
        """Pixels by the probability of each class, int64 [2, K, :data:`STEPS`], of all processes; see
        :class:`tasks.scoring.pixels.PixelOutcomes`."""
        with self.sync_context():
            found: NDArray[np.int64] = self.ranked.cpu().numpy()
            return found

    def anatomy(self) -> dict[str, Any]:
        """Where the errors of all images so far lie, of all processes: see :func:`tasks.segmentation.setanatomy.anatomy_of_sets`."""
        with self.sync_context():
            return anatomy_of_sets(self.kinds.cpu().numpy(), self.swaps.cpu().numpy(), self.classes)

    def compute(self) -> dict[str, Any]:
        """The scores of all images so far. Sets of classes that there are not raise :class:`UserError`."""
        pixels, right, lost, *wrong = self.others.tolist()
        for which, number in zip(("true", "predicted"), wrong, strict=True):
            if number:
                what = f"{number} {which} pixels have classes beyond these {len(self.classes)}"
                raise UserError("metrics", what, "score with the classes of the model")
        per_class = {}
        for name, hits, extra, missed in zip(self.classes, *self.counts.tolist(), strict=True):
            per_class[name] = {
                "iou": ratio(hits, hits + extra + missed),
                "dice": ratio(2 * hits, 2 * hits + extra + missed),
                "precision": (hits / (hits + extra) if hits else 0.0) if hits + extra + missed else None,
                "recall": ratio(hits, hits + missed),
                "pixels": hits + missed,
            }
        return {
            "images": int(self.images),
            "pixels": pixels,
            "non_finite": lost,
            "miou": mean([row["iou"] for row in per_class.values()]),
            "pixel_accuracy": ratio(right, pixels),
            "dice": mean([row["dice"] for row in per_class.values()]),
            "per_class": per_class,
        }


def image_iou_of_sets(labels: Sets, mask: Sets, num_classes: int) -> float | None:
    """Mean IoU of one image over the classes that are true or predicted in it; None where there is none, or every pixel is ignored."""
    scores = []
    valid = mask != UNKNOWN
    for label in range(num_classes):
        true, found = (sets[valid] >> label & 1 > 0 for sets in (mask, labels))
        if union := np.count_nonzero(true | found):
            scores.append(np.count_nonzero(true & found) / union)
    return float(np.mean(scores)) if scores else None
