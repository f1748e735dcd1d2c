"""Steps that are not finite: written down, told, and the end of a run where there are many in a row or too large a share."""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tasks.engine import processes
from tasks.engine.stepping import StepLog

DIVERGED_AFTER = 10
"""Non-finite steps in a row that end a run (exit code 3)."""
MOST_SKIPPED, OF_LAST = 0.4, 30
"""So large a share of steps skipped, of the last so many and of the whole run, is no success either (exit code 3)."""
_SHOWN = 8


class DivergedError(Exception):
    """Training gave too many non-finite steps, or weights that are not finite."""


class Divergence:
    """Sees each step when the host reads its figures; those of this process that are not finite are written into ``folder``."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self.tell = folder, tell
        self._streak = 0
        self._lately: deque[bool] = deque(maxlen=OF_LAST)
        """Whether each of the last steps was skipped."""

    def add(self, log: StepLog) -> None:
        """Count a step; :class:`DivergedError` where there are too many that were not finite."""
        self._streak = self._streak + 1 if log.nonfinite else 0
        self._lately.append(log.nonfinite)
        if not log.nonfinite:
            return
        self._write(log)
        text = ""
        if self._streak >= DIVERGED_AFTER:
            text = f"{self._streak} steps in a row were not finite"
        elif sum(self._lately) >= MOST_SKIPPED * OF_LAST:
            text = f"{sum(self._lately)} of the last {len(self._lately)} steps were not finite"
        if text:
            raise DivergedError(f"{text}, the last at step {log.step}: losses {log.losses}, lr {log.lr:g}")

    def _write(self, log: StepLog) -> None:
        losses = {name: str(value) for name, value in log.losses.items()}  # JSON has no NaN
        line = json.dumps({"step": log.step, "lr": log.lr, "losses": losses, "samples": log.ids}) + "\n"
        file = self.folder / f"nonfinite-{processes.rank()}.jsonl"
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(line)
        except OSError as error:  # a log; all of it is told too
            self.tell(f"warning: {file} cannot be written ({error.strerror})")
        samples = ", ".join(log.ids[:_SHOWN])
        self.tell(
            f"step {log.step} was not finite and is skipped: losses {log.losses}, lr {log.lr:g}, samples {samples}"
        )


def refuse_skipped(skipped: int, steps: int) -> None:
    """Raise :class:`DivergedError` if a run that has come to its end skipped too many of its ``steps``."""
    if skipped >= MOST_SKIPPED * steps:
        raise DivergedError(f"{skipped} of {steps} steps were not finite, and are skipped")
