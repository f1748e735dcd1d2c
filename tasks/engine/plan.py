"""The steps of a run, counted before it starts."""

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
    ``seen``: how many images of a step batch norm sees at a time. ``told``: lines on what of the config changes nothing, or not what
    it says."""

    total: int
    per_epoch: int
    warmup: int
    seen: int
    thaw: int | None = None
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
        return cls(total, per_epoch, min(warmup, total), seen, None if thaw is None else thaw * per_epoch, tuple(told))

    def phases(self, start: int) -> Iterator[tuple[int, int]]:
        """Spans of steps from ``start`` on, cut where the set of trained parameters changes (DDP is set up anew there)."""
        cuts = [self.thaw] if self.thaw and start < self.thaw < self.total else []
        borders = [start, *cuts, self.total]
        yield from ((a, b) for a, b in itertools.pairwise(borders) if a < b)
