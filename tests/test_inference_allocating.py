"""Memory that a process keeps: not asked for again inside, given back at the end, and left to whoever sets its rules."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from effbackbones.inference.allocating import memory_kept

SIZE = 2**26  # bytes, more than the C library ever keeps


def faults() -> int:
    """Pages that the kernel has to give for a block that is written to and freed."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_is_kept_inside_and_goes_back_at_the_end() -> None:
    """In a process of its own: this one may have such a block free already."""
    ran = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=120)
    if ran.stdout == "not here\n":
        pytest.skip("another C library, or its variables are set")
    assert ran.returncode == 0, ran.stderr


def kept_and_given_back() -> None:
    faults()
    usual, start = faults(), resident()
    with memory_kept() as kept:
        if not kept:
            print("not here")
            return
        faults()
        assert faults() < usual / 8
        assert resident() > start + SIZE // 2
    assert resident() < start + SIZE // 2
    assert faults() > usual / 2


def test_whoever_sets_the_rules_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with memory_kept() as kept:
        assert not kept


if __name__ == "__main__":
    kept_and_given_back()
