"""The verb ``train``: phases of steps under Lightning, with evaluation, saving and stopping between two steps."""

import json
import logging
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from effbackbones.errors import UserError
from tasks.data.batch import SkipCount
from tasks.data.check import check_dataset
from tasks.engine import assembly, processes
from tasks.engine.engine import DivergedError, Engine, Plan, StepLog, Timed
from tasks.engine.evaluation import EvaluationLeftError
from tasks.engine.events import Events
from tasks.engine.judging import Judge, Progress
from tasks.engine.resume import load_state, save_state
from tasks.engine.rundir import RunFolder, choose
from tasks.engine.signals import EXIT_CODES, SAVE, Signals, stopped_by
from tasks.report.metricsfile import write_metrics
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller

_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
MOST_WAITING = 0.2
"""Share of the time spent waiting for data above which the setting to change is named."""


def _quiet_lightning() -> None:
    """Keep its notices (devices, tips, deprecations inside of it) off the terminal; errors pass."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for module in ("lightning.pytorch", "lightning.fabric"):
        warnings.filterwarnings("ignore", module=rf"{module}\..*")


def _plain(classes: Any) -> Any:
    """Names of classes as JSON has them."""
    return {task: list(names) for task, names in classes.items()} if isinstance(classes, Mapping) else list(classes)


def _counted(classes: Any) -> str:
    """How many classes there are, by task where there are several."""
    if isinstance(classes, Mapping):
        return ", ".join(f"{len(names)} classes of {task}" for task, names in classes.items())
    return f"{len(classes)} classes"


def train(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Train, evaluate the best weights, write the report; returns the exit code. All processes of a run call it."""
    _quiet_lightning()
    tell = Teller(config.run.progress, quiet=not processes.is_first())
    path = choose(config, task.command, extras.config_name, tell)
    run = _Run(task, config, path, tell)  # what is wrong with data or model shows here, before there is a folder
    tell(f"run folder {path}")
    with RunFolder(path, config) if processes.is_first() else nullcontext():
        return run.go()


