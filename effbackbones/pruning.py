"""Structured pruning of EfficientNets: whole channels of the middle of each MBConv block, and of its squeeze-excite, are taken out.

What is left is an ordinary model: its backbone options ``middle`` and ``squeezed`` say the widths, and nothing here is needed to load,
train or export it. A middle channel touches the expansion and its batch norm, the depthwise convolution and its own, both layers of
squeeze-excite, and the input of the projection; no channel that a block passes on changes, so heads stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from effbackbones.backbones.blocks import MBConv
from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.build import build_model
from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.inference.exported import ExportedModel
from effbackbones.model import Model

LEAST = 0.1
"""Share of a block's middle that stays at least, so that no block is cut off."""


@dataclass(frozen=True)
class Block:
    """A block that can be pruned: its ``place`` among all, how important each channel of its middle and of its squeeze-excite is (float
    [middle], [squeezed]), and the multiply-adds that a channel of the middle takes."""

    place: int
    middle: Tensor
    squeezed: Tensor
    work: float


@dataclass(frozen=True)
class Kept:
    """The channels of a block that stay, ascending: int64 each."""

    middle: Tensor
    squeezed: Tensor


def blocks_of(model: Model) -> list[MBConv]:
    """The blocks of a model's backbone, in order. One that is no EfficientNet, or cannot be built again, raises :class:`UserError`."""
    backbone = model.backbone.network
    if isinstance(model, ExportedModel):
        raise UserError(
            "prune", "an exported graph stays as it is", "prune the model that it was exported from, and export that"
        )
    if not isinstance(backbone, EfficientNet):
        what = f"{backbone.name} is no EfficientNet: which of its channels belong together is not known"
        raise UserError("prune", what, "prune a model on b0 to b7 or lite0 to lite4")
    if "backbone" not in model.config or model.folded:
        raise UserError("prune", "this model does not know how it was built", "give one that build_model made")
    return [cast(MBConv, block) for stage in backbone.stages for block in cast(nn.Sequential, stage)]


def magnitudes(block: MBConv) -> tuple[Tensor, Tensor]:
    """Importance of the channels of the middle and of squeeze-excite by the size of their weights: the 2-norm over all that belongs to
    one, the depthwise filter by the scale of its batch norm over its deviation (Li et al., "Pruning filters for efficient convnets",
    2017, with the 2-norm; groups as Fang et al., "DepGraph", 2023)."""
    parts = [_scaled(block.depthwise).flatten(1), block.project.conv.weight.flatten(1).t()]
    if hasattr(block, "expand"):
        parts.append(_scaled(block.expand).flatten(1))
    squeezed = torch.zeros(0)
    if hasattr(block, "squeeze_excite"):
        gate = block.squeeze_excite
        squeezed = torch.cat([gate.reduce.weight, gate.reduce.bias[:, None], gate.expand.weight.t()], 1).norm(dim=1)
    return torch.cat(parts, 1).norm(dim=1).detach().float(), squeezed.detach().float()


def _scaled(conv: Any) -> Tensor:
    norm = conv.bn
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    scaled: Tensor = conv.conv.weight * scale[:, None, None, None]
    return scaled


def sensitivities(block: MBConv) -> tuple[Tensor, Tensor]:
    """What the loss is thought to change by without each channel, of the gradients that the parameters hold now: the square of the first
    term of its series, by the depthwise batch norm as a gate, and by the reduction of squeeze-excite (Molchanov et al., "Importance
    estimation for neural network pruning", 2019, equation 8). To be added up over batches."""
    norm = block.depthwise.bn
    squeezed = torch.zeros(0)
    if hasattr(block, "squeeze_excite"):
        layer: nn.Linear = block.squeeze_excite.reduce
        squeezed = (_product(layer.weight).sum(1) + _product(layer.bias)).square()
    return (_product(norm.weight) + _product(norm.bias)).square(), squeezed


def _product(parameter: Any) -> Tensor:
    if parameter.grad is None:
        raise UserError("prune", "no gradient reaches the backbone", "do not freeze it")
    product: Tensor = parameter.detach() * parameter.grad
    return product.float()


