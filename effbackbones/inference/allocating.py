"""Memory that a process keeps between two answers, or two steps, instead of giving it back and asking for it again."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3), by malloc.h
_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_KEEP = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
_SAID = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@contextmanager
def memory_kept() -> Iterator[bool]:
    """Up to 2 GB of what is freed stays with this process inside; gives whether it does: on Linux with the GNU C library, where nobody set
    its variables ``MALLOC_...``. At the end all of it goes back, and the usual rules hold again.

    That library maps each block of 32 MB or more anew and gives freed memory back from 64 MB on, so that the kernel clears the maps of a
    network page by page in every call: on a CPU that is a quarter of the time of a B0, and more the larger images and batches are
    (``python -m benchmarks allocation``). Memory that is kept may lie in pieces: the peak is up to a tenth higher. It holds for the
    whole process, its threads and what it forks, so that a library must not decide it: the commands do, and
    ``with memory_kept():`` around a loop of your own.
    """
    library = _library()
    if library is None:
        yield False
        return
    for name, value in _KEEP.items():
        library.mallopt(name, value)
    try:
        yield True
    finally:
        for name, value in _USUAL.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    """The GNU C library, if memory is its business here."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in _SAID):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
