"""From a config to all that a run has before its first step: data, model, plan, and what makes it this run and no other.

What can be refused is refused here, and what looks wrong is told, before hours of training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from tasks.data.check import check_dataset
from tasks.data.dataset import Dataset
from tasks.data.door.transforms import told_of_listed, told_of_resizing
from tasks.data.suspicions import told_of_data
from tasks.engine import batchnorm, feeding, processes, splits
from tasks.engine.assembly import begin_model, told_of_resting
from tasks.engine.distilling import Distilled, objective_of
from tasks.engine.evaluation import monitor
from tasks.engine.hardware import Hardware
from tasks.engine.identity import identity
from tasks.engine.launch import make_fabric
from tasks.engine.loggers import check_loggers
from tasks.engine.optim import lr_factor
from tasks.engine.plan import Plan
from tasks.engine.resume import begun
from tasks.engine.rundir import STATES, trained
from tasks.engine.state import RunState, begin
from tasks.engine.stepping import Objective
from tasks.report.metricsfile import plain
from tasks.scoring.added import Monitor
from tasks.settings.idle import told_of_idle
from tasks.settings.sections import Config
from tasks.settings.tree import lasting
from tasks.spec import TaskSpec
from tasks.telling import Teller

_COMPARED = 20_000
"""Image files that may be compared with each other before a run; ``check`` compares any number."""
LOOKED_AT = 16
"""Samples of each split that are read before a run, for faults that would end it later."""


@dataclass(frozen=True)
class Prepared:
    """A run before its first step, in one process."""

    fabric: Fabric
    hardware: Hardware
    state: RunState
    plan: Plan
    datasets: Mapping[str, Dataset]
    """By split: ``train``, ``val`` and, where there is one, ``test``."""
    training: feeding.TrainingFeed
    """The training split as it is sampled (:meth:`TaskSpec.view`) and shown to the network."""
    classes: Any
    """As :meth:`TaskSpec.classes` gives them."""
    identity: dict[str, Any]
    """What must be the same when the run continues (:func:`tasks.engine.identity.identity`)."""
    monitor: Monitor
    """The score that chooses the best weights."""
    lr_factor: Callable[..., float]
    """Share of the peak learning rates at a step."""
    objective: Objective
    """What a step makes smaller."""


def prepare(task: TaskSpec, config: Config, folder: Path, tell: Teller) -> Prepared:
    """Open and look at the data, build the model, count the steps; one process of a run calls it as the others do."""
    hardware, first = Hardware.of(config), processes.is_first()
    Fabric.seed_everything(config.run.seed, workers=False, verbose=False)
    check_loggers(config.run.loggers)
    labels = task.labels(config)
    said = *told_of_resizing(config.data), *told_of_listed(config.data, labels)
    for line in (*told_of_idle(config), *said):
        tell(line)
    continued = first and trained(folder)  # it keeps its division; other processes draw the same one
    datasets = splits.open_splits(splits.with_division(config, folder) if continued else config, task)
    for dataset in datasets.values():
        check_dataset(dataset, limit=LOOKED_AT, on_error=config.data.on_error, labels=labels)
    classes = task.classes(config, datasets["train"])
    judged_by = monitor(task, config, classes)
    model, beginning = begin_model(config, task, datasets["train"], tell, begun(folder / STATES) if continued else None)
    if first:
        for line in (*told_of_resting(config, model), *told_of_data(datasets, compared=_COMPARED)):
            tell(line)
        task.preflight(config, model, datasets, tell)
    training, told = feeding.training_feed(config, task, task.view(config, datasets["train"]), model)
    plan, fabric = Plan.of(config, len(training)), make_fabric(config, hardware)
    for line in (*told, *plan.told, *feeding.told_of_growth(training, plan, model.head)):
        tell(line)
    known = identity(
        model, plain(classes), datasets, config.plugins, hardware, seen=plan.seen, settings=lasting(config)
    )
    known |= {"beginning": beginning, "model": beginning["model"]}
    objective = objective_of(task, config, model.to(hardware.device), tell)
    adapters = None
    if isinstance(objective, Distilled):
        known["teacher"], adapters = objective.digest, objective.adapters
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    state = begin(config, model, scaler, warmup=plan.warmup, adapters=adapters)
    if state.simulation is None:  # which keeps the statistics that the weights came with
        state.statistics = batchnorm.for_few_steps(training.few, plan, hardware)
    factor = partial(lr_factor, total=plan.total, warmup=plan.warmup, per_epoch=plan.per_epoch, config=config.optim)
    return Prepared(fabric, hardware, state, plan, datasets, training, classes, known, judged_by, factor, objective)
