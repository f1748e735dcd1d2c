"""What the boxes of a data set are like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BoxStatistics:
    """What the boxes of a data set are like. Sides [N, 2] (width, height) float64: ``original`` in pixels of the files,
    ``network`` in pixels as the network sees them. ``best_iou`` [N]: IoU with the best anchor, empty where the head has none.
    ``repairs``: what was dropped or clipped on reading, a row for each kind."""

    original: NDArray[np.float64]
    network: NDArray[np.float64]
    best_iou: NDArray[np.float64]
    repairs: Sequence[Mapping[str, Any]] = field(default_factory=list)