class _Run(L.Callback):
    """One training run in one process."""

    def __init__(self, task: TaskSpec, config: Config, folder: Path, tell: Teller) -> None:
        self.task, self.config, self.folder, self.tell = task, config, folder, tell
        self.device = assembly.run_device(config)
        L.seed_everything(config.run.seed, verbose=False)
        datasets = assembly.open_splits(config, task)
        for dataset in datasets.values():  # now, not after hours of training
            check_dataset(dataset, limit=16, on_error=config.data.on_error, labels=task.labels(config))
        self.classes = task.classes(config, datasets["train"])
        model = assembly.make_model(config, task, datasets["train"])
        if processes.is_first():
            task.preflight(config, model, datasets, tell)
        self.train_set = task.view(config, datasets["train"])
        self.plan = Plan.of(config, len(self.train_set))
        self.engine = Engine(model, task, config, self.plan)
        self.engine.on_step = self.on_step
        self.judge = Judge(task, config, self.engine, datasets, folder, tell, Progress(), self._leaves)
        self.scaler: Mapping[str, Any] = {}
        self.skips = SkipCount(len(self.train_set))
        self.signals = Signals()
        self.saved_at = self.started = time.monotonic()
        self.rate_from = (time.monotonic(), 0, 0.0)
        self.timed: Timed | None = None
        self.events: Events | None = None

    @property
    def state(self) -> Progress:
        """What is known of the run so far."""
        return self.judge.state

    # The run, from outside ------------------------------------------------------------------------------------------

    def go(self) -> int:
        """Train to the end, or to a signal."""
        self._resume()
        self._tell_start()
        if processes.is_first():
            self.events = Events(self.folder, self.config.run.tensorboard)
        with self.signals, self.tell.bar(self.plan.total, self.engine.step, "train", "step"):
            for start, stop in self.plan.phases(self.engine.step):
                if self.plan.thaw is not None and start >= self.plan.thaw:
                    self.engine.model.backbone.unfreeze()
                if self._early():
                    break
                self._fit(stop)
                if self._stopping() or self.engine.step < stop:
                    break
        if self.events:
            self.events.close()
        signal = stopped_by(max(self.engine.signal_level, self.signals.level))
        if signal is not None:
            self.tell(
                f"stopped by {signal.name} after step {self.engine.step}, which is saved; the same command continues"
            )
            return EXIT_CODES[signal]
        if self.engine.step != self.plan.total and not self._early():
            raise RuntimeError(f"{self.engine.step} of {self.plan.total} planned steps were done")
        if not self._evaluated():  # stopped between the last step and its evaluation
            self.engine.model.to(self.device)
            self._evaluate()
        self.judge.finish({"unreadable": f"{len(self.skips.messages)} training samples"})
        return 0

    def _resume(self) -> None:
        found = load_state(self.folder / "checkpoints", self.tell) if self.config.run.resume != "never" else None
        if found:
            tensors, record = found
            self._refuse_other_data(record["data"])
            self.scaler = self.engine.restore(tensors, record["step"])
            self.judge.state = Progress(**record["progress"])
            self.tell(f"continuing after step {self.engine.step} of {self.plan.total}")

    def _data(self) -> dict[str, Any]:
        """What must be the same when a run is continued: the label map and the number of samples."""
        return {"classes": _plain(self.classes), "training samples": len(self.train_set)}

    def _refuse_other_data(self, before: Mapping[str, Any]) -> None:
        for name, value in self._data().items():
            if before[name] != value:
                text = f"its {name} were {str(before[name])[:80]} and are now {str(value)[:80]}"
                raise UserError(str(self.folder), text, "restore the data, or start anew with another run.out")

    def _tell_start(self) -> None:
        config, model = self.config, self.engine.model
        count = sum(p.numel() for p in model.parameters())
        data = f"{len(self.train_set):,} training and {len(self.judge.datasets['val']):,} validation samples, {_counted(self.classes)}"
        self.tell(f"{data}; {config.model.backbone} + {model.config['head']}, {count:,} parameters, on {self.device}")
        batch = f"batch {config.data.batch_size}, lr {self.engine.base_lr:.3g} ({config.optim.lr:g} at {config.optim.base_batch}"
        self.tell(
            f"{batch}, {config.optim.lr_scaling} scaling), {self.plan.total} steps, {self.plan.per_epoch} an epoch"
        )
        for line in [model.provenance.get("loaded", ""), *model.provenance.get("assumed", [])]:
            if line:
                self.tell(line)

    def _fit(self, stop: int) -> None:
        config, engine = self.config, self.engine
        if config.run.compile:
            engine.model.compile()
        trainer = L.Trainer(
            accelerator=self.device.type if self.device.type == "cpu" else "gpu",
            **processes.layout(config),
            precision=_PRECISION[assembly.precision(config, self.device)],
            max_epochs=1,
            callbacks=[self],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            deterministic=config.run.deterministic,
            log_every_n_steps=1,
        )
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # fp16 has one
        if scaler is not None and self.scaler:
            scaler.load_state_dict(dict(self.scaler))
        engine.loader = partial(self._loader, stop)
        try:
            trainer.fit(engine)
        except SystemExit:  # Lightning's answer to a second interrupt
            raise KeyboardInterrupt from None
        engine.flush()
        self.scaler = scaler.state_dict() if scaler is not None else {}

    def _loader(self, stop: int) -> Timed:
        config, engine, count = self.config, self.engine, len(self.train_set)
        batches = engine.batches(assembly.training_order(config, self.train_set), count, stop)
        data = assembly.keyed(config, self.task, self.train_set, engine.model, train=True)
        self.timed = Timed(assembly.loader(config, self.task, data, engine.model, batches))
        self.rate_from = (time.monotonic(), engine.step, 0.0)
        return self.timed

    # Between two steps ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, engine: L.LightningModule) -> None:
        """Take the signals back: Lightning has just put its own handlers in."""
        self.signals.install()
        if self._is_due() and not self._evaluated():
            self._evaluate()
            trainer.should_stop = self._stopping()

    def on_train_batch_start(self, trainer: L.Trainer, engine: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Hand the engine the signals that came meanwhile; that it is time to save is one of them, so that all processes
        hear of it at the same step."""
        late = time.monotonic() - self.saved_at > 60 * self.config.run.save_minutes
        self.engine.own_level = max(self.signals.level, SAVE if late and processes.is_first() else 0)
        known = len(self.skips.messages)
        self.skips.add(batch.meta)
        for message in list(self.skips.messages)[known:]:
            self.tell(f"skipped: {message}")

    def on_train_batch_end(
        self, trainer: L.Trainer, engine: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step: save, evaluate, stop."""
        if self.engine.piece:
            return
        due = self._is_due() or self.engine.step == self.plan.total
        if self.engine.signal_level or due:
            self._save()  # reads this step's figures, a signal among them
            if stopped_by(self.engine.signal_level) is None:
                self.engine.signal_level = 0
            self.signals.take_save()
        if due and not self._stopping():
            self._evaluate()
        trainer.should_stop = self._stopping()

    def _is_due(self) -> bool:
        step = self.engine.step
        return step > 0 and step % (self.plan.per_epoch * self.config.run.eval_every) == 0

    def _evaluated(self) -> bool:
        return bool(self.state.history) and self.state.history[-1]["step"] == self.engine.step

    def _early(self) -> bool:
        return self.config.run.patience is not None and self.state.since_best >= self.config.run.patience

    def _leaves(self) -> bool:
        """Whether an evaluation is to be left: a process that is alone may; of several each would wait for the others."""
        return self.engine.share.world == 1 and stopped_by(self.signals.level) is not None

    def _stopping(self) -> bool:
        return stopped_by(self.engine.signal_level) is not None or self._early()

    def on_step(self, log: StepLog) -> None:
        """Show a finished step."""
        loss = sum(log.losses.values())
        if log.nonfinite:
            self.state.skipped += 1
            samples = ", ".join(log.ids[:8])
            with (self.folder / f"nonfinite-{processes.rank()}.jsonl").open("a", encoding="utf-8") as file:
                losses = {name: str(value) for name, value in log.losses.items()}  # JSON has no NaN
                file.write(json.dumps({"step": log.step, "lr": log.lr, "losses": losses, "samples": log.ids}) + "\n")
            self.tell(
                f"step {log.step} was not finite and is skipped: losses {log.losses}, lr {log.lr:g}, samples {samples}"
            )
        else:
            self.state.loss_sum += loss
            self.state.loss_steps += 1
        rate, waiting = self._rate()
        figures = {"loss": f"{loss:.4g}", "lr": f"{log.lr:.3g}", "img/s": f"{rate:.0f}", "data wait": f"{waiting:.0%}"}
        self.tell.step(log.step, self.config.run.log_every, figures)
        if self.events and log.step % self.config.run.log_every == 0:
            self.events.write(
                log.step, {f"train/{name}": value for name, value in log.losses.items()} | {"train/lr": log.lr}
            )

    def _rate(self) -> tuple[float, float]:
        """Images per second and share of time waited for data, since the last evaluation."""
        since, step, waited = self.rate_from
        seconds = max(time.monotonic() - since, 1e-9)
        done = (self.engine.step - step) * self.config.data.batch_size
        return done / seconds, ((self.timed.waited if self.timed else 0.0) - waited) / seconds

    # Evaluating and saving ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.engine.flush()
        now = time.monotonic()
        self.state.seconds += now - self.started
        self.started = self.saved_at = now
        if processes.is_first():
            state = self.engine.state()
            for name, value in state.items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    raise DivergedError(
                        f"{name} is not finite after step {self.engine.step}; the checkpoint before is kept"
                    )
            save_state(
                self.folder / "checkpoints",
                self.engine.step,
                state,
                {"progress": vars(self.state), "data": self._data()},
            )

    def _evaluate(self) -> None:
        """Score the weights that will be kept (the averages, if there are any); keep them if they are the best so far."""
        self.engine.flush()
        self.engine.agree()
        engine, rate = self.engine, self._rate()
        row: dict[str, Any] = {"epoch": engine.step / self.plan.per_epoch, "step": engine.step, "lr": engine.set_lr()}
        if rate[0]:  # not when the run was stopped just before
            row |= {"images_per_second": rate[0], "data_wait": rate[1]}
        if self.state.loss_steps:
            row["train_loss"] = self.state.loss_sum / self.state.loss_steps
        try:
            results = self.judge.validate(row)
        except EvaluationLeftError:  # all is saved; who continues evaluates first
            engine.signal_level = self.signals.level
            return
        self.state.history.append(row)
        self.state.loss_sum, self.state.loss_steps = 0.0, 0
        if self.events:
            self.events.write(engine.step, row)
        figures = {
            name: value for name, value in row.items() if isinstance(value, float) and name not in ("epoch", "lr")
        }
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.tell(f"epoch {row['epoch']:g}: {shown}")
        if rate[1] > MOST_WAITING:
            workers = assembly.workers(self.config)
            self.tell(
                f"{rate[1]:.0%} of the time went into waiting for data: raise data.workers (now {workers}), or shrink the files"
            )
        if processes.is_first():  # of the newest weights; the end puts the best ones' in their place
            write_metrics(self.folder, results, self.state.history)
        self._save()
        self.rate_from = (time.monotonic(), engine.step, self.timed.waited if self.timed else 0.0)
