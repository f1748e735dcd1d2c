"""What each loader process is reading, for the process that waits for it: in memory that both see, so that it is known of one
that hangs, crashes or was killed too."""

import mmap
import struct
import time

_SLOT, _HEAD = 1024, struct.Struct("dH")


class Slate:
    """A line for each of ``slots`` loader processes; empty in a process that was not forked, for then no memory is shared."""

    def __init__(self, slots: int) -> None:
        self._memory: mmap.mmap | None = mmap.mmap(-1, max(slots, 1) * _SLOT)
        self._sample = ""
        self._slot: int | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_memory": None, "_sample": "", "_slot": None}

    def write(self, slot: int, line: str) -> None:
        """Remember that the process ``slot`` begins with ``line``; an empty one: that it has nothing to do."""
        if self._memory is not None:
            text = line.encode(errors="surrogateescape")[: _SLOT - _HEAD.size]
            place = slot * _SLOT
            _HEAD.pack_into(self._memory, place, time.monotonic(), len(text))
            self._memory[place + _HEAD.size : place + _HEAD.size + len(text)] = text

    def read(self, slot: int) -> tuple[str, float]:
        """What the process ``slot`` is at, and for how many seconds it has been."""
        if self._memory is None:
            return "", 0.0
        place = slot * _SLOT
        since, length = _HEAD.unpack_from(self._memory, place)
        text = self._memory[place + _HEAD.size : place + _HEAD.size + length].decode(errors="replace")
        return text, time.monotonic() - since if since else 0.0

    def use(self, slot: int) -> None:
        """From here on, what this process reads is written into its ``slot``."""
        global _mine
        self._slot, _mine = slot, self

    def at(self, sample: str, file: str = "") -> None:
        """This process begins with that sample, and that file of it."""
        self._sample = sample
        self.write(self._slot or 0, f"{sample}, file {file}" if file else sample)


_mine: Slate | None = None
"""That of this process, if it is a loader."""


def reading_sample(line: str) -> None:
    """This process begins with a sample; with an empty line, it is done."""
    if _mine is not None:
        _mine.at(line)


def reading_file(path: str) -> None:
    """This process begins with a file of the sample."""
    if _mine is not None:
        _mine.at(_mine._sample, path)
