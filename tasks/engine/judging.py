"""Judging weights: scored during a run, the best of them kept, and at the end the best ones' scores on the test split."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effbackbones.checkpoint import load_model, save_model
from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.engine import assembly, processes
from tasks.engine.engine import Engine
from tasks.engine.evaluation import score_model
from tasks.engine.rundir import BEST
from tasks.report.metricsfile import environment, write_metrics
from tasks.report.records import RunResults, Summary
from tasks.settings.sections import Config
from tasks.settings.tree import to_mapping
from tasks.spec import TaskSpec
from tasks.telling import Teller


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
    """Of the finite steps since the last evaluation, ``loss_steps``."""
    loss_steps: int = 0


@dataclass
class Judge:
    """Scores the weights of a run; ``datasets`` by split (train, val, perhaps test), ``state`` is the run's own, ``leave`` says
    when a validation is to be left, with :class:`tasks.engine.evaluation.EvaluationLeftError`."""

    task: TaskSpec
    config: Config
    engine: Engine
    datasets: Mapping[str, Dataset]
    folder: Path
    tell: Teller
    state: Progress
    leave: Callable[[], bool]

    def __post_init__(self) -> None:
        self.device = assembly.run_device(self.config)
        train = self.datasets["train"]
        self.classes = self.task.classes(self.config, train)
        self.label_record = self.task.label_record(self.config, train)
        if self.classes != train.classes:  # what other splits are opened with
            self.label_record |= {"data_classes": list(train.classes)}

    def validate(self, row: dict[str, Any]) -> RunResults:
        """Score the weights that will be kept (the averages, if there are any) on the validation split, at the end the others
        too; keep them if they are the best so far. Puts the figures into ``row``; returns the scores for ``metrics.json``."""
        engine, state = self.engine, self.state
        main = "ema" if engine.ema else "raw"
        scores = self._scores(main)
        self._keep_if_best(scores, main)
        row |= {f"val_{name}": value for name, value in _numbers(scores).items()}
        if engine.ema and engine.step >= engine.plan.total:
            row |= {f"val_{name}_raw": value for name, value in _numbers(self._scores("raw")).items()}
        row["weights"] = main
        return RunResults({state.best_weights: scores}, state.best_weights)

    def _scores(self, weights: str) -> dict[str, Any]:
        with self._weights(weights):
            return self._scored(self.engine.model, "val", share=self.engine.share, observe=False, leave=self.leave)[0]

    def _scored(self, model: Model, split: str, **how: Any) -> tuple[dict[str, Any], Any]:
        dataset = self.datasets[split]
        return score_model(
            self.task,
            self.config,
            model,
            dataset=dataset,
            classes=self.classes,
            device=self.device,
            tell=self.tell,
            **how,
        )

    def _weights(self, name: str) -> AbstractContextManager[None]:
        """Inside, the model has the weights called ``ema`` or ``raw``."""
        return self.engine.ema.applied(self.engine.model) if name == "ema" and self.engine.ema else nullcontext()

    def _keep_if_best(self, scores: Mapping[str, Any], weights: str) -> None:
        score = scores.get(self.task.monitor(self.config))
        if (
            score is None
        ):  # undefined, as average precision without a positive: worse than any score, better than no weights
            score = -1.0 if self.state.best is None else self.state.best
        if self.state.best is None or score > self.state.best:
            self.state.best, self.state.best_weights, self.state.since_best = score, weights, 0
            if processes.is_first():
                with self._weights(weights):
                    self._write_best(scores)
        else:
            self.state.since_best += 1

    def _write_best(self, scores: Mapping[str, Any]) -> None:
        model = self.engine.model
        provenance = self.label_record | {"step": self.engine.step}
        save_model(model, self.folder / BEST, classes=self.classes, metrics=_numbers(scores), provenance=provenance)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Evaluate the best weights on the test split (validation, if there is none), and write metrics and report."""
        processes.part()  # the first process goes on alone
        if not processes.is_first():
            return
        best = load_model(self.folder / BEST).to(self.device)
        split = "test" if "test" in self.datasets else "val"
        scores, reporter = self._scored(best, split)
        sets = {self.state.best_weights: scores}
        if self.engine.ema:
            other = "raw" if self.state.best_weights == "ema" else "ema"
            with self._weights(other):  # as they are at the end
                sets[other] = self._scored(self.engine.model.to(self.device), split, observe=False)[0]
        results = RunResults(sets, self.state.best_weights, split)
        told = {**self._facts(best, split), **facts, **environment()}
        title = f"{self.task.command}: {best.config['backbone']} + {best.config['head']}"
        summary = Summary(title, to_mapping(self.config), self.state.history, results, told)
        report = reporter.write(self.folder, summary, best, self.datasets["train"])
        write_metrics(self.folder, results, self.state.history)  # last: it says that the run is finished
        monitor, weights = self.task.monitor(self.config), self.state.best_weights
        reached = "is undefined" if scores[monitor] is None else f"{scores[monitor]:.4f}"
        self.tell(f"{split} {monitor} {reached} with the best ({weights}) weights; skipped steps: {self.state.skipped}")
        self.tell(f"report {report}")
        self.tell(f"run folder {self.folder}")

    def _facts(self, model: Model, split: str) -> dict[str, Any]:
        origin = self.engine.model.provenance
        data = self.config.data
        return {
            "data": f"{data.name} {data.root or ''}: {len(self.datasets['train']):,} training samples; scores on {split}",
            "weights": origin.get("weights", "random"),
            "assumed": "; ".join(origin.get("assumed", [])) or "nothing",
            "images": str(model.image_spec),
            "best": f"{self.state.best_weights} weights",
            "steps": f"{self.engine.step:,} of {self.engine.plan.total:,}, {self.state.skipped} skipped",
            "duration": f"{self.state.seconds / 60:.1f} minutes",
            "seed": self.config.run.seed,
        }


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, (int, float))}
