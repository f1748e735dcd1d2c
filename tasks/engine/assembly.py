"""From a config to the objects of a run: data sets, loaders, model, device."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from effbackbones.backbones.syncnorm import synchronise_batch_norm
from effbackbones.build import build_model
from effbackbones.checkpoint import load_model
from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.export.record import format_of
from effbackbones.inference.exported import ExportedModel
from effbackbones.inference.fitting import Fitting
from effbackbones.model import Model
from tasks.data.batch import Batch, KeyedDataset
from tasks.data.dataset import DATASETS, Dataset
from tasks.data.division import Division, divided
from tasks.data.door import reading_spec
from tasks.data.knowledge import ids_of, unwrapped
from tasks.data.pixels import mean_and_std
from tasks.data.sample import Transform
from tasks.data.sampling import Repeated, by_aspect
from tasks.engine import processes
from tasks.engine.batchnorm import FEW_STEPS, IMAGES, Statistics
from tasks.engine.cores import cores
from tasks.engine.ema import Ema
from tasks.engine.loading import Loader
from tasks.engine.optim import build_optimizer, scaled_lr
from tasks.engine.resume import shuffled, steps_per_epoch
from tasks.engine.rundir import BEST
from tasks.engine.state import RunState
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import say

DIVISION = "split.json"
"""Where a run writes down which image is in which split, if it divided the data itself."""


def open_dataset(config: Config, task: TaskSpec, split: str, classes: tuple[str, ...] | None = None) -> Dataset:
    """A split of the configured data set with the labels that the task needs; ``classes`` are those of the training split,
    None to derive them.

    An empty one raises :class:`UserError`.
    """
    return _opened(config, task, split, classes, None)


def _opened(
    config: Config, task: TaskSpec, split: str, classes: tuple[str, ...] | None, whole: Dataset | None
) -> Dataset:
    """As :func:`open_dataset`; ``whole``: the undivided data, where they are open already."""
    asked = replace(config.data, labels=task.labels(config))
    if split in ("train", *asked.shares) and asked.shares:
        dataset = _part(config, asked, split, classes, whole)
    else:
        dataset = DATASETS.get(config.data.name)(asked, split, classes)
    if len(dataset) == 0:
        raise UserError(
            f"data.{split}", f"data set {config.data.name!r} has no sample", "check data.root and the name of the split"
        )
    limit = {"train": config.data.limit_train, "val": config.data.limit_val}.get(split)
    return Repeated(dataset, spread(len(dataset), limit)) if limit and limit < len(dataset) else dataset


def _part(
    config: Config, asked: DataConfig, split: str, classes: tuple[str, ...] | None, whole: Dataset | None
) -> Dataset:
    """One split of data of a single list: those of train, divided by shares or as written down."""
    whole = whole or _whole(asked, classes)
    if asked.division:
        division = Division.read(Path(asked.division))
    else:
        by_class, group = asked.split_by == "class", asked.split_group
        division = divided(whole, asked.shares, seed=config.run.seed, by_class=by_class, group=group)
    indices = division.indices(whole, split)
    if split == "train" and (asked.options.get("reduced") or not asked.keep_empty):  # what is for training alone
        chosen = set(division.parts[split])
        whole = DATASETS.get(asked.name)(asked, split, classes)
        indices = np.array([place for place, name in enumerate(ids_of(whole)) if name in chosen], np.int64)
    part: Any = Repeated(whole, indices)
    part.division = division
    part.notes = (*getattr(whole, "notes", ()), division.told)
    return cast(Dataset, part)


def _whole(asked: DataConfig, classes: tuple[str, ...] | None) -> Dataset:
    """The data before they are divided: read as in an evaluation, images without objects among them."""
    options = {name: value for name, value in asked.options.items() if name != "reduced"}
    dataset: Dataset = DATASETS.get(asked.name)(replace(asked, options=options, keep_empty=True), "train", classes)
    return dataset


def with_division(config: Config, folder: Path) -> Config:
    """The config with the division that the run in ``folder`` has written down, if it has and the config names none."""
    if not config.data.shares or config.data.division or not (folder / DIVISION).is_file():
        return config
    return replace(config, data=replace(config.data, division=str(folder / DIVISION)))


def write_division(folder: Path, dataset: Dataset) -> None:
    """Write down which image is in which split, where ``dataset`` is a part of a divided one."""
    division: Division | None = getattr(dataset, "division", None)
    if division is not None:
        division.write(folder / DIVISION)


def open_splits(config: Config, task: TaskSpec) -> dict[str, Dataset]:
    """The splits ``train``, ``val`` and, where the config names it, ``test``, with the label map of the first. Splits that
    number their classes in another way raise :class:`UserError`."""
    whole = _whole(replace(config.data, labels=task.labels(config)), None) if config.data.shares else None
    train = _opened(config, task, "train", None, whole)
    others = ("val", "test") if config.data.test else ("val",)
    datasets = {"train": train} | {split: _opened(config, task, split, train.classes, whole) for split in others}
    for split in others:
        same_labels(
            task, config, datasets[split], task.label_record(config, train), f"data.{split}", "the training data"
        )
    return datasets


def same_labels(
    task: TaskSpec, config: Config, dataset: Dataset, expected: Mapping[str, Any], where: str, other: str
) -> None:
    """Refuse a data set whose label record differs from ``expected``, that of ``other``; what that does not know is passed over."""
    for name, value in task.label_record(config, dataset).items():
        if name not in task.numbered_by_file and expected.get(name, value) != value:
            raise UserError(
                where,
                f"its {name} are {str(value)[:60]}, those of {other} {str(expected[name])[:60]}",
                "use one numbering",
            )


def make_model(config: Config, task: TaskSpec, dataset: Dataset | None, tell: Callable[[str], None] = say) -> Model:
    """The configured model, with its weights; the training data, if there are any, decide which classes it has."""
    wanted = config.model
    backbone_options = dict(wanted.backbone_options)
    if wanted.numerics:
        backbone_options["numerics"] = wanted.numerics
    channels = config.data.options.get("channels", 3)
    if channels != 3 and backbone_options.setdefault("in_channels", channels) != channels:
        what = f"is {backbone_options['in_channels']}, and data.options.channels {channels}"
        raise UserError("model.backbone_options.in_channels", what, "remove it: it follows from the data")
    with _unlogged():
        model = build_model(
            backbone=wanted.backbone,
            weights=wanted.weights or (checkpoint_file(wanted.init_from) if wanted.init_from else None),
            backbone_options=backbone_options,
            **task.heads(config, dataset),
        )
    model.classes = (
        model.classes if dataset is None else task.classes(config, dataset)
    )  # published detectors know theirs
    model.reading = reading_spec(config.data)
    spec = image_spec(config, model.image_spec)
    if wanted.normalization == "data" and dataset is not None:
        mean, std = mean_and_std(dataset, tell)
        spec = replace(spec.for_channels(len(mean)), mean=mean, std=std)
    model.use_image_spec(spec)
    if wanted.freeze:
        model.backbone.freeze(None if wanted.freeze == "all" else wanted.freeze)
    return model


@contextmanager
def _unlogged() -> Iterator[None]:
    """Within, the core logs nothing: a command tells where its weights came from itself, once for all processes."""
    logger = logging.getLogger("effbackbones")

    def none(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(none)
    try:
        yield
    finally:
        logger.removeFilter(none)


def image_spec(config: Config, spec: ImageSpec) -> ImageSpec:
    """The image spec of the weights with the config's own words on top."""
    names = ("mean", "std", "interpolation", "crop_fraction", "crop_mode")
    whole = {"crop_mode": "squash", "crop_fraction": 1.0} if config.data.crop == "whole" else {}
    own: dict[str, Any] = whole | {
        name: getattr(config.model, name) for name in names if getattr(config.model, name) is not None
    }
    size = config.data.image_size
    if size is not None:
        own["size"] = (size, size) if isinstance(size, int) else tuple(size)
    return replace(spec, **own)


