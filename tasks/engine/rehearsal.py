"""What predictions and training steps of a model take here, tried out: at sizes that grow until a trial would take long.

Each trial is the real thing, the engine's own step on a batch of drawn images and the answer of :meth:`Model.predict`, so that what is
said from them knows of the optimiser, of averages, of the precision and of what the processor's library needs besides.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from effbackbones.images.geometry import Size
from effbackbones.model import Model
from tasks.data.batch import Batch
from tasks.data.door.reading import sides
from tasks.engine import assembly, processes
from tasks.engine.cost import latency, multiply_adds, peak_memory, restart_peak
from tasks.engine.distilling import Distilled, objective_of
from tasks.engine.drawn import DrawnBatches
from tasks.engine.hardware import Hardware
from tasks.engine.launch import make_fabric
from tasks.engine.order import Share
from tasks.engine.state import begin
from tasks.engine.stepping import LateReader, Stepper
from tasks.settings.sections import Config
from tasks.spec import TaskSpec

LEAST_SIDE = 96
"""Pixels: smaller images tell little of larger ones."""
_CALLS = 50  # at most, of a prediction
_STEPS = 12  # at most, after those that warm up: the allocator settles in the first two
_SETTLING = 2


@dataclass(frozen=True)
class Trial:
    """What was tried, ``of`` predictions or training, and what it took: ``seconds`` for all ``images`` [height, width], padding
    included, and ``megabytes`` at most in use. ``update``: seconds of these that do not depend on the images."""

    of: str
    images: int
    height: int
    width: int
    seconds: float
    megabytes: float
    update: float = 0.0

    @property
    def pixels(self) -> float:
        """Millions of them in all images."""
        return self.images * self.height * self.width / 1e6


@dataclass(frozen=True)
class Facts:
    """What is known of a model without trying it: ``size`` [height, width] of its images, ``padded`` to what its head needs, and
    ``trained`` likewise: of the crops that it is trained on, if it is trained on crops."""

    size: Size
    padded: Size
    trained: Size
    channels: int
    parameters: int
    multiply_adds: int

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """From a row of :func:`rehearse`, that may come out of JSON."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items() if name != "of"
        }
        return cls(**known)


@dataclass(frozen=True)
class Limits:
    """How far trials go: ``seconds`` for one, ``megabytes`` for the process; and which: ``of`` predict and train, ``images`` in a
    training step at most. ``whole``: no growing, but the sizes asked for at once, in the ``pieces`` that the config says."""

    seconds: float
    megabytes: float
    of: tuple[str, ...]
    whole: bool = False


def scaled_config(task: TaskSpec, config: Config, own: str) -> Config:
    """The config with the sizes that its backbone has by the compound rule: those that it says are of the backbone ``own``, and others
    have larger or smaller ones in the proportion of the published; multiples of what the head needs."""
    if own == config.model.backbone:
        return config
    known = []
    for backbone in (config.model.backbone, own):
        model = replace(config.model, backbone=backbone)
        made = assembly.make_model(replace(config, model=model, data=replace(config.data, image_size=None)), task, None)
        known.append((made.image_spec.size[0], made.head.size_divisor))
    ratio, step = known[0][0] / known[1][0], max(known[0][1], 4)

    def scaled(side: int) -> int:
        return max(1, int(side * ratio / step + 0.5)) * step

    changed: dict[str, Any] = {}
    for name in ("image_size", "crop_size"):
        said = getattr(config.data, name)
        if said is not None:
            changed[name] = scaled(said) if isinstance(said, int) else tuple(map(scaled, said))
    return replace(config, data=replace(config.data, **changed))


def rehearse(task: TaskSpec, config: Config, limits: Limits) -> Iterator[dict[str, Any]]:
    """Facts, then trials, as they come: JSON-like, each with what it is of."""
    processes.settle(1, 1)
    hardware = Hardware.of(config)
    model = assembly.make_model(config, task, None).eval().to(hardware.device)
    facts = facts_of(model, sides(config.data.crop_size))
    yield {"of": "facts", **asdict(facts)}
    if "predict" in limits.of:
        for trial in _predictions(model.for_inference(backend="eager"), hardware, facts, limits):
            yield asdict(trial)
    if "train" in limits.of:
        for trial in _Training(task, config, model, hardware, limits).trials(facts):
            yield asdict(trial)


def facts_of(model: Model, crop: Size | None) -> Facts:
    """What is known of a model without trying it."""
    height, width = size = model.image_spec.size
    padded = _padded(size, model.head.size_divisor)
    trained = _padded(crop or size, model.head.size_divisor)
    count = sum(p.numel() for p in model.parameters())
    return Facts(size, padded, trained, len(model.image_spec.mean), count, multiply_adds(model, height, width))


def growing(size: Size, divisor: int, least: int) -> list[Size]:
    """Sizes up to ``size``, each of twice the pixels of the one before, of multiples of ``divisor`` (the last one aside)."""
    found = [size]
    scale = 2**-0.5
    while min(size) * scale >= max(least, LEAST_SIDE):
        smaller = _padded((int(size[0] * scale), int(size[1] * scale)), max(divisor, 16))
        if smaller[0] * smaller[1] < 0.8 * found[-1][0] * found[-1][1]:
            found.append(smaller)
        scale *= 2**-0.5
    return found[::-1]


