"""One HTML page without a network: text, tables, drawings and pictures all inside the file.

The page has a content policy that forbids scripts and any address but ``data:``, and every text is escaped, so that a class
or file called ``<script>`` stays a name. Drawings are SVG in the text colour of the page, for light and dark screens.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from effbackbones.drawing.boxes import eight_bits
from effbackbones.weights.tensorfile import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
NOTHING = "—"
_FIGURE = r"[-+]?[0-9][0-9.,]*(e[-+][0-9]+)?"
_NUMBER = re.compile(rf"{NOTHING}|{_FIGURE}( to {_FIGURE})?( %)?")
_PICTURE, _PANEL = 256, 512  # longest side of an embedded picture, alone and beside others, pixels
_FLAT = 4  # widths in heights from which a picture is flat, such as a line of text
_INK = "#000000"  # matplotlib's default for text, axes and ticks; takes the page's text colour
_FIRST_PICTURES, _FIRST_CARDS = 12, 4
"""Of more the rest is folded."""


class Link(NamedTuple):
    """A value that leads to another page, ``href`` relative to this one."""

    text: str
    href: str


class Tile(NamedTuple):
    """A figure in large letters at the head of a page, what it is, and a line in small ones."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class _Block:
    kind: str  # facts | figure | table | sortable | matrix | gallery | pairs
    title: str
    caption: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    folded: bool = False
    anchor: str = ""


