"""Is a confidence what it says? Entries counted in bins of confidence: the same for any batch size, order and process count."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Confidences are summed as integers in this unit, exactly. 2^-24 is the spacing of float32 just below 1.
_UNIT = 2.0**-24


def nothing_counted(bins: int) -> Tensor:
    """The state before the first entry, int64 [3, bins]: entries, hits, summed confidence."""
    return torch.zeros(3, bins, dtype=torch.int64)


def counted(state: Tensor, confidence: Tensor, hit: Tensor, valid: Tensor) -> Tensor:
    """``state`` with entries (all [N]: confidence in 0..1, whether it is right) added to their bins, those alone where ``valid``."""
    bins = state.shape[1]
    confidence = torch.where(valid, confidence, 0.0).clamp(0, 1)
    place = (confidence * bins).long().clamp(max=bins - 1)
    rows = torch.stack([torch.ones_like(place), hit.long(), (confidence / _UNIT).round().long()]) * valid
    more = torch.zeros(3, bins, dtype=torch.int64, device=place.device).scatter_add_(1, place.expand(3, -1), rows)
    return state + more.to(state.device)


def calibration_error(state: Tensor, entries: int, lost: int) -> float | None:
    """Expected calibration error (Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 3) over ``entries``, of which
    ``lost`` were not finite; None without entries."""
    _, hits, confidence = state.tolist()
    gaps = [abs(hit - units * _UNIT) for hit, units in zip(hits, confidence, strict=True)]
    # What is not finite is charged the largest possible gap: taking it out of its bin can lower that bin's by 1 at most.
    return ratio(sum(gaps) + lost, entries)


def reliability(state: Tensor) -> list[dict[str, Any]]:
    """Bounds, count, mean confidence and accuracy of each bin."""
    bins = state.shape[1]
    return [
        {
            "from": i / bins,
            "to": (i + 1) / bins,
            "count": count,
            "confidence": ratio(units * _UNIT, count),
            "accuracy": ratio(hit, count),
        }
        for i, (count, hit, units) in enumerate(zip(*state.tolist(), strict=True))
    ]


def ratio(part: float, whole: int) -> float | None:
    """A share, or None of nothing."""
    return part / whole if whole else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are defined, or None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
