"""Signals as a flag that is read between two steps: SIGTERM and SIGINT save and stop, SIGUSR1 saves and goes on."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

SAVE = 1
"""Level that asks for a checkpoint and nothing more."""
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
_RANK = {signal.SIGUSR1: SAVE, signal.SIGINT: 2, signal.SIGTERM: 3}  # what wins when processes got different ones


class Signals:
    """Context manager that turns signals into :attr:`level`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.level = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in _RANK}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.level >= _RANK[signal.SIGINT]:
            raise KeyboardInterrupt
        self.level = max(self.level, _RANK[signal.Signals(number)])

    def take_save(self) -> None:
        """Forget a request to save that was honoured; a request to stop stays."""
        self.level = 0 if self.level == SAVE else self.level


def ignore_signals() -> None:
    """For a loader process: terminals and schedulers signal every process of a run, but the training process answers, which saves
    while its loaders go on, and ends them itself."""
    for number in _RANK:
        signal.signal(number, signal.SIG_IGN)


def stopped_by(level: int) -> signal.Signals | None:
    """The signal that asks to stop, or None."""
    return next((number for number, rank in _RANK.items() if rank == level and number in EXIT_CODES), None)
