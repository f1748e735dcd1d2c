"""From images to vectors: pooled features of a backbone, for search, clustering, and models of other libraries."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effbackbones.checkpoint import load_model
from effbackbones.contracts import Backbone
from effbackbones.errors import UserError, nearest
from effbackbones.images.reading import MAX_PIXELS
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.fitting import Fitting
from effbackbones.inference.inputs import is_one, source_for
from effbackbones.inference.predictor import BEST, device_of
from effbackbones.inference.preparing import Fitted, Placed, looked_at, views_together
from effbackbones.inference.results import Failed
from effbackbones.model import Model

_READERS = 4
"""Threads that read files while the network works."""


class Embedded(NamedTuple):
    """An image as a vector: its name, and ``vector`` float32 [D], or why there is none in a line (``error``)."""

    source: str
    vector: NDArray[np.float32] | None
    error: str = ""


class Embedder:
    """Images to vectors: the mean over each channel of a backbone's map, in float32.

    ``source``: a model file, a run folder, a :class:`Model`, or a backbone (``create_backbone("lite0", weights="imagenet")``), which is put
    on the device and into eval mode. Images are read and brought to size as a classifier's of that image spec; what a letterbox
    pads is left out of the mean; of a recording it is that over all of its windows. ``level``: the map that is pooled (default: the
    coarsest). ``max_pixels``: larger files are refused.
    It can be pickled.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Model | Backbone,
        *,
        level: str | None = None,
        batch_size: int = 16,
        device: str | torch.device = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not isinstance(source, Model | Backbone):
            path = Path(source)
            source = load_model(path / BEST if path.is_dir() else path)
        self.network = source.to(device_of(device)).eval()
        self.backbone = source.backbone if isinstance(source, Model) else source
        spec = self.backbone.feature_spec
        self.level = spec.names[-1] if level is None else level
        if self.level not in spec.names:
            raise UserError("level", f"{self.backbone.name} gives no {level}", nearest(str(level), spec.names))
        if batch_size < 1:
            raise UserError("batch_size", f"expected at least 1 image at once, got {batch_size}", "correct it")
        row = spec.names.index(self.level)
        self._row, self.stride, self.dimensions = row, spec.strides[row], spec.channels[row]
        self._rows = spec.rows
        self.reading = (source.reading if isinstance(source, Model) else None) or ReadingSpec()
        self.fit = Fitting.of_classes(source.image_spec)
        self.batch_size, self.max_pixels = batch_size, max_pixels

    def __call__(self, images: Any) -> NDArray[np.float32]:
        """Vectors [N, D] of images as :class:`Predictor` takes them: paths, PIL images, arrays, tensors, or one of them (N = 1). One
        that cannot be read raises :class:`UserError`."""
        vectors = []
        for one in self.stream([images] if is_one(images) else images):
            if one.vector is None:
                raise UserError(one.error)
            vectors.append(one.vector)
        return np.stack(vectors) if vectors else np.zeros((0, self.dimensions), np.float32)

    def stream(self, images: Iterable[Any]) -> Iterator[Embedded]:
        """One :class:`Embedded` for each of ``images``, in order; a few are held at a time, and the next read while the network works."""
        numbered = enumerate(images)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="embedder") as readers:
            coming = [readers.submit(self._read, *one) for one in islice(numbered, self.batch_size)]
            while coming:
                following = [readers.submit(self._read, *one) for one in islice(numbered, self.batch_size)]
                yield from self._embedded([one.result() for one in coming])
                coming = following

    def _read(self, number: int, image: Any) -> list[Fitted] | Failed:
        spec, limit = self.network.image_spec, self.max_pixels
        try:
            source = source_for(image, number, spec, self.reading, max_pixels=limit)
        except UserError as error:
            return Failed(f"image {number}", str(error))
        return looked_at(source, self.fit.looked)

    def _embedded(self, images: list[list[Fitted] | Failed]) -> list[Embedded]:
        batch = views_together(images)
        seen: dict[int, NDArray[np.float32]] = {}
        for rows, pixels in batch.groups:
            for first in range(0, len(rows), self.batch_size):
                some = rows[first : first + self.batch_size]
                places = [one for row in some if isinstance(one := batch.places[row], Placed)]
                vectors = self._pooled(pixels[first : first + self.batch_size], [one.plan.valid for one in places])
                seen |= dict(zip(some, vectors, strict=True))
        found, row = [], 0
        for views in images:
            if isinstance(views, Failed):
                found.append(Embedded(views.source, None, views.error))
                row += 1
                continue
            mine = [seen[row + place] for place in range(len(views))]
            weights = [view.plan.valid[1] for view in views]
            vector = mine[0] if len(mine) == 1 else np.average(mine, 0, weights).astype(np.float32)
            found.append(Embedded(views[0].source.name, vector))
            row += len(views)
        return found

    @torch.no_grad()
    def _pooled(self, images: Tensor, valid: list[tuple[int, int]]) -> NDArray[np.float32]:
        """The mean of the map over the part of each image [B, C, H, W] that is ``valid`` (H, W)."""
        device = next(self.network.parameters()).device
        maps = self.backbone(self.network.normalize(images.to(device)))[self._row].float()
        kept = torch.zeros(len(valid), 1, *maps.shape[-2:])
        for one, (height, width) in zip(kept, valid, strict=True):
            one[:, : None if self._rows else -(-height // self.stride), : -(-width // self.stride)] = 1
        kept = kept.to(device)
        pooled: NDArray[np.float32] = ((maps * kept).sum((2, 3)) / kept.sum((2, 3))).cpu().numpy()
        return pooled


def nearest_images(
    vectors: NDArray[np.float32], count: int, *, block: int = 1024
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each of ``vectors`` [N, D] the ``count`` others that point most in its direction: rows int64 [N, k] and their cosine similarity
    float32 [N, k], the most similar first; k is ``count``, or N - 1 where there are no more. Exact; takes ``block`` rows at a time."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = min(count, len(vectors) - 1)
    rows, values = np.zeros((len(vectors), count), np.int64), np.zeros((len(vectors), count), np.float32)
    for first in range(0, len(vectors) if count else 0, block):
        near = unit[first : first + block] @ unit.T
        near[np.arange(len(near)), np.arange(first, first + len(near))] = -np.inf  # itself
        some = np.argpartition(-near, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(near, some, 1), axis=1, kind="stable")
        rows[first : first + block] = np.take_along_axis(some, order, 1)
        values[first : first + block] = np.take_along_axis(near, rows[first : first + block], 1)
    return rows, values
