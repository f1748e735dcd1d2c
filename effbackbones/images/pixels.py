"""What the values of image tensors mean, by their dtype."""

from typing import Any

import torch
from torch import Tensor

from effbackbones.errors import UserError

MOST = 32.0
"""Above it a floating-point image is taken for one of 0..255: far from what noise or high dynamic range reaches."""
LEAST = -0.5
"""Below it one is taken for normalised: far from what noise or a bicubic resize reaches."""
_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}  # floating-point images are 0..1 already


def white(images: Tensor) -> float:
    """The value that means 1 in ``images``; integers other than uint8 and uint16 raise :class:`UserError`."""
    if not images.is_floating_point() and images.dtype not in _WHITE:
        raise UserError(
            "images",
            f"expected uint8, uint16 or floating point, got {images.dtype}",
            "convert them: an integer says no range",
        )
    return _WHITE.get(images.dtype, 1.0)


def to_unit(images: Tensor) -> Tensor:
    """Images of any accepted dtype as float32, 0..1."""
    return images.float() / white(images)


def are_recordings(images: Tensor) -> bool:
    """Whether a batch is one of recordings: rows of uint16."""
    return images.dtype == torch.uint16 and images.shape[-2] == 1


def require_batch(images: Any) -> None:
    """Raise :class:`UserError` for what is no batch of images, a tensor [B, C, H, W], B from 1 up."""
    if not isinstance(images, Tensor):
        kind = f"{type(images).__module__.partition('.')[0]} {type(images).__name__}".removeprefix("builtins ")
        remedy = "load_predictor(model) takes files, PIL images and arrays; or stack them: torch.from_numpy(rgb).permute(2, 0, 1)[None]"
        raise UserError("images", f"expected a tensor [B, C, H, W], got {kind}", remedy)
    if images.ndim != 4:
        remedy = "of a single image, give image[None]"
        raise UserError("images", f"expected a batch [B, C, H, W], got {list(images.shape)}", remedy)
    if not torch.compiler.is_compiling() and not images.numel():
        raise UserError("images", f"a batch without pixels, {list(images.shape)}", "give at least one image")


def require_channels(images: Tensor, channels: int) -> None:
    """Raise :class:`UserError` for what is no batch of images with so many channels, and say so where these come last."""
    if images.ndim == 4 and images.shape[1] == channels:
        return
    last = images.ndim == 4 and images.shape[3] == channels
    remedy = (
        "images.permute(0, 3, 1, 2) puts the channels first" if last else "build the model with as many in_channels"
    )
    raise UserError("images", f"expected [B, {channels}, H, W], got {list(images.shape)}", remedy)


def require_unit(images: Tensor, *, finite: bool = False) -> None:
    """Raise :class:`UserError` for floating-point images of 0..255, for such as are normalised already, and with ``finite`` for NaN.
    Only on the CPU, where looking makes nobody wait."""
    if not images.is_floating_point() or not lies_on_cpu(images):
        return
    least, largest = (float(value.float().numpy()) for value in images.detach().aminmax())
    if finite and largest != largest:
        raise UserError("images", "expected floating point in 0..1, found nan", "replace what is no number")
    if largest > MOST:
        raise UserError("images", f"expected floating point in 0..1, found {largest:g}", "give uint8, or divide by 255")
    if least < LEAST:
        remedy = (
            "give them as they were before: the model normalises; model(images, normalized=True) takes them as they are"
        )
        raise UserError("images", f"expected floating point in 0..1, found {least:g}: normalised already?", remedy)


def lies_on_cpu(tensor: Tensor) -> bool:
    """Whether values can be looked at without making anybody wait: of a plain tensor in main memory, in no graph that is made."""
    graph = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return not graph and type(tensor) is Tensor and tensor.device.type == "cpu" and bool(tensor.numel())


def top_left(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left [B, C, H, W] of larger maps, ``size`` being (H, W)."""
    height, width = size
    if not torch.compiler.is_exporting():
        return maps[..., :height, :width]
    # A slice would make an exported graph refuse half of the sizes.
    rows, columns = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    return maps.index_select(2, rows).index_select(3, columns)
