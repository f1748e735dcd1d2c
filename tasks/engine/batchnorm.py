"""Batch-norm statistics of a run of few steps, taken anew from training images before its weights are judged.

In training a batch norm divides by the statistics of the batch; in evaluation by running averages of them, which trail the weights by
some ten steps, or a hundred. Where a run has few, they belong to no network that there ever was: a loss near 0 goes with answers at
chance. So the weights in question get the statistics that they themselves have on training images (Wu and Johnson, "Rethinking
'Batch' in BatchNorm", 2021, section 3: precise statistics).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.backbones.syncnorm import SyncNorm
from effbackbones.model import Model
from tasks.data.batch import Batch
from tasks.engine.hardware import Hardware
from tasks.engine.plan import Plan

FEW_STEPS = 200
"""Runs of fewer steps are re-estimated; a running average of momentum 0.01 still has 13 % of its start after so many."""
IMAGES = 128
"""Training images that are enough: each gives a value for every cell of a map."""


class Statistics:
    """Statistics of a model's live batch norms from training ``batches``, the same each time that they are asked for. ``autocast``
    gives the arithmetic of the run."""

    def __init__(
        self,
        batches: Callable[[], Iterable[Batch]],
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.batches, self.device, self.autocast = batches, device, autocast
        self._known: tuple[object, list[Tensor]] = (None, [])

    @contextmanager
    def applied(self, model: Model, key: object) -> Iterator[None]:
        """Inside, ``model`` has statistics of its present weights, which ``key`` stands for; afterwards its own again, bit for bit."""
        norms = live(model)
        tensors = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
        own = [tensor.clone() for tensor in tensors]
        if norms and self._known[0] != key:
            estimate(model, self.batches(), self.device, self.autocast)
            self._known = (key, [tensor.clone() for tensor in tensors])
        _put(tensors, self._known[1])
        try:
            yield
        finally:
            _put(tensors, own)


@torch.no_grad()
def estimate(
    model: Model,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Give the live batch norms of ``model`` the means of their statistics over ``batches``, each with the same weight; nothing is
    dropped, and nothing else moves."""
    norms, training = live(model), model.training
    own = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.train()
            if isinstance(norm, SyncNorm):
                norm.shared = False  # each process has all of these images
            norm.momentum, norm.num_batches_tracked = None, torch.tensor(0)  # a plain mean
        for batch in batches:
            batch = batch.to(device, non_blocking=True)
            with autocast():
                model(batch.images, batch.sizes)
    finally:
        for norm, (momentum, count) in zip(norms, own, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
            if isinstance(norm, SyncNorm):
                norm.shared = True
        model.train(training)


def for_few_steps(batches: Callable[[int], Iterable[Batch]], plan: Plan, hardware: Hardware) -> Statistics | None:
    """Of a run of few steps, what takes its statistics anew, from the ``batches`` of so many images as its batch norms see at a time; of
    a longer one None."""
    if plan.total >= FEW_STEPS:
        return None
    return Statistics(partial(batches, max(2, plan.seen)), hardware.device, hardware.autocast)


def live(model: Model) -> list[_BatchNorm]:
    """The batch norms that learn statistics in training: not those of frozen levels."""
    training = model.training
    model.train()
    found = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    model.train(training)
    return found


@torch.no_grad()
def _put(tensors: list[Tensor], values: list[Tensor]) -> None:
    if tensors:
        torch._foreach_copy_(tensors, values)
