"""Pages made of results: tables for the documentation, pictures beside it, and the line of README."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import KEPT, exponent, figure, fitting, read, share
from benchmarks.table import APART, ROWS
from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs/pictures"
README = ROOT / "README.md"
MARK = re.compile(r"(<!-- benchmarks: begin -->\n).*?(\n<!-- benchmarks: end -->)", re.DOTALL)
NAMED = {
    "b0-batch8": "a B0 on 8 images",
    "d0-predict": "an EfficientDet-D0 on one",
    "unet-predict": "a U-Net",
    "b0-step": "a training step of B0",
}
"""Rows that README speaks of."""
HEAD = ("row", "side", "median", "quartiles", "of the limit", "ratio to each peer")


def write_pages(path: Path = KEPT) -> list[Path]:
    """Pictures and README anew from a file of results; the tables of ``docs/`` are made of it when the site is built. Raises
    :class:`UserError` for a file without rows."""
    from benchmarks.pictures import (  # matplotlib: for pictures alone
        curve_figure,
        limit_figure,
        ratio_figure,
        write_svg,
    )

    rows = fitting(read(path), ROWS)
    if not rows:
        raise UserError(str(path), "has no rows", "run `python -m benchmarks` first")
    compared = {name: row for name, row in rows.items() if row["group"] not in APART}
    drawn = {"benchmarks-ratio": ratio_figure(compared), "benchmarks-limits": limit_figure(compared)}
    drawn |= {name: curve_figure(row) for name, row in rows.items() if row.get("curves")}
    for name, picture in drawn.items():
        write_svg(picture, PICTURES / f"{name}.svg")
    text = README.read_text(encoding="utf-8")
    new = MARK.sub(lambda found: f"{found[1]}{readme_line(rows)}{found[2]}", text)
    if new != text:
        write_atomically(README, new.encode())
    return [*(PICTURES / f"{name}.svg" for name in drawn), README]


def readme_line(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What README says of speed, made of the rows that are named there."""
    from benchmarks.pictures import best_peer, kinds, ratio_to

    said = []
    for name, words in NAMED.items():
        row = rows.get(name)
        peer = best_peer(row) if row else None
        if row is None or peer is None:
            continue
        ratios = {kind: ratio_to(row, side["name"], peer) for kind, side in kinds(row).items()}
        numbers = " / ".join(f"{ratio['median']:.2f}" for ratio in ratios.values() if ratio)
        said.append(f"{words} {numbers} of {peer}")
    if not said:
        return "Speed: `python -m benchmarks` measures it against other libraries."
    threads = next(iter(rows.values()))["machine"]["threads"]
    sides = "plain call / `for_inference` with onnxruntime or OpenVINO / that in bf16, theirs in fp32"
    text = f"Time ours / theirs, {threads} CPU threads ({sides}): {'; '.join(said)}."
    return f"{text} All rows: [docs/benchmarks.md](docs/benchmarks.md); on your machine: `python -m benchmarks`."


def speed_table(path: Path = KEPT) -> str:
    """Every measured row with all its sides, in Markdown; GPU rows that were not measured say so."""
    rows = fitting(read(path), ROWS)
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    for name, row in rows.items():
        if row["group"] not in APART:
            lines += _sides(name, row)
    absent = [row for row in ROWS.values() if row.group not in APART and row.name not in rows]
    lines += [f"| `{row.name}`: {row.what} | not measured | | | | |" for row in absent]
    return "\n".join(lines)


def _sides(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    first = f"`{name}`: {row['what']}"
    for side in row["sides"]:
        ratios = [one for one in row.get("ratios", ()) if one["ours"] == side["name"]]
        told = ", ".join(f"{one['median']:.2f} of {one['peer']}" for one in ratios)
        spread = f"{figure(side['low'])} to {figure(side['high'])}" if side["count"] > 1 else ""
        value = f"{figure(side['median'])} {row['unit']}"
        ours = f"**{side['name']}**" if side["ours"] else side["name"]
        yield f"| {first} | {ours} | {value} | {spread} | {share(side)} | {told} |"
        first = ""


def profile_table(path: Path = KEPT) -> str:
    """Where the time of our plain call and of each peer's goes, in Markdown."""
    from benchmarks.profiles import KINDS, OUTSIDE, REST  # torch

    kinds = [*KINDS, REST, OUTSIDE]
    lines = [f"| row | side | {' | '.join(kinds)} |", f"|{' --- |' * (len(kinds) + 2)}"]
    for name, row in fitting(read(path), ROWS).items():
        sides = [side for side in row.get("sides", ()) if side.get("spent")]
        told = [side for side in sides if not side["ours"] or side is sides[0]]
        for side in told:
            shown = f"`{name}`" if side is told[0] else ""
            figures = " | ".join(f"{side['spent'].get(kind, 0) * side['median']:.3g}" for kind in kinds)
            lines.append(f"| {shown} | {side['name']} | {figures} |")
    return "\n".join(lines)


def machine_text(path: Path = KEPT) -> str:
    """On what the rows were measured: a line for each machine."""
    rows = read(path)
    seen: dict[str, list[str]] = {}
    for name, row in rows.items():
        about = row["machine"]
        versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
        words = f"{about['processor']}, {about['threads']} threads; Python {about['python']}, {versions}"
        seen.setdefault(words, []).append(name)
    if len(seen) == 1:
        return f"Measured on: {next(iter(seen))}."
    return "\n".join(f"* {words}: {', '.join(f'`{name}`' for name in names)}" for words, names in seen.items())


def limits_text(path: Path = KEPT) -> str:
    """The middle of what was measured of the machine, over the rows."""
    found = [row["limits"] for row in read(path).values() if row.get("limits") and row.get("device") == "cpu"]
    if not found:
        return "The limits have not been measured."
    middle = {key: sorted(one[key] for one in found)[len(found) // 2] for key in found[0]}
    rates = f"{middle['flops'] / 1e9:.0f} and {middle['flops_bf16'] / 1e9:.0f} billion operations a second in float32 and bf16"
    return f"Here that is {rates}, and {middle['bytes_per_second'] / 1e9:.0f} GB/s."


def scaling_table(path: Path = KEPT) -> str:
    """Every curve with its exponent, in Markdown."""
    lines = ["| what grows | cost | exponent | at the end | from | to |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in fitting(read(path), ROWS).items():
        for curve in row.get("curves", ()):
            first, last = (f"{figure(curve['y'][at])} {curve['unit']} at {figure(curve['x'][at])}" for at in (0, -1))
            lines.append(
                f"| `{name}`: {curve['axis']} | {curve['name']} | {exponent(curve)} | {curve['last']:.2f} | {first} | {last} |"
            )
    return "\n".join(lines)
