"""Ways to a smaller model, side by side: scaling down, taking channels out, learning from a teacher, int8, and training for int8.

    python -m benchmarks.smaller whole --data cifar10 --root DATA/cifar10         the model that the others are to be smaller than
    python -m benchmarks.smaller pruned --data cifar10 --root DATA/cifar10 --seed 1
    python -m benchmarks.smaller times --data cifar10                             latencies of all rows, in turns, once they are there
    python -m benchmarks.smaller table --data cifar10

Each row ends with a file of ONNX in fp32 or int8, whose certificate says what the task's score of the model and of the file is on the same
images; a line of JSON beside it, ``OUT/DATA/ROW-SEED.json``, also has parameters, multiply-adds, megabytes, steps and CPU minutes of the
training that the row is about. Rows but ``whole`` and ``scaled`` begin from ``OUT/DATA/whole-0`` (``--whole RUN`` names another).
Words that are not known here go to the training command.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.checkpoint import load_model
from effbackbones.export.record import beside
from effbackbones.inference.runtimes import open_runtime
from tasks.engine.cost import multiply_adds
from tasks.verbs.command import run_command

BEST = "best.safetensors"


@dataclass(frozen=True)
class Data:
    """What a table is made on. ``more``: words beside the config's, ``training`` those of training alone; ``steps`` of ``whole`` and
    ``scaled``, and ``again`` of what begins from it, at the rate ``lr`` and ``again_lr``."""

    command: str
    score: str
    more: tuple[str, ...]
    training: tuple[str, ...]
    split: str
    steps: int
    again: int
    lr: float
    again_lr: float
    levels: str
    """Maps that a pruned model can learn from the whole one."""


DATA = {
    "cifar10": Data(
        "classify",
        "top1",
        ("--model.backbone", "lite0", "--data.image_size", "64", "--data.workers", "0"),
        ("--data.batch_size", "64", "--optim.base_batch", "64", "--optim.ema", "0.98", "--data.limit_val", "256"),
        "val",
        500,
        60,
        1e-3,
        5e-4,
        "[C5]",
    ),
    "bccd": Data(
        "detect",
        "AP",
        ("--data.workers", "0"),
        ("--model.head", "yolo", "--run.eval_every", "100"),
        "val",
        400,
        100,
        4e-3,
        1e-3,
        "[C3, C4, C5]",
    ),
}


@dataclass(frozen=True)
class Row:
    """A way: with ``weights`` of ImageNet or none (``begins`` False) and ``options`` of the backbone; or from the whole model, by pruning
    ``target`` of it; ``taught`` by it; ``trained`` at all; ``quantise`` in training; the ``precision`` of the file."""

    begins: bool = True
    weights: bool = False
    options: str = '{"drop_path": 0.0}'
    target: str | None = None
    taught: bool = False
    trained: bool = True
    quantise: bool = False
    precision: str = "fp32"


HALF = '{"drop_path": 0.0, "width": 0.7, "depth": 0.7}'
ROWS = {
    "whole": Row(begins=False, weights=True),
    "scaled": Row(begins=False, options=HALF),
    "scaled_taught": Row(begins=False, options=HALF, taught=True),
    "cut": Row(target="0.5x", trained=False),
    "pruned": Row(target="0.5x"),
    "pruned_taught": Row(target="0.5x", taught=True),
    "int8": Row(trained=False, precision="int8"),
    "int8_trained": Row(quantise=True, precision="int8"),
    "pruned_int8": Row(target="0.5x", taught=True, precision="int8"),
}
"""``pruned_int8`` is the file of ``pruned_taught``, in int8."""
SAME = {"pruned_int8": "pruned_taught"}
"""Rows whose training is another's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make a row, or tell what the rows say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*ROWS, "times", "table"])
    parser.add_argument("--data", choices=sorted(DATA), required=True)
    parser.add_argument("--root", help="folder of the data, as the config of its name wants it")
    parser.add_argument("--out", type=Path, default=Path("runs/smaller"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--images", type=int, default=2000, help="of the split, on which the scores are taken")
    parser.add_argument("--whole", help="run of the model that is to be smaller")
    parser.add_argument("--rounds", type=int, default=40)
    asked, more = parser.parse_known_args(argv)
    folder = asked.out / asked.data
    if asked.row == "times":
        return times(folder, asked.rounds)
    if asked.row == "table":
        return table(folder)
    if not asked.root:
        parser.error("--root: name the folder of the data")
    folder.mkdir(parents=True, exist_ok=True)
    told = made(asked, DATA[asked.data], ROWS[asked.row], folder, more)
    text = json.dumps({"row": asked.row, "seed": asked.seed, **told})
    (folder / f"{asked.row}-{asked.seed}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def made(asked: Any, data: Data, row: Row, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """Make the model and the file of a row; what is known of them."""
    whole = asked.whole or str(folder / "whole-0")
    source, run = whole, folder / f"{SAME.get(asked.row, asked.row)}-{asked.seed}"
    if row.target:
        source = str(folder / f"cut-{row.target}.safetensors")
        words = ["prune", "--checkpoint", whole, "--target", row.target, "--out", source, "--unscored"]
        _called(data, [*words, "--run.progress", "false"])
    took = {"steps": 0, "cpu_minutes": 0.0}
    kept = run / "took.json"  # so that the training of another row, or of one whose export failed, is not done again
    if row.trained and not kept.exists():
        took["steps"] = asked.steps or (data.again if row.begins else data.steps)
        line = _training(asked, data, row, whole, source, int(took["steps"]), run)
        before = time.process_time()
        _called(data, [*line, *more])
        took["cpu_minutes"] = round((time.process_time() - before) / 60, 2)
        kept.write_text(json.dumps(took), encoding="utf-8")
    elif row.trained:
        took = json.loads(kept.read_text(encoding="utf-8"))
    file = str(run / BEST) if row.trained else source
    out = folder / f"{asked.row}-{asked.seed}.onnx"
    words = [
        "export",
        "--checkpoint",
        file,
        "--out",
        str(out),
        "--precision",
        row.precision,
        "--split",
        data.split,
        "--fixed",
    ]
    words += [
        "--certify",
        str(asked.images),
        "--bound",
        "0,1",
        "--config",
        asked.data,
        "--data.root",
        asked.root,
        *data.more,
    ]
    _called(data, [*words, "--run.progress", "false"])
    certificate = json.loads(beside(out).read_text(encoding="utf-8"))["certificate"]
    score = certificate["scores"][data.score]
    checkpoint = Path(file) / BEST if Path(file).is_dir() else Path(file)
    model = load_model(checkpoint)
    return {
        "model": score["model"],
        "file": score["exported"],
        "images": certificate.get("images", asked.images),
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, *model.image_spec.size),
        "megabytes": round(out.stat().st_size / 2**20, 2),
        **took,
    }


def _training(asked: Any, data: Data, row: Row, whole: str, source: str, steps: int, run: Path) -> list[str]:
    """The line of the training."""
    line = [
        "train",
        "--config",
        asked.data,
        "--data.root",
        asked.root,
        *data.more,
        *data.training,
        "--run.out",
        str(run),
    ]
    line += ["--optim.warmup_steps", "10"]
    line += ["--run.seed", str(asked.seed), "--optim.max_steps", str(steps), "--run.progress", "false"]
    line += ["--optim.lr", str(data.again_lr if row.begins else data.lr)]
    if row.begins:
        line += ["--model.weights", "null", "--model.init_from", source]
    else:
        line += ["--model.weights", "imagenet" if row.weights else "null", "--model.backbone_options", row.options]
    if row.taught:
        line += ["--optim.distill.teacher", whole]
        line += ["--optim.distill.features", data.levels] if row.target else []  # as wide as the teacher's
    return line + (["--optim.quantise", "int8"] if row.quantise else [])


def _called(data: Data, line: list[str]) -> None:
    code = run_command(data.command, line)
    if code:
        raise SystemExit(code)


def times(folder: Path, rounds: int) -> int:
    """Milliseconds of one image in onnxruntime, of all files in turns, into ``times.json``: median and quartiles."""
    files = sorted(folder.glob("*-0.onnx"))
    calls: dict[str, Callable[[], object]] = {}
    for file in files:
        runtime = open_runtime(file, trusted=True)
        size = runtime.record.model["image_spec"]["size"]
        images = np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(runtime.record.inputs[0].dtype)
        feed = {"images": images, "valid": np.array([size])}
        given = {port.name: feed[port.name] for port in runtime.record.inputs}
        calls[file.stem.rsplit("-", 1)[0]] = lambda runtime=runtime, given=given: runtime(given)  # type: ignore[misc]
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            if turn >= 3:
                found[name].append((time.perf_counter() - before) * 1e3)
    told = {name: [round(one, 3) for one in statistics.quantiles(values, n=4)] for name, values in found.items()}
    (folder / "times.json").write_text(json.dumps({"load": os.getloadavg()[0], "ms": told}) + "\n", encoding="utf-8")
    print(json.dumps(told))
    return 0


def table(folder: Path) -> int:
    """The rows as a table: means over seeds, and of scores the least and the most too. The times are those of the first seed's file."""
    ms = json.loads((folder / "times.json").read_text())["ms"] if (folder / "times.json").exists() else {}
    print(
        "| row | seeds | score of the file (least, most) | of the model | MB | M multiply-adds | ms (quartiles) | steps | CPU min |"
    )
    print("|---|---:|---|---|---:|---:|---|---:|---:|")
    for row in ROWS:
        told = [
            json.loads(path.read_text())
            for path in sorted(folder.glob(f"{row}-[0-9]*.json"))
            if "onnx" not in path.name
        ]
        if not told:
            continue
        columns = {name: [one[name] for one in told] for name in told[0]}
        took = "{1:.2f} ({0:.2f}-{2:.2f})".format(*ms[row]) if row in ms else ""
        mean = {name: statistics.mean(columns[name]) for name in ("megabytes", "multiply_adds", "steps", "cpu_minutes")}
        cells = [row, len(told), _spread(columns["file"]), _spread(columns["model"]), f"{mean['megabytes']:.2f}"]
        cells += [f"{mean['multiply_adds'] / 1e6:.0f}", took, f"{mean['steps']:.0f}", f"{mean['cpu_minutes']:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    return 0


def _spread(scores: Sequence[float]) -> str:
    """Their mean, and the least and the most of several."""
    between = f" ({min(scores):.4f}-{max(scores):.4f})" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.4f}{between}"


if __name__ == "__main__":
    raise SystemExit(main())
