"""Counts of pixels of each image, kept beside the scores that they add up to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from effbackbones.images.geometry import Mask
from tasks.data.batch import Batch
from tasks.scoring.gathering import GatheredRows
from tasks.scoring.outcomes import checksum
from tasks.scoring.pixels import BAND_HITS, HITS, TRUE, PixelOutcomes
from tasks.segmentation.metrics import SegmentationMetrics
from tasks.segmentation.setmetrics import SetMetrics


class PixelRecorder:
    """Keeps what ``metric`` counted in each image of the batch that it was updated with last."""

    def __init__(self, metric: SegmentationMetrics | SetMetrics) -> None:
        self.metric = metric
        self.rows = GatheredRows(5 * len(metric.classes) + 2, torch.int64).to(metric.device)

    def update(self, batch: Batch, predictions: Sequence[Any]) -> None:
        """After the metric has seen the batch."""
        scored = [(meta.id, meta.mask) for meta in batch.meta if meta.mask is not None]
        if scored:
            rows = torch.stack([_row(one) for one in self.metric.latest])
            self.rows.update([id_ for id_, _ in scored], [_sum(mask) for _, mask in scored], rows)

    def outcomes(self) -> PixelOutcomes:
        """Of all images so far, of all processes."""
        ids, truth, rows = self.rows.compute()
        counts = rows[:, :-2].reshape(len(rows), 5, -1)
        ranked = self.metric.ranks() if isinstance(self.metric, SetMetrics) else None
        return PixelOutcomes(ids, self.metric.classes, truth, counts, rows[:, -2], rows[:, -1], ranked)


def _row(latest: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Counts [5, K], then pixels that are right in all and those with a truth, in one row."""
    if isinstance(latest, Tensor):
        return torch.cat([latest.flatten(), latest[HITS].sum()[None], latest[TRUE].sum()[None]])
    (hits, extra, missed), others = latest
    table = torch.stack([hits, extra, hits + missed, *(torch.zeros_like(hits) for _ in range(5 - BAND_HITS))])
    return torch.cat([table.flatten(), others[[1, 0]]])


def _sum(mask: Mask) -> int:
    return checksum(mask, *map(float, mask.shape))
