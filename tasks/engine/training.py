"""The verb ``train``: steps in a loop, and what is done between two of them: telling, saving, evaluating, stopping.

What each process does: batches -> objective -> backward -> guarded update (``stepping.py``) -> duties, here. All that changes is in
one :class:`tasks.engine.state.RunState`.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from effbackbones.errors import UserError
from tasks.data.batch import Batch, SkipCount
from tasks.data.check import check_dataset
from tasks.data.door import told_of_listed
from tasks.data.suspicions import told_of_data
from tasks.engine import assembly, feeding, hardware, processes, splits
from tasks.engine.batchnorm import FEW_STEPS
from tasks.engine.evaluation import EvaluationLeftError
from tasks.engine.identity import compare, identity
from tasks.engine.judging import Judge
from tasks.engine.launch import launch, make_fabric
from tasks.engine.loggers import Loggers, check_loggers, open_loggers
from tasks.engine.optim import lr_factor
from tasks.engine.owning import own_folder, refuse_full_disk
from tasks.engine.pictures import show_predictions
from tasks.engine.plan import Plan
from tasks.engine.resume import GlobalBatches, Share, load_state, save_state
from tasks.engine.rundir import BEST, STATES, keep_config, trained
from tasks.engine.signals import EXIT_CODES, SAVE, Signals, StoppedError, stopped_by
from tasks.engine.stepping import LateReader, Pace, StepLog, Stepper, Supervised
from tasks.engine.watching import WATCHERS
from tasks.report.metricsfile import plain, write_metrics
from tasks.settings.commandline import Extras
from tasks.settings.idle import told_of_idle
from tasks.settings.sections import Config
from tasks.settings.tree import lasting
from tasks.spec import TaskSpec
from tasks.telling import Teller

DIVERGED_AFTER = 10
"""Non-finite steps in a row that end a run (exit code 3)."""
MOST_SKIPPED, OF_LAST = 0.4, 30
"""So large a share of steps skipped, of the last so many and of the whole run, is no success either (exit code 3)."""
MOST_SCORES = 4
"""Scores in an epoch's line beside the one that decides."""
MOST_WAITING = 0.2
"""Share of the time spent waiting for data above which the setting to change is named."""


class DivergedError(Exception):
    """Training gave :data:`DIVERGED_AFTER` non-finite steps in a row."""


