"""What a command says while it works: lines and progress bars on standard error, or lines alone."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def say(line: str) -> None:
    """A line on standard error that does not tear bars. One that cannot be written is lost: nothing that works ends for it."""
    with suppress(OSError, ValueError):  # the reader has gone, or the disk is full; closed
        tqdm.write(line, file=sys.stderr)


class Teller:
    """Lines that do not tear bars. ``bars`` False: no bar, but a line now and then. ``quiet``: nothing at all."""

    def __init__(self, bars: bool, *, quiet: bool = False) -> None:
        self.bars, self.quiet = bars and not quiet, quiet
        self._bar: Any = None
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
        """Step number ``step`` is done; without bars, each ``every``-th says so."""
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % every == 0 and not self.quiet:
            start, first = self._lines_from
            left = (time.monotonic() - start) / max(step - first, 1) * (self._total - step)
            self(
                f"step {step}/{self._total}, {left / 60:.1f} min left: "
                + ", ".join(f"{k} {v}" for k, v in figures.items())
            )

    def watch(self, items: Iterable[T], name: str) -> Iterable[T]:
        """``items`` behind a bar that goes away at the end."""
        if not self.bars:
            return items
        watched: Iterable[T] = tqdm(items, desc=name, leave=False, dynamic_ncols=True, file=sys.stderr)
        return watched
