"""A metric."""

import torchmetrics


class OffBy(torchmetrics.MeanAbsoluteError):
    """How many classes a prediction is off, for classes that have an order; lower is better, as torchmetrics says of it."""

    def __init__(self, classes):
        super().__init__()

    def update(self, predictions, truths):
        """Probabilities [N, K], labels [N]."""
        super().update(predictions.argmax(1).float(), truths.float())