def train(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Train, evaluate the best weights, write the report; returns the exit code. All processes of a run call it."""
    place = processes.settle(config.run.processes, config.run.nodes)
    tell = Teller(config.run.progress, quiet=not processes.is_first())
    for line in place.told:
        tell(line)
    with Signals() as signals:
        # The others hear from the first which folder it is.
        first = processes.is_first()
        with own_folder(config, task.command, extras.config_name, tell) if first else nullcontext(Path()) as path:
            run = _Run(task, config, path, tell, signals)
            tell(f"run folder {path}")
            if first:
                splits.write_division(path, run.judge.datasets["train"])
            return run.go()


class _Run:
    """One training run in one process."""

    def __init__(self, task: TaskSpec, config: Config, folder: Path, tell: Teller, signals: Signals) -> None:
        self.task, self.config, self.folder, self.tell, self.signals = task, config, folder, tell, signals
        device = hardware.run_device(config)
        Fabric.seed_everything(config.run.seed, workers=False, verbose=False)
        for line in (*told_of_idle(config), *told_of_listed(config.data, task.labels(config))):
            tell(line)
        continued = processes.is_first() and trained(folder)  # it keeps its division; other processes draw the same one
        datasets = splits.open_splits(splits.with_division(config, folder) if continued else config, task)
        for dataset in datasets.values():  # now, not after hours of training
            check_dataset(dataset, limit=16, on_error=config.data.on_error, labels=task.labels(config))
        self.classes = task.classes(config, datasets["train"])
        model = assembly.make_model(config, task, datasets["train"], tell)
        if processes.is_first():
            for line in told_of_data(datasets):
                tell(line)
            task.preflight(config, model, datasets, tell)
        self.train_set = task.view(config, datasets["train"])
        self.plan = Plan.of(config, len(self.train_set))
        if self.plan.cut_warmup:
            tell(self.plan.cut_warmup)
        if config.model.norm == "sync" and processes.here().world == 1:
            tell("model.norm sync changes nothing: one process sees all images")
        self.fabric, plan = make_fabric(config, device), self.plan
        self.lr_factor = partial(
            lr_factor, total=plan.total, warmup=plan.warmup, per_epoch=plan.per_epoch, config=config.optim
        )
        self.identity = identity(
            model,
            plain(self.classes),
            datasets,
            config.plugins,
            precision=hardware.precision(config, device),
            device=device.type,
            seen=feeding.normalised_together(config),
            settings=lasting(config),
        )
        self.state = assembly.begin(config, model.to(device), getattr(self.fabric.strategy.precision, "scaler", None))
        self.state.statistics = feeding.batch_norm_statistics(config, task, self.train_set, model, plan.total, device)
        leaves, data = (self._leaves, self._leaving), self.identity["data"]
        self.judge = Judge(task, config, self.state, self.plan, datasets, folder, tell, *leaves, data)
        self.skips, self.pace = SkipCount(len(self.train_set)), Pace(config.data.batch_size)
        self.figures = LateReader()
        self.agreed = 0
        """The highest signal of all processes, which they agree on at the same step."""
        self.streak = 0
        self.lately: deque[bool] = deque(maxlen=OF_LAST)
        """Whether each of the last steps was skipped."""
        self.saved_at = self.started = time.monotonic()
        check_loggers(config.run.loggers)
        self.loggers = Loggers(folder, (), {}, tell)

    def go(self) -> int:
        """Train to the end, or to a signal."""
        state, optim = self.state, self.config.optim
        launch(self.fabric, self.config.run.join_timeout)
        self.folder = Path(self.fabric.broadcast(str(self.folder)))
        state.share = Share(self.fabric.global_rank, self.fabric.world_size, optim.accumulate)
        self._resume()
        if processes.is_first():
            refuse_full_disk(self.folder, state.file_size, state.model_size)
        self.pace.restart(state.step)
        self._tell_start()
        if processes.is_first():
            self.loggers = open_loggers(self.task, self.config, self.folder, self.tell, self.train_set, state)
        self.signals.heed()
        with self.tell.bar(self.plan.total, state.step, "train", "step"):
            for start, stop in self.plan.phases(state.step):
                if self._stopping():
                    break
                if self.plan.thaw is not None and start >= self.plan.thaw:
                    state.model.backbone.unfreeze()
                self._train(stop)
        self.loggers.close()
        if stopped_by(self.agreed) is not None:
            self.fabric.barrier()  # Lightning's launcher kills the first process, which may still save, when another has ended
        signal = stopped_by(max(self.agreed, self.signals.level))
        if signal is not None:
            self.tell(f"stopped by {signal.name} after step {state.step}, which is saved; the same command continues")
            return EXIT_CODES[signal]
        if state.step != self.plan.total and not self._early():
            raise RuntimeError(f"{state.step} of {self.plan.total} planned steps were done")
        skipped = state.progress.skipped
        if skipped >= MOST_SKIPPED * state.step:
            raise DivergedError(f"{skipped} of {state.step} steps were not finite, and are skipped")
        if state.step != self.plan.total:
            self._tell_early()
        if not self._evaluated():  # stopped between the last step and its evaluation
            self._evaluate()
        self.signals.unheeded()  # all is saved; the same command makes up for the rest
        self.judge.finish({"unreadable": f"{len(self.skips.messages)} training samples"})
        return 0

    def _train(self, stop: int) -> None:
        """The loop: steps until ``stop`` are done, with the same parameters trained in all of them."""
        state, config = self.state, self.config
        if config.run.compile:
            state.model.compile()
        objective = Supervised(self.task, config)
        stepper = Stepper(
            self.fabric,
            state,
            objective,
            self.figures,
            self._asked,
            self.lr_factor,
            config.optim.clip_norm,
            config.run.seed,
            leaving=self._leaving,
            tell=self.tell,
        )
        if self._is_due() and not self._evaluated():  # left when the run was stopped
            self._evaluate()
        batches = self._batches(stop)
        while state.step < stop and not self._stopping():
            try:
                with ExitStack() as watched:
                    for watcher in WATCHERS:
                        watched.enter_context(watcher.step(state))
                    watched.enter_context(self.signals.leaving(raises=False))
                    log = stepper.take(islice(batches, config.optim.accumulate))
            except StoppedError:  # too slow a step, or nothing to step on: as if it had not begun
                stepper.undo()
                self.agreed = self.signals.level
                log = None
            self._heed(log)
            due = self._is_due() or state.step == self.plan.total
            if stopped_by(self.agreed) is not None:
                self.signals.answer()
            if self.agreed or due:
                self._save()  # reads this step's figures, a signal among them
                if stopped_by(self.agreed) is None:
                    self.agreed = 0
                self.signals.take_save()
            if due and not self._stopping():
                self._evaluate()
        self._heed(self.figures.flush())

    def _batches(self, stop: int) -> Iterator[Batch]:
        """This process's pieces of the batches from the next step to ``stop``; what they had to skip is counted and told."""
        config, state, data = self.config, self.state, self.train_set
        order = feeding.training_order(config, data)
        pieces = GlobalBatches(order, len(data), config.data.batch_size, start=state.step, stop=stop, share=state.share)
        samples = feeding.keyed(config, self.task, data, state.model, train=True)
        loader = feeding.loader(config, self.task, samples, state.model, pieces)
        self.pace.restart(state.step)
        for batch in self.pace.waiting(loader):
            known = len(self.skips.messages)
            self.skips.add(batch.meta)
            for message in list(self.skips.messages)[known:]:
                self.tell(f"skipped: {message}")
            yield batch

    def _asked(self) -> int:
        """The signal that this process has got. That it is time to save is one too, so that all hear of it at the same step."""
        late = time.monotonic() - self.saved_at > 60 * self.config.run.save_minutes
        return max(self.signals.level, SAVE if late and processes.is_first() else 0)

    def _is_due(self) -> bool:
        step = self.state.step
        return step > 0 and step % (self.plan.per_epoch * self.config.run.eval_every) == 0

    def _evaluated(self) -> bool:
        history = self.state.progress.history
        return bool(history) and history[-1]["step"] == self.state.step

    def _early(self) -> bool:
        patience = self.config.run.patience
        return patience is not None and self.state.progress.since_best >= patience

    def _tell_early(self) -> None:
        """Why the run stops before its planned end."""
        progress, name = self.state.progress, f"val_{self.judge.monitor.name}"
        best = next((row for row in progress.history if row.get(name) == progress.best), {})
        place = f" at epoch {best['epoch']:g}" if best else ""
        text = f"stops early after step {self.state.step} of {self.plan.total}: {progress.since_best} evaluations without a better"
        self.tell(f"{text} {name} than {progress.best or 0.0:.4f}{place} (run.patience)")

    def _leaves(self) -> bool:
        """Whether an evaluation is to be left: a process that is alone may; of several each would wait for the others."""
        return self.state.share.world == 1 and stopped_by(self.signals.level) is not None

    def _leaving(self) -> AbstractContextManager[None]:
        """Around work that a process leaves, when it is to stop, without waiting for its end: if it is alone, as above."""
        return self.signals.leaving(raises=self.state.share.world == 1)

    def _stopping(self) -> bool:
        return stopped_by(self.agreed) is not None or self._early()

    def _tell_start(self) -> None:
        config, model = self.config, self.state.model
        count = sum(p.numel() for p in model.parameters())
        data = f"{len(self.train_set):,} training and {len(self.judge.datasets['val']):,} validation samples, {_counted(self.classes)}"
        self.tell(
            f"{data}; {config.model.backbone} + {model.config['head']}, {count:,} parameters, on {self.fabric.device}"
        )
        batch = f"batch {config.data.batch_size}, lr {self.state.set_lr(1.0):.3g} ({config.optim.lr:g} at {config.optim.base_batch}"
        self.tell(
            f"{batch}, {config.optim.lr_scaling} scaling), {self.plan.total} steps, {self.plan.per_epoch} an epoch"
        )
        if self.state.statistics:
            text = f"fewer than {FEW_STEPS} steps: batch norms are judged by statistics taken anew from training images"
            self.tell(f"{text}; more steps, by a smaller data.batch_size or more optim.epochs, would learn more")
        for line in [model.provenance.get("loaded", ""), *model.provenance.get("assumed", [])]:
            if line:
                self.tell(line)

    def _heed(self, log: StepLog | None) -> None:
        """Act on a finished step: count and show it; too many that were not finite end the run."""
        if log is None:
            return
        progress, every = self.state.progress, self.config.run.log_every
        self.streak = self.streak + 1 if log.nonfinite else 0
        self.lately.append(log.nonfinite)
        self.agreed = max(self.agreed, log.signal)
        loss = sum(log.losses.values())
        if log.nonfinite:
            progress.skipped += 1
            self._tell_nonfinite(log)
        else:
            progress.loss_sum += loss
            progress.loss_steps += 1
        rate, waiting = self.pace.at(self.state.step)
        figures = {"loss": f"{loss:.4g}", "lr": f"{log.lr:.3g}", "img/s": f"{rate:.0f}", "data wait": f"{waiting:.0%}"}
        self.tell.step(log.step, every, figures)
        if log.step % every == 0:
            losses = {f"train/{name}": value for name, value in log.losses.items()}
            self.loggers.write(log.step, losses | {"train/lr": log.lr})
        for watcher in WATCHERS:
            watcher.log(self.state, log)
        text, last = "", f"the last at step {log.step}: losses {log.losses}, lr {log.lr:g}"
        if self.streak >= DIVERGED_AFTER:
            text = f"{self.streak} steps in a row were not finite"
        elif log.nonfinite and sum(self.lately) >= MOST_SKIPPED * OF_LAST:
            text = f"{sum(self.lately)} of the last {len(self.lately)} steps were not finite"
        if text:
            raise DivergedError(f"{text}, {last}")

    def _tell_nonfinite(self, log: StepLog) -> None:
        samples = ", ".join(log.ids[:8])
        losses = {name: str(value) for name, value in log.losses.items()}  # JSON has no NaN
        line = json.dumps({"step": log.step, "lr": log.lr, "losses": losses, "samples": log.ids}) + "\n"
        file = self.folder / f"nonfinite-{processes.rank()}.jsonl"
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(line)
        except OSError as error:  # a log; all of it is told too
            self.tell(f"warning: {file} cannot be written ({error.strerror})")
        self.tell(
            f"step {log.step} was not finite and is skipped: losses {log.losses}, lr {log.lr:g}, samples {samples}"
        )

    def _save(self) -> None:
        state, progress, now = self.state, self.state.progress, time.monotonic()
        self._heed(self.figures.flush())
        state.agree()
        progress.seconds += now - self.started
        self.started = self.saved_at = now
        tensors = state.tensors()  # alike in all processes, so that all stop here or none
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                kept = "; the checkpoint before is kept" if any((self.folder / STATES).glob("step-*")) else ""
                raise DivergedError(f"{name} is not finite after step {state.step}{kept}")
        if not processes.is_first():
            return
        record = {"progress": vars(progress), "identity": self.identity, "planned": self.plan.total}
        save_state(self.folder / STATES, state.step, tensors, record)

    def _resume(self) -> None:
        """Continue from the newest state, if there is one and this is the run that it is a state of."""
        state, planned = self.state, self.plan.total
        if self.fabric.broadcast(self.identity)["data"] != self.identity["data"]:
            what = "reads other data than the first process"
            raise UserError(f"process {state.share.rank}", what, "give all machines the same data.root")
        found = load_state(self.folder / STATES, self.tell) if self.config.run.resume != "never" else None
        if found:
            compare(found.part("identity"), self.identity, self.folder, self.tell)
            state.restore(found)
            planned = found.record.get("planned", planned)
        if processes.is_first():
            keep_config(self.folder, self.config, self.tell)
        if not found:
            return
        self.tell(f"continuing after step {state.step} of {self.plan.total}")
        if planned != self.plan.total:
            state.progress.since_best = 0  # who wants more than a run that patience ended gets it
            before = state.set_lr(self.lr_factor(state.step, total=planned))
            text = f"{planned} steps became {self.plan.total}, and the schedule {self.config.optim.schedule} is that of the new length"
            self.tell(
                f"{text}: lr goes on at {state.set_lr(self.lr_factor(state.step)):.3g}, where it had come to {before:.3g}"
            )
        if self.fabric.broadcast(state.progress.best is not None and not (self.folder / BEST).is_file()):
            self.tell(f"warning: {self.folder / BEST} is gone: the best weights are sought from here on")
            state.progress.best, state.progress.since_best = None, 0

    def _evaluate(self) -> None:
        """Score the weights that will be kept (the averages, if there are any), as they were saved; keep them if they are the best
        so far."""
        state, progress = self.state, self.state.progress
        rate, waiting = self.pace.at(state.step)
        epoch, lr = state.step / self.plan.per_epoch, state.set_lr(self.lr_factor(state.step))
        row: dict[str, Any] = {"epoch": epoch, "step": state.step, "lr": lr}
        if rate:  # not when the run was stopped just before
            row |= {"images_per_second": rate, "data_wait": waiting}
        if progress.loss_steps:
            row["train_loss"] = progress.loss_sum / progress.loss_steps
        try:
            results = self.judge.validate(row)
        except (EvaluationLeftError, StoppedError):  # all is saved; who continues evaluates first
            self.agreed = self.signals.level
            self.signals.answer()
            return
        progress.history.append(row)
        progress.loss_sum, progress.loss_steps = 0.0, 0
        self.loggers.write(state.step, row)
        asked = self.task, self.config, state, row["weights"], self.judge.datasets["val"]
        show_predictions(*asked, self.loggers, self.tell)
        self.tell(f"epoch {epoch:g}: {_essential(row, self.judge.monitor.name)}")
        if waiting > MOST_WAITING:
            text = f"{waiting:.0%} of the time went into waiting for data: raise data.workers"
            self.tell(f"{text} (now {feeding.workers(self.config)}), or shrink the files")
        if processes.is_first():  # of the newest weights; the end puts the best ones' in their place
            write_metrics(self.folder, results, progress.history)
        self._save()
        self.pace.restart(state.step)


def _essential(row: Mapping[str, Any], monitor: str) -> str:
    """What a line says of an epoch: loss, the score that decides, a few more, and the pace. The files have all of it."""
    scores = [
        n for n, value in row.items() if n.startswith("val_") and n != f"val_{monitor}" and isinstance(value, float)
    ]
    names = ["train_loss", f"val_{monitor}", *scores[:MOST_SCORES], "images_per_second", "data_wait"]
    known = [f"{name} {row[name]:.4g}" for name in names if isinstance(row.get(name), (int, float))]
    left = len(scores) - MOST_SCORES
    return ", ".join(known) + (f"; {left} more scores in metrics.csv" if left > 0 else "")


def _counted(classes: Any) -> str:
    """How many classes there are, by task where there are several."""
    if isinstance(classes, Mapping):
        return ", ".join(f"{len(names)} classes of {task}" for task, names in classes.items())
    return f"{len(classes)} classes"
