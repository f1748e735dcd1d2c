"""The verb ``train``: steps in a loop, and what is done between two of them: telling, saving, evaluating, stopping.

What each process does: prepare (``preparation.py``), then batches -> objective -> backward -> guarded update (``stepping.py``) ->
duties, here. All that changes is in one :class:`tasks.engine.state.RunState`.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.data.batch import Batch, SkipCount
from tasks.engine import processes, splits
from tasks.engine.announcing import told_of_early_end, told_of_epoch, told_of_start
from tasks.engine.divergence import Divergence, refuse_skipped
from tasks.engine.evaluation import EvaluationLeftError
from tasks.engine.judging import Judge
from tasks.engine.keeping import Keeper
from tasks.engine.launch import launch
from tasks.engine.loggers import Loggers, open_loggers
from tasks.engine.order import Share
from tasks.engine.owning import own_folder, refuse_full_disk
from tasks.engine.pictures import show_predictions
from tasks.engine.preparation import Prepared, prepare
from tasks.engine.signals import EXIT_CODES, SAVE, Signals, StoppedError, stopped_by
from tasks.engine.stepping import LateReader, Pace, StepLog, Stepper
from tasks.engine.watching import WATCHERS
from tasks.report.metricsfile import write_metrics
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller

MOST_WAITING = 0.2
"""Share of the time spent waiting for data above which the setting to change is named."""


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
            prepared = prepare(task, config, path, tell)
            tell(f"run folder {path}")
            if first:
                splits.write_division(path, prepared.datasets["train"])
            fabric = prepared.fabric
            launch(fabric, config.run.join_timeout)
            prepared.state.share = Share(fabric.global_rank, fabric.world_size, config.optim.accumulate)
            return _Run(task, config, prepared, Path(fabric.broadcast(str(path))), tell, signals).go()


class _Run:
    """One training run in one process."""

    def __init__(
        self, task: TaskSpec, config: Config, prepared: Prepared, folder: Path, tell: Teller, signals: Signals
    ) -> None:
        self.task, self.config, self.prepared, self.folder = task, config, prepared, folder
        self.tell, self.signals = tell, signals
        self.state, self.plan = prepared.state, prepared.plan
        self.judge = Judge(task, config, prepared, folder, tell, self._leaves, self._leaving)
        self.keeper = Keeper(folder, prepared, tell)
        self.skips, self.pace = SkipCount(len(prepared.training)), Pace(config.data.batch_size)
        self.figures, self.divergence = LateReader(), Divergence(folder, tell)
        self.agreed = 0
        """The highest signal of all processes, which they agree on at the same step."""
        self.loggers = Loggers(folder, (), {}, tell)

    def go(self) -> int:
        """Train to the end, or to a signal."""
        state = self.state
        self._begin()
        with self.tell.bar(self.plan.total, state.step, "train", "step"):
            for start, stop in self.plan.phases(state.step):
                if self._stopping():
                    break
                if self.plan.thaw is not None and start >= self.plan.thaw:
                    state.model.backbone.unfreeze()
                self._train(stop)
        self.loggers.close()
        if stopped_by(self.agreed) is not None:
            self.prepared.fabric.barrier()  # Lightning's launcher kills the first process, which may still save, when another has ended
        signal = stopped_by(max(self.agreed, self.signals.level))
        if signal is not None:
            self.tell(f"stopped by {signal.name} after step {state.step}, which is saved; the same command continues")
            return EXIT_CODES[signal]
        if state.step != self.plan.total and not self._early():
            raise RuntimeError(f"{state.step} of {self.plan.total} planned steps were done")
        refuse_skipped(state.progress.skipped, state.step)
        if state.step != self.plan.total:
            self.tell(told_of_early_end(state.progress, self.prepared.monitor.name, state.step, self.plan.total))
        if not self._evaluated():  # stopped between the last step and its evaluation
            self._evaluate()
        self.signals.unheeded()  # all is saved; the same command makes up for the rest
        self.judge.finish({"unreadable": f"{len(self.skips.messages)} training samples"})
        return 0

    def _begin(self) -> None:
        """Continue where a run of before came to, if there is one; say what is begun."""
        state, first = self.state, processes.is_first()
        self.keeper.resume(self.config)
        if first:
            refuse_full_disk(self.folder, state.file_size, state.model_size)
        self.pace.restart(state.step)
        for line in told_of_start(self.config, self.prepared):
            self.tell(line)
        if first:
            samples = self.prepared.training.feed.samples
            self.loggers = open_loggers(self.task, self.config, self.folder, self.tell, samples, state.step)
        self.signals.heed()

    def _train(self, stop: int) -> None:
        """The loop: steps until ``stop`` are done, with the same parameters trained in all of them."""
        state, config = self.state, self.config
        if config.run.compile:
            state.trained.compile()
        stepper = Stepper(
            self.prepared.fabric,
            state,
            self.prepared.objective,
            self.figures,
            self._asked,
            self.prepared.lr_factor,
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
        state, feed = self.state, self.prepared.training
        self.pace.restart(state.step)
        scale = self.plan.share_at(state.step)
        for batch in self.pace.waiting(feed.steps(state.share, state.step, stop, scale)):
            known = len(self.skips.messages)
            self.skips.add(batch.meta)
            for message in list(self.skips.messages)[known:]:
                self.tell(f"skipped: {message}")
            yield batch

    def _asked(self) -> int:
        """The signal that this process has got. That it is time to save is one too, so that all hear of it at the same step."""
        late = time.monotonic() - self.keeper.saved_at > 60 * self.config.run.save_minutes
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

    def _leaves(self) -> bool:
        """Whether an evaluation is to be left: a process that is alone may; of several each would wait for the others."""
        return self.state.share.world == 1 and stopped_by(self.signals.level) is not None

    def _leaving(self) -> AbstractContextManager[None]:
        """Around work that a process leaves, when it is to stop, without waiting for its end: if it is alone, as above."""
        return self.signals.leaving(raises=self.state.share.world == 1)

    def _stopping(self) -> bool:
        return stopped_by(self.agreed) is not None or self._early()

    def _heed(self, log: StepLog | None) -> None:
        """Act on a finished step: count and show it; too many that were not finite end the run."""
        if log is None:
            return
        progress, every = self.state.progress, self.config.run.log_every
        self.agreed = max(self.agreed, log.signal)
        loss = sum(log.losses.values())
        if log.nonfinite:
            progress.skipped += 1
        else:
            progress.loss_sum += loss
            progress.loss_steps += 1
            progress.log(log.step, loss, log.lr)
        rate, waiting = self.pace.at(self.state.step)
        pace = f"{rate:.{0 if rate >= 10 else 1}f}"
        figures = {"loss": f"{loss:.4g}", "lr": f"{log.lr:.3g}", "img/s": pace, "data wait": f"{waiting:.0%}"}
        self.tell.step(log.step, every, figures)
        if log.step % every == 0:
            losses = {f"train/{name}": value for name, value in log.losses.items()}
            self.loggers.write(log.step, losses | {"train/lr": log.lr})
        for watcher in WATCHERS:
            watcher.log(self.state, log)
        self.divergence.add(log)

    def _save(self) -> None:
        self._heed(self.figures.flush())
        self.keeper.save()

    def _evaluate(self) -> None:
        """Score the weights that will be kept (the averages, if there are any), as they were saved; keep them if they are the best
        so far."""
        state, progress = self.state, self.state.progress
        rate, waiting = self.pace.at(state.step)
        epoch, lr = state.step / self.plan.per_epoch, state.set_lr(self.prepared.lr_factor(state.step))
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
        asked = self.task, self.config, state, row["weights"], self.prepared.datasets["val"]
        show_predictions(*asked, self.loggers, self.tell)
        self.tell(told_of_epoch(row, self.prepared.monitor.name))
        if waiting > MOST_WAITING:
            text = f"{waiting:.0%} of the time went into waiting for data: raise data.workers"
            self.tell(f"{text} (now {self.prepared.training.feed.workers}), or shrink the files")
        if processes.is_first():  # of the newest weights; the end puts the best ones' in their place
            write_metrics(self.folder, results, progress.history)
        self._save()
        self.pace.restart(state.step)
