"""Drawings for reports. Black is the text colour of the page, so nothing here is drawn in black or white on purpose."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.drawing.fonts import drawable
from tasks.report.words import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#3b8bc9", "#e0803a", "#8a94a0"  # told apart on light and dark pages, and by the colour-blind

_WIDTH = 4.4  # inches
_OF_STEPS = {"train_loss": "loss", "lr": "lr"}

_CYCLE, _STROKES = (_BLUE, _ORANGE, _GREY), ("-", "--", ":", "-.")
COCO_BORDERS = (32, 96)
"""Sides in pixels where COCO's small boxes end and its large ones begin (``areaRng`` of its evaluation: their squares)."""
_SIDE = "side of a square of the same area, pixels"
COVERED = 0.5
"""IoU from which the published assignment calls an anchor a positive example."""


def _drawing(height: float = 3.0) -> tuple["Figure", Any]:
    """An empty drawing as wide as half a page, or as a telephone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def curves(
    history: Sequence[Mapping[str, Any]],
    scores: Sequence[str] | None = None,
    own: Sequence[str] = (),
    steps: Sequence[Mapping[str, Any]] = (),
) -> list["Figure"]:
    """Losses (names that contain it), scores (``val...``, fractions) and ``lr`` by epoch: a drawing for each kind that occurs.
    A score that one evaluation alone has is left out.

    ``scores``: the names of those to draw, where there are too many for one drawing; ``own``: of those that have a drawing of
    their own, for they may be no fractions. ``steps``: ``epoch``, ``loss`` and ``lr`` between evaluations; these take the place of
    the same in ``history``.
    """
    from matplotlib.ticker import MaxNLocator

    drawn = []
    for title, names in _panels(history, scores, own).items():
        figure, axes = _drawing(2.7 + 0.19 * math.ceil(len(names) / 2))
        for name in names:
            points = [(row.get("epoch", i), row[name]) for i, row in enumerate(history) if is_number(row.get(name))]
            fine = [(row["epoch"], row[_OF_STEPS[name]]) for row in steps] if name in _OF_STEPS else []
            style: dict[str, Any] = {"linewidth": 1.1} if fine else {"linewidth": 1.6, "marker": "o", "markersize": 3}
            axes.plot(*zip(*(fine or points), strict=True), label=label(name.removeprefix("val_")), **style)
        _dress(axes, title, "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(names) > 1:  # below the drawing, where no line is
            axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        drawn.append(figure)
    return drawn


def _panels(
    history: Sequence[Mapping[str, Any]], scores: Sequence[str] | None, own: Sequence[str]
) -> dict[str, list[str]]:
    """Names of the figures of ``history`` by kind; scores are fractions of the validation set."""
    panels: dict[str, list[str]] = {"loss": [], "score": [], "own": [], "learning rate": []}
    for name in dict.fromkeys(key for row in history for key in row):
        values = [row[name] for row in history if is_number(row.get(name))]
        fractions = all(isinstance(value, float) and 0 <= value <= 1 for value in values)
        if len(values) == 1 and name.startswith("val"):
            continue
        if values and name in own:
            panels["own"].append(name)
        elif values and "loss" in name:
            panels["loss"].append(name)
        elif values and name == "lr":
            panels["learning rate"].append(name)
        elif values and (name in scores if scores is not None else name.startswith("val") and fractions):
            panels["score"].append(name)
        elif values and scores is None and name.startswith("val") and all(isinstance(value, float) for value in values):
            panels["own"].append(name)  # no fractions: errors in a unit of their own
    return {title: names for title, names in panels.items() if names}


def reliability(bins: Sequence[Mapping[str, Any]]) -> "Figure":
    """Accuracy over confidence, with the share of samples in each bin."""
    figure, axes = _drawing(3.8)
    total = sum(row["count"] for row in bins) or 1
    filled = [row for row in bins if row["count"]]
    width = bins[0]["to"] - bins[0]["from"]
    left = [row["from"] for row in filled]
    axes.bar(
        left,
        [row["count"] / total for row in filled],
        width,
        align="edge",
        color=_GREY,
        alpha=0.45,
        label="share of predictions",
    )
    axes.bar(
        left,
        [row["accuracy"] for row in filled],
        width,
        align="edge",
        color=_BLUE,
        alpha=0.55,
        edgecolor=_BLUE,
        label="accuracy",
    )
    centres = [row["confidence"] for row in filled], [row["accuracy"] for row in filled]
    axes.plot(*centres, "o", color=_ORANGE, markersize=5, label="mean confidence")
    axes.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _dress(axes, "", "confidence")
    axes.set_ylabel("accuracy", fontsize=9.5)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def precision_recall(
    recall: Sequence[float], lines: Mapping[str, Sequence[float | None]], by_class: Mapping[str, Sequence[float | None]]
) -> list["Figure"]:
    """Precision at each of the values of ``recall``: ``lines`` (means over classes) by name and, in a drawing of its own,
    ``by_class``, if that has any; a gap where precision is undefined."""
    panels = {"mean over classes": lines} | ({"by class, at IoU 0.50": by_class} if by_class else {})
    figures = []
    for title, drawn in panels.items():
        figure, axes = _drawing(3.4)
        for number, (name, line) in enumerate(drawn.items()):
            values = [math.nan if value is None else value for value in line]
            colour, stroke = _CYCLE[number % 3], _STROKES[number % 4]  # twelve pairs before they recur
            axes.plot(recall, values, color=colour, linestyle=stroke, linewidth=1.8, label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        _dress(axes, title, "recall")
        axes.set_ylabel("precision", fontsize=9.5)
        axes.legend(frameon=False, fontsize=9)
        figures.append(figure)
    return figures


def by_threshold(curve: Mapping[str, Sequence[float | None]], best: float) -> "Figure":
    """Precision, recall and F1 against the ``threshold`` that scores are cut at; a line where F1 is ``best``."""
    figure, axes = _drawing(3.4)
    for number, name in enumerate(("precision", "recall", "f1")):
        values = [math.nan if value is None else value for value in curve[name]]
        axes.plot(
            curve["threshold"],
            values,
            color=_CYCLE[number],
            linestyle=_STROKES[number],
            linewidth=1.8,
            label=label(name),
        )
    axes.axvline(best, linestyle="-.", linewidth=1.2, color=_GREY)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _dress(axes, "", "threshold")
    axes.legend(frameon=False, fontsize=9)
    return figure


def box_histogram(original: NDArray[np.floating], network: NDArray[np.floating]) -> list["Figure"]:
    """How large boxes are, as the side of a square of the same area on a log axis: sides [N, 2] in pixels of the files, where
    COCO's borders between small, medium and large lie, and [N, 2] in pixels as the network sees them."""
    sizes = [np.sqrt(np.maximum(np.asarray(sides, np.float64).prod(1), 1e-2)) for sides in (original, network)]
    bins = _octaves(np.concatenate(sizes), 4)
    figures = []
    for title, colour, values in zip(
        ("in the files", "as the network sees them"), (_BLUE, _ORANGE), sizes, strict=True
    ):
        figure, axes = _drawing()
        axes.hist(values, bins, color=colour, alpha=0.75)
        _sides_below(axes)
        axes.set_xlim(bins[0], bins[-1])
        _dress(axes, title, _SIDE)
        axes.set_ylabel("boxes", fontsize=9.5)
        figures.append(figure)
    for border in COCO_BORDERS:
        figures[0].axes[0].axvline(border, linestyle="--", linewidth=1.2, color=_GREY)
    return figures


