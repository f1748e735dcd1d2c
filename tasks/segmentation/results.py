"""Segmentations of a batch in pixels of the original images."""

from collections.abc import Sequence

from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.images.geometry import Size
from effbackbones.inference.masks import Segmented as Segmented, mask_of_tiles, restore_mask
from effbackbones.model import Model
from tasks.data.batch import Batch


def restore(
    batch: Batch, predictions: Tensor, *, keep: bool = False, over: Sequence[float] | None = None
) -> list[Segmented]:
    """One per image of a batch, from probabilities float [B, K, H, W] in pixels of its images, by
    :func:`effbackbones.inference.masks.restore_mask`.

    Raises :class:`UserError` for an image that was transformed in a way that cannot be undone, and for one of which the network
    saw a part alone: the rest has no class.
    """
    rows = zip(predictions.detach(), batch.plans(), batch.meta, strict=True)
    return [restore_mask(scores, plan, keep=keep, name=meta.path or meta.id, over=over) for scores, plan, meta in rows]


def predict_tiled(
    model: Model,
    batch: Batch,
    tile: Size,
    overlap: int,
    batch_size: int = 1,
    *,
    keep: bool = False,
    over: Sequence[float] | None = None,
) -> list[Segmented]:
    """One per image of a batch of images at their own size, padding aside, by :func:`effbackbones.inference.masks.mask_of_tiles`.

    An image that was resized, cropped or mirrored raises :class:`UserError`.
    """
    found = []
    for image, plan, meta in zip(batch.images, batch.plans(), batch.meta, strict=True):
        height, width = meta.original
        if (plan.scaled, plan.offset, plan.mirrored) != (meta.original, (0, 0), (False, False)) or not plan.whole:
            what = f"was brought from {[height, width]} to {list(plan.scaled)} pixels; tiles are for images at their own size"
            raise UserError(meta.path or meta.id, what, "leave it as it is")
        found.append(mask_of_tiles(model, image[:, :height, :width], tile, overlap, batch_size, keep=keep, over=over))
    return found