def describe(model: Model, importances: Sequence[tuple[Tensor, Tensor]]) -> list[Block]:
    """The blocks that can be pruned, with the ``importances`` of all blocks in order and the work of each of their channels on an image of
    the model's size. Blocks without an expansion are left out: their middle is the map that the block before passes on."""
    from torch.utils.flop_counter import FlopCounterMode  # seldom wanted, and slow to import

    blocks, training = blocks_of(model), model.training
    device = next(model.parameters()).device
    images = torch.zeros(1, len(model.image_spec.mean), *model.image_spec.size, device=device)
    try:
        with FlopCounterMode(display=False, depth=8) as counter, torch.no_grad():
            model.eval()(images, ImageSizes.of(images))
    finally:
        model.train(training)
    names = {id(module): f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    found = []
    for place, (block, (middle, squeezed)) in enumerate(zip(blocks, importances, strict=True)):
        if hasattr(block, "expand"):  # all that it does grows with its middle
            work = sum(counter.get_flop_counts()[names[id(block)]].values()) / 2
            found.append(Block(place, middle.cpu(), squeezed.cpu(), work / len(middle)))
    return found


def choose(blocks: Sequence[Block], excess: float, *, multiple: int = 8, by_work: bool = False) -> dict[int, Kept]:
    """Which channels stay, by the place of the block, so that at least ``excess`` multiply-adds are saved: the least important go first,
    ``multiple`` at a time, so that what stays is a multiple of it; of each block :data:`LEAST` stays.

    Importances of different blocks are compared as shares of their block's mean; ``by_work``: as they are, for each multiply-add that is
    saved, which suits those that estimate a loss. Squeeze-excite keeps the share that its block keeps. What cannot be saved raises
    :class:`UserError`.
    """
    chunks = []
    for block in blocks:
        order = block.middle.argsort()
        scores = block.middle[order].double() / (1.0 if by_work else float(block.middle.double().mean()) or 1.0)
        count = len(scores)
        first = count % multiple or multiple
        least = max(multiple, -(-int(LEAST * count) // multiple) * multiple)
        start = 0
        for stop in range(first, count - least + 1, multiple):
            value = float(scores[start:stop].mean()) / (block.work if by_work else 1.0)
            chunks.append((value, block.place, stop, (stop - start) * block.work))
            start = stop
    gone = dict.fromkeys((block.place for block in blocks), 0)
    saved = 0.0
    for _, place, stop, work in sorted(chunks):
        if saved >= excess:
            break
        gone[place], saved = stop, saved + work
    if saved < excess:
        what = (
            f"{excess / 1e6:.4g} M multiply-adds are to go, and channels of the middle save at most {saved / 1e6:.4g} M"
        )
        raise UserError("--target", what, "ask for less, or take a smaller backbone")
    return {block.place: _kept(block, gone[block.place]) for block in blocks}


def _kept(block: Block, gone: int) -> Kept:
    middle = block.middle.argsort()[gone:].sort().values
    count = len(block.squeezed)
    few = max(1, round(count * len(middle) / len(block.middle))) if count else 0
    return Kept(middle, block.squeezed.argsort()[count - few :].sort().values)


def pruned(model: Model, kept: Mapping[int, Kept]) -> Model:
    """A new model, on the CPU and in the mode of ``model``, with the channels that are ``kept``, by the place of their block; others stay
    whole. It gives what ``model`` gives where the channels that are gone say 0."""
    blocks, backbone = blocks_of(model), cast(EfficientNet, model.backbone.network)
    widths, squeezed = (list(row) for row in backbone.block_widths)
    for place, own in kept.items():
        widths[place], squeezed[place] = len(own.middle), len(own.squeezed)
    options = {**(model.config.get("backbone_options") or {}), "middle": widths}
    if any(hasattr(block, "squeeze_excite") for block in blocks):
        options["squeezed"] = squeezed
    config: Any = {**model.config, "backbone_options": options}
    small = build_model(weights=None, **config)
    small.use_image_spec(model.image_spec)
    small.classes, small.provenance, small.reading = model.classes, dict(model.provenance), model.reading
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    names = {id(module): name for name, module in model.named_modules()}
    for place, own in kept.items():
        prefix = f"{names[id(blocks[place])]}."
        for name in [name for name in state if name.startswith(prefix)]:
            state[name] = _cut(name.removeprefix(prefix), state[name], own)
    small.load_state_dict(state)
    return small.train(model.training)


def _cut(name: str, tensor: Tensor, kept: Kept) -> Tensor:
    """A tensor of a block without the channels that are gone; ``name`` within the block."""
    if tensor.ndim == 0:  # how many batches a norm has seen
        return tensor
    if name.startswith(("expand.", "depthwise.")):
        return tensor[kept.middle]
    if name == "project.conv.weight":
        return tensor[:, kept.middle]
    if name.startswith("squeeze_excite.reduce."):
        tensor = tensor[kept.squeezed]
        return tensor[:, kept.middle] if tensor.ndim > 1 else tensor
    if name.startswith("squeeze_excite.expand."):
        tensor = tensor[kept.middle]
        return tensor[:, kept.squeezed] if tensor.ndim > 1 else tensor
    return tensor