def coverage_figure(best_iou: NDArray[np.floating], network: NDArray[np.floating]) -> list["Figure"]:
    """How well anchors fit boxes: IoU [N] of each box with its best anchor, and by size (sides [N, 2] in pixels as the network
    sees them) the share whose IoU is at least :data:`COVERED`, with the number of boxes above each bar."""
    by_iou, left = _drawing()
    bins = np.linspace(0, 1, 21)
    covered = best_iou >= COVERED
    left.hist(best_iou[covered], bins, color=_BLUE, alpha=0.75, label=f"IoU {COVERED:g} or more")
    left.hist(best_iou[~covered], bins, color=_ORANGE, alpha=0.75, hatch="///", edgecolor=_GREY, label="less")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    _dress(left, "boxes by IoU with their best anchor", "IoU")
    left.set_ylabel("boxes", fontsize=9.5)
    by_size, right = _drawing()
    sizes = np.sqrt(np.maximum(np.asarray(network, np.float64).prod(1), 1e-2))
    edges = _octaves(sizes, 1)
    total, hit = (np.histogram(values, edges)[0] for values in (sizes, sizes[covered]))
    some = total > 0
    style = {"color": _BLUE, "alpha": 0.75, "edgecolor": _GREY}
    bars = right.bar(edges[:-1][some], hit[some] / total[some], np.diff(edges)[some], align="edge", **style)
    right.bar_label(bars, [f"{count:,}" for count in total[some].tolist()], padding=2, fontsize=8)
    _sides_below(right)
    right.set_ylim(0, 1.1)
    _dress(right, f"share with IoU {COVERED:g} or more", _SIDE)
    return [by_iou, by_size]


def class_shares(names: Sequence[str], shares: Mapping[str, NDArray[np.floating]]) -> list["Figure"]:
    """Bars for each of the ``names``, downwards, in a drawing for each of ``shares``: its title, and fractions for all names."""
    places, figures = np.arange(len(names)), []
    for (title, values), colour in zip(shares.items(), _CYCLE, strict=False):
        figure, axes = _drawing(0.9 + 0.24 * len(names))
        bars = axes.barh(places, 100 * values, 0.72, color=colour, alpha=0.75)
        axes.bar_label(bars, [f"{100 * value:.3g}" for value in values.tolist()], padding=3, fontsize=9)
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        _dress(axes, title, "percent")
        name_rows(axes, names)
        figures.append(figure)
    return figures


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Write ``names`` at the left, at 0, 1, ... downwards, in letters that have them."""
    drawn = [drawable(name, 9, number) for number, name in enumerate(names)]
    ticks = axes.set_yticks(range(len(names)), [clean(text) for text, _ in drawn])
    for tick, (_, letters) in zip(ticks, drawn, strict=True):
        tick.label1.set_fontproperties(Path(str(letters.path)))
        tick.label1.set_fontsize(9)
        tick.label1.set_parse_math(False)  # a class may be called $x$
    axes.set_ylim(len(names) - 0.4, -0.6)


def clean(text: str, most: int = 28) -> str:
    """``text`` not too long for a label."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _octaves(values: NDArray[np.float64], parts: int) -> NDArray[np.float64]:
    """Edges of bins around ``values``, ``parts`` for each doubling, at powers of two among them."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 2.0)
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high * 1.0001))
    return 2.0 ** np.linspace(first, last, (last - first) * parts + 1)


def _sides_below(axes: "Axes") -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")


def _dress(axes: "Axes", title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(xlabel, fontsize=9.5)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
