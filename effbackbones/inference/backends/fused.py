"""Convolutions with their activations in them, by oneDNN, their weights laid out for it once: what eager mode on a CPU can do."""

from typing import Any, Self, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones.convolution import ConvNorm
from effbackbones.backbones.folding import Position, neighbours
from effbackbones.backbones.padding import Conv2dFixed, Conv2dSame

_NAMES: dict[type[nn.Module], tuple[str, tuple[float, ...]]] = {
    nn.Identity: ("none", ()),
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("hardtanh", (0.0, 6.0)),
    nn.SiLU: ("swish", ()),
}
"""What oneDNN calls an activation, and the numbers that it takes."""
_PLAIN = (nn.Conv2d, Conv2dSame, Conv2dFixed)
_MOST_LAYOUTS = 10
"""Of so many sizes a convolution keeps its weights laid out: of two images, where it sees five levels of each."""
_LAID_OUT = (torch.float32, torch.bfloat16)


class FusedConv(nn.Module):
    """``conv`` and ``act`` in one pass; one after the other where that cannot be: with gradients, under autocast, in a graph that is made,
    on another device. Weights are laid out on first use, and anew when they change."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv, act
        self._packed: dict[tuple[int, ...], tuple[Tensor, list[int]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if not _may_fuse(x, conv.weight):
            plain: Tensor = self.act(conv(x))
            return plain
        if isinstance(conv, Conv2dFixed):
            x = F.pad(x, conv.sides(*x.shape[-2:]))
        odd = (x.shape[-2] % 2, x.shape[-1] % 2) if isinstance(conv, Conv2dSame) else (0, 0)
        key = (conv.weight._version, *x.shape)
        found = self._packed.get(key)
        if found is None:
            # Laid out for another size they can cost more than they save: U-Net B3 1.5 times as long.
            if len(self._packed) >= _MOST_LAYOUTS:
                self._packed = dict(list(self._packed.items())[1:])  # a new one: other threads may read the old
            found = self._packed[key] = self._pack(odd, list(x.shape))
        weight, padding = found
        name, numbers = _NAMES[type(self.act)]
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups, name, numbers, ""
        )
        return out

    def _pack(self, odd: tuple[int, int], shape: list[int]) -> tuple[Tensor, list[int]]:
        """Weights as oneDNN wants them, and the padding; for an input of ``shape``, of ``odd`` (or even) sides."""
        conv = self.conv
        weight, padding = conv.weight.detach(), [int(side) for side in conv.padding]
        if isinstance(conv, Conv2dSame):  # a zero tap in front of the kernel, as it does by itself
            weight = F.pad(weight, (1 - odd[1], 0, 1 - odd[0], 0))
            padding = [side // 2 for side in conv.kernel_size]
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        return reorder(weight.contiguous(), padding, conv.stride, conv.dilation, conv.groups, shape), padding

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        self._packed = {}
        module: Self = super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]  # untyped in torch
        return module

    def __getattr__(self, name: str) -> Any:
        """Also what the convolution has: ``weight``, ``stride``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("conv"), name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}


def _may_fuse(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or x.device.type != "cpu":
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    fits = x.dtype == weight.dtype and x.dtype in _LAID_OUT and x.ndim == 4 and x.numel() > 0 and type(x) is Tensor
    return fits and not torch.is_autocast_enabled("cpu") and bool(torch.backends.mkldnn.enabled)


def fuse(module: nn.Module) -> None:
    """Make convolutions of a folded ``module``, and activations that follow them, a :class:`FusedConv` each, in place. Without oneDNN, or
    for another arithmetic than float32 and bfloat16, nothing is done."""
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return
    for part in module.modules():
        if (
            isinstance(part, ConvNorm)
            and type(part.bn) is nn.Identity
            and type(part.act) in _NAMES
            and _fits(part.conv)
        ):
            part.conv, part.act = FusedConv(part.conv, part.act), nn.Identity()  # type: ignore[assignment]  # is called alike
    for first, second in neighbours(module):
        if type(second.module) in _NAMES and _fits(first.module):
            first.replace(FusedConv(first.module, second.module))
            second.replace(nn.Identity())
    places = [
        Position(parent, name, child)
        for parent in module.modules()
        if not isinstance(parent, FusedConv)
        for name, child in parent.named_children()
    ]
    for place in places:
        if _fits(place.module):
            place.replace(FusedConv(place.module, nn.Identity()))


def _fits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) not in _PLAIN or module._forward_hooks or module._forward_pre_hooks:
        return False
    conv = cast(nn.Conv2d, module)
    widens = (
        conv.stride == (2, 2) and conv.dilation == (1, 1) and all(side % 2 and side > 2 for side in conv.kernel_size)
    )
    if isinstance(conv, Conv2dSame) and not widens:
        return False
    return conv.weight.dtype in _LAID_OUT and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
