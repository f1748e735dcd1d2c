"""How the cost of a network grows: with the size of images, with batches, with the variant, with classes, and with boxes in an image."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.limits import counting
from benchmarks.networks import boxes, our_loss, pictures
from benchmarks.peaks import in_process, most
from benchmarks.row import Found, Setting
from benchmarks.training import step
from benchmarks.turns import Run, Spread, once
from effbackbones import ImageSizes, build_model
from effbackbones.inference.allocating import memory_kept
from effbackbones.model import Model

LEAST = 3


def curve(name: str, axis: str, unit: str, x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Figures and the power by which they grow: least squares on logarithms, and its standard error (0 of two points)."""
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.maximum(np.asarray(y, float), 1e-12))
    exponent, level = np.polyfit(log_x, log_y, 1)
    rest, free = log_y - (exponent * log_x + level), len(x) - 2
    deviation = float(np.sqrt((rest**2).sum() / free / ((log_x - log_x.mean()) ** 2).sum())) if free else 0.0
    top = float(np.polyfit(log_x[-2:], log_y[-2:], 1)[0])
    return {
        "name": name,
        "axis": axis,
        "unit": unit,
        "x": list(x),
        "y": list(y),
        "exponent": float(exponent),
        "spread": deviation,
        "last": top,
    }


def timed(runs: Iterable[tuple[float, Run]], rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each run, the median of a few rounds after one to warm up, by its size; the next is made when one is done. Freed
    memory is kept, as by the commands."""
    sizes, times = [], []
    with memory_kept():
        for size, run in runs:
            run()
            sizes.append(size)
            times.append(1e3 * Spread.of([once(run) for _ in range(rounds)]).median)
    return sizes, times


def _small(values: Sequence[int], setting: Setting) -> Sequence[int]:
    return values[:2] if setting.dry else values


def _answer(model: Model, batch: int, side: int) -> Run:
    return partial(model.predict, pictures(batch, side))


def image_size(setting: Setting) -> Found:
    """Milliseconds against pixels, of answers and of a training step; megabytes of the step."""
    sides = _small((96, 128, 192, 256, 384, 512, 768), setting)
    found, axis = Found("ms"), "pixels of the image"
    classifier, detector = build_model("cls", "b0").eval(), build_model("det", "b0").eval()
    for name, model in (("B0 predict", classifier), ("D0 predict", detector)):
        x, y = timed(((side**2, _answer(model, 1, side)) for side in sides), LEAST)
        found.curves.append(curve(name, axis, "ms", x, y))
    x, y = timed(((side**2, _step(classifier.train(), 2, side)) for side in sides[:-1]), LEAST)
    found.curves.append(curve("B0 step of 2", axis, "ms", x, y))
    found.curves.append(_memory(setting, axis, [(side**2, {"batch": 2, "side": side}) for side in sides[1::2]]))
    return found


def batch_size(setting: Setting) -> Found:
    """Milliseconds and megabytes against the batch."""
    batches, axis = _small((1, 2, 4, 8, 16, 32), setting), "images in a batch"
    model, found = build_model("cls", "b0").eval(), Found("ms")
    x, y = timed(((batch, _answer(model, batch, 128)) for batch in batches), LEAST)
    found.curves.append(curve("B0 predict at 128", axis, "ms", x, y))
    x, y = timed(((batch, _step(model.train(), batch, 128)) for batch in batches[1:]), LEAST)
    found.curves.append(curve("B0 step at 128", axis, "ms", x, y))
    found.curves.append(_memory(setting, axis, [(batch, {"batch": batch, "side": 128}) for batch in batches[2:]]))
    return found


def variants(setting: Setting) -> Found:
    """Milliseconds of one image of 224 against the operations of the variant, b0 to b7 and lite0 to lite4."""
    found, axis = Found("ms"), "billion operations of the variant"
    for family, names in (
        ("b0 to b7", [f"b{i}" for i in range(8)]),
        ("lite0 to lite4", [f"lite{i}" for i in range(5)]),
    ):

        def runs(names: Sequence[str] = names) -> Iterable[tuple[float, Run]]:
            for name in names[: 2 if setting.dry else None]:
                model = build_model("cls", name).eval()
                run = _answer(model, 1, 64 if setting.dry else 224)
                with counting() as work:
                    run()
                yield work.flops / 1e9, run

        found.curves.append(curve(f"{family}, predict at 224", axis, "ms", *timed(runs(), LEAST)))
    return found


def classes(setting: Setting) -> Found:
    """Milliseconds against the number of classes."""
    found, axis = Found("ms"), "classes"
    counts = _small((2, 8, 32, 128, 512), setting)

    def answers(task: str, side: int) -> Iterable[tuple[float, Run]]:
        for count in counts:
            yield count, _answer(build_model(task, "b0", num_classes=count).eval(), 1, side)

    def steps() -> Iterable[tuple[float, Run]]:
        for count in counts:
            model = build_model("det", "b0", num_classes=count).train()
            yield count, step(model, partial(our_loss(model, boxes(2, 256, count, 12)), pictures(2, 256)))

    for name, task in (("D0 predict at 256", "det"), ("U-Net predict at 256", "seg"), ("B0 predict at 256", "cls")):
        found.curves.append(curve(name, axis, "ms", *timed(answers(task, 256), LEAST)))
    found.curves.append(curve("D0 step of 2 at 256", axis, "ms", *timed(steps(), LEAST)))
    return found


def objects(setting: Setting) -> Found:
    """Milliseconds against the boxes in an image: of a whole training step, and of what looks at boxes alone."""
    found, axis = Found("ms"), "boxes in an image"
    counts = _small((1, 4, 16, 64, 256, 1024), setting)
    model = build_model("det", "b0", num_classes=80).train()
    images = pictures(2, 256)

    def steps() -> Iterable[tuple[float, Run]]:
        for count in counts:
            yield count, step(model, partial(our_loss(model, boxes(2, 256, 80, count)), images))

    found.curves.append(curve("D0 step of 2 at 256", axis, "ms", *timed(steps(), LEAST)))
    with torch.no_grad():
        raw, sizes = model.eval()(images), ImageSizes.of(images)

    def losses() -> Iterable[tuple[float, Run]]:
        for count in counts:
            yield count, partial(model.head.loss, raw, boxes(2, 256, 80, count), sizes)

    found.curves.append(curve("D0 loss alone, 2 images of 256", axis, "ms", *timed(losses(), LEAST)))
    return found


def _step(model: Model, batch: int, side: int) -> Run:
    targets = torch.zeros(batch, dtype=torch.long)
    return step(model, partial(our_loss(model, targets), pictures(batch, side)))


def _memory(setting: Setting, axis: str, points: Sequence[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    found = [in_process("benchmarks.scaling:peak_of_step", setting, told) for _, told in points]
    return curve("memory of the step", axis, "MB", [size for size, _ in points], found)


def peak_of_step(device: str, batch: int, side: int) -> float:
    """Megabytes of a training step of B0."""
    return most(_step(build_model("cls", "b0").train().to(device), batch, side), device)