def checkpoint_file(name: str) -> Path:
    """The model file that ``name`` says: itself, or the best one of a run folder."""
    path = Path(name)
    return path / BEST if path.is_dir() else path


def begin(config: Config, model: Model, scaler: Any = None) -> RunState:
    """The state of a run before its first step. ``model`` is on its device; ``scaler`` is that of fp16."""
    optim, model = config.optim, model.to(memory_format=torch.channels_last)  # as the images come
    if config.model.norm == "sync" and processes.here().world > 1:
        synchronise_batch_norm(model)
    lr = scaled_lr(optim.lr, config.data.batch_size, optim.base_batch, optim.lr_scaling)
    groups = model.param_groups(
        lr, optim.weight_decay, layer_decay=optim.layer_decay, decay_norm_and_bias=optim.decay_norm_and_bias
    )
    return RunState(model, build_optimizer(optim, groups), Ema(model, optim.ema) if optim.ema else None, scaler)


def load_or_make(config: Config, task: TaskSpec, checkpoint: str | None) -> Model:
    """A trained model from its file, or the configured one with its published weights. In eval mode."""
    if checkpoint is None:
        made = make_model(config, task, None).eval()
        for sentence in made.provenance.get("assumed", ()):
            say(sentence)
        return made
    file = checkpoint_file(checkpoint)
    model = load_model(file) if format_of(file) is None else ExportedModel.open(file)
    told, wanted = model.config["task"], config.model.task
    if (sorted(told) if isinstance(told, list) else told) != (sorted(wanted) if isinstance(wanted, tuple) else wanted):
        remedy = f"use that task's command, not {task.command}" if isinstance(wanted, str) else "set model.task to that"
        raise UserError(checkpoint, f"holds a model for task {told!r}", remedy)
    return model


