"""How often each class occurs in the masks of a data set: counted once in a process, for checks, class weights and report."""

from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from tasks.data.dataset import Dataset
from tasks.data.masks.count import MaskStatistics, count_masks, inverse_frequency, median_frequency

COUNTED = 2000
"""Masks that are read before a run, spread over the set; the verb ``check`` reads all."""
_known: WeakKeyDictionary[Dataset, dict[tuple[str, bool], MaskStatistics]] = WeakKeyDictionary()


def statistics(
    dataset: Dataset,
    on_error: str = "stop",
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
    *,
    whole: bool = False,
) -> MaskStatistics:
    """The classes in at most :data:`COUNTED` masks (in all if ``whole``), counted when first asked for and remembered as long as
    the data set lives. Errors as of :func:`count_masks`."""
    whole = whole or len(dataset) <= COUNTED
    try:
        known = _known.setdefault(dataset, {})
    except TypeError:  # a class of the user's that is not hashable, or has slots
        known = {}
    key = (on_error, whole)
    if key not in known:
        known[key] = count_masks(dataset, None if whole else COUNTED, on_error, watch)
    return known[key]


def class_weights(dataset: Dataset, on_error: str = "stop", kind: str = "median_frequency") -> list[float]:
    """Weights of the classes by their frequency in at most :data:`COUNTED` masks: ``median_frequency`` or ``balanced``."""
    found = statistics(dataset, on_error)
    return median_frequency(found) if kind == "median_frequency" else inverse_frequency(found)
