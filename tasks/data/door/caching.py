"""Training images from a cache of resized ones (``data.cache``)."""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.errors import UserError
from tasks.data.dataset import Dataset
from tasks.data.files.cache import ImageCache
from tasks.data.files.reading import ImageReader
from tasks.data.knowledge import Knowledge
from tasks.data.sample import Transform
from tasks.data.transforms.images import ClassificationTransform
from tasks.data.transforms.waves import WaveTransform
from tasks.data.transforms.window import ViewTransform
from tasks.settings.data import DataConfig


def cached(data: DataConfig, dataset: Dataset, transform: Transform) -> tuple[Dataset, list[str]]:
    """The samples that ``transform`` is to change, with images from the cache if there is to be one, and what to say of it; opens it."""
    if data.cache is None:
        return dataset, []
    cache = image_cache(data, transform)
    dataset = with_cache(dataset, cache)
    known = Knowledge.of(dataset)
    reader = known.reader
    assert reader is not None
    lines = [cache.open(len(np.unique(known.indices)), reader.channels, 1 if reader.depth == "8" else 2)]
    smaller = not isinstance(transform, WaveTransform)
    if smaller and (data.scale_jitter != (1.0, 1.0) or data.mosaic or data.augment or data.progressive):
        told = (
            "data.scale_jitter, mosaic, augment and progressive work on these smaller images, not on those of the files"
        )
        lines.append(f"data.cache: {told}")
    return dataset, lines


def image_cache(data: DataConfig, transform: Transform) -> ImageCache:
    """The cache of training images before ``transform``. Raises :class:`UserError` where smaller ones than those of the files would not
    do: where it cuts from them, or is of the user's own."""
    assert data.cache is not None
    if not isinstance(transform, ClassificationTransform | ViewTransform | WaveTransform):
        what = f"keeps images at the size that they are brought to, which {type(transform).__name__} does not tell"
        raise UserError("data.cache", what, "set it to null")
    return ImageCache(Path(data.cache).expanduser(), transform.kept(), data.resize == "quick")


def with_cache(dataset: Dataset, cache: ImageCache) -> Dataset:
    """The same samples with images from ``cache``; the data set itself stays as it is, for other splits may be views of it. Raises
    :class:`UserError` where images are not read by our reader."""
    found: Any = copy(dataset)
    view: Dataset = found
    if hasattr(found, "indices") and hasattr(found, "dataset"):
        found.dataset = with_cache(found.dataset, cache)
        return view
    for name in ("read", "reader"):
        if isinstance(reader := getattr(found, name, None), ImageReader):
            setattr(found, name, replace(reader, cache=cache))
            return view
    what = f"keeps images that files are decoded to, and {type(dataset).__name__} makes its own"
    raise UserError("data.cache", what, "set it to null")
