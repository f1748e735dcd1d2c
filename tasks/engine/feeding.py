"""From a config and a data set to its batches: behind which transform, read by how many processes."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from effbackbones.errors import UserError
from effbackbones.inference.fitting import Fitting
from effbackbones.model import Model
from tasks.data.batch import Batch, KeyedDataset
from tasks.data.dataset import Dataset
from tasks.data.door.transforms import image_cache
from tasks.data.knowledge import Knowledge, with_cache
from tasks.data.sample import Transform
from tasks.data.transforms.images import ClassificationTransform
from tasks.data.transforms.window import ViewTransform
from tasks.engine.batchnorm import FEW_STEPS, IMAGES, Statistics
from tasks.engine.cores import cores
from tasks.engine.hardware import Hardware, run_device
from tasks.engine.loading import Loader
from tasks.engine.order import EvaluationBatches, GlobalBatches, Share, aspects, steps_per_epoch, training_order
from tasks.engine.plan import Plan
from tasks.settings.sections import Config
from tasks.spec import TaskSpec


def workers(config: Config) -> int:
    """Loader processes: what was asked for, or one per core, at most 8."""
    return min(cores(), 8) if config.data.workers is None else config.data.workers


def keyed(
    config: Config,
    task: TaskSpec,
    dataset: Dataset,
    model: Model,
    *,
    train: bool,
    as_it_is: bool = False,
    scale: float = 1.0,
) -> KeyedDataset:
    """``dataset`` behind the task's transform, read by (epoch, index); ``as_it_is`` as of :func:`shown`, ``scale`` of
    :func:`at_scale`."""
    optim, epochs = config.optim, math.inf
    if train:
        epochs = (
            optim.max_steps / steps_per_epoch(len(dataset), config.data.batch_size) if optim.max_steps else optim.epochs
        )
    transform = shown(task.transform(config, model, train=train, epochs=epochs), model, as_it_is=as_it_is)
    alternate = train and config.data.flip_mode == "alternating"
    transform, data = at_scale(transform, scale), config.data
    return KeyedDataset(dataset, transform, seed=config.run.seed, on_error=data.on_error, alternate=alternate)


def at_scale(transform: Transform, scale: float) -> Transform:
    """The transform for images of this share of their sides. One that cannot say what that is raises :class:`UserError`."""
    if scale == 1.0:
        return transform
    if not isinstance(transform, ClassificationTransform | ViewTransform):
        what = f"changes the size of images, which {type(transform).__name__} alone knows"
        raise UserError("data.progressive", what, "set it to []")
    return transform.scaled(scale)


def told_of_growth(config: Config, task: TaskSpec, model: Model, plan: Plan) -> list[str]:
    """In a line, at what size of images the steps of a run are done, where that grows; refused where it cannot."""
    if not plan.shares:
        return []
    whole, parts = task.transform(config, model, train=True, epochs=math.inf), []
    for start, share in zip((0, *plan.growth), (*plan.shares, 1.0), strict=True):
        transform: Any = at_scale(whole, share) if share < 1 else whole
        height, width = getattr(transform, "crop_size", None) or transform.size
        parts.append(f"{height} x {width} from step {start + 1}")
    return [f"data.progressive: training images grow: {', '.join(parts)}"]


def from_cache(config: Config, task: TaskSpec, dataset: Dataset, model: Model) -> tuple[Dataset, list[str]]:
    """Training samples, with their images from the cache if there is to be one, and what to say of it."""
    data = config.data
    if data.cache is None:
        return dataset, []
    cache = image_cache(data, shown(task.transform(config, model, train=True, epochs=math.inf), model))
    cached = with_cache(dataset, cache)
    known = Knowledge.of(cached)
    reader = known.reader
    assert reader is not None
    lines = [cache.open(len(np.unique(known.indices)), reader.channels, 1 if reader.depth == "8" else 2)]
    if data.scale_jitter != (1.0, 1.0) or data.mosaic or data.augment or data.progressive:
        lines.append(
            "data.cache: data.scale_jitter, mosaic, augment and progressive work on these smaller images, not on those of the files"
        )
    return cached, lines


def shown(transform: Transform, model: Model, *, as_it_is: bool = False) -> Transform:
    """The transform as ``model`` is shown images: as they are, where it resizes them itself, or where they are to stay ``as_it_is``."""
    if model.resizes or as_it_is:
        untyped: Any = transform
        if not isinstance(getattr(untyped, "fitting", None), Fitting):
            name = type(transform).__name__
            if as_it_is:
                raise UserError("--tta", f"{name} brings images to size in one way alone", "leave it out")
            what = f"{name} resizes images, and so does the exported graph"
            raise UserError("--checkpoint", what, "export with preprocessing normalize")
        untyped.fitting = replace(untyped.fitting, mode="own")
    return transform


def loader(
    config: Config,
    task: TaskSpec,
    dataset: Dataset,
    model: Model,
    batches: Any,
    *,
    train: bool,
    as_it_is: bool = False,
    scale: float = 1.0,
) -> Loader:
    """A loader of ``batches`` (lists of keys) of ``dataset`` as :func:`keyed` has it."""
    seen = keyed(config, task, dataset, model, train=train, as_it_is=as_it_is, scale=scale)
    return Loader(
        seen,
        batches,
        task.collate(config, model),
        workers=workers(config),
        timeout=config.data.timeout,
        pin=run_device(config).type == "cuda",
        seed=config.run.seed,
    )


def training_loader(
    config: Config,
    task: TaskSpec,
    dataset: Dataset,
    model: Model,
    share: Share,
    start: int,
    stop: int,
    *,
    scale: float = 1.0,
) -> Loader:
    """A process's ``share`` of the training batches of the steps from ``start`` to ``stop``, in pieces; images at this ``scale``."""
    order, size = training_order(config, dataset), config.data.batch_size
    pieces = GlobalBatches(order, len(dataset), size, start=start, stop=stop, share=share)
    return loader(config, task, dataset, model, pieces, train=True, scale=scale)


