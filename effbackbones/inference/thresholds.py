"""From which score on something counts as found: one rule for every task, result and verb.

First what is asked for (``threshold=``, ``--threshold``); then a threshold that the head was given by hand; then those of the best F1
on the validation split, which training keeps in a model file (``provenance["operating_point"]``); else :data:`BOXES` and :data:`SURE`.
Boxes have one threshold for all classes, for a picture or a label file of them is one ranking; classes that may be there together, in
an image or a pixel, have one each. Where one class excludes the others, the most probable one needs none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BOXES = 0.3
"""Score from which boxes count where nothing else is known."""
SURE = 0.5
"""The same of the probability of a class that may be there beside others."""
IDLE_THRESHOLD = (
    "is for boxes, masks, and classes of which several may be there; of others the most probable is the answer"
)
"""Why it is refused elsewhere."""
_SHOWN = 6  # classes whose thresholds are told


@dataclass(frozen=True)
class Thresholds:
    """One for each of K classes, in ``values``, and what ``told`` says of them."""

    values: tuple[float, ...]
    why: str = "asked for"

    def told(self, task: str, classes: tuple[str, ...]) -> str:
        """A line for people: from which scores, and why."""
        what = {"det": "boxes are drawn and counted", "seg": "classes are in a pixel"}.get(
            task, "classes are in an image"
        )
        if len({f"{value:.3f}" for value in self.values}) == 1:
            return f"{what} from score {self.values[0]:.3f} on: {self.why}"
        named = ", ".join(
            f"{name} {value:.3f}" for name, value in zip(classes[:_SHOWN], self.values[:_SHOWN], strict=True)
        )
        more = f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
        return f"{what} from a score of its own for each on ({named}{more}): {self.why}"


def thresholds_of(model: Any, asked: float | None = None) -> dict[str, Thresholds]:
    """The thresholds of a model's heads by task, of those that have any. ``asked``: one for all, instead."""
    heads: Mapping[str, Any] = getattr(model.head, "heads", None) or {model.head.task: model.head}
    several = hasattr(model.head, "heads")
    points = model.provenance.get("operating_point") or {}
    options = model.config.get("head_options") or {}
    found = {}
    for word, head in heads.items():
        if word == "det" or (word in ("cls", "seg") and getattr(head, "multilabel", False)):
            point = points.get(word if several else "")
            classes = (model.classes or {}).get(word, ()) if several else model.classes or ()
            by_hand = word == "seg" and "threshold" in ((options.get(word) or {}) if several else options)
            if asked is not None:
                found[word] = Thresholds((asked,) * head.num_classes)
            elif by_hand:
                found[word] = Thresholds(tuple(head.thresholds), "the head's own, by its option threshold")
            else:
                found[word] = _kept(head.num_classes, word, point if isinstance(point, Mapping) else {}, classes)
    return found


def _kept(count: int, word: str, point: Mapping[str, Any], classes: Any) -> Thresholds:
    """What a model file keeps, or the default."""
    whole, by_class = point.get("threshold"), point.get("thresholds") if word != "det" else None
    if isinstance(whole, float):
        own = by_class if isinstance(by_class, Mapping) else {}
        values = tuple(float(own.get(name, whole)) for name in classes) if len(classes) == count else (whole,) * count
        return Thresholds(values, f"the best F1 on the validation split ({point['f1']:.3f}), kept in the model file")
    return Thresholds((BOXES if word == "det" else SURE,) * count, "the default, for the model file keeps none")
