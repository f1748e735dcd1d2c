"""Signals: SIGTERM, SIGHUP and SIGINT save and stop, SIGUSR1 saves and goes on.

Where there is something to save they set a flag, which is read between two steps. A step, a batch or an evaluation that takes too
long is left in its midst, where that loses nothing, and a process that does not even hear is ended.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

SAVE = 1
"""Level that asks for a checkpoint and nothing more."""
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
_NAMES = {"SIGUSR1": SAVE, "SIGINT": 2, "SIGHUP": 3, "SIGTERM": 3}  # Windows has not all of them
_RANK = {
    signal.Signals[name]: rank for name, rank in _NAMES.items() if hasattr(signal, name)
}  # the highest of all processes wins
GRACE = 3.0
"""Seconds after which a signal to stop leaves what takes too long, instead of waiting for its end."""
LAST = 8.0
"""Seconds after which a process that has not answered is ended."""


class StoppedError(BaseException):
    """A signal asks to stop, and what was being done is left in its midst. No `Exception`: code that handles those must not."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.code = EXIT_CODES[number]


class Signals:
    """Context manager that turns signals into :attr:`level`; a second SIGINT interrupts at once.

    At first a signal to stop raises :class:`StoppedError` wherever the code is; after :meth:`heed` only within :meth:`leaving`, and
    only once :data:`GRACE` is over. Where neither helps, as in a call that does not return, a thread ends the process after
    :data:`LAST`. Outside of the main thread nothing is changed: signals are not for such code.
    """

    def __init__(self) -> None:
        self.level = 0
        self._heeding = self._late = self._raised = self._answered = False
        self._leaves = self._raises = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # What nohup has made ignored stays so.
            numbers = [n for n in _RANK if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]
            self._watch()
            self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            self._answered = True
            self._ours.shutdown(socket.SHUT_RDWR)  # so the thread ends, though loader processes may hold copies of it
            self._ours.close()
            self._thread.join()
            self._theirs.close()

    def heed(self) -> None:
        """From here on the level is looked at."""
        self._heeding = True

    def unheeded(self) -> None:
        """From here on nothing is lost by leaving, and nobody looks at the level."""
        self._heeding = False
        if stopped_by(self.level) is not None:
            self._raise()

    def answer(self) -> None:
        """The process stops, and will end by itself."""
        self._answered = True

    @contextmanager
    def leaving(self, raises: bool = True) -> Iterator[None]:
        """Inside, work that may be left in its midst: by an exception, or else only with the process."""
        self._leaves += 1
        self._raises += raises
        try:
            self._leave_if_late()
            yield
        finally:
            self._leaves -= 1
            self._raises -= raises

    def take_save(self) -> None:
        """Forget a request to save that was honoured; a request to stop stays."""
        self.level = 0 if self.level == SAVE else self.level

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.level >= _RANK[signal.SIGINT]:
            raise KeyboardInterrupt
        self.level = max(self.level, _RANK[signal.Signals(number)])
        if self._heeding:
            self._leave_if_late()
        elif stopped_by(self.level) is not None:
            self._raise()

    def _leave_if_late(self) -> None:
        if self._late and self._raises and not self._answered:
            self._raise()

    def _raise(self) -> None:
        number = stopped_by(self.level)
        if number is not None and not self._raised:  # once: what is put back on the way out is not disturbed
            self._raised = True
            raise StoppedError(number)

    def _watch(self) -> None:
        """Start a thread that hears of signals also while the main one cannot."""
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._ours.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        number = 0
        while number not in _STOPPING:
            received = self._theirs.recv(1)
            if not received:
                return
            number = received[0]
        start = time.monotonic()
        while not self._answered:
            time.sleep(0.1)
            seconds = time.monotonic() - start
            if seconds > GRACE and not self._late:
                self._late = True
                if hasattr(signal, "pthread_kill"):  # the handler looks again, also out of a call that waits
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if seconds > LAST and (self._leaves or not self._heeding):
                _end_process(signal.Signals(number))


def _end_process(number: signal.Signals) -> None:
    """End the process from beside its main thread, with its loader processes (which end with it)."""
    number = stopped_by(_RANK[number]) or signal.SIGTERM
    line = f"stopped by {number.name} in the midst of something that does not end; what was saved before is kept\n"
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(EXIT_CODES[number])


_STOPPING = frozenset(number for number, rank in _RANK.items() if rank > SAVE)


def ignore_signals() -> None:
    """For a loader process: terminals and schedulers signal every process of a run, but the training process answers, which saves
    while its loaders go on, and ends them itself. With it they end too, whatever they are at (Linux)."""
    for number in _RANK:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


def stopped_by(level: int) -> signal.Signals | None:
    """The signal that asks to stop, or None. A hang-up counts as SIGTERM."""
    return next((number for number, rank in _RANK.items() if rank == level and number in EXIT_CODES), None)
