"""How networks lie in memory: channels last wherever convolutions look at neighbours, which is where it is the fast order.

A convolution whose weights lie so gives maps that do, whatever its input is; so the weights decide, and images need no care.
"""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


def lies_channels_last(network: nn.Module) -> bool:
    """Whether ``network`` is one of convolutions: some kernel is wider than its stride. Transformers, which only cut images into
    patches, are not, and copy their tokens if maps lie channels last."""
    return any(
        isinstance(part, _ConvNd) and part.weight.ndim == 4 and max(part.kernel_size) > max(part.stride)
        for part in network.modules()
    )


def lay_out(network: nn.Module) -> None:
    """Bring the weights of a network of convolutions into that order, in place; names and values stay. 1x1 convolutions beside them
    too, so that all maps are in it."""
    if not lies_channels_last(network):
        return
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.to(memory_format=torch.channels_last)