def steps_up(sizes: Sequence[float], last: int, seconds: float, limit: float) -> int | None:
    """The next of ascending ``sizes`` to try after number ``last`` took ``seconds``: up to four times as large, if it takes no longer
    than ``limit`` then; but the second one always, for one trial tells no trend. None: none."""
    fitting = [
        index
        for index in range(last + 1, len(sizes))
        if sizes[index] <= 4.01 * sizes[last] and seconds * sizes[index] / sizes[last] <= limit
    ]
    if fitting:
        return fitting[-1]
    return 1 if last == 0 and len(sizes) > 1 else None


def _padded(size: Size, divisor: int) -> Size:
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def _predictions(model: Model, hardware: Hardware, facts: Facts, limits: Limits) -> Iterator[Trial]:
    """Of one image, with batch norm folded and without a graph of another runtime, which takes seconds to make."""
    device = hardware.device
    sizes = [facts.size] if limits.whole else growing(facts.size, model.head.size_divisor, model.head.min_size)
    now: int | None = 0
    while now is not None:
        height, width = sizes[now]
        images = torch.randint(0, 256, (1, facts.channels, height, width), dtype=torch.uint8, device=device)
        images = images.contiguous(memory_format=torch.channels_last)

        def call(images: Tensor = images) -> None:
            with hardware.autocast():
                model.predict(images)

        restart_peak(device)
        seconds = latency(call, device, seconds=2 * limits.seconds, rounds=_CALLS) / 1e3
        padded = _padded((height, width), model.head.size_divisor)
        yield Trial("predict", 1, *padded, seconds, peak_memory(device)[0])
        now = steps_up([h * w for h, w in sizes], now, 3 * seconds, limits.seconds)


class _Training:
    """Steps of the engine on drawn batches."""

    def __init__(self, task: TaskSpec, config: Config, model: Model, hardware: Hardware, limits: Limits) -> None:
        self.config, self.model, self.device, self.limits = config, model.train(), hardware.device, limits
        self.batches = DrawnBatches(task, config, model)
        fabric = make_fabric(config, hardware)
        objective, clip = objective_of(task, self.batches.config, model, lambda line: None), config.optim.clip_norm
        adapters = objective.adapters if isinstance(objective, Distilled) else None
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        self.state = begin(config, model, scaler, adapters=adapters)
        if config.run.compile:
            self.state.trained.compile()
        still = 0.0  # the weights stay where they are: random labels would lead them anywhere
        self.stepper = _Timed(fabric, self.state, objective, LateReader(), lambda: 0, lambda step: still, clip, 0)

    def trials(self, facts: Facts) -> Iterator[Trial]:
        """In ascending order of pixels."""
        batch, accumulate = self.config.data.batch_size, self.config.optim.accumulate
        if self.limits.whole:
            yield self._tried(batch // accumulate, accumulate, facts.trained)
            return
        few = min(2, batch)
        head = self.model.head
        cases = [(few, size) for size in growing(facts.trained, head.size_divisor, head.min_size)]
        while cases[-1][0] < batch:
            cases.append((min(2 * cases[-1][0], batch), facts.trained))
        pixels = [float(images * size[0] * size[1]) for images, size in cases]
        now: int | None = 0
        tried: list[Trial] = []
        while now is not None:
            images, size = cases[now]
            tried.append(self._tried(images, 1, size))
            yield tried[-1]
            before = now
            now = steps_up(pixels, now, tried[-1].seconds, self.limits.seconds)
            if now is not None and not self._holds(tried, pixels[now] / pixels[before]):
                now = None

    def _holds(self, tried: Sequence[Trial], growth: float) -> bool:
        """Whether a trial ``growth`` times as large as the last one stays within the limit of memory, as far as can be told."""
        first, last = tried[0], tried[-1]
        per = (last.megabytes - first.megabytes) / (last.pixels - first.pixels) if len(tried) > 1 else 2500.0
        return last.megabytes + max(per, 0.0) * (growth - 1) * last.pixels < self.limits.megabytes

    def _tried(self, images: int, pieces: int, size: Size) -> Trial:
        self.state.share = Share(accumulate=pieces)
        made: list[Batch] = [self.batches(images, *size) for _ in range(pieces)]
        restart_peak(self.device)
        times = [self._step(made)]
        left = 4 * self.limits.seconds
        settling = _SETTLING if (_SETTLING + 1) * times[0][0] < left else 1
        while len(times) <= settling or (len(times) < settling + _STEPS and times[-1][0] < left):
            times.append(self._step(made))
            left -= times[-1][0]
        seconds, update = (_undisturbed(column) for column in zip(*times[settling:], strict=True))
        height, width = made[0].images.shape[-2:]
        return Trial("train", images * pieces, height, width, seconds, peak_memory(self.device)[0], update)

    def _step(self, pieces: Sequence[Batch]) -> tuple[float, float]:
        """Seconds of a step, and of the update in it."""
        start = time.perf_counter()
        self.stepper.take(iter(pieces))
        self.stepper.figures.flush()  # on a GPU it waits for the step
        return time.perf_counter() - start, self.stepper.spent


def _undisturbed(times: Sequence[float]) -> float:
    """The lower quartile: what else the machine did in the meantime made the others longer."""
    return sorted(times)[len(times) // 4]


class _Timed(Stepper):
    """A stepper that knows how long it took to update the weights and their averages."""

    spent = 0.0

    def _update(self, loss: Tensor) -> Tensor:
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        start = time.perf_counter()
        flags = super()._update(loss)
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        self.spent = time.perf_counter() - start
        return flags
