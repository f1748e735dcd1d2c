"""Sets of classes in pixels, where classes overlap: a mask int32 [H, W] whose bit k says that class k is there.

No bit is none of the classes; :data:`UNKNOWN`, with all of them, a pixel of which nobody knows. So geometry moves such a mask as it
moves one of class numbers (uint8), and the type of a mask says which of the two it is.
"""

from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

Sets = NDArray[np.int32]
Mask = NDArray[np.uint8 | np.int32]
"""Classes [H, W]: uint8, a number in each pixel, or int32, a set of them."""
MOST = 31
"""Classes that a set has room for."""
IGNORE = 255
"""Value of a mask's pixels of which nobody knows the class."""
UNKNOWN = -1
"""The same in a mask of sets."""


def ignored_in(mask: Mask) -> int:
    """The value of pixels of which nobody knows, in a mask of its type."""
    return UNKNOWN if mask.dtype == np.int32 else IGNORE


def are_sets(mask: Any) -> TypeGuard[Sets]:
    """Whether a mask holds sets of classes."""
    return bool(getattr(mask, "dtype", None) == np.int32)


def set_of(planes: Iterable[NDArray[np.bool_]]) -> Sets:
    """One set for each pixel, of a plane bool [H, W] for each class; one plane at least."""
    sets: Sets | None = None
    for label, plane in enumerate(planes):
        sets = np.zeros(plane.shape, np.int32) if sets is None else sets
        sets |= plane.astype(np.int32) << label
    assert sets is not None
    return sets


def members(sets: Sets, count: int) -> NDArray[np.bool_]:
    """Where each of ``count`` classes is, bool [K, H, W]; nowhere where a pixel is unknown."""
    planes: NDArray[np.bool_] = np.stack([has(sets, label) for label in range(count)])
    return planes


def has(sets: Sets, label: int) -> NDArray[np.bool_]:
    """Where one class is, bool [H, W]."""
    found: NDArray[np.bool_] = (sets >> label & 1 > 0) & (sets >= 0)
    return found