def run_device(config: Config) -> torch.device:
    """The device of this process. One that was asked for and is not there raises :class:`UserError`."""
    asked, listed = config.run.device, config.run.devices
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("run.device", "mps was asked for, and PyTorch sees none here", "set run.device auto")
        return torch.device("mps")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and not there and isinstance(listed, int)):
        return torch.device("cpu")
    where, wanted = ("run.device", asked) if isinstance(listed, int) else ("run.devices", str(list(listed)))
    if not there:
        what = f"{wanted} was asked for, and PyTorch sees no GPU here"
        raise UserError(where, what, "check the driver, or set run.device cpu and run.devices to a count")
    indices = device_indices(config, processes.here().local_world)
    chosen = indices if isinstance(indices, list) else list(range(indices))
    if max(chosen) >= there:
        what = f"GPU {max(chosen)} was asked for, and PyTorch sees {there} (0 to {there - 1})"
        raise UserError(where, what, "correct the number, or CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", chosen[processes.local_rank() % len(chosen)])


def device_indices(config: Config, count: int) -> list[int] | int:
    """The GPUs of this machine's ``count`` processes, by number; ``count`` where nobody names them."""
    asked, listed = config.run.device, config.run.devices
    if isinstance(listed, tuple):
        return list(listed[:count])
    return [int(asked.partition(":")[2])] if ":" in asked else count


