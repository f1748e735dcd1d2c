"""What a smaller arithmetic costs and gains: runs exported in fp32, fp16 and int8; scores, sizes and latencies in one table.

    python benchmarks/exported.py detect:runs/detect/bccd segment:runs/segment/camvid --images 64 --rounds 15

Each line: the task's score of the model and of the file on the same images of the run's validation split, their agreement, whether the
verb ``export`` keeps such a file (it is written here in any case), megabytes, and the time of one image in the runtime of the format
(``--format openvino`` for OpenVINO) as part of what the model takes in torch: the median of the ratios of each round, with quartiles. The
model and the precisions are asked in turns, so that a busy machine slows all; the load of the machine is printed before and after.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effbackbones.checkpoint import load_model
from effbackbones.contracts import ImageSizes
from effbackbones.export.certificate import Bounds, refused
from effbackbones.export.record import PRECISIONS, beside, files_of
from effbackbones.inference.predictor import BEST
from effbackbones.inference.runtimes import Runtime, open_runtime
from tasks.verbs.command import run_command

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
EAGER = "eager"
ANY = "0,1"
"""The bounds of files that are written whatever they say."""


def exported(command: str, run: str, folder: Path, precision: str, kind: str, images: int) -> Path | None:
    """The file of a run in a precision; None where there is none, whose reason stands on standard error."""
    path = folder / f"{precision}{SUFFIX[kind]}"
    line = ["export", "--checkpoint", run, "--out", str(path), "--precision", precision, "--certify", str(images)]
    code = run_command(command, [*line, "--bound", ANY, "--run.progress", "false", "--data.workers", "0"])
    return path if code == 0 else None


def kept(certificate: Mapping[str, Any], precision: str) -> bool:
    """Whether the verb keeps such a file where nothing is said about bounds."""
    usual = Bounds.of(precision, "normalize")
    bounds = {**certificate["bounds"], "agreement": usual.agreement, "score": usual.score}
    return refused({**certificate, "bounds": bounds}) is None


def asked(run: str, files: Mapping[str, Path]) -> dict[str, Callable[[], object]]:
    """One image asked of the model, and of each of its files."""
    runtimes: dict[str, Runtime] = {name: open_runtime(path) for name, path in files.items()}
    record = next(iter(runtimes.values())).record
    size, channels = record.model["image_spec"]["size"], len(record.model["image_spec"]["mean"])
    images = np.random.default_rng(0).integers(0, 256, (1, channels, *size)).astype(record.inputs[0].dtype)
    feed: dict[str, Any] = {"images": images}
    if len(record.inputs) > 1:
        feed["valid"] = np.array([size])
    path = Path(run)
    model = load_model(path / BEST if path.is_dir() else path).to(memory_format=torch.channels_last)
    tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {EAGER: lambda: model.predict(tensor, ImageSizes.of(tensor))}
    return runs | {name: (lambda runtime=runtime: runtime(feed)) for name, runtime in runtimes.items()}


def seconds(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Of each in each round, one after the other, there and back."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):  # the first two warm up
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            begin = time.perf_counter()
            runs[name]()
            if number > 1:
                times[name].append(time.perf_counter() - begin)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="COMMAND:RUN, such as detect:runs/detect/bccd")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--format", choices=list(SUFFIX), default="onnx")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"{'run':<22}{'precision':>10}{'model':>9}{'file':>9}{'change':>9}{'agrees':>8}{'kept':>6}{'MB':>7}  time / eager"
    )
    for word in options.runs:
        command, _, run = word.partition(":")
        with tempfile.TemporaryDirectory() as place:
            made = {one: exported(command, run, Path(place), one, options.format, options.images) for one in PRECISIONS}
            files = {precision: path for precision, path in made.items() if path is not None}
            if not files:
                continue
            load = os.getloadavg()[0]
            times = seconds(asked(run, files), options.rounds)
            for precision, path in files.items():
                told = json.loads(beside(path).read_text(encoding="utf-8"))["certificate"]
                (pair,) = told["scores"].values()
                size = sum(one.stat().st_size for one in files_of(path)) / 2**20
                ratios = [mine / eager for mine, eager in zip(times[precision], times[EAGER], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                scores = f"{pair['model']:>9.4f}{pair['exported']:>9.4f}{pair['exported'] - pair['model']:>+9.4f}"
                line = f"{run[-22:]:<22}{precision:>10}{scores}{told['least_agreement']:>8.3f}"
                stays = "yes" if kept(told, precision) else "no"
                print(f"{line}{stays:>6}{size:>7.1f}  {middle:.2f} ({low:.2f}-{high:.2f})", flush=True)
            print(
                f"eager {1e3 * statistics.median(times[EAGER]):.1f} ms; load {load:.1f} to {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
