"""What rows found: kept in a JSON file, row by row, and shown as a table."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.row import Setting
from effbackbones.errors import UserError

KEPT = Path(__file__).with_name("results.json")
"""What the pages are made of."""
FORMAT = 1
_PACKAGES = (
    "torch",
    "timm",
    "effdet",
    "segmentation-models-pytorch",
    "onnxruntime",
    "openvino",
    "pycocotools",
    "pillow",
)
Records = dict[str, dict[str, Any]]


def read(path: Path) -> Records:
    """The rows of a file, none where there is no file. Raises :class:`UserError` for what is no file of results."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows, form = found["rows"], found["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(path), f"is no file of results ({error})", "give another, or remove it") from error
    if form != FORMAT or not isinstance(rows, dict):
        raise UserError(str(path), f"has format {form}, expected {FORMAT}", "give another, or remove it")
    return rows


def merge(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Put ``rows`` into a file, in the place of those of the same name."""
    from effbackbones.weights.tensorfile import write_atomically  # brings torch, which `--list` does without

    kept = {**read(path), **rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "rows": _rounded(kept)}, indent=1)
    write_atomically(path, f"{text}\n".encode())


def _rounded(value: Any) -> Any:
    """Figures with four digits: what more there is says nothing."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def machine(setting: Setting) -> dict[str, Any]:
    """On what, and with what, a row was measured."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = torch.cuda.get_device_name() if setting.device == "cuda" else _processor()
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "rounds": setting.rounds,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        pairs = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    lines = {name.strip(): value.strip() for name, _, value in pairs}
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in lines.get("flags", "").split()]
    about = f"family {lines.get('cpu family')}, model {lines.get('model')}"
    return f"{lines.get('model name', platform.machine())} ({about}; {', '.join(wide)})"


def lines(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The rows as text: a line for each side, with its ratio to each peer."""
    for name, row in rows.items():
        if "not measured" in row:
            yield f"{name}: not measured: {row['not measured']}"
            continue
        yield f"{name}: {row['what']}" + (f" ({row['proof']})" if row.get("proof") else "")
        for side in row.get("sides", ()):
            spread = f"({figure(side['low'])}-{figure(side['high'])})" if side["count"] > 1 else ""
            ratios = "  ".join(
                f"{ratio['median']:.2f} of {ratio['peer']}"
                for ratio in row.get("ratios", ())
                if ratio["ours"] == side["name"]
            )
            head = f"  {side['name']:<34}{figure(side['median']):>9} {row['unit']:<4}{spread:<18}"
            yield f"{head}{share(side):<22}{ratios}".rstrip()
        for curve in row.get("curves", ()):
            points = ", ".join(f"{figure(x)}: {figure(y)}" for x, y in zip(curve["x"], curve["y"], strict=True))
            yield f"  {curve['name']:<34}exponent {exponent(curve)}  [{points}]"
        yield from (f"  note: {note}" for note in row.get("notes", ()))


def share(side: Mapping[str, Any]) -> str:
    """The limit that a side comes nearest to, and how near."""
    shares: Mapping[str, float] = side.get("share") or {}
    if not shares:
        return ""
    name = max(shares, key=lambda limit: shares[limit])
    return f"{shares[name]:.0%} of {name}"


def exponent(curve: Mapping[str, Any]) -> str:
    """The power by which a curve grows, with its uncertainty."""
    return f"{curve['exponent']:.2f} ± {curve['spread']:.2f}"


def figure(value: float) -> str:
    """A number with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def fitting(rows: Mapping[str, Mapping[str, Any]], order: Iterable[str]) -> Records:
    """``rows`` in the order of the table, unknown ones last."""
    known = [name for name in order if name in rows]
    return {name: dict(rows[name]) for name in [*known, *(name for name in rows if name not in known)]}
