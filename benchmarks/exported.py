"""What a smaller arithmetic costs and gains: runs exported in fp32, fp16 and int8; scores, sizes and latencies in one table.

    python benchmarks/exported.py detect:runs/detect/bccd segment:runs/segment/camvid --images 64 --rounds 9

Each line: the task's score of the model and of the file on the same images of the run's validation split, agreement, megabytes, and the
median milliseconds of one image in the runtime of the format (``--format openvino`` for OpenVINO), the precisions of a run interleaved, so
that a busy machine slows all. Needs an idle machine for the times to be quoted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.export.record import PRECISIONS, beside
from effbackbones.inference.runtimes import Runtime, open_runtime
from tasks.verbs.command import run_command

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}


def exported(command: str, run: str, folder: Path, precision: str, kind: str, images: int) -> Path | None:
    """The file of a run in a precision; None where it was refused, whose reason stands on standard error."""
    path = folder / f"{precision}{SUFFIX[kind]}"
    line = ["export", "--checkpoint", run, "--out", str(path), "--precision", precision, "--certify", str(images)]
    code = run_command(command, [*line, "--run.progress", "false", "--data.workers", "0"])
    return path if code == 0 else None


def milliseconds(runtimes: dict[str, Runtime], rounds: int) -> dict[str, float]:
    """Median time of one image, each precision asked in turn."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    record = next(iter(runtimes.values())).record
    size, channels = record.model["image_spec"]["size"], len(record.model["image_spec"]["mean"])
    images = np.random.default_rng(0).integers(0, 256, (1, channels, *size)).astype(record.inputs[0].dtype)
    feed: dict[str, Any] = {"images": images}
    if len(record.inputs) > 1:
        feed["valid"] = np.array([size])
    for number in range(rounds + 2):  # the first two warm up
        for name, runtime in runtimes.items():
            begin = time.perf_counter()
            runtime(feed)
            if number > 1:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="COMMAND:RUN, such as detect:runs/detect/bccd")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--format", choices=list(SUFFIX), default="onnx")
    asked = parser.parse_args()
    print(f"{'run':<28}{'precision':>10}{'model':>9}{'file':>9}{'change':>9}{'agrees':>9}{'MB':>8}{'ms':>8}")
    for word in asked.runs:
        command, _, run = word.partition(":")
        with tempfile.TemporaryDirectory() as place:
            made = {one: exported(command, run, Path(place), one, asked.format, asked.images) for one in PRECISIONS}
            files = {precision: path for precision, path in made.items() if path is not None}
            times = (
                milliseconds({name: open_runtime(path) for name, path in files.items()}, asked.rounds) if files else {}
            )
            for precision, path in files.items():
                told = json.loads(beside(path).read_text(encoding="utf-8"))["certificate"]
                (pair,) = told["scores"].values()
                size = sum(one.stat().st_size for one in (path, path.with_suffix(".bin")) if one.is_file()) / 2**20
                scores = f"{pair['model']:>9.4f}{pair['exported']:>9.4f}{pair['exported'] - pair['model']:>+9.4f}"
                line = f"{run[-28:]:<28}{precision:>10}{scores}{told['least_agreement']:>9.3f}{size:>8.1f}"
                print(f"{line}{times[precision]:>8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
