"""The one LightningModule: it trains any head on any task, and names none.

Lightning runs the loop, places the model and talks to the other processes; the optimiser step is written out here,
because a non-finite one must be skipped on the device without the host waiting for it.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from effbackbones.model import Model
from tasks.data.batch import Batch
from tasks.engine.ema import BufferGuard, Ema
from tasks.engine.optim import build_optimizer, clip_grad_norm, found_inf, lr_factor, scaled_lr
from tasks.engine.resume import GlobalBatches, Share, flatten_optimizer, restore_optimizer, seed_step, steps_per_epoch
from tasks.settings.sections import Config
from tasks.spec import TaskSpec

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

DIVERGED_AFTER = 10
"""Non-finite steps in a row that end a run (exit code 3)."""


class DivergedError(Exception):
    """Training gave :data:`DIVERGED_AFTER` non-finite steps in a row."""


@dataclass(frozen=True)
class Plan:
    """The steps of a run: ``total`` optimiser steps, ``per_epoch`` of them an epoch, warm-up in steps, and where a frozen part thaws."""

    total: int
    per_epoch: int
    warmup: int
    thaw: int | None = None

    @classmethod
    def of(cls, config: Config, samples: int) -> Self:
        """Epochs, and fractions of them, over ``samples`` training samples as whole steps."""
        optim = config.optim
        Share(world=config.run.devices * config.run.nodes, accumulate=optim.accumulate).split(config.data.batch_size)
        per_epoch = steps_per_epoch(samples, config.data.batch_size)
        total = optim.max_steps or max(1, round(optim.epochs * per_epoch))
        warmup = optim.warmup_steps if optim.warmup_steps is not None else round(optim.warmup_epochs * per_epoch)
        thaw = config.model.unfreeze_epoch
        return cls(total, per_epoch, min(warmup, total), None if thaw is None else thaw * per_epoch)

    def phases(self, start: int) -> Iterator[tuple[int, int]]:
        """Spans of steps from ``start`` on, cut where the set of trained parameters changes (DDP is set up anew there)."""
        cuts = [self.thaw] if self.thaw and start < self.thaw < self.total else []
        borders = [start, *cuts, self.total]
        yield from ((a, b) for a, b in itertools.pairwise(borders) if a < b)


@dataclass
class StepLog:
    """What is known of one finished step, read by the host one step later."""

    step: int
    losses: dict[str, float]
    lr: float
    nonfinite: bool
    signal: int
    ids: list[str] = field(default_factory=list)


class Timed(Iterable[Any]):
    """A loader that counts the seconds its consumer waits for it."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch


