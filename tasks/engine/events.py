"""TensorBoard events of a run, where TensorBoard is installed (extra ``loggers``)."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """Writes numbers into ``folder``; does nothing when ``wanted`` is False or TensorBoard is missing."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self._writer: Any = None
        if wanted and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard.writer import SummaryWriter  # a second of imports

            self._writer = SummaryWriter(str(folder))

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """The numbers among ``figures``, at ``step``."""
        if self._writer is not None:
            for name, value in figures.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush to disk."""
        if self._writer is not None:
            self._writer.close()
