"""Predictions of classes: probabilities float [K], one tensor for each image."""

from collections.abc import Sequence

import torch
from torch import Tensor


def stacked(predictions: Sequence[Tensor]) -> Tensor:
    """Probabilities of images as float [B, K], B at least 1."""
    return torch.stack(tuple(predictions))
