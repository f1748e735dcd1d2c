"""One step of the optimiser: a global batch in pieces -> objective -> backward -> guarded update -> figures.

Nothing in it makes the host wait for the device: a step that is not finite is skipped there, and its figures are read a step later.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor

from effbackbones.contracts import Head, losses_by_name
from tasks.data.batch import Batch
from tasks.engine.ema import BufferGuard
from tasks.engine.normalising import Normaliser
from tasks.engine.optim import clip_grad_norm, found_inf
from tasks.engine.resume import seed_step
from tasks.engine.state import RunState
from tasks.settings.sections import Config
from tasks.spec import TaskSpec


class Objective(Protocol):
    """What a step makes smaller."""

    def __call__(self, model: Any, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Weighted scalars by name; their sum is the loss. ``model`` is called as a :class:`effbackbones.Model` and has its ``head``,
        ``batch`` is on the device, autocast is on."""

    def count(self, head: Head, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """By what those are divided that are no means over images (:meth:`Head.count`), the same names for every batch."""

    def divisor(self, head: Head, name: str, count: Tensor) -> Tensor:
        """What one of those is divided by where its count is ``count`` (:meth:`Head.divisor`)."""


@dataclass
class Supervised:
    """The head's losses against the targets of the batch, after the task's augmentation on the device."""

    task: TaskSpec
    config: Config

    def __call__(self, model: Any, batch: Batch, step: int) -> Mapping[str, Tensor]:
        images, targets = self.task.augment(self.config, batch, model.head.num_classes, step)
        raw = model(images, batch.sizes)
        return losses_by_name(model.head, model.head.loss(raw, targets, batch.sizes))

    @torch.no_grad()
    def count(self, head: Head, batch: Batch, step: int) -> Mapping[str, Tensor]:
        if not head.counted:
            return {}
        _, targets = self.task.augment(self.config, batch, head.num_classes, step)
        return head.count(targets, batch.sizes)

    def divisor(self, head: Head, name: str, count: Tensor) -> Tensor:
        return head.divisor(name, count)


@dataclass
class StepLog:
    """What is known of one finished step, read by the host one step later."""

    step: int
    losses: dict[str, float]
    lr: float
    nonfinite: bool = False
    signal: int = 0
    ids: list[str] = field(default_factory=list)


@dataclass
class Stepper:
    """Takes steps of ``state`` while the set of trained parameters stays the same: DDP knows it by that. ``figures`` hands over
    what a step gave, ``asked`` says which signal this process has got."""

    fabric: Fabric
    state: RunState
    objective: Objective
    figures: "LateReader"
    asked: Callable[[], int]
    lr_factor: Callable[[int], float]
    clip_norm: float | None
    seed: int
    leaving: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around what may be left in its midst by an exception; :meth:`undo` then."""
    tell: Callable[[str], None] | None = None
    """Told once which losses are averaged over pieces and processes, because no count is known of them."""

    def __post_init__(self) -> None:
        self.model = self.fabric.setup_module(self.state.trained)
        self.guard = BufferGuard(self.state.model)

    def take(self, pieces: Iterable[Batch]) -> StepLog | None:
        """One step on this process's share of a global batch; gives the figures of the step before, if nobody has read them."""
        lr = self.state.set_lr(self.lr_factor(self.state.step))
        with self.leaving():
            parts, ids = self._backward(pieces)
        losses = torch.stack(list(parts.values()))
        flags = self._update(losses.sum())
        log = StepLog(self.state.step, dict.fromkeys(parts, 0.0), lr, ids=ids)
        return self.figures.push(log, torch.cat([flags, losses]))

    def undo(self) -> None:
        """Put back what a step that was left in its midst has changed: gradients, and the buffers of batch norm."""
        self.state.optimizer.zero_grad(set_to_none=True)
        self.guard.settle(self.state.model, torch.ones((), device=self.fabric.device))
        if self.state.simulation:
            self.state.simulation.drop()

    def _backward(self, pieces: Iterable[Batch]) -> tuple[dict[str, Tensor], list[str]]:
        """Gradients of the whole batch, of all pieces and processes; gives this process's losses, float32 [], and its samples."""
        state, share = self.state, self.state.share
        # All pieces at once: images stay uint8, a small part of what a forward pass of one piece keeps.
        batches = [batch.to(self.fabric.device, non_blocking=True) for batch in pieces]
        normaliser = self._normaliser(batches)
        sums: dict[str, Any] = {}
        for piece, batch in enumerate(batches):
            seed_step(self.seed, state.step, piece, share.rank)
            # The gradients of all processes are averaged once, with the last piece.
            unsynchronised = self.fabric.no_backward_sync(self.model, enabled=piece < share.accumulate - 1)
            with unsynchronised, self.fabric.autocast():
                with state.rounded(observe=True):
                    found = self.objective(self.model, batch, state.step)
                losses = normaliser.shares(found, piece)
                self.fabric.backward(torch.stack(list(losses.values())).sum())
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        if normaliser.averaged and self.tell:
            self.tell(normaliser.told(state.model.head))
            self.tell = None
        return sums, [meta.id for batch in batches for meta in batch.meta]

    def _normaliser(self, batches: Sequence[Batch]) -> Normaliser:
        """By what the losses of the pieces are divided; a batch that nobody shares is as the head has it."""
        state, share, head = self.state, self.state.share, self.state.model.head
        if len(batches) * share.world == 1:
            return Normaliser()
        counts = []
        for piece, batch in enumerate(batches):
            seed_step(self.seed, state.step, piece, share.rank)  # as before the losses: augmentation may draw
            counts.append(self.objective.count(head, batch, state.step))
        return Normaliser(len(batches), share.world, counts, partial(self.objective.divisor, head))

    def _update(self, loss: Tensor) -> Tensor:
        """Step of the optimiser, or nothing where the loss or a gradient is not finite, in any process. Gives flags [2] that all
        processes agree on: whether it was not finite, and the highest signal."""
        state, optimizer = self.state, self.state.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = found_inf(parameters, loss)
        flags = torch.stack([bad, torch.full_like(bad, self.asked())])
        if state.share.world > 1:  # Fabric's own would wait at a barrier
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        bad = flags[0]  # [] and not [1]: fused AdamW subtracts it from its step counts
        if state.scaler is not None:
            # The scaler judges by gradients alone and overrules what is set below, so a bad step must show in one.
            parameters[0].grad.add_(torch.where(bad > 0, torch.inf, 0.0).to(parameters[0].dtype))
            state.scaler.unscale_(optimizer)
        if self.clip_norm:
            clip_grad_norm(parameters, self.clip_norm)
        # Fused optimisers, and ours, leave parameters and state alone where this is 1.
        optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
        self.fabric.strategy.optimizer_step(optimizer)  # with fp16, the scaler's step and update too
        self.guard.settle(state.model, bad)
        if state.simulation:
            state.simulation.settle(bad)
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.ema:
            state.ema.update(state.model, state.step, skip=bad)
        return flags


class LateReader:
    """Hands figures on the device to the host one step later, so that nobody waits for the step in flight."""

    def __init__(self) -> None:
        self._held: tuple[StepLog, Tensor, torch.cuda.Event | None] | None = None

    def push(self, log: StepLog, values: Tensor) -> StepLog | None:
        """Take the figures of a step (flags, then losses), give those of the one before."""
        event: torch.cuda.Event | None = None
        if values.is_cuda:
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch gives it no types
            event.record()
        before = self.flush()
        self._held = (log, values, event)
        return before

    def flush(self) -> StepLog | None:
        """The figures of the last step, unless they were read."""
        if self._held is None:
            return None
        (log, values, event), self._held = self._held, None
        if event is not None:
            event.synchronize()  # waits for the step before the one in flight
        bad, signal, *losses = values.tolist()
        return replace(log, nonfinite=bool(bad), signal=int(signal), losses=dict(zip(log.losses, losses, strict=True)))


class Pace:
    """Images per second and share of the time spent waiting for them, of the steps since :meth:`restart`."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart(0)

    def restart(self, step: int) -> None:
        """Count anew, ``step`` steps being done."""
        self._step, self._start, self._waited = step, time.monotonic(), 0.0

    def at(self, step: int) -> tuple[float, float]:
        """Images per second and share of the time waited, ``step`` steps being done."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        return (step - self._step) * self.batch_size / seconds, self._waited / seconds

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """``batches``; what they make wait is counted."""
        source = iter(batches)
        start = time.perf_counter()
        for batch in source:
            self._waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
