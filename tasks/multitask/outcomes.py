"""What became of each image, by task."""

from collections.abc import Mapping
from typing import Any, cast

from torchmetrics import Metric

from effbackbones.registry import TASKS
from tasks.data.batch import Batch
from tasks.scoring.outcomes import Outcomes
from tasks.spec import OutcomeRecorder


class JointRecorder:
    """The recorders of several tasks, of those that have one."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        made = {word: TASKS.get(word).outcomes(metric) for word, metric in metrics.items()}
        self.parts: dict[str, OutcomeRecorder] = {word: part for word, part in made.items() if part is not None}

    def update(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        """``predictions`` by task."""
        for word, part in self.parts.items():
            part.update(batch, predictions[word])

    def outcomes(self) -> dict[str, Outcomes]:
        """By task."""
        return {word: cast(Outcomes, part.outcomes()) for word, part in self.parts.items()}
