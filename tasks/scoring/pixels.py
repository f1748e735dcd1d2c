"""Outcomes of images whose pixels have classes."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.outcomes import Floats, Outcomes, Tables, mean_of_known, quotient

HITS, EXTRA, TRUE, BAND_HITS, BAND_UNION = range(5)
"""Rows of the counts of an image: pixels of a class that are found; wrongly said to be of it; truly of it; of the bands along its
borders those that both have, and those that one has."""


@dataclass(frozen=True)
class PixelOutcomes(Outcomes):
    """``counts`` int64 [n, 5, K] of pixels; ``right`` and ``valid`` int64 [n]: pixels that are all right, and those with a truth.
    ``ranked`` int64 [2, K, B], of classes that overlap: sampled pixels of all images without and with the class, by their probability
    of it in B equal steps; of a choice of the images it is not known."""

    counts: NDArray[np.int64]
    right: NDArray[np.int64]
    valid: NDArray[np.int64]
    ranked: NDArray[np.int64] | None = None
    kind: ClassVar[str] = "pixels"
    lead: ClassVar[tuple[str, ...]] = ("miou", "iou")

    @classmethod
    def of_tables(
        cls, ids: tuple[str, ...], classes: tuple[str, ...], truth: NDArray[np.uint32], tables: Tables
    ) -> Self:
        counts = tables["counts"].astype(np.int64).reshape(len(ids), 5, len(classes))
        return cls(ids, classes, truth, counts, *(tables[name].reshape(len(ids)) for name in ("right", "valid")))

    def tables(self) -> dict[str, NDArray[Any]]:
        return {"counts": self.counts, "right": self.right, "valid": self.valid}

    def scores(self, weights: NDArray[np.integer[Any]]) -> dict[str, Floats]:
        # Counts of pixels are exact in float64, whose products are many times faster than those of integers.
        columns = np.concatenate([self.counts.reshape(len(self.ids), -1), self.right[:, None], self.valid[:, None]], 1)
        summed = columns.T.astype(np.float64) @ weights.astype(np.float64)
        counts, right, valid = summed[:-2].reshape(5, len(self.classes), -1), summed[-2], summed[-1]
        hits, extra, true = counts[HITS], counts[EXTRA], counts[TRUE]
        iou, dice = quotient(hits, extra + true), quotient(2 * hits, hits + extra + true)
        precision = np.where(extra + true > 0, np.where(hits > 0, quotient(hits, hits + extra), 0.0), np.nan)
        bands = quotient(counts[BAND_HITS], counts[BAND_UNION])
        has_bands = bool(self.counts[:, BAND_UNION].any())
        return {
            "miou": mean_of_known(iou),
            "pixel_accuracy": quotient(right, valid),
            "dice": mean_of_known(dice),
            **({"boundary_iou": mean_of_known(bands), "per_class/boundary_iou": bands} if has_bands else {}),
            "per_class/iou": iou,
            "per_class/dice": dice,
            "per_class/precision": precision,
            "per_class/recall": quotient(hits, true),
        }