def precision(config: Config, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``: what was asked for, or what suits the device."""
    asked = config.run.precision
    if asked == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise UserError("run.precision", "fp16 needs a GPU", "set it to fp32 or bf16")
    return asked


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The arithmetic of an evaluation: as in training."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision(config, device)]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def workers(config: Config) -> int:
    """Loader processes: what was asked for, or one per core, at most 8."""
    return min(cores(), 8) if config.data.workers is None else config.data.workers


def spread(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of ``range(count)``, spread evenly over it, int64."""
    return np.arange(min(count, limit)) * count // max(min(count, limit), 1)


def keyed(config: Config, task: TaskSpec, dataset: Dataset, model: Model, *, train: bool) -> KeyedDataset:
    """``dataset`` behind the task's transform, read by (epoch, index)."""
    optim, epochs = config.optim, math.inf
    if train:
        epochs = (
            optim.max_steps / steps_per_epoch(len(dataset), config.data.batch_size) if optim.max_steps else optim.epochs
        )
    transform = shown(task.transform(config, model, train=train, epochs=epochs), model)
    return KeyedDataset(dataset, transform, seed=config.run.seed, on_error=config.data.on_error)


def shown(transform: Transform, model: Model) -> Transform:
    """The transform as ``model`` is shown images: as they are, where it resizes them itself."""
    if model.resizes:
        untyped: Any = transform
        if not isinstance(getattr(untyped, "fitting", None), Fitting):
            what = f"{type(transform).__name__} resizes images, and so does the exported graph"
            raise UserError("--checkpoint", what, "export with preprocessing normalize")
        untyped.fitting = replace(untyped.fitting, mode="own")
    return transform


def loader(config: Config, task: TaskSpec, dataset: KeyedDataset, model: Model, batches: Any) -> Loader:
    """A loader of ``batches`` (lists of keys)."""
    return Loader(
        dataset,
        batches,
        task.collate(config, model),
        workers=workers(config),
        timeout=config.data.timeout,
        pin=run_device(config).type == "cuda",
        seed=config.run.seed,
    )


def batch_norm_statistics(
    config: Config, task: TaskSpec, dataset: Dataset, model: Model, steps: int, device: torch.device
) -> Statistics | None:
    """Of a run of few ``steps``, what takes the statistics of its batch norms anew, from training images in batches as training sees
    them; of a longer one None."""
    if steps >= FEW_STEPS:
        return None
    size = max(2, normalised_together(config))
    alone = replace(config, data=replace(config.data, workers=0))  # a few images are not worth starting processes for

    def batches() -> Iterator[Batch]:
        keys = [(0, int(index)) for index in training_order(config, dataset)(0)]
        groups = [keys[first : first + size] for first in range(0, len(keys), size)]
        groups = [group for group in groups if len(group) == size][: max(1, -(-IMAGES // size))]
        return iter(loader(alone, task, keyed(config, task, dataset, model, train=True), model, groups))

    return Statistics(batches, device, partial(autocast, config, device))


def normalised_together(config: Config) -> int:
    """How many images of a training step batch norm sees at a time."""
    world = 1 if config.model.norm == "sync" else processes.here().world
    return config.data.batch_size // (world * config.optim.accumulate)


class EvaluationBatches:
    """Batch sampler of an evaluation: every sample once over all processes, without padding."""

    def __init__(self, order: np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices = order[rank::world]
        self.size = max(1, batch_size // world)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.indices), self.size):
            yield [(0, int(index)) for index in self.indices[first : first + self.size]]


def evaluation_loader(
    config: Config, task: TaskSpec, dataset: Dataset, model: Model, rank: int = 0, world: int = 1
) -> Loader:
    """A loader over all of ``dataset``, this process's share of it."""
    # Files to predict do not know their aspects; batches of mixed ones are only padded more.
    similar = config.data.batch_shape == "aspect" and hasattr(dataset, "aspects")
    order = np.argsort(aspects(dataset), kind="stable") if similar else np.arange(len(dataset))
    # Images that are read in tiles are large, and of many sizes.
    size = 1 if config.data.tile or model.resizes else config.data.eval_batch_size or config.data.batch_size
    batches = EvaluationBatches(order, size, rank, world)
    return loader(config, task, keyed(config, task, dataset, model, train=False), model, batches)


def training_order(config: Config, dataset: Dataset) -> Callable[[int], np.ndarray]:
    """Epoch -> order of the training samples, a permutation drawn from (seed, epoch)."""
    order = shuffled(len(dataset), config.run.seed)
    if config.data.batch_shape == "fixed":
        return order
    return by_aspect(order, aspects(dataset), config.data.batch_size, config.run.seed)


def aspects(dataset: Dataset) -> np.ndarray:
    """Width / height of each image, float [N]; a data set that does not know them raises :class:`UserError`."""
    found: np.ndarray | None = getattr(dataset, "aspects", None)
    if found is None:
        text = f"{type(unwrapped(dataset)[0]).__name__} does not know the aspect ratios of its images"
        raise UserError("data.batch_shape", text, "set it to fixed, or give the data set `aspects`")
    return found
