"""What a run or an evaluation has found, as records: :mod:`tasks.report.metricsfile` writes them, reports show them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from tasks.scoring.intervals import Interval, Intervals

Scores = Mapping[str, Any]
"""What a metric's ``compute()`` gave: names to numbers, None where undefined; ``per_class``, ``confusion`` and the like."""


class Monitored(NamedTuple):
    """The score that chose weights: its name, its ``best`` value on the validation split (None: undefined), which way is better."""

    name: str
    best: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class Results:
    """Scores by set of weights: ``raw`` and ``ema`` of a run, ``model`` of anything else; ``best`` names the set that counts."""

    sets: Mapping[str, Scores]
    best: str = "model"
    intervals: Mapping[str, Intervals] = field(default_factory=dict, kw_only=True)
    """Of the best set, by the word of the task, "" where there is one."""

    operating: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)
    """Thresholds of the best F1 on the scored split, by the word of the task (:mod:`tasks.scoring.operating`)."""
    parameters: int | None = field(default=None, kw_only=True)
    """Of the model, where there is one."""

    @property
    def scores(self) -> Scores:
        """Those of the best set."""
        return self.sets[self.best]

    def interval(self, name: str) -> Interval | None:
        """Of a score of the best set, if it has one."""
        task, _, last = name.rpartition("/")
        return self.intervals[task].scores.get(last) if task in self.intervals else None

    def each(self, change: Callable[[Scores], Scores]) -> Self:
        """The same of the scores that ``change`` makes of each set."""
        return replace(self, sets={name: change(scores) for name, scores in self.sets.items()})


@dataclass(frozen=True)
class RunResults(Results):
    """Of a run: finished, with scores on ``split``, or not yet (None), with those on the validation split."""

    split: str | None = None
    minutes: float | None = field(default=None, kw_only=True)
    """That it trained."""
    monitor: Monitored | None = None
    """The score by which weights were chosen."""


@dataclass(frozen=True)
class EvaluationResults(Results):
    """Of a model (from ``checkpoint``; None: published weights) or of a file of ``predictions``, on ``split``."""

    split: str = "val"
    checkpoint: str | None = None
    predictions: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a report tells of every task: its ``title``, the resolved ``config`` (nested), the ``history`` (a row of figures for each
    evaluation of a run), ``results``, and ``facts``, whatever else is worth knowing, shown as it comes."""

    title: str
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    results: Results
    facts: Mapping[str, Any]
    steps: Sequence[Mapping[str, float]] = ()
    """Of a run: ``epoch``, ``loss`` and ``lr`` as they were logged, perhaps thinned out."""
    noun: str = "image"
    """What a sample is called."""
