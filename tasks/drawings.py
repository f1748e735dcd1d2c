"""Drawings for reports. Black is the text colour of the page, so nothing here is drawn in black or white on purpose."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#3b8bc9", "#e0803a", "#8a94a0"  # told apart on light and dark pages, and by the colour-blind


def curves(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Losses (names that contain it), scores (``val...``, fractions) and ``lr`` by epoch: a drawing for each kind that occurs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = _panels(history)
    figure = Figure(figsize=(3.6 * max(len(panels), 1), 3.0), layout="constrained")
    for index, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for name in names:
            points = [(row.get("epoch", i), row[name]) for i, row in enumerate(history) if is_number(row.get(name))]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.6, label=name)
        _dress(axes, title, "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
    return figure


def _panels(history: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Names of the figures of ``history`` by kind; scores are fractions of the validation set."""
    panels: dict[str, list[str]] = {"loss": [], "score": [], "learning rate": []}
    for name in dict.fromkeys(key for row in history for key in row):
        values = [row[name] for row in history if is_number(row.get(name))]
        fractions = all(isinstance(value, float) and 0 <= value <= 1 for value in values)
        if values and "loss" in name:
            panels["loss"].append(name)
        elif values and name == "lr":
            panels["learning rate"].append(name)
        elif values and name.startswith("val") and fractions:
            panels["score"].append(name)
    return {title: names for title, names in panels.items() if names}


def reliability(bins: Sequence[Mapping[str, Any]]) -> "Figure":
    """Accuracy over confidence, with the share of samples in each bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes = figure.subplots()
    total = sum(row["count"] for row in bins) or 1
    filled = [row for row in bins if row["count"]]
    width = bins[0]["to"] - bins[0]["from"]
    left = [row["from"] for row in filled]
    axes.bar(left, [row["count"] / total for row in filled], width, align="edge", color=_GREY, alpha=0.45, label="share of predictions")
    axes.bar(left, [row["accuracy"] for row in filled], width, align="edge", color=_BLUE, alpha=0.55, edgecolor=_BLUE, label="accuracy")
    centres = [row["confidence"] for row in filled], [row["accuracy"] for row in filled]
    axes.plot(*centres, "o", color=_ORANGE, markersize=5, label="mean confidence")
    axes.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _dress(axes, "", "confidence")
    axes.set_ylabel("accuracy", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _dress(axes: "Axes", title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
