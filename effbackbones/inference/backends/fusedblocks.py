"""MBConv blocks on a GPU in 16 bits: three passes over memory instead of ten, where that is quicker than the library there."""

from torch import Tensor, nn

from effbackbones.backbones import passes
from effbackbones.backbones.blocks import MBConv
from effbackbones.backbones.convolution import ConvNorm
from effbackbones.backbones.padding import Conv2dFixed, Conv2dSame
from effbackbones.inference.backends.fusedlayers import NARROW, DepthwiseLayer, PointwiseLayer, kernels
from effbackbones.inference.backends.tiles import ACTS


class FusedBlock(nn.Module):
    """An :class:`MBConv` that only answers."""

    drop_probability = 0.0

    def __init__(self, block: MBConv) -> None:
        super().__init__()
        expand = getattr(block, "expand", None)
        self.expand = None if expand is None else PointwiseLayer(expand)
        self.squeeze_excite = getattr(block, "squeeze_excite", None)
        self.depthwise = DepthwiseLayer(block.depthwise, pooled=self.squeeze_excite is not None)
        self.project = PointwiseLayer(block.project)
        self.skip = block.skip

    def forward(self, x: Tensor) -> Tensor:
        """As the block's."""
        y, means = self.depthwise(x if self.expand is None else self.expand(x))
        gate = None if self.squeeze_excite is None else self.squeeze_excite.gate(means)
        out: Tensor = self.project(y, gate, x if self.skip else None)
        return out


def fuse_blocks(module: nn.Module) -> None:
    """Make each :class:`MBConv` of a folded ``module`` a :class:`FusedBlock` and each pointwise :class:`ConvNorm` elsewhere a
    :class:`PointwiseLayer`, in place, where weights are of 16 bits and nobody watches a layer. Without Triton nothing is done."""
    if kernels() is None:
        return
    for name, child in module.named_children():
        if isinstance(child, MBConv):
            if type(child) is MBConv and _block_fits(child):
                module.add_module(name, FusedBlock(child))
        elif isinstance(child, ConvNorm):
            if type(child) is ConvNorm and _is_pointwise(child.conv) and _layer_fits(child):
                module.add_module(name, PointwiseLayer(child))
        else:
            fuse_blocks(child)


def _block_fits(block: MBConv) -> bool:
    pointwise = [block.project, *([block.expand] if hasattr(block, "expand") else [])]
    return (
        _layer_fits(block.depthwise)
        and all(_is_pointwise(one.conv) and _layer_fits(one) for one in pointwise)
        and not passes.watched(*block.modules())
    )


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and tuple(conv.padding) == (0, 0)


def _layer_fits(layer: ConvNorm) -> bool:
    conv = layer.conv
    square = all(len({*sides}) == 1 for sides in (conv.kernel_size, conv.stride, conv.dilation))
    plain = type(conv) in (nn.Conv2d, Conv2dSame, Conv2dFixed) and conv.padding_mode == "zeros" and square
    folded = type(layer.bn) is nn.Identity and conv.bias is not None and conv.weight.dtype in NARROW
    even = conv.in_channels % 8 == 0 and conv.out_channels % 8 == 0  # 16 bytes are read at once
    known = type(layer.act).__name__ in ACTS and not isinstance(conv.padding, str)
    return plain and folded and even and known and not passes.watched(*layer.modules())
