"""Judging weights: scored during a run, the best of them kept, and at the end the best ones' scores on the test split."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from effbackbones.checkpoint import load_model, save_model
from effbackbones.errors import UserError
from effbackbones.model import Model
from tasks.engine import processes
from tasks.engine.cost import told_of_cost
from tasks.engine.evaluation import Judged, score_model
from tasks.engine.perimage import keep_outcomes, kept_points
from tasks.engine.preparation import Prepared
from tasks.engine.rundir import BEST
from tasks.report.metricsfile import environment, write_metrics
from tasks.report.records import Monitored, RunResults, Summary
from tasks.report.words import network
from tasks.scoring.operating import operating_points
from tasks.settings.sections import Config
from tasks.settings.tree import to_mapping
from tasks.spec import TaskSpec
from tasks.telling import Teller


@dataclass
class Judge:
    """Scores the weights of a run that was ``prepared``, and keeps the best in its ``folder``. ``leave`` says when a validation is to
    be left, with :class:`tasks.engine.evaluation.EvaluationLeftError`."""

    task: TaskSpec
    config: Config
    prepared: Prepared
    folder: Path
    tell: Teller
    leave: Callable[[], bool]
    leaving: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around the scoring of a validation, which may be left by an exception too."""

    def __post_init__(self) -> None:
        given, self.device = self.prepared, self.prepared.hardware.device
        self.state, self.plan, self.datasets, self.monitor = given.state, given.plan, given.datasets, given.monitor
        train, self.classes = given.datasets["train"], given.classes
        self.score = partial(
            score_model, self.task, self.config, classes=self.classes, hardware=given.hardware, tell=self.tell
        )
        self.label_record = self.task.label_record(self.config, train)
        self.label_record |= {"data": given.identity["data"]} | self.task.remembered(self.config, train)
        if self.classes != train.classes:  # what other splits are opened with
            self.label_record |= {"data_classes": list(train.classes)}

    def validate(self, row: dict[str, Any]) -> RunResults:
        """Score the weights that will be kept (the averages, if there are any) on the validation split, at the end the others
        too; keep them if they are the best so far. Puts the figures into ``row``; returns the scores for ``metrics.json``."""
        state = self.state
        main = "ema" if state.ema else "raw"
        scores, _, outcomes = self._judged(main, outcomes=True)
        self._keep_if_best(scores, main, outcomes)
        row |= {f"val_{name}": value for name, value in _numbers(scores).items()}
        if state.ema and state.step >= self.plan.total:
            row |= {f"val_{name}_raw": value for name, value in _numbers(self._judged("raw").scores).items()}
        row["weights"] = main
        return RunResults({state.progress.best_weights: scores}, state.progress.best_weights)

    def _judged(self, weights: str, *, outcomes: bool = False) -> Judged:
        val, share, leave = self.datasets["val"], self.state.share, self.leave
        with self.state.weights(weights), self.state.rounded(), self.leaving():
            return self.score(self.state.model, dataset=val, share=share, observe=False, leave=leave, outcomes=outcomes)

    def _keep_if_best(self, scores: Mapping[str, Any], weights: str, outcomes: Any) -> None:
        progress, score = self.state.progress, self.monitor.value(scores)
        first = progress.best is None and not progress.history
        # Undefined, as average precision without a positive: worse than any score, better than no weights.
        if first or self.monitor.better(score, progress.best):
            progress.best, progress.best_weights, progress.since_best = score, weights, 0
            if processes.is_first():
                self._keep(weights, _numbers(scores), kept_points(outcomes))
        else:
            progress.since_best += 1

    def _best(self) -> Model:
        """The best weights; where their file is gone or damaged those of now, which is told, in its place."""
        try:
            return load_model(self.folder / BEST)
        except UserError as lost:
            self.tell(f"warning: {lost}; the weights after step {self.state.step} take its place")
            self.state.progress.best_weights = "ema" if self.state.ema else "raw"
            self._keep(self.state.progress.best_weights, {})
            return load_model(self.folder / BEST)

    def _keep(self, weights: str, figures: Mapping[str, float], points: Mapping[str, Any] = {}) -> None:
        """Write the weights called so into the file of the best, with their ``figures`` and ``points`` (thresholds of the best F1)."""
        provenance, file = self.label_record | {"step": self.state.step}, self.folder / BEST
        if points:
            provenance |= {"operating_point": dict(points)}
        with self.state.weights(weights):
            if self.state.simulation:
                provenance |= {"quantise": self.state.simulation.learnt()}
            save_model(self.state.model, file, classes=self.classes, metrics=figures, provenance=provenance)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Evaluate the best weights on the test split (validation, if there is none), and write metrics and report."""
        processes.part()  # the first process goes on alone
        if not processes.is_first():
            return
        best = self._best().to(self.device)
        split = "test" if "test" in self.datasets else "val"
        scores, reporter, outcomes = self.score(best, dataset=self.datasets[split])
        progress, weights = self.state.progress, self.state.progress.best_weights
        sets = {weights: scores}
        if self.state.ema:
            other = "raw" if weights == "ema" else "ema"
            with self.state.weights(other):  # as they are at the end
                sets[other] = self.score(self.state.model, dataset=self.datasets[split], observe=False)[0]
        noun = best.image_spec.noun
        spans = keep_outcomes(self.folder, outcomes, self.task, split, self.tell, noun)
        judged = Monitored(self.monitor.name, progress.best, self.monitor.rises)
        size, minutes = sum(parameter.numel() for parameter in best.parameters()), progress.seconds / 60
        points = operating_points(outcomes)
        results = RunResults(
            sets, weights, split, judged, intervals=spans, operating=points, parameters=size, minutes=minutes
        )
        told = {**self._facts(best, split), **facts, **environment()}
        title = f"{self.task.command}: {network(best.config)}"
        per_epoch = self.plan.per_epoch
        steps = [{"epoch": step / per_epoch, "loss": loss, "lr": lr} for step, loss, lr in progress.logged]
        summary = Summary(title, to_mapping(self.config), progress.history, results, told, steps, noun)
        report = reporter.write(self.folder, summary, best, self.datasets["train"])
        write_metrics(self.folder, results, progress.history)  # last: it says that the run is finished
        reached = self.monitor.value(scores)
        raw = self.monitor.value(sets["raw"]) if weights == "ema" else None
        if reached is not None and self.monitor.better(raw, reached):
            rule = (
                "with optim.ema the averages are what is chosen from and kept, for they vary less between evaluations"
            )
            self.tell(f"the last raw weights reach {raw:.4f}: {rule}; optim.ema null keeps raw weights")
        shown = "is undefined" if reached is None else f"{reached:.4f}"
        self.tell(
            f"{split} {self.monitor.name} {shown} with the best ({weights}) weights; skipped steps: {progress.skipped}"
        )
        if self.state.simulation:
            self.tell(
                "these are scores of the float32 weights; those during the run were of int8, as export --precision int8 gives"
            )
        self.tell(f"report {report}")
        self.tell(f"run folder {self.folder}")

    def _cost(self, model: Model) -> str:
        """What the model costs. A report is not lost for it: what goes wrong here is told in its place."""
        try:
            return told_of_cost(model, self.folder / BEST, self.device)
        except Exception as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            self.tell(f"warning: what the model costs could not be measured: {text}")
            return f"could not be measured: {text}"

    def _facts(self, model: Model, split: str) -> dict[str, Any]:
        origin, progress, data = self.state.model.provenance, self.state.progress, self.config.data
        return {
            "data": f"{data.name} {data.root or ''}: {len(self.datasets['train']):,} training samples; scores on {split}",
            "weights": origin.get("weights", "random"),
            "assumed": "; ".join(origin.get("assumed", [])) or "nothing",
            f"{model.image_spec.noun}s": model.image_spec.told(),
            "model": self._cost(model),
            "best": f"{progress.best_weights} weights",
            "steps": f"{self.state.step:,} of {self.plan.total:,}, {progress.skipped} skipped",
            "duration": f"{progress.seconds / 60:.1f} minutes",
            "seed": self.config.run.seed,
        }


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, (int, float))}
