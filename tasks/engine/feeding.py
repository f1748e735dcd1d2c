"""From a config and a data set to its batches: behind which transform, read by how many processes."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from effbackbones.contracts import Head
from effbackbones.errors import UserError
from effbackbones.inference.fitting import Fitting
from effbackbones.model import Model
from tasks.data.batch import Batch, KeyedDataset
from tasks.data.dataset import Dataset
from tasks.data.door.caching import cached
from tasks.data.sample import Sample, Transform
from tasks.data.transforms.images import ClassificationTransform
from tasks.data.transforms.window import ViewTransform
from tasks.engine.batchnorm import IMAGES
from tasks.engine.cores import cores
from tasks.engine.devicecache import Resident, refuse_unfit
from tasks.engine.hardware import run_device
from tasks.engine.loading import Loader
from tasks.engine.order import EvaluationBatches, GlobalBatches, Order, Share, aspects, epochs, training_order
from tasks.engine.plan import Plan
from tasks.settings.sections import Config
from tasks.spec import TaskSpec


def workers(config: Config) -> int:
    """Loader processes: what was asked for, or one per core, at most 8."""
    return min(cores(), 8) if config.data.workers is None else config.data.workers


@dataclass(frozen=True)
class Feed:
    """Samples as the network is shown them; how they are put together, and by how many processes they are read."""

    samples: KeyedDataset
    collate: Callable[[Sequence[Sample]], Batch]
    workers: int
    timeout: float
    pin: bool

    @classmethod
    def of(cls, config: Config, task: TaskSpec, samples: KeyedDataset, model: Model) -> Self:
        """As the config has it."""
        collate, pin = task.collate(config, model), run_device(config).type == "cuda"
        return cls(samples, collate, workers(config), config.data.timeout, pin)

    def loader(self, batches: Any) -> Loader:
        """A loader of ``batches``: lists of keys of the samples."""
        return Loader(
            self.samples,
            batches,
            self.collate,
            workers=self.workers,
            timeout=self.timeout,
            pin=self.pin,
            seed=self.samples.seed,
        )


class ResidentFeed:
    """Images on the device, read when they are first asked for, and anew at another scale."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: tuple[float, Resident] | None = None

    def at(self, feed: Feed, scale: float) -> Resident:
        """Those of ``feed``, which is at this ``scale``."""
        if self._known is None or self._known[0] != scale:
            self._known = None  # both at once might not fit
            resident = Resident.read(
                feed.samples, lambda samples, keys: replace(feed, samples=samples).loader(keys), self.device
            )
            self._known = scale, resident
        return self._known[1]


@dataclass(frozen=True)
class TrainingFeed:
    """What a run trains on: a ``feed`` of the training samples, their ``order`` in each epoch, and how many make a step."""

    feed: Feed
    order: Order
    batch_size: int
    resident: ResidentFeed | None = None
    """Where images stay on the device."""

    def __len__(self) -> int:
        return len(self.feed.samples)

    def steps(self, share: Share, start: int, stop: int, scale: float = 1.0) -> Iterable[Batch]:
        """A process's ``share`` of the batches of the steps from ``start`` to ``stop``, in pieces, of images at ``scale``
        (:func:`at_scale`)."""
        pieces = GlobalBatches(self.order, len(self), self.batch_size, start=start, stop=stop, share=share)
        feed = self.feed
        if scale != 1.0:
            samples = copy(feed.samples)
            samples.transform = at_scale(samples.transform, scale)
            feed = replace(feed, samples=samples)
        return feed.loader(pieces) if self.resident is None else self.resident.at(feed, scale).batches(pieces)

    def few(self, size: int) -> Loader:
        """At least :data:`IMAGES` images as the first epoch begins, if there are as many, in whole batches of ``size``."""
        keys = [(0, int(index)) for index in self.order(0)]
        groups = [keys[first : first + size] for first in range(0, len(keys), size)]
        groups = [group for group in groups if len(group) == size][: max(1, -(-IMAGES // size))]
        return replace(self.feed, workers=0).loader(groups)  # a few images are not worth starting processes for


def training_feed(config: Config, task: TaskSpec, dataset: Dataset, model: Model) -> tuple[TrainingFeed, list[str]]:
    """What trains on ``dataset``, with images from the cache or from the device if they are to be, and what to say of that. What cannot be
    kept there raises :class:`UserError`."""
    order = training_order(config, dataset)
    transform = task.transform(config, model, train=True, epochs=epochs(config, len(dataset)))
    dataset, told = cached(config.data, dataset, transform)
    in_turn = config.data.flip_mode == "alternating"
    samples = KeyedDataset(dataset, transform, config.run.seed, config.data.on_error, alternate=in_turn)
    resident = None
    if config.data.device_cache:
        device = run_device(config)
        told = [*told, refuse_unfit(samples, len(model.image_spec.mean), device)]
        resident = ResidentFeed(device)
    return TrainingFeed(Feed.of(config, task, samples, model), order, config.data.batch_size, resident), told


def at_scale(transform: Transform | None, scale: float) -> ClassificationTransform | ViewTransform:
    """The transform for images of this share of their sides. One that cannot say what that is raises :class:`UserError`."""
    if not isinstance(transform, ClassificationTransform | ViewTransform):
        what = f"changes the size of images, which {type(transform).__name__} alone knows"
        raise UserError("data.progressive", what, "set it to []")
    return transform.scaled(scale)


def told_of_growth(feed: TrainingFeed, plan: Plan, head: Head) -> list[str]:
    """In a line, at what size of images the steps of a run are done, and as what ``head`` pads them; refused where they cannot grow."""
    parts = []
    for start, share in zip((0, *plan.growth), (*plan.shares, 1.0), strict=True) if plan.shares else ():
        transform = at_scale(feed.feed.samples.transform, share)
        height, width = getattr(transform, "crop_size", None) or transform.size
        padded = f"{head.padded(height)} x {head.padded(width)}"
        beside = "" if padded == f"{height} x {width}" else f" (as {padded}, padded for the head)"
        parts.append(f"{height} x {width}{beside} from step {start + 1}")
    return [f"data.progressive: training images grow: {', '.join(parts)}"] if parts else []


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
    alone = config.data.tile or model.resizes or (as_it_is and model.image_spec.rate is None)
    size = 1 if alone else config.data.eval_batch_size or config.data.batch_size
    transform = shown(task.transform(config, model, train=False), model, as_it_is=as_it_is)
    samples = KeyedDataset(dataset, transform, seed=config.run.seed, on_error=config.data.on_error)
    return Feed.of(config, task, samples, model).loader(EvaluationBatches(order, size, rank, world))
