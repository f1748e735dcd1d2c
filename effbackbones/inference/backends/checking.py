"""Whether a faster way gives what the model gives: by how much the two may differ, and on what they are compared."""

from collections.abc import Sequence

import torch
from torch import Tensor

BOUND = 1e-4
"""The largest difference in float32, as a share of the largest value of a tensor. Rounding makes 1e-6 to 1e-5."""
BOUND_GPU = 5e-3
"""The same on a GPU, whose convolutions may compute in TF32."""
BOUND_NARROW = 5e-2
"""The same in bfloat16 and float16. Rounding makes 1e-2 in a deep network."""
_FIXED = 1e-5  # of what is the same for all images, such as anchors


def bound_of(device: str, *, narrow: bool) -> float:
    """The bound for an arithmetic."""
    return BOUND_NARROW if narrow else BOUND if device == "cpu" else BOUND_GPU


def difference(expected: Sequence[Tensor], found: Sequence[Tensor], batch: int, bound: float) -> str | None:
    """What is wrong with the tensors ``found``, or None: numbers, shapes and values are as ``expected``, values within ``bound`` of the
    largest one; those that do not go by the ``batch`` of images within 1e-5."""
    if len(expected) != len(found):
        return f"it gives {len(found)} tensors, the model {len(expected)}"
    for place, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one.shape != other.shape:
            return f"output {place} is {list(other.shape)}, of the model {list(one.shape)}"
        if not one.numel():
            continue
        limit = bound if one.ndim and one.shape[0] == batch else _FIXED
        largest, gap = one.double().abs().max(), (one.double() - other.double()).abs().max()
        share = float(gap / largest) if largest > 0 else float(gap)
        if not share <= limit:  # NaN is not
            return (
                f"output {place} differs from the model's by {share:.1e} of its largest value, allowed are {limit:.0e}"
            )
    return None


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether there is anything to compare with."""
    return all(bool(one.isfinite().all()) for one in tensors)


def drawn_like(images: Tensor) -> Tensor:
    """Images of noise, the same each time, of the kind of ``images``: those that are given may show nothing."""
    generator = torch.Generator().manual_seed(0)
    if images.is_floating_point():
        drawn = torch.rand(images.shape, generator=generator).to(images.dtype)
    else:
        most = torch.iinfo(images.dtype).max
        drawn = torch.randint(0, most + 1, images.shape, generator=generator).to(images.dtype)
    return drawn.to(images.device)
