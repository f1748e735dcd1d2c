"""What a command says while it works: lines and progress bars on standard error, or lines alone."""

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY = 10.0
"""Seconds between two lines of progress where bars are wanted, but standard error is no terminal."""


class _Unfailing:
    """A text stream whose failures end nothing: what cannot be encoded is escaped, what cannot be written is lost, and that is
    said once, if there is somebody to hear it."""

    def __init__(self, stream: Any, other: Any = None) -> None:
        self._stream, self._other = stream, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Lead the stream into nothing, so that what is left in it is no fault at the end of Python either."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if self._other is not None and getattr(error, "errno", None) != errno.EPIPE:
                print(f"standard output cannot be written ({error}): what follows is lost", file=self._other)


@contextmanager
def unfailing_streams() -> Iterator[None]:
    """Inside, standard output and error raise nothing: their reader may leave, their disk be full, their encoding be poor."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stderr, _Unfailing) or None in before:  # in several threads; without a console
        yield
        return
    sys.stderr = _Unfailing(before[1])
    sys.stdout = _Unfailing(before[0], sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def say(line: str) -> None:
    """A line on standard error that does not tear bars. One that cannot be written is lost: nothing that works ends for it."""
    with suppress(OSError, ValueError):  # the reader has gone, or the disk is full; closed
        tqdm.write(line, file=sys.stderr)


class Teller:
    """Lines that do not tear bars. ``bars`` False: no bar, but a line at every so many steps; where standard error is no terminal,
    lines of progress every :data:`LINE_EVERY` seconds in the place of bars. ``quiet``: nothing at all."""

    def __init__(self, bars: bool, *, quiet: bool = False) -> None:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bars, self.quiet = bars and terminal and not quiet, quiet
        self.timed = bars and not terminal and not quiet
        self._bar: Any = None
        self._said = time.monotonic()
        self._lines_from = (time.monotonic(), 0)

    def __call__(self, line: str) -> None:
        """Say a line."""
        if not self.quiet:
            say(line)

    @contextmanager
    def bar(self, total: int, done: int, name: str, unit: str) -> Iterator[None]:
        """Inside, :meth:`step` moves a bar from ``done`` towards ``total``, with rate and time left."""
        self._lines_from = (time.monotonic(), done)
        self._total = total
        if self.bars:
            self._bar = tqdm(total=total, initial=done, desc=name, unit=unit, dynamic_ncols=True, file=sys.stderr)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def step(self, step: int, every: int, figures: Mapping[str, str]) -> None:
        """Step number ``step`` is done; without bars, each ``every``-th says so, or the first after :data:`LINE_EVERY` seconds."""
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._is_time() if self.timed else step % every == 0 and not self.quiet:
            start, first = self._lines_from
            left = (time.monotonic() - start) / max(step - first, 1) * (self._total - step)
            self(
                f"step {step}/{self._total}, {left / 60:.1f} min left: "
                + ", ".join(f"{k} {v}" for k, v in figures.items())
            )

    def watch(self, items: Iterable[T], name: str) -> Iterable[T]:
        """``items`` behind a bar that goes away at the end."""
        if self.timed:
            return self._lines(items, name)
        if not self.bars:
            return items
        watched: Iterable[T] = tqdm(items, desc=name, leave=False, dynamic_ncols=True, file=sys.stderr)
        return watched

    def _lines(self, items: Iterable[T], name: str) -> Iterator[T]:
        """``items``, and now and then how many of them there have been."""
        total = f"/{len(items)}" if isinstance(items, Sized) else ""
        for done, item in enumerate(items):
            if self._is_time():
                self(f"{name} {done}{total}")
            yield item

    def _is_time(self) -> bool:
        """Whether a line of progress is due."""
        now = time.monotonic()
        if now - self._said < LINE_EVERY:
            return False
        self._said = now
        return True