def batch_norm_statistics(
    config: Config, task: TaskSpec, dataset: Dataset, model: Model, plan: Plan, hardware: Hardware
) -> Statistics | None:
    """Of a run of few steps, what takes the statistics of its batch norms anew, from training images in batches as training sees
    them; of a longer one None."""
    if plan.total >= FEW_STEPS:
        return None
    size = max(2, plan.seen)
    alone = replace(config, data=replace(config.data, workers=0))  # a few images are not worth starting processes for

    def batches() -> Iterator[Batch]:
        keys = [(0, int(index)) for index in training_order(config, dataset)(0)]
        groups = [keys[first : first + size] for first in range(0, len(keys), size)]
        groups = [group for group in groups if len(group) == size][: max(1, -(-IMAGES // size))]
        return iter(loader(alone, task, dataset, model, groups, train=True))

    return Statistics(batches, hardware.device, hardware.autocast)


def evaluation_loader(
    config: Config,
    task: TaskSpec,
    dataset: Dataset,
    model: Model,
    rank: int = 0,
    world: int = 1,
    *,
    as_it_is: bool = False,
) -> Loader:
    """A loader over all of ``dataset``, this process's share of it; ``as_it_is``: of images at their own size, one at a time."""
    # Files to predict do not know their aspects; batches of mixed ones are only padded more.
    similar = config.data.batch_shape == "aspect" and hasattr(dataset, "aspects")
    order = np.argsort(aspects(dataset), kind="stable") if similar else np.arange(len(dataset))
    # Images that are read in tiles are large, and of many sizes.
    size = 1 if config.data.tile or model.resizes or as_it_is else config.data.eval_batch_size or config.data.batch_size
    batches = EvaluationBatches(order, size, rank, world)
    return loader(config, task, dataset, model, batches, train=False, as_it_is=as_it_is)