class Engine(L.LightningModule):
    """Trains ``model`` on the steps of ``plan``. ``step`` is the number of steps done; everything random follows from it."""

    def __init__(self, model: Model, task: TaskSpec, config: Config, plan: Plan) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model.to(memory_format=torch.channels_last)  # as the images come
        self.task, self.config, self.plan = task, config, plan
        optim = config.optim
        base = scaled_lr(optim.lr, config.data.batch_size, optim.base_batch, optim.lr_scaling)
        groups = model.param_groups(
            base, optim.weight_decay, layer_decay=optim.layer_decay, decay_norm_and_bias=optim.decay_norm_and_bias
        )
        self.optimizer = build_optimizer(optim, groups)
        self.base_lr = base
        self.ema = Ema(model, optim.ema) if optim.ema else None
        self.step = 0
        self.piece = 0
        self.share = Share()
        self.own_level = 0
        """What :class:`tasks.engine.signals.Signals` of this process says; :attr:`signal_level` is the highest of all, a step later."""
        self.signal_level = 0
        self._losses: dict[str, Tensor] = {}
        self._ids: list[str] = []
        self._late: _LateReader | None = None
        self._guard = BufferGuard(model)
        self.on_step: Callable[[StepLog], None] = lambda log: None
        self.loader: Callable[[], Iterable[Batch]] = lambda: ()
        self._streak = 0

    # Lightning's hooks -------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        """The one optimiser; its learning rate is set before each step."""
        return self.optimizer

    def on_fit_start(self) -> None:
        """Once the processes are known: this one's share of each batch, and the averages on the right device."""
        self.share = Share(self.global_rank, self.trainer.world_size, self.config.optim.accumulate)
        self._late = _LateReader(self.device)
        self._guard = BufferGuard(self.model)
        if self.ema:
            self.ema.to(self.device)
        for (
            parameter,
            state,
        ) in self.optimizer.state.items():  # a resumed one's; Lightning leaves the step counts behind
            for name, value in state.items():
                state[name] = value.to(parameter.device)

    def train_dataloader(self) -> Iterable[Batch]:
        """The loader of this phase, made once the processes are known."""
        return self.loader()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy without waiting; images stay uint8."""
        return batch.to(device, non_blocking=True)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One piece of a global batch: forward, backward; with the last piece, the optimiser step."""
        seed_step(self.config.run.seed, self.step, self.piece, self.share.rank)
        last = self.piece == self.share.accumulate - 1
        # The gradients of all processes are averaged once, with the last piece.
        with nullcontext() if last else self._unsynchronised():
            self._accumulate(batch)
        self.piece = 0 if last else self.piece + 1
        if last:
            self._update()

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        block: Callable[[], AbstractContextManager[Any]] = getattr(
            self.trainer.strategy, "block_backward_sync", nullcontext
        )
        return block()

    def _accumulate(self, batch: Batch) -> None:
        images, targets = self.task.augment(self.config, batch, self.model.head.num_classes, self.step)
        raw = self.model(images, batch.sizes)
        parts = self.model.head.loss(raw, targets, batch.sizes)
        loss = torch.stack(list(parts.values())).sum() / self.share.accumulate
        self.manual_backward(loss)
        for name, value in parts.items():
            before = self._losses.get(name, torch.zeros((), device=value.device))
            self._losses[name] = before + value.detach().float() / self.share.accumulate
        self._ids += [meta.id for meta in batch.meta]

    def _update(self) -> None:
        """Optimiser step, or nothing where the loss or a gradient is not finite; no host synchronisation either way."""
        optim, optimizer = self.config.optim, self.optimizer
        lr = self.set_lr()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        losses = torch.stack(list(self._losses.values()))
        bad = found_inf(parameters, losses.sum())
        flags = torch.stack([bad.reshape(()), torch.full_like(bad.reshape(()), self.own_level)])
        if self.share.world > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        bad = flags[0]  # [] and not [1]: fused AdamW subtracts it from its step counts
        if scaler is not None:
            # The scaler judges by gradients alone and overrules what is set below, so a bad step must show in one.
            parameters[0].grad.add_(torch.where(bad > 0, torch.inf, 0.0).to(parameters[0].dtype))
            scaler.unscale_(optimizer)
        if optim.clip_norm:
            clip_grad_norm(parameters, optim.clip_norm)
        # Fused optimisers, and ours, leave parameters and state alone where this is 1.
        optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
        self.optimizers().step()  # type: ignore[union-attr]  # with fp16, the scaler's step and update too
        self._guard.settle(self.model, bad)
        optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            self.ema.update(self.model, self.step, skip=bad)
        self._report(lr, torch.cat([flags, losses]))

    def _report(self, lr: float, values: Tensor) -> None:
        """Queue this step's figures for the host, and act on those of the step before."""
        log = StepLog(self.step, dict.fromkeys(self._losses, 0.0), lr, False, 0, self._ids)
        self._losses, self._ids = {}, []
        assert self._late is not None
        self.heed(self._late.push(log, values))

    def heed(self, log: StepLog | None) -> None:
        """Act on a finished step: count non-finite ones, raise :class:`DivergedError`, pass it on to the callbacks."""
        if log is None:
            return
        self._streak = self._streak + 1 if log.nonfinite else 0
        self.signal_level = max(self.signal_level, log.signal)
        self.on_step(log)
        if self._streak >= DIVERGED_AFTER:
            text = f"{self._streak} steps in a row were not finite, the last at step {log.step}"
            raise DivergedError(f"{text}: losses {log.losses}, lr {log.lr:g}")

    def flush(self) -> None:
        """Read the figures of the last step, before a save or an evaluation."""
        if self._late:
            self.heed(self._late.push(None, None))

    # What the run asks of it ---------------------------------------------------------------------------------------

    def set_lr(self) -> float:
        """Set the learning rate of the coming step, a pure function of the step; returns the base of all groups."""
        optim, plan = self.config.optim, self.plan
        factor = lr_factor(self.step, total=plan.total, warmup=plan.warmup, per_epoch=plan.per_epoch, config=optim)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_lr * group["lr_scale"] * factor
        return self.base_lr * factor

    def agree(self) -> None:
        """Give all processes the first one's batch-norm statistics, which are those that are saved."""
        if self.share.world > 1:
            averages = [] if self.ema is None else list(self.ema.state_dict().values())
            for tensor in [*self.model.buffers(), *averages]:
                torch.distributed.broadcast(tensor, 0)

    def batches(self, order: Any, count: int, stop: int) -> GlobalBatches:
        """The global batches from the current step to ``stop``, this process's share of them."""
        return GlobalBatches(order, count, self.config.data.batch_size, start=self.step, stop=stop, share=self.share)

    def state(self) -> dict[str, Tensor]:
        """All tensors of a run: ``model.*``, ``ema.*``, ``optimizer.*``, ``scaler.*``."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= flatten_optimizer(self.optimizer)
        if self.ema:
            state |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        scaler = getattr(self.trainer.precision_plugin, "scaler", None) if self._trainer else None
        if scaler is not None:
            state |= {f"scaler.{name}": torch.tensor(value) for name, value in scaler.state_dict().items()}
        return state

    def restore(self, tensors: dict[str, Tensor], step: int) -> dict[str, Any]:
        """Continue after ``step`` steps from :meth:`state`; returns the gradient scaler's part, which the trainer owns."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "scaler": {}, "optimizer": {}}
        for key, value in tensors.items():
            root, _, name = key.partition(".")
            parts[root][name] = value
        self.model.load_state_dict(parts["model"])
        if self.ema:
            self.ema.load_state_dict(parts["ema"])
        restore_optimizer(self.optimizer, tensors)
        self.step = step
        return {name: value.item() for name, value in parts["scaler"].items()}


class _LateReader:
    """Hands figures on the device to the host one step later, so that nobody waits for the step in flight."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._held: tuple[StepLog, Tensor, Any] | None = None

    def push(self, log: StepLog | None, values: Tensor | None) -> StepLog | None:
        """Take the figures of a step, give back the one before: flags (non-finite, signal), then the losses."""
        before, self._held = self._held, None
        if log is not None and values is not None:
            event: torch.cuda.Event | None = None
            if self.cuda:
                host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                host.copy_(values, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch gives it no types
                event.record()
                values = host
            self._held = (log, values, event)
        if before is None:
            return None
        done, figures, event = before
        if event is not None:
            event.synchronize()  # waits for the step before the one in flight
        bad, signal, *losses = figures.tolist()
        done.nonfinite, done.signal = bool(bad), int(signal)
        done.losses = dict(zip(done.losses, losses, strict=True))
        return done
