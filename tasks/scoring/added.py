"""Scores that a config adds to a task's own: registered metrics, and the score that chooses the best weights."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn
from torchmetrics import Metric

from effbackbones.errors import UserError, nearest
from effbackbones.registry import Registry

T = TypeVar("T")
METRICS = Registry("metric")
FALLING = ("mae", "mse", "rmse", "ece", "nll", "brier", "loss", "error")
"""Scores that are better when they are lower, whoever gives them."""


def register_metric(name: str) -> Callable[[T], T]:
    """Register a metric under ``name``, for ``run.metrics`` and ``run.monitor``: a class or function that is called with the names
    of the classes and gives a ``torchmetrics.Metric``.

    Its ``update(predictions, truths)`` gets what the task's own metric gets (``TaskSpec.scored``); ``compute()`` gives a number, or
    a dict of numbers, which are named ``NAME_KEY`` then. ``higher_is_better = False`` says that lower is better.
    """
    return METRICS.register(name)


class Monitor(NamedTuple):
    """The score that chooses the best weights, and whether it is better when it ``rises``."""

    name: str
    rises: bool

    def value(self, scores: Mapping[str, Any]) -> float | None:
        """The score among ``scores``; None where it is undefined or not finite."""
        found = scores.get(self.name)
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None

    def better(self, score: float | None, best: float | None) -> bool:
        """Whether a score is better than the best so far; an undefined one never is."""
        if score is None or best is None:
            return score is not None
        return score > best if self.rises else score < best


class WithAdded(Metric):
    """A task's metric and registered ones, by name, over the same predictions and truths; ``compute()`` gives all their scores."""

    full_state_update = False

    def __init__(self, own: Metric, added: Mapping[str, Metric]) -> None:
        super().__init__()
        self.own, self.added = own, nn.ModuleDict(added)

    def update(self, predictions: Any, truths: Any) -> None:
        """Count a batch."""
        for metric in (self.own, *self._added().values()):
            metric.update(predictions, truths)

    def compute(self) -> dict[str, Any]:
        """The scores of all samples so far; a name that two give raises :class:`UserError`."""
        scores = dict(self.own.compute())  # each joins its processes by itself
        for name, metric in self._added().items():
            for key, value in _named(name, metric.compute()).items():
                if key in scores:
                    raise UserError(
                        f"run.metrics: {name}", f"the task has a score {key!r}", "register it under another name"
                    )
                scores[key] = value
        return scores

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        for metric in (self.own, *self._added().values()):
            metric.reset()

    def falls(self, score: str) -> bool | None:
        """Whether a registered metric says that its ``score`` is better when lower; None: it is none of theirs, or does not say."""
        for name, metric in self._added().items():
            if is_of(score, (name,)) and metric.higher_is_better is not None:
                return not metric.higher_is_better
        return None

    def _added(self) -> dict[str, Metric]:
        return {name: cast(Metric, metric) for name, metric in self.added.items()}


def is_of(score: str, names: Sequence[str]) -> bool:
    """Whether a score comes from one of the registered metrics ``names``."""
    return any(score == name or score.startswith(f"{name}_") for name in names)


def with_added(own: Metric, names: Sequence[str], classes: Any) -> Metric:
    """``own``, with the registered metrics ``names`` beside it if there are any."""
    if not names:
        return own
    made: dict[str, Metric] = {}
    for name in names:
        metric = METRICS.get(name)(classes)
        if not isinstance(metric, Metric) or not name.isidentifier():
            what = f"gives a {type(metric).__name__}, not a torchmetrics.Metric"
            what = what if name.isidentifier() else "is no plain word, as names of scores are"
            raise UserError(f"run.metrics: {name}", what, "correct what is registered under it")
        made[name] = metric
    return WithAdded(own, made)


def monitor_of(metric: Metric, default: str, asked: str | None, lower_is_better: Sequence[str] = ()) -> Monitor:
    """The score that chooses: ``asked`` (``run.monitor``), which must be one of the metric's, or the task's ``default``.

    It falls where its metric says so, or the task by ``lower_is_better``, or where its name is one of :data:`FALLING`.
    """
    name = asked or default
    known = score_names(metric)
    if asked and known and name not in known:
        raise UserError("run.monitor", f"there is no score {name!r}", nearest(name, known))
    falls = metric.falls(name) if isinstance(metric, WithAdded) else None
    if falls is None:
        own = metric.own if isinstance(metric, WithAdded) else metric
        plain = name.rpartition("/")[2]  # "cls/ece" where there are several tasks
        falls = own.higher_is_better is False or name in lower_is_better or plain in FALLING
    return Monitor(name, not falls)


def score_names(metric: Metric) -> list[str]:
    """The names of a metric's single scores, found by computing them of nothing; empty where it cannot do that."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has seen nothing
            scores = metric.compute()
    except UserError:
        raise
    except Exception:  # a user's metric may divide by the number of its samples
        return []
    finally:
        metric.reset()
    return [name for name, value in scores.items() if value is None or isinstance(value, int | float)]


def _named(name: str, computed: Any) -> dict[str, Any]:
    """What a registered metric computed, as plain numbers by name."""
    found = (
        {f"{name}_{key}": value for key, value in computed.items()}
        if isinstance(computed, Mapping)
        else {name: computed}
    )
    return {
        key: value.item() if hasattr(value, "item") and value.numel() == 1 else value for key, value in found.items()
    }
