"""Checks of targets: what a loss would take for something else is refused, with the field, the value and the remedy.

Values are looked at where that makes nobody wait: on the CPU, outside of graphs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effbackbones.contracts import BoxTargets, ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.pixels import lies_on_cpu


def values(tensor: Tensor) -> NDArray[Any] | None:
    """The values of a tensor, or None where looking would make somebody wait, or there are none."""
    if not lies_on_cpu(tensor):
        return None
    found: NDArray[Any] = (tensor.detach().float() if tensor.is_floating_point() else tensor.detach()).numpy()
    return found


def require_tensor(name: str, tensor: object, shapes: Sequence[tuple[int, ...]], expected: str) -> None:
    """Raise :class:`UserError` unless ``tensor`` is one of these ``shapes``."""
    if not isinstance(tensor, Tensor):
        raise UserError(name, f"expected {expected}, got {type(tensor).__name__}", "give a tensor")
    if tuple(tensor.shape) not in shapes:
        raise UserError(name, f"expected {expected}, got {tensor.dtype} {list(tensor.shape)}", "correct its shape")


def require_all(name: str, found: NDArray[Any], holds: NDArray[np.bool_], expected: str, remedy: str) -> None:
    """Raise :class:`UserError` naming the first of the values ``found`` that does not hold."""
    if holds.all():
        return
    where = tuple(int(place) for place in np.argwhere(~holds)[0])
    value = np.asarray(found[where]).tolist()
    raise UserError(f"{name}[{', '.join(map(str, where))}]", f"expected {expected}, got {value}", remedy)


def check_boxes(targets: BoxTargets, sizes: ImageSizes, num_classes: int) -> None:
    """Raise :class:`UserError` for boxes, labels or crowds of other shapes or kinds, out of range, or wholly beside the images."""
    if not isinstance(targets, BoxTargets):
        what = f"expected BoxTargets(boxes, labels, crowd), got {type(targets).__name__}"
        raise UserError("targets", what, "from effbackbones import BoxTargets")
    boxes, labels, crowd = targets
    batch = len(sizes.valid)
    most = labels.shape[1] if isinstance(labels, Tensor) and labels.ndim == 2 else 0
    for name, tensor, shape in (
        ("labels", labels, (batch, most)),
        ("boxes", boxes, (batch, most, 4)),
        ("crowd", crowd, (batch, most)),
    ):
        require_tensor(f"targets.{name}", tensor, [shape], str(list(shape)))
    odd = labels.is_floating_point() or labels.dtype == torch.bool
    if odd or crowd.dtype != torch.bool:
        name, wrong, right = ("labels", labels, "int64") if odd else ("crowd", crowd, "bool")
        raise UserError(f"targets.{name}", f"expected {right}, got {wrong.dtype}", "convert them")
    numbers, sides = values(labels), values(boxes)
    if numbers is None or sides is None:
        return
    remedy = "number the classes from 0 without background, or raise num_classes"
    expected = f"a label of 0..{num_classes - 1}, or -1 for padding"
    require_all("targets.labels", numbers, (numbers >= -1) & (numbers < num_classes), expected, remedy)
    real = numbers >= 0
    finite = np.isfinite(sides) | ~real[..., None]
    require_all("targets.boxes", sides, finite, "a finite number", "correct the box")
    ordered = (sides[..., 2:] >= sides[..., :2]) | ~real[..., None]
    if not ordered.all():
        image, row, _ = (int(place) for place in np.argwhere(~ordered)[0])
        what = f"expected x1 y1 x2 y2 with x1 <= x2 and y1 <= y2, got {sides[image, row].tolist()}"
        raise UserError(f"targets.boxes[{image}, {row}]", what, "of x y w h, add the size to the corner")
    if real.any() and (sides[real] <= 1).all() and (sides[real] >= 0).all():
        raise UserError("targets.boxes", "all lie in 0..1; expected pixels", "multiply them by the size of the images")
    height, width = sizes.batch
    beside = real & ((sides[..., :2] > [width, height]) | (sides[..., 2:] < 0)).any(-1)
    if beside.any():
        image, row = (int(place) for place in np.argwhere(beside)[0])
        what = (
            f"lies wholly beside the image of {width} x {height} pixels (width x height): {sides[image, row].tolist()}"
        )
        raise UserError(f"targets.boxes[{image}, {row}]", what, "resize boxes with their images, and leave out such")
    far = real & ((sides[..., 2:] > [2 * width, 2 * height]) | (sides[..., :2] < [-width, -height])).any(-1)
    if 2 * far.sum() > real.sum():  # some may be, of images that were cut, but not most
        image, row = (int(place) for place in np.argwhere(far)[0])
        what = (
            f"reaches out of the image of {width} x {height} pixels by more than its size: {sides[image, row].tolist()}"
        )
        raise UserError(f"targets.boxes[{image}, {row}]", what, "resize boxes with their images, and clip them")
