"""EfficientNet B0-B7 and Lite0-Lite4 as multi-scale backbones: stem and stages only, no classifier."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from effbackbones.backbones.blocks import MBConv
from effbackbones.backbones.convolution import Activation, ConvNorm, Numerics
from effbackbones.backbones.scaling import (
    LEVEL_STAGES,
    STAGES,
    Scaling,
    default_image_spec,
    scaling,
    stage_channels,
    stage_layers,
    stem_channels,
)
from effbackbones.contracts import LEVELS, TAPS, Backbone, FeatureSpec, ImageSpec
from effbackbones.errors import UserError, nearest
from effbackbones.weights.loading import adapt_stem, load_state
from effbackbones.weights.pretrained import Adopted, Pretrained
from effbackbones.weights.reading import read_weights

DEFAULT_NUMERICS = {"b": "torch", "lite": "tf"}
_MAPS: Mapping[str, Any] = {"stem_stride": 2, "tap": "stage", "output_stride": 32}
"""Options that change the maps and not the weights, with their defaults."""

_WIDTHS = ("middle", "squeezed")
_LARGEST_MULTIPLIER = 1000


class EfficientNet(Backbone):
    """Any EfficientNet of the b or lite family: normalised float images [B, in_channels, H, W] to maps C1..C5.

    ``name`` is a row of :mod:`effbackbones.backbones.scaling` (``b0``), a name in between (``b2.5``) or a :class:`Scaling`; ``width`` and
    ``depth`` replace its multipliers.

    ``levels``: the maps to return, any subset of C1..C5 (default all), given finest first; blocks behind the last one are
    not built. ``tap``: ``stage`` takes each from the last block at its stride; ``stem`` makes C1 the stem's output, as
    segmentation-models-pytorch (smp) does; ``smp_b0`` makes C4 besides that of the first block of stage 5, as smp's own B0 does.

    ``numerics``: a :class:`Numerics` or its name; default ``torch`` for b, ``tf`` for lite.

    ``image_spec``: default by family (:func:`default_image_spec`).

    ``output_stride`` 8 or 16 keeps deeper maps at that stride by dilation instead of striding: behind the block that loses its
    stride, as timm does, or with smp's taps in the whole level, as smp does. ``stem_stride`` 1 halves all strides (with
    ``output_stride`` too): for images of 32 pixels.

    ``drop_path``: probability that the linear rule would give to the block after the last, in [0, 1); block i of N has
    ``drop_path * i / N``, N counting the blocks that are not built as well.

    ``checkpointing``: recompute the blocks' activations in the backward pass; equal gradients, batch-norm statistics
    updated once. Left to the compiler under ``torch.compile``, whose partitioner decides itself what to recompute.

    ``middle`` and ``squeezed``: channels of the middle of each block, and of its squeeze-excite, one number for each block of the table,
    also for those that are not built (:mod:`effbackbones.pruning` makes such networks); default: as published.

    Options out of range raise :class:`UserError`.
    """

    def __init__(
        self,
        name: str | Scaling = "b0",
        *,
        levels: Sequence[str] | None = None,
        in_channels: int = 3,
        numerics: Numerics | str | None = None,
        image_spec: ImageSpec | None = None,
        tap: str = "stage",
        output_stride: int = 32,
        stem_stride: int = 2,
        drop_path: float = 0.2,
        checkpointing: bool = False,
        width: float | None = None,
        depth: float | None = None,
        middle: Sequence[int] | None = None,
        squeezed: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        config = scaling(name) if isinstance(name, str) else name
        config = replace(
            config, width=config.width if width is None else width, depth=config.depth if depth is None else depth
        )
        _check_options(
            tap=tap, output_stride=output_stride, stem_stride=stem_stride, drop_path=drop_path, in_channels=in_channels
        )
        self.name = config.name
        self.config = config
        for option, value in (("width", config.width), ("depth", config.depth)):
            if not 0 < value <= _LARGEST_MULTIPLIER:
                what = f"expected a multiplier in (0, {_LARGEST_MULTIPLIER}], got {value}"
                raise UserError(option, what, "b7 has 2 and 3.1")
        self.numerics = Numerics.named(DEFAULT_NUMERICS[config.family] if numerics is None else numerics)
        self.image_spec = default_image_spec(config, in_channels) if image_spec is None else image_spec
        if len(self.image_spec.mean) != in_channels:
            what = f"has {len(self.image_spec.mean)} means for {in_channels} channels"
            raise UserError("image_spec", what, "give one mean and std per channel")
        self.checkpointing = checkpointing
        self.tap = tap
        self.in_channels = in_channels
        self._pruned = {"middle": middle, "squeezed": squeezed}
        self.block_widths = _block_widths(config, middle, squeezed)
        """Channels of the middle of each block of the table, and of its squeeze-excite."""
        self._map_options = {"stem_stride": stem_stride, "tap": tap, "output_stride": output_stride}
        names = _ordered_levels(config.name, levels)
        self._blocks_below = _blocks_below(config, tap)
        activation: Activation = "relu6" if config.family == "lite" else "silu"
        self.stem = ConvNorm(
            in_channels,
            stem_channels(config),
            3,
            numerics=self.numerics,
            activation=activation,
            stride=stem_stride,
            nominal_size=config.resolution,
        )
        stages = _stages(
            config,
            self._blocks_below[names[-1]],
            None if tap == "stage" else tuple(self._blocks_below.values()),
            numerics=self.numerics,
            stem_stride=stem_stride,
            output_stride=output_stride,
            drop_path=drop_path,
            widths=self.block_widths,
        )
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        channels = {level: stage_channels(config)[stage - 1] for level, stage in LEVEL_STAGES.items()}
        if tap != "stage":
            channels["C1"] = stem_channels(config)
        strides = {level: min(2**i, output_stride) * stem_stride // 2 for i, level in enumerate(LEVELS, 1)}
        # TensorFlow pads an even side by more behind than in front, so that a cell looks at the last pixel of its stride.
        centre = {"symmetric": 0.0, "same": 1.0, "same_static": 0.5}[self.numerics.padding]
        self.feature_spec = FeatureSpec(
            config.name,
            names,
            tuple(channels[level] for level in names),
            tuple(strides[level] for level in names),
            self.numerics.bn_eps,
            self.numerics.bn_momentum,
            centres=tuple(centre * (strides[level] - 1) for level in names),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised float images [B, in_channels, H, W], H and W from 1 up, to one map [B, channels, ceil(H / stride),
        ceil(W / stride)] per level, finest first. Anything else raises :class:`UserError`."""
        if images.ndim != 4 or images.shape[1] != self.in_channels or not images.is_floating_point():
            what = f"expected normalised float [B, {self.in_channels}, H, W], got {images.dtype} {list(images.shape)}"
            remedy = "normalise them, or build the backbone with backbone_options in_channels of as many as they have"
            raise UserError("images", what, remedy)
        x = self.stem(images)
        wanted = [self._blocks_below[level] for level in self.feature_spec.names]
        maps = {0: x}
        for count, block in enumerate(self._blocks(), 1):
            x = self._run(block, x)
            if count in wanted:
                maps[count] = x
        return [maps[count] for count in wanted]

    def _blocks(self) -> list[MBConv]:
        return [cast(MBConv, block) for stage in self.stages for block in cast(nn.Sequential, stage)]

    def _run(self, block: MBConv, x: Tensor) -> Tensor:
        """One block, under activation checkpointing where that is asked for and can help."""
        if not self.checkpointing or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            out: Tensor = block(x)
            return out

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _still_statistics(block)

        draws = block.training and block.skip and block.drop_probability > 0
        recomputed: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts)
        return recomputed

    @classmethod
    def read_weights(cls, weights: str | Path, name: str, options: Mapping[str, Any]) -> Pretrained:
        """Any published source, the files of six libraries, and our own."""
        read = read_weights(weights, name, numerics=options.get("numerics"), image_spec=options.get("image_spec"))
        spec = read.image_spec.for_channels(options.get("in_channels", 3))
        saved = (read.config or {}).get("backbone_options") or {}
        widths = {name: tuple(saved[name]) for name in _WIDTHS if saved.get(name)}  # those of a pruned network
        return replace(read, options={**read.options, **widths, "image_spec": spec})

    def adopt(self, weights: Pretrained) -> Adopted:
        """As :meth:`Backbone.adopt`, the stem adapted to ``in_channels``; where the head of these weights was trained on other
        maps, that is said."""
        stem = "stem.conv.weight"
        state = {
            key: adapt_stem(tensor, self.in_channels) if key == stem else tensor
            for key, tensor in weights.backbone.items()
        }
        what = f"backbone {weights.name} from {weights.origin}"
        report = load_state(self, state, what=what, known=weights.backbone)
        of_file: Mapping[str, Any] = weights.foreign.maps if weights.foreign else {}
        if weights.config:
            saved = weights.config.get("backbone_options") or {}
            of_file = {name: saved.get(name) or default for name, default in _MAPS.items()}
        differ = (
            f"{weights.origin} was trained with {name} {of_file[name]}, here it is {now}: the same weights, other maps"
            for name, now in self._map_options.items()
            if of_file.get(name, now) != now
        )
        bands = weights.backbone[stem].shape[1] if stem in weights.backbone else self.in_channels
        adapted = (
            (f"{weights.origin} has a stem for {bands} channels, adapted to {self.in_channels}",)
            if bands != self.in_channels
            else ()
        )
        return Adopted(report, (*adapted, *differ))

    def settled(self) -> dict[str, Any]:
        """Numerics and image spec, the widths of a pruned network, and what a head asked for: whoever loads these weights elsewhere can
        then be told."""
        asked: dict[str, Any] = {name: value for name, value in self._map_options.items() if value != _MAPS[name]}
        asked |= {name: list(widths) for name, widths in self._pruned.items() if widths is not None}
        return {"numerics": asdict(self.numerics), "image_spec": self.image_spec.record(), **asked}

    def level_modules(self) -> Mapping[str, tuple[nn.Module, ...]]:
        pieces: dict[str, tuple[nn.Module, ...]] = {"stem": (self.stem,)}
        blocks, done = self._blocks(), 0
        for level, upto in self._blocks_below.items():
            if done < len(blocks) or upto == 0:
                pieces[level] = tuple(blocks[done:upto])
                done = upto
        return pieces