class Report:
    """A page of titled blocks, written in the order they were added, below a head with the most important figures.

    Values may be anything: numbers are shown with four significant digits, None as a dash, lists line by line.
    """

    def __init__(self, title: str, subtitle: str = "", tiles: Sequence[Tile] = ()) -> None:
        self.title, self.subtitle, self.tiles = title, subtitle, tiles
        self._blocks: list[_Block] = []

    def _add(self, kind: str, title: str, caption: str, data: Mapping[str, Any], folded: bool = False) -> None:
        self._blocks.append(_Block(kind, title, caption, data, folded, f"part-{len(self._blocks) + 1}"))

    def facts(self, facts: Mapping[str, Any], title: str = "", caption: str = "", *, folded: bool = False) -> None:
        """Two columns: what, and its value, which may be a :class:`Link`. ``folded``: only its title is seen at first."""
        rows = [
            (name, [_line(v) for v in value] if type(value) in (list, tuple) else [_line(value)])
            for name, value in facts.items()
        ]
        self._add("facts", title, caption, {"rows": rows}, folded)

    def figure(self, title: str, figures: "Figure | Sequence[Figure]", caption: str = "") -> None:
        """Drawings by matplotlib, side by side where there is room; their black becomes the text colour of the page."""
        drawn = [*figures] if isinstance(figures, Sequence) else [figures]
        said = [", ".join(filter(None, (axes.get_title(loc="left") for axes in figure.axes))) for figure in drawn]
        self._add("figure", title, caption, {"svgs": [_svg(figure) for figure in drawn], "said": said})

    def table(
        self,
        title: str,
        header: Sequence[str],
        rows: Iterable[Sequence[Any]],
        caption: str = "",
        *,
        notes: Sequence[str] = (),
        first: int | None = None,
        rest: str = "{} more",
    ) -> None:
        """A table under ``header``; long ones scroll inside the page. Columns of numbers and percentages are set to the right.
        ``notes``: a line of small letters under the first cell of each row. ``first``: of more rows the others are folded, under a
        line that says how many they are (``rest``)."""
        shown = [[show(value) for value in row] for row in rows]
        numeric = [all(_NUMBER.fullmatch(row[i]) for row in shown) for i in range(len(header))]
        noted = [{"cells": row, "note": note} for row, note in zip(shown, notes or [""] * len(shown), strict=True)]
        head = {"header": list(header), "numeric": numeric}
        count = len(noted) if first is None else first
        folded = noted[count:]
        more = {**head, "rows": folded, "summary": rest.format(len(folded))} if folded else None
        self._add("table", title, caption, {**head, "rows": noted[:count], "more": more})

    def sortable(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[tuple[str, Any]]], caption: str = ""
    ) -> None:
        """A table whose rows a click puts in the order of a column: cells are what is shown, and what it is sorted by (None: last),
        numbers from the highest down. The page has no scripts: it holds a table for each order."""
        numeric = [all(_is_number(row[i][1]) for row in rows) for i in range(len(header))]
        orders = []
        for column in range(len(header)):
            known = [row for row in rows if row[column][1] is not None]
            ranked = sorted(known, key=lambda row: row[column][1], reverse=numeric[column])
            rest = [row for row in rows if row[column][1] is None]
            orders.append([{"cells": [cell[0] for cell in row], "note": ""} for row in [*ranked, *rest]])
        self._add("sortable", title, caption, {"header": list(header), "numeric": numeric, "orders": orders})

    def matrix(
        self,
        title: str,
        names: Sequence[str],
        counts: Sequence[Sequence[int]],
        caption: str = "",
        *,
        shares: bool = False,
    ) -> None:
        """Counts [K, K], rows true and columns predicted; shaded by the share of the row, which with ``shares`` the cells tell,
        in percent."""
        rows = []
        for i, (name, row) in enumerate(zip(names, counts, strict=True)):
            total = sum(row) or 1
            cells = []
            for j, n in enumerate(row):
                share = n / total
                note, text = (f"{100 * share:.1f} %", f"{100 * share:.0f}") if shares else (f"{n:,}", f"{n:,}")
                # The root keeps small shares visible.
                cells.append(
                    {
                        "text": "" if text == "0" else text,
                        "note": f"{name} as {names[j]}: {note}",
                        "shade": share**0.5,
                        "own": i == j,
                    }
                )
            rows.append({"name": name, "cells": cells})
        self._add("matrix", title, caption, {"names": list(names), "rows": rows, "numbers": len(names) <= 20})

    def gallery(self, title: str, items: Iterable[tuple[np.ndarray, str]], caption: str = "") -> None:
        """Pictures with a line or more of text below each, larger where all are flat; see :func:`picture` for what an image may be."""
        found = list(items)
        flat = bool(found) and all(image.shape[1] >= _FLAT * image.shape[0] for image, _ in found)
        shown = [
            {"uri": picture(image, _PANEL if flat else _PICTURE), "lines": text.split("\n")} for image, text in found
        ]
        self._add("gallery", title, caption, {"items": shown, "legend": (), "first": _FIRST_PICTURES, "flat": flat})

    def pairs(
        self,
        title: str,
        items: Iterable[tuple[Mapping[str, np.ndarray], str]],
        caption: str = "",
        legend: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Pictures to be compared, named and side by side, with a line or more of text above each row; more than a few rows are
        folded. ``legend``: what colours mean: names, and CSS's words for the colours."""
        shown = []
        for images, text in items:
            panels = [{"name": name, "uri": picture(image, _PANEL)} for name, image in images.items()]
            shown.append({"panels": panels, "lines": text.split("\n")})
        self._add("pairs", title, caption, {"items": shown, "legend": legend, "first": _FIRST_CARDS, "flat": False})

    def write(self, path: Path) -> Path:
        """Write the page to ``path``, whose folder is made: a reader sees the old page or the new one, never half of it."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
        page = template.render(title=self.title, subtitle=self.subtitle, tiles=self.tiles, blocks=self._blocks)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is not UTF-8 reaches us as lone surrogates.
        write_atomically(path, page.encode("utf-8", "backslashreplace"))
        return path


def _line(value: Any) -> Any:
    return value if isinstance(value, Link) else setting(value)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def show(value: Any) -> str:
    """A value as text: four significant digits, counts in groups of three, a dash for nothing."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


def setting(value: Any) -> str:
    """A setting as text: as :func:`show`, but whole numbers as a config has them."""
    return str(value) if isinstance(value, int) else show(value)


def picture(image: np.ndarray, longest: int = _PICTURE) -> str:
    """A data address of an image that :func:`eight_bits` can show, at most ``longest`` pixels on its longest side."""
    from PIL import Image

    drawing = Image.fromarray(np.ascontiguousarray(eight_bits(image)))
    small = max(drawing.size) <= 64
    drawing.thumbnail((longest, longest))
    buffer = io.BytesIO()
    drawing.save(buffer, "PNG" if small else "JPEG", quality=85)  # quality is JPEG's; a tiny picture keeps its pixels
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(figure: "Figure") -> Any:
    """The drawing as SVG markup, marked safe for the template: matplotlib escapes the texts it draws."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :].replace(_INK, "currentColor"))  # without the XML prologue
