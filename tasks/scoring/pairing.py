"""Is one run better than another on the same images? A paired bootstrap: both are scored on the same drawn sets of images.

What is hard in an image is hard for both, so that their difference varies far less than each score does. The interval of a
difference is that of :mod:`tasks.scoring.intervals`, and its p the level at which that interval just touches nought. What it does not
cover is the spread between trainings: two seeds of one recipe are two networks, and may differ for real.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.scoring.intervals import Interval, bias_of, drawn_scores, interval_of, normal, replicates_of
from tasks.scoring.outcomes import Floats, Outcomes

LEVEL = 0.05
"""A p below it is called a difference."""
REPLICATES = 2000


@dataclass(frozen=True)
class Difference:
    """``second`` less ``first`` score, its ``interval`` of 95 %, the two-sided ``p`` that it is nought, and that ``adjusted`` (Holm
    1979) for having looked at several."""

    first: float
    second: float
    interval: Interval
    p: float
    adjusted: float

    @property
    def value(self) -> float:
        return self.second - self.first

    @property
    def real(self) -> bool:
        """Whether it is one, at :data:`LEVEL`, after adjustment."""
        return self.adjusted < LEVEL

    def record(self) -> dict[str, Any]:
        """JSON-like."""
        found = {"first": self.first, "second": self.second, "difference": self.value, "interval": list(self.interval)}
        return found | {"p": self.p, "p_holm": self.adjusted, "real": self.real}


@dataclass(frozen=True)
class Pair:
    """Two runs on the same images: differences of ``scores``, and of the leading score of each class. ``equal``: every image came out
    the same."""

    scores: Mapping[str, Difference]
    per_class: Mapping[str, Difference]
    equal: bool


@dataclass(frozen=True)
class Scored:
    """A run's scores on the common images and those on sets drawn of them."""

    outcomes: Outcomes
    point: Mapping[str, Floats]
    drawn: Mapping[str, Floats]

    def interval(self, name: str) -> Interval | None:
        """Of one of the scores that are no class's."""
        return interval_of(self.drawn[name], float(self.point[name]))


def scored(outcomes: Sequence[Outcomes], seed: int = 0) -> list[Scored]:
    """All on the same drawn sets; they must be of the same images in the same order."""
    replicates = replicates_of(*outcomes, most=REPLICATES)
    return [Scored(one, one.point(), drawn_scores(one, replicates, seed)) for one in outcomes]


def paired(first: Scored, others: Sequence[Scored]) -> list[Pair]:
    """``first`` with each of the others. The p of a score are adjusted for the number of others, those of classes for the number
    of classes too."""
    pairs = []
    for other in others:
        names = [name for name in first.point if "/" not in name]
        found = {name: _difference(*_of(first, name), *_of(other, name)) for name in names}
        group = f"per_class/{first.outcomes.lead[1]}"
        classes = {
            label: _difference(*_of(first, group, row), *_of(other, group, row))
            for row, label in enumerate(first.outcomes.classes)
        }
        known, known_classes = ({k: d for k, d in rows.items() if d is not None} for rows in (found, classes))
        pairs.append(Pair(known, known_classes, _equal(first.outcomes, other.outcomes)))
    for name in {name for pair in pairs for name in pair.scores}:
        _adjust([pair.scores for pair in pairs], [(i, name) for i, pair in enumerate(pairs) if name in pair.scores])
    _adjust([pair.per_class for pair in pairs], [(i, name) for i, pair in enumerate(pairs) for name in pair.per_class])
    return pairs


def _of(run: Scored, name: str, row: int | None = None) -> tuple[float, Floats]:
    at: Any = ... if row is None else row
    return float(run.point[name][at]), run.drawn[name][at]


def _difference(first: float, drawn_first: Floats, second: float, drawn_second: Floats) -> Difference | None:
    """None where one of them is undefined."""
    value, drawn = second - first, drawn_second - drawn_first
    interval = interval_of(drawn, value)
    if interval is None:
        return None
    known = drawn[~np.isnan(drawn)]
    if not known.any():
        return Difference(first, second, interval, 1.0, 1.0)
    below = ((known < 0).sum() + (known == 0).sum() / 2 + 0.5) / (len(known) + 1)
    tail = normal.cdf(normal.inv_cdf(float(below)) - 2 * bias_of(known, value))
    p = min(1.0, max(2 * min(tail, 1 - tail), 1 / (len(known) + 1)))
    return Difference(first, second, interval, p, p)


def _adjust(tables: Sequence[Any], places: Sequence[tuple[int, str]]) -> None:
    """Set ``adjusted`` of these, which were looked at together."""
    values = holm([tables[index][name].p for index, name in places])
    for (index, name), value in zip(places, values, strict=True):
        tables[index][name] = replace(tables[index][name], adjusted=value)


def holm(values: Sequence[float]) -> list[float]:
    """p of several questions, adjusted so that none is answered wrongly with 95 % (Holm 1979, A Simple Sequentially Rejective Multiple
    Test Procedure)."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    result, least = [1.0] * len(values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[index]))
        result[index] = least
    return result


def _equal(one: Outcomes, other: Outcomes) -> bool:
    first, second = one.tables(), other.tables()
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f") for name in first
    )


def in_words(pair: Pair, lead: str, names: tuple[str, str], title: str, noun: str = "image") -> str:
    """What a pair says of its score ``lead``, called ``title``, in plain words; ``names`` of the two runs, ``noun`` of a sample."""
    first, second = names
    if pair.equal:
        return f"{second} equals {first}: every {noun} came out the same"
    found = pair.scores.get(lead)
    if found is None:
        return f"{second} against {first}: {title} is undefined in one of them"
    low, high = (100 * end for end in found.interval)
    digits = 1 if max(abs(low), abs(high)) >= 1 else 2
    value, *ends = (in_points(share, digits) for share in (found.value, *found.interval))
    told = f"{title} {value} points (95 % interval {' to '.join(ends)}, {p_in_words(found.adjusted)})"
    if found.real:
        word = "better" if found.value > 0 else "worse"
        return f"{second} is {word} than {first}: {told}; on {noun}s like these the difference is real"
    parts = [(high, f"{second} is better"), (-low, f"{first} is better")]
    gaps = [f"{who} by up to {gap:.{digits}f} points" for gap, who in parts if gap > 0]
    return f"no difference between {second} and {first} can be told: {told}; they may be equal, or {', or '.join(gaps)}"


def in_points(share: float, digits: int = 1) -> str:
    """A difference of shares in points of a hundred, with its sign."""
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"  # no minus before nought


def p_in_words(p: float) -> str:
    """``p = 0.03``; where it is too small to be told, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
