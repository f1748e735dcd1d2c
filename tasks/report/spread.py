"""What several runs reached, those alike but for their seed together: means, their spread, and whether the best is really better."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.report.page import setting

# Quantiles of Student's t for 97.5 % with 1, 2, ... degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_NORMAL = 1.960


@dataclass(frozen=True)
class Reached:
    """What a run came to: its ``scores`` by name, the first of which decides, None where undefined; ``changes``: what tells it from
    runs of other settings."""

    name: str
    changes: Mapping[str, Any]
    seed: int
    scores: Mapping[str, float | None]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone, by ``values`` of the score that decides."""

    name: str
    runs: Sequence[Reached]
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Of the runs that have the score."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation between seeds; None of one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def settings(reached: Sequence[Reached]) -> list[Setting]:
    """The settings, best first by the mean of the score that decides; those that have none last."""
    groups: dict[str, list[Reached]] = {}
    for one in reached:
        groups.setdefault(", ".join(f"{key} {setting(value)}" for key, value in one.changes.items()), []).append(one)
    found = []
    for name, runs in groups.items():
        values = [value for one in runs if (value := next(iter(one.scores.values()))) is not None]
        found.append(Setting(name or "this config", runs, values))
    sign = -1 if reached[0].higher_is_better else 1
    return sorted(found, key=lambda one: (not one.values, sign * one.mean if one.values else 0.0))


def told_of_spread(reached: Sequence[Reached]) -> Iterator[str]:
    """A line for each setting, best first, and one on whether the best is better than the next."""
    score, found = next(iter(reached[0].scores)), settings(reached)
    width = max(len(one.name) for one in found)
    yield f"{'setting':<{width}}  runs  {', '.join(reached[0].scores)}: mean and standard deviation between seeds"
    for one in found:
        shown = [_spread([run.scores.get(name) for run in one.runs]) for name in reached[0].scores]
        yield f"{one.name:<{width}}  {len(one.runs):>4}  {', '.join(shown)}"
    if len(found) > 1:
        yield _verdict(found[0], found[1], score)
    if any(len(one.values) < 2 for one in found):
        yield "one run of a setting says nothing of how seeds spread: --seeds 3 does"


def _spread(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "undefined"
    deviation = f" ± {statistics.stdev(there):.4f}" if len(there) > 1 else ""
    lost = f" ({len(values) - len(there)} undefined)" if len(there) < len(values) else ""
    return f"{statistics.fmean(there):.4f}{deviation}{lost}"


def _verdict(best: Setting, other: Setting, score: str) -> str:
    """Whether the difference of two means is larger than chance between seeds makes it: Welch's t-test at 5 %, without a correction for
    the best being chosen among many."""
    if min(len(best.values), len(other.values)) < 2:
        return f"best by {score}: {best.name}"
    parts = [statistics.variance(one.values) / len(one.values) for one in (best, other)]
    error, gap = math.sqrt(sum(parts)), abs(best.mean - other.mean)
    # Welch and Satterthwaite's degrees of freedom.
    squares = sum(part**2 / (len(one.values) - 1) for part, one in zip(parts, (best, other), strict=True))
    freedom = int(sum(parts) ** 2 / squares) if squares else len(_T) + 1
    quantile = _T[max(freedom, 1) - 1] if freedom <= len(_T) else _NORMAL
    really = "is" if gap > quantile * error else "is not"
    text = f"best by {score}: {best.name}; that it is better than {other.name} by {gap:.4f} {really} certain"
    return f"{text}: chance between seeds makes differences up to {quantile * error:.4f}"
