"""The steps of a run, counted before it starts."""

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from tasks.engine import processes
from tasks.engine.order import Share, steps_per_epoch
from tasks.settings.sections import Config


@dataclass(frozen=True)
class Plan:
    """The steps of a run: ``total`` optimiser steps, ``per_epoch`` of them an epoch, warm-up in steps, and where a frozen part thaws.
    ``seen``: how many images of a step batch norm sees at a time. ``shares``: of the image size, at which as many equal parts of the
    steps are done, before the last at the whole size. ``told``: lines on what of the config changes nothing, or not what
    it says."""

    total: int
    per_epoch: int
    warmup: int
    seen: int
    thaw: int | None = None
    shares: tuple[float, ...] = ()
    told: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config, samples: int) -> Self:
        """Epochs, and fractions of them, over ``samples`` training samples as whole steps."""
        optim, sync = config.optim, config.model.norm == "sync"
        world = processes.here().world
        piece = Share(world=world, accumulate=optim.accumulate).split(config.data.batch_size)
        per_epoch = steps_per_epoch(samples, config.data.batch_size)
        total = optim.max_steps or max(1, round(optim.epochs * per_epoch))
        warmup = optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_epochs * per_epoch)
        thaw = config.model.unfreeze_epoch
        told = []
        if warmup > total:
            remedy = "lower optim.warmup_epochs or warmup_steps"
            told.append(f"the warm-up of {warmup} steps ends with the run, after {total}: {remedy}")
        if sync and world == 1:
            told.append("model.norm sync changes nothing: one process sees all images")
        seen = piece * world if sync else piece
        thaw = None if thaw is None else thaw * per_epoch
        return cls(total, per_epoch, min(warmup, total), seen, thaw, config.data.progressive, tuple(told))

    @property
    def growth(self) -> tuple[int, ...]:
        """The steps at whose start images grow."""
        parts = len(self.shares) + 1
        return tuple(round(part * self.total / parts) for part in range(1, parts))

    def share_at(self, step: int) -> float:
        """The share of the image size at which ``step`` (0-based) is done."""
        return (*self.shares, 1.0)[bisect.bisect_right(self.growth, step)]

    def phases(self, start: int) -> Iterator[tuple[int, int]]:
        """Spans of steps from ``start`` on, cut where the set of trained parameters changes (DDP is set up anew there), or the size of
        images (their loader is)."""
        cuts = {cut for cut in (self.thaw, *self.growth) if cut and start < cut < self.total}
        borders = [start, *sorted(cuts), self.total]
        yield from ((a, b) for a, b in itertools.pairwise(borders) if a < b)
