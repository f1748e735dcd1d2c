"""Numbers that no network can have, refused wherever weights come from."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from effbackbones.errors import UserError

_FEW = 3  # a new head may be all 0


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse numbers that are not finite, variances below 0 and weights that are all 0: a network would answer with them, and
    nonsense. So are tensors refused that are no plain numbers."""
    weights = [tensor for tensor in tensors.values() if tensor.ndim > 1]
    for name, tensor in tensors.items():
        if odd := _odd_kind(tensor):
            raise UserError(str(path), f"{name} is {odd}", "save it as plain numbers in floating point")
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            what = f"{name} has {count:,} of {tensor.numel():,} values that are NaN or infinite"
        elif name.endswith("running_var") and tensor.numel() and tensor.min() < 0:
            what = f"{name} has variances below 0, such as {float(tensor.min()):.3g}"
        else:
            continue
        raise UserError(str(path), what, "take an earlier checkpoint, or get the file again")
    if len(weights) > _FEW and not any(bool(tensor.any()) for tensor in weights):
        raise UserError(str(path), "every weight in it is 0", "take an earlier checkpoint, or get the file again")


def _odd_kind(tensor: Tensor) -> str:
    """What a tensor is that no network here can take; empty for plain numbers."""
    if tensor.is_meta:
        return "a shape without values (device meta)"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.is_complex():
        return f"complex ({tensor.dtype})"
    return "" if tensor.layout == torch.strided else f"sparse ({tensor.layout})"
