"""Differences with their intervals, one below the other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.report.drawings import clean, name_rows
from tasks.scoring.pairing import Difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#3b8bc9", "#e0803a", "#8a94a0"  # told apart on light and dark pages, and by the colour-blind


def forest(rows: Mapping[str, Difference], what: str) -> "Figure":
    """A line for each of ``rows``, the first one above, in points of a hundred: a dot for the difference, a bar for its interval;
    blue above nought, orange below, grey where it is no difference that can be told. ``what`` names the axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 1.0 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=_GREY, linewidth=1, linestyle="--")
    for place, found in enumerate(rows.values()):
        low, high = (100 * end for end in found.interval)
        colour = (_BLUE if found.value > 0 else _ORANGE) if found.real else _GREY
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([100 * found.value], [place], "o" if found.real else "D", color=colour, markersize=5)
    name_rows(axes, [*rows])
    axes.set_xlabel(clean(what, 64), fontsize=9.5, parse_math=False)
    axes.tick_params(axis="x", labelsize=9)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color=_GREY, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure
