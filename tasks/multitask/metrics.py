"""Scores of several tasks as one metric."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from torchmetrics import Metric


class JointMetrics(Metric):
    """The metrics of several tasks; ``monitors`` names the score of each that counts.

    ``update(predictions, truths)`` takes dicts by task; ``compute()`` gives ``mean``, the mean of the scores that count (those
    that are undefined left out; None if all are), and every score as ``TASK/NAME``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, metrics: Mapping[str, Metric], monitors: Mapping[str, str]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(metrics)
        self.monitors = dict(monitors)

    def update(self, predictions: Mapping[str, Any], truths: Mapping[str, Any]) -> None:
        """Count a batch."""
        for task, metric in self.by_task().items():
            metric.update(predictions[task], truths[task])

    def compute(self) -> dict[str, Any]:
        """The scores of all samples so far."""
        scores = {task: metric.compute() for task, metric in self.by_task().items()}  # each joins its processes
        return joined(scores, self.monitors)

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        for metric in self.by_task().values():
            metric.reset()

    def by_task(self) -> dict[str, Metric]:
        """The metric of each task."""
        return {task: cast(Metric, metric) for task, metric in self.parts.items()}


def joined(scores: Mapping[str, Mapping[str, Any]], monitors: Mapping[str, str]) -> dict[str, Any]:
    """The scores of several tasks as one, as :class:`JointMetrics` gives them."""
    counted = [value for task, name in monitors.items() if (value := scores[task][name]) is not None]
    mean = sum(counted) / len(counted) if counted else None
    return {"mean": mean} | {f"{task}/{name}": value for task, found in scores.items() for name, value in found.items()}