def _blocks_below(config: Scaling, tap: str) -> dict[str, int]:
    """How many blocks lie below each level."""
    ends = (0, *accumulate(stage_layers(config)))
    below = {level: ends[stage] for level, stage in LEVEL_STAGES.items()}
    if tap != "stage":
        below["C1"] = 0
    if tap == "smp_b0":
        below["C4"] = ends[4] + 1
    return below


def _block_widths(
    config: Scaling, middle: Sequence[int] | None, squeezed: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels of the middle of each block of the table and of its squeeze-excite, those published or those given."""
    inputs, found = (stem_channels(config), *stage_channels(config)), []
    layers = stage_layers(config)
    for number, (row, count) in enumerate(zip(STAGES, layers, strict=True)):
        for layer in range(count):
            channels = inputs[number] if layer == 0 else inputs[number + 1]
            found.append((channels * row.expand, max(1, channels // 4)))
    published = tuple(zip(*found, strict=True))
    widths = []
    for option, own, given in zip(_WIDTHS, published, (middle, squeezed), strict=True):
        if given is not None and (len(given) != len(own) or min(given) < 1):
            what = f"expected {len(own)} widths from 1 up, one for each block of {config.name}, got {len(given)}: {list(given)}"
            raise UserError(option, what[:200], "leave it out: it comes from the file of a pruned model")
        widths.append(own if given is None else tuple(given))
    if widths[0][: layers[0]] != published[0][: layers[0]]:
        what = f"the first {layers[0]} blocks have no expansion, their middle is what they are given: {list(published[0][: layers[0]])}"
        raise UserError("middle", what, "correct it")
    return widths[0], widths[1]


def _stages(
    config: Scaling,
    count: int,
    smp_levels: tuple[int, ...] | None,
    *,
    numerics: Numerics,
    stem_stride: int,
    output_stride: int,
    drop_path: float,
    widths: tuple[Sequence[int], Sequence[int]],
) -> Iterator[list[MBConv]]:
    """The first ``count`` blocks, by stage.

    A stride that would pass ``output_stride`` becomes dilation: as timm does it, or, given ``smp_levels``, the blocks below
    each level, as smp does it.
    """
    inputs = (stem_channels(config), *stage_channels(config))
    layers = stage_layers(config)
    asked = [row.stride if layer == 0 else 1 for row, n in zip(STAGES, layers, strict=True) for layer in range(n)]
    strides = _kept_strides(asked, output_stride)
    sizes = _nominal_sizes(strides, -(-config.resolution // stem_stride))
    dilations = (
        _dilations_of_levels(len(asked), smp_levels, output_stride) if smp_levels else _dilations_behind(asked, strides)
    )
    index = 0
    for number, row in enumerate(STAGES):
        blocks = []
        for layer in range(min(layers[number], count - index)):
            block = MBConv(
                inputs[number] if layer == 0 else inputs[number + 1],
                inputs[number + 1],
                row.kernel,
                stride=strides[index],
                dilation=dilations[index],
                expand=row.expand,
                squeeze_excite=config.family == "b",
                activation="relu6" if config.family == "lite" else "silu",
                numerics=numerics,
                drop_path=drop_path * index / len(asked),
                nominal_size=sizes[index],
                middle=widths[0][index],
                squeezed=widths[1][index],
            )
            blocks.append(block)
            index += 1
        if blocks:
            yield blocks


def _kept_strides(asked: Sequence[int], output_stride: int) -> list[int]:
    """The strides ``asked`` for by the blocks behind the stem, where all together stay within ``output_stride``; else 1."""
    kept, total = [], 2
    for step in asked:
        kept.append(step if total * step <= output_stride else 1)
        total *= kept[-1]
    return kept


def _nominal_sizes(strides: Sequence[int], size: int) -> list[int]:
    """The side of each block's input, that of the first being ``size``."""
    return list(accumulate(strides[:-1], lambda side, stride: -(-side // stride), initial=size))


def _dilations_behind(asked: Sequence[int], kept: Sequence[int]) -> list[int]:
    """timm's: a stride that is not kept dilates the blocks behind its own, so that timm's dilated weights fit."""
    lost = [wanted // stride for wanted, stride in zip(asked, kept, strict=True)]
    return list(accumulate(lost[:-1], mul, initial=1))


def _dilations_of_levels(count: int, below: Sequence[int], output_stride: int) -> list[int]:
    """smp's: all blocks of a level are dilated by what its stride lacks. ``below``: blocks below each level."""
    levels = [1 + sum(blocks <= index for blocks in below) for index in range(count)]
    return [max(1, 2**level // output_stride) for level in levels]


@contextmanager
def _still_statistics(module: nn.Module) -> Iterator[None]:
    """Within, batch norms record their statistics in copies that are then thrown away: a recomputation must not count twice.

    Copies, since what a batch norm saves for the backward pass must be the same both times.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if value is None else value.clone() for name, value in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def _ordered_levels(name: str, levels: Sequence[str] | None) -> tuple[str, ...]:
    wanted = LEVELS if levels is None else tuple(levels)
    for level in wanted:
        if level not in LEVELS:
            raise UserError(f"level {level!r}", f"backbone {name!r} has no such level", nearest(str(level), LEVELS))
    if not wanted:
        raise UserError("levels", f"backbone {name!r} was asked for no level", f"choose from {', '.join(LEVELS)}")
    return tuple(level for level in LEVELS if level in wanted)


def _check_options(*, tap: str, output_stride: int, stem_stride: int, drop_path: float, in_channels: int) -> None:
    choices = (("tap", tap, TAPS), ("output_stride", output_stride, (8, 16, 32)), ("stem_stride", stem_stride, (1, 2)))
    for option, value, allowed in choices:
        if value not in allowed:
            raise UserError(option, f"unknown value {value!r}", nearest(str(value), map(str, allowed)))
    if not 0 <= drop_path < 1:
        raise UserError("drop_path", f"expected a probability in [0, 1), got {drop_path!r}", "0.2 is published")
    if in_channels < 1:
        raise UserError("in_channels", f"expected at least 1, got {in_channels!r}", "count the channels of the images")
