"""Drawings of results: how many times the peer's time ours takes, how near both come to what the machine can do, and how cost grows."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.inference import HALF
from effbackbones.weights.tensorfile import write_atomically
from tasks.report.drawings import name_rows

_BLUE, _ORANGE, _GREY = "#3b8bc9", "#e0803a", "#8a94a0"  # told apart on light and dark pages, and by the colour-blind
_INK = "#000000"  # matplotlib's default for text, axes and ticks
_STYLE = "<style>svg{color:#20262d;fill:currentColor}@media(prefers-color-scheme:dark){svg{color:#e4e7ea}}</style>"
_MARKS = {"plain": ("o", _BLUE), "for_inference": ("s", _ORANGE), "for_inference, bf16": ("D", _GREY)}


def kinds(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Of a row's own sides the plain one, and the quickest of those made for inference, in float32 and in bfloat16."""
    mine = [side for side in row.get("sides", ()) if side["ours"]]
    quick = sorted((side for side in mine if side["name"].startswith("for_inference")), key=lambda side: side["median"])
    single = [side for side in quick if HALF not in side["name"]]
    half = [side for side in quick if HALF in side["name"]]
    found = {"plain": mine[0]} if mine else {}
    return found | ({"for_inference": single[0]} if single else {}) | ({"for_inference, bf16": half[0]} if half else {})


def ratio_to(row: Mapping[str, Any], side: str, peer: str) -> Mapping[str, Any] | None:
    """Ours / peer of two sides."""
    found = [one for one in row.get("ratios", ()) if (one["ours"], one["peer"]) == (side, peer)]
    return found[0] if found else None


def best_peer(row: Mapping[str, Any]) -> str | None:
    """The side of others that is quickest, or smallest."""
    theirs = [side for side in row.get("sides", ()) if not side["ours"]]
    chosen = min if row.get("better", "low") == "low" else max
    return str(chosen(theirs, key=lambda side: side["median"])["name"]) if theirs else None


def ratio_figure(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Ours / the peer's best mode, with quartiles, on a log axis: a line for each row, the peer at 1."""
    drawn = {name: row for name, row in rows.items() if best_peer(row)}
    figure, axes = _rows_drawing(len(drawn))
    axes.axvline(1, color=_GREY, linewidth=1, linestyle="--")
    for place, row in enumerate(drawn.values()):
        peer = best_peer(row) or ""
        for kind, side in kinds(row).items():
            ratio = ratio_to(row, side["name"], peer)
            if ratio:
                mark, colour = _MARKS[kind]
                axes.plot([ratio["low"], ratio["high"]], [place, place], color=colour, linewidth=1.6)
                axes.plot([ratio["median"]], [place], mark, color=colour, markersize=5.5)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    _legend(axes, _MARKS)
    _dress(axes, list(drawn), "ours / the peer's best mode: left of 1 ours is less")
    return figure


def limit_figure(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The share of the nearer limit of the machine, arithmetic or traffic, that the sides of each row reach."""
    drawn = {name: row for name, row in rows.items() if any(side.get("share") for side in row.get("sides", ()))}
    figure, axes = _rows_drawing(len(drawn))
    for place, row in enumerate(drawn.values()):
        best = best_peer(row)
        marked = [(_MARKS[kind], side) for kind, side in kinds(row).items()]
        marked += [(("|", _INK), side) for side in row["sides"] if side["name"] == best]
        for (mark, colour), side in marked:
            nearest = 100 * max(side["share"].values())
            axes.plot([nearest], [place], mark, color=colour, markersize=6, markeredgewidth=1.8)
    axes.set_xlim(left=0)
    _legend(axes, {**_MARKS, "the peer's best mode": ("|", _INK)})
    _dress(axes, list(drawn), "percent of what the machine does at most")
    return figure


def curve_figure(row: Mapping[str, Any]) -> Figure:
    """Cost against size on log axes, each curve divided by its first value; dashed: in proportion."""
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    curves: Sequence[Mapping[str, Any]] = row["curves"]
    for number, curve in enumerate(curves):
        colour, stroke = (_BLUE, _ORANGE, _GREY)[number % 3], ("-", "-.", ":")[number // 3 % 3]
        first = curve["y"][0] or 1.0
        values = [value / first for value in curve["y"]]
        name = f"{curve['name']}: {curve['exponent']:.2f}"
        axes.plot(curve["x"], values, stroke, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=name)
    ends = [min(min(curve["x"]) for curve in curves), max(max(curve["x"]) for curve in curves)]
    axes.plot(ends, [1, ends[1] / ends[0]], "--", color=_GREY, linewidth=1, label="in proportion: 1")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel(curves[0]["axis"], fontsize=9.5)
    axes.set_ylabel("times the cost of the smallest", fontsize=9.5)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def _rows_drawing(count: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, 1.3 + 0.27 * count), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Axes, marks: Mapping[str, tuple[str, str]]) -> None:
    for name, (mark, colour) in marks.items():
        axes.plot([], [], mark, color=colour, markersize=5.5, label=name)
    axes.legend(frameon=False, fontsize=8.5, ncols=len(marks), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _dress(axes: Axes, names: Sequence[str], what: str) -> None:
    name_rows(axes, names)
    axes.set_xlabel(what, fontsize=9.5)
    axes.tick_params(axis="x", labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=_GREY, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)


def write_svg(figure: Figure, path: Path) -> None:
    """As a file that is legible on light and on dark pages, and the same each time."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        metadata = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=metadata)
    text = buffer.getvalue().replace(_INK, "currentColor")
    head, tag, rest = text.partition("<svg ")
    inside = rest.index(">") + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{head}{tag}{rest[:inside]}\n {_STYLE}{rest[inside:]}".encode())
