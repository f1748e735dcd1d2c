"""The state of a run, one object: all that a checkpoint holds, and nothing else decides how the run goes on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from effbackbones.backbones.syncnorm import synchronise_batch_norm
from effbackbones.errors import UserError
from effbackbones.export.simulation import Int8Simulation
from effbackbones.model import Model
from tasks.engine import processes
from tasks.engine.batchnorm import Statistics
from tasks.engine.ema import Ema
from tasks.engine.optim import build_optimizer
from tasks.engine.order import Share
from tasks.engine.resume import (
    OTHER_STATE,
    State,
    alike,
    check_optimizer,
    flatten_optimizer,
    restore_optimizer,
)
from tasks.engine.student import Adapters, Student
from tasks.settings.sections import Config

MOST_LOGGED = 1000
"""Points of a run's curve of loss and learning rate."""
_LATER = frozenset({"logged", "logged_every"})
"""What the states of runs before it was kept do not have."""


@dataclass
class Progress:
    """What a run knows beside its tensors; the record of every state file."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_weights: str = "raw"
    since_best: int = 0
    seconds: float = 0.0
    skipped: int = 0
    loss_sum: float = 0.0
    """Of the finite steps since the last evaluation, ``loss_steps``: of this process's share, after :meth:`RunState.agree` the
    mean over all processes."""
    loss_steps: int = 0
    logged: list[list[float]] = field(default_factory=list)
    """``[step, loss, lr]`` of finite steps, as this process saw them: of each :attr:`logged_every`, which doubles when they become
    more than :data:`MOST_LOGGED`."""
    logged_every: int = 1

    def log(self, step: int, loss: float, lr: float) -> None:
        """Note a step, if it is one of those that are kept."""
        if step % self.logged_every:
            return
        self.logged.append([step, float(f"{loss:.6g}"), float(f"{lr:.6g}")])
        if len(self.logged) > MOST_LOGGED:
            self.logged_every *= 2
            self.logged = [row for row in self.logged if row[0] % self.logged_every == 0]


@dataclass
class RunState:
    """A run after ``step`` steps, in the process that has this ``share`` of each batch. Everything random follows from ``step``.

    ``model`` is on its device, and ``optimizer`` and ``ema`` were made there: so what :meth:`restore` puts back is there too.
    """

    model: Model
    optimizer: Optimizer
    ema: Ema | None
    scaler: "torch.amp.GradScaler | None"
    share: Share = field(default_factory=Share)
    step: int = 0
    progress: Progress = field(default_factory=Progress)
    statistics: Statistics | None = None
    """Of a run of few steps: what its batch norms are judged with."""
    adapters: Adapters | None = None
    """What is trained beside the model and kept in no file of it."""
    simulation: Int8Simulation | None = None
    """What rounds as the exported file will."""

    def __post_init__(self) -> None:
        self.trained: Model | Student = Student(self.model, self.adapters) if self.adapters else self.model
        """What a step trains, as one module."""
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]

    def set_lr(self, factor: float) -> float:
        """Set the learning rates of the coming step, this share of their peaks; gives the head's."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return float(self.optimizer.param_groups[-1]["lr"])

    @property
    def model_size(self) -> int:
        """Bytes of a model file."""
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())

    @property
    def file_size(self) -> int:
        """Bytes of a state file, at most: weights, their averages, and two numbers more that an optimiser keeps of each."""
        beside = sum(tensor.nbytes for tensor in self.adapters.parameters()) if self.adapters else 0
        return self.model_size * (4 if self.ema else 3) + 3 * beside

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a run: ``model.*``, ``ema.*``, ``optimizer.*``, ``scaler.*``, ``adapters.*``, ``quantise.*``."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= flatten_optimizer(self.optimizer)
        if self.ema:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        if self.scaler:
            tensors |= {f"scaler.{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()}
        if self.adapters:
            tensors |= {f"adapters.{name}": value for name, value in self.adapters.state_dict().items()}
        if self.simulation:
            tensors |= {f"quantise.{name}": value for name, value in self.simulation.state_dict().items()}
        return tensors

    def restore(self, state: State) -> None:
        """Continue from what :meth:`tensors` gave and a record of ``step`` and ``progress``. A file that is not the state of such a
        model, optimiser and average raises :class:`UserError`, and nothing is changed."""
        roots = ("model", "ema", "scaler", "optimizer", "adapters", "quantise")
        parts: dict[str, dict[str, Tensor]] = {root: {} for root in roots}
        for key, value in state.tensors.items():
            root, _, name = key.partition(".")
            parts.setdefault(root, {})[name] = value
        own = self.tensors()
        rest = {name: value for name, value in state.tensors.items() if not name.startswith("optimizer.")}
        alike(state.path, {name: value for name, value in own.items() if not name.startswith("optimizer.")}, rest)
        check_optimizer(state.path, self.optimizer, parts["optimizer"])
        told, known = state.part("progress"), {item.name for item in fields(Progress)}
        if told.keys() | _LATER != known:
            what = f"its progress has other keys: {', '.join(sorted((told.keys() | _LATER) ^ known))}"
            raise UserError(str(state.path), what, OTHER_STATE)
        self.model.load_state_dict(parts["model"])
        restore_optimizer(self.optimizer, state.tensors)
        if self.ema:
            self.ema.load_state_dict(parts["ema"])
        if self.adapters:
            self.adapters.load_state_dict(parts["adapters"])
        if self.simulation:
            self.simulation.load_state_dict(parts["quantise"])
        if self.scaler:
            self.scaler.load_state_dict({name: value.item() for name, value in parts["scaler"].items()})
        self.step, self.progress = state.record["step"], Progress(**told)

    def agree(self) -> None:
        """Give all processes the first one's batch-norm statistics, which are those that are saved, and the mean of their losses."""
        if self.share.world > 1:
            averages = [] if self.ema is None else list(self.ema.state_dict().values())
            ranges = [] if self.simulation is None else list(self.simulation.state_dict().values())
            for tensor in [*self.model.buffers(), *averages, *ranges]:
                torch.distributed.broadcast(tensor, 0)
            device = next(self.model.parameters()).device
            losses = torch.tensor(self.progress.loss_sum, dtype=torch.float64, device=device)
            torch.distributed.all_reduce(losses)
            self.progress.loss_sum = losses.item() / self.share.world

    def rounded(self, *, observe: bool = False) -> AbstractContextManager[None]:
        """Inside, the model computes as its file in int8 will, if that is trained for; in training it is to ``observe`` ranges."""
        return self.simulation.applied(observe=observe) if self.simulation else nullcontext()

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """Inside, the model has the weights called ``ema`` or ``raw``; with ``statistics``, also its batch norms as these want them."""
        averaged = self.ema.applied(self.model) if name == "ema" and self.ema else nullcontext()
        with averaged, self.statistics.applied(self.model, (self.step, name)) if self.statistics else nullcontext():
            yield


def begin(
    config: Config, model: Model, scaler: Any = None, *, warmup: int = 0, adapters: Adapters | None = None
) -> RunState:
    """The state of a run before its first step, of which the first ``warmup`` are the warm-up. ``model`` and ``adapters`` are on their
    device; ``scaler`` is that of fp16."""
    optim = config.optim
    if config.model.norm == "sync" and processes.here().world > 1:
        synchronise_batch_norm(model)
    lr = optim.scaled_lr(config.data.batch_size)
    groups = model.param_groups(
        lr,
        optim.weight_decay,
        layer_decay=optim.layer_decay,
        backbone_scale=optim.backbone_lr,
        decay_norm_and_bias=optim.decay_norm_and_bias,
    )
    if adapters:
        beside = {"params": list(adapters.parameters()), "name": "adapters", "lr": lr, "lr_scale": 1.0}
        groups.append({**beside, "weight_decay": optim.weight_decay})
    ema = Ema(model, optim.ema, warmup if optim.ema_start == "warmup" else 0) if optim.ema else None
    state = RunState(model, build_optimizer(optim, groups), ema, scaler, adapters=adapters)
    state.simulation = simulated(config, model)
    return state


def simulated(config: Config, model: Model) -> Int8Simulation | None:
    """What ``optim.quantise`` asks for; :class:`UserError` where it cannot be had."""
    if config.optim.quantise is None:
        return None
    others = {
        "run.compile": config.run.compile,
        "model.backbone_options.checkpointing": getattr(model.backbone, "checkpointing", False),
    }
    for name, wanted in others.items():
        if wanted:
            raise UserError("optim.quantise", f"does not go with {name}", "leave one of them out")
    try:
        return Int8Simulation(model)
    except UserError as error:
        raise UserError("optim.quantise", f"int8 cannot be simulated: {error}", "set it to null") from error
