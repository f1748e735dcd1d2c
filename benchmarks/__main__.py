"""Every row against the peer, both sides in one process and in turns; equal work is shown first, and nothing is timed where it is not.

    python -m benchmarks                         every row of this device, into benchmarks/results.json
    python -m benchmarks b0-batch8 d0-step       some of them; a group's name stands for its rows
    python -m benchmarks scaling                 how cost grows with sizes and counts
    python -m benchmarks gpu --device cuda       on a GPU
    python -m benchmarks pages                   the pages and pictures anew from the file of results

A ratio is ours / peer, the median of the rounds: below 1 ours is faster, or smaller. Several rows are run one after the other in a process
each. Rows in the file keep their place until they are measured again. Timings need an idle machine to be quoted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # before torch: threads that spin while they wait slow the other side

from benchmarks.results import KEPT, Records, fitting, lines, merge, read
from benchmarks.row import Row, Setting
from benchmarks.table import APART, GROUPS, ROWS
from effbackbones.errors import UserError, nearest

BACKENDS = ("eager", "onnxruntime", "openvino", "compile")
USUAL = {"cpu": BACKENDS[:3], "cuda": ("eager", "compile")}
"""Those of a device that are measured where nobody says which: compiling takes minutes, and a GPU has nothing else."""
PAGES = "pages"
GPU = "gpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for what can be mended, and where a row was not measured. Rows that are beyond this machine, among others, are told
    and left out."""
    options = _parser().parse_args(argv)
    try:
        if options.list:
            _list()
            return 0
        if options.rows == [PAGES]:
            from benchmarks.pages import write_pages

            print("\n".join(f"wrote {path}" for path in write_pages(options.json)))
            return 0
        return measure(chosen(options.rows, options.device), options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"rows, or groups: {', '.join((*GROUPS, GPU))}; or {PAGES}"
    )
    parser.add_argument("--list", action="store_true", help="what rows there are, and what they need")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--json", type=Path, default=KEPT, metavar="FILE", help="file that gets the rows; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=9, help="at least; short work gets more (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="default: %(default)s, those of this machine"
    )
    parser.add_argument(
        "--backends",
        default="",
        help=f"of for_inference: some of {','.join(BACKENDS)}; default: all but compile, on a GPU eager,compile",
    )
    parser.add_argument(
        "--limit", type=float, default=300, metavar="SECONDS", help="for one row of several (default: %(default)s)"
    )
    parser.add_argument(
        "--dry", action="store_true", help="the smallest sizes, two rounds: whether it runs; nothing is kept by default"
    )
    return parser


def chosen(words: Sequence[str], device: str) -> list[Row]:
    """The rows of names and groups; without any, all of the device but those that are measured apart. Raises :class:`UserError` for an
    unknown name, and for a row of another device."""
    here = [row for row in ROWS.values() if row.device == device]
    if not words:
        return [row for row in here if row.group not in APART]
    found: dict[str, Row] = {}
    for word in words:
        rows = [row for row in here if row.group == word or (word == GPU and row.device == "cuda")]
        if word in ROWS:
            rows = [ROWS[word]]
        if not rows and word not in (*GROUPS, GPU):
            raise UserError(f"row {word!r}", "no such row or group", nearest(word, (*ROWS, *GROUPS, GPU, PAGES)))
        wrong = next((row.device for row in rows if row.device != device), "cuda" if not rows else None)
        if wrong:
            raise UserError(f"row {word}", f"is one of {wrong}, and the device is {device}", f"say --device {wrong}")
        found |= {row.name: row for row in rows}
    return list(found.values())


def measure(rows: Sequence[Row], options: argparse.Namespace) -> int:
    """Run rows, keep and show what they find."""
    if options.rounds < 2 or options.threads < 1:
        raise UserError("--rounds and --threads", f"{options.rounds} and {options.threads}", "give at least 2 and 1")
    file = None if options.dry and options.json == KEPT else options.json
    if file:
        read(file)  # a wrong file is told before minutes are spent
    records: Records = {}
    for row in rows:
        if len(rows) > 1 and (why := row.unfit()):
            print(f"{row.name}: left out: {why}", flush=True)
            continue
        records[row.name] = _alone(row, options) if len(rows) == 1 else _apart(row, options)
        print("\n".join(lines({row.name: records[row.name]})), flush=True)
        if file and "not measured" not in records[row.name]:
            merge(file, {row.name: records[row.name]})
    if len(rows) > 1:
        print("\n" + "\n".join(lines(fitting(records, ROWS))))
    return 2 if any("not measured" in record for record in records.values()) else 0


def _alone(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a row, measured in this process."""
    if missing := row.missing():
        row.measure(Setting())  # tells it
        raise AssertionError(missing)
    import torch

    from benchmarks.results import machine

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device", "cuda was asked for, and PyTorch sees no GPU here", "use a machine that has one")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backends = tuple(word for word in options.backends.split(",") if word) or USUAL[options.device]
    if wrong := set(backends) - set(BACKENDS):
        raise UserError("--backends", f"unknown {wrong.pop()!r}", nearest("", BACKENDS))
    setting = Setting(options.device, options.threads, options.rounds, backends, options.dry)
    return {**row.measure(setting), "machine": machine(setting)}


def _apart(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own, so that no row has what another left; why there is none, where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        line = [sys.executable, "-m", "benchmarks", row.name, "--json", str(file), "--device", options.device]
        line += ["--rounds", str(options.rounds), "--threads", str(options.threads), "--backends", options.backends]
        line += ["--dry"] if options.dry else []
        try:
            done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=options.limit)
        except subprocess.TimeoutExpired:
            return {"not measured": f"took more than {options.limit:.0f} s"}
        if done.returncode or not file.exists():
            return {"not measured": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
        return dict(json.loads(file.read_text(encoding="utf-8"))["rows"][row.name])


def _list() -> None:
    for row in ROWS.values():
        needs = ", ".join(row.needs) + (" (not installed)" if row.missing() else "")
        print(f"{row.name:<26}{row.group:<11}{row.device:<6}{row.what}{f'; against {needs}' if needs else ''}")


if __name__ == "__main__":
    sys.exit(main())
