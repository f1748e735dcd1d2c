"""Where the errors of a segmentation lie, along borders or inside, and which classes they swap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOT_FINITE = "not finite"
_NAMED = 3  # other classes of each


def anatomy(counts: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Errors in ``counts`` of pixels [K, K + 1, 2], by true class, predicted class (the last: not finite) and whether they lie in the
    band along true borders; JSON-like:

    * ``boundary`` (in that band) and ``interior``: ``pixels``, and ``wrong``, how many of them are.
    * ``by_class``: name -> ``missed``, pixels of the class that are predicted otherwise, ``missed_boundary`` of them in the band, and
      ``missed_as``, the most frequent classes predicted there with their pixels; ``extra``, ``extra_boundary`` and ``extra_of``, the
      same of pixels that are predicted to be of the class and are not.
    """
    k = len(classes)
    wrong = counts.copy()
    wrong[np.arange(k), np.arange(k)] = 0
    predicted = (*classes, NOT_FINITE)
    by_class = {}
    for label, name in enumerate(classes):
        missed, extra = wrong[label], wrong[:, label]
        by_class[name] = {
            "missed": int(missed.sum()),
            "missed_boundary": int(missed[:, 1].sum()),
            "missed_as": most(missed.sum(1), predicted),
            "extra": int(extra.sum()),
            "extra_boundary": int(extra[:, 1].sum()),
            "extra_of": most(extra.sum(1), classes),
        }
    places = {
        name: {"pixels": int(counts[..., band].sum()), "wrong": int(wrong[..., band].sum())}
        for name, band in (("boundary", 1), ("interior", 0))
    }
    return {**places, "by_class": by_class}


def most(pixels: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    """The most frequent classes, falling."""
    order = np.argsort(-pixels, kind="stable")[:_NAMED].tolist()
    return {names[index]: int(pixels[index]) for index in order if pixels[index]}
