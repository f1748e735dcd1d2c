"""Key names of the EfficientNets of torchvision, timm, lukemelas (with segmentation-models-pytorch), zylo117, Keras and ours, and
the maps between them.

Pure functions on names and shapes. Traps they settle: timm's ``conv_pw`` projects where the expand ratio is 1 and expands
elsewhere; lukemelas numbers blocks through all stages; torchvision numbers the parts of a block; Keras counts layers by letters.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from effbackbones.backbones.scaling import SCALINGS, Scaling, stage_channels, stage_layers, stem_channels


@dataclass(frozen=True)
class Dialect:
    """One library's names.

    ``block`` matches a key inside an MBConv block and captures where it is (stage and layer, or one running number) and
    the rest; ``first`` and ``later`` name the parts of blocks of stage 1 (expand ratio 1) and of the others; ``outer`` names
    stem (``stem.*``) and tail (``conv.*``, ``fc``).
    """

    name: str
    block: re.Pattern[str]
    first: Mapping[str, str]
    later: Mapping[str, str]
    outer: Mapping[str, str]
    stage_offset: int = 0

    @property
    def stem(self) -> str:
        """The key of the stem's filters, by which the dialect is told."""
        return next(theirs for theirs, ours in self.outer.items() if ours == "stem.conv") + ".weight"

    def translate(self, key: str) -> str | None:
        """Our name for ``key``, None for one that is no part of the network.

        Blocks become ``stages.{stage}.{layer}.*``, or ``blocks.{number}.*`` where they are numbered through.
        """
        if match := self.block.fullmatch(key):
            *where, rest = match.groups()
            numbers = [ord(text) - ord("a") if text.islower() else int(text) for text in where]
            if len(numbers) == 2:
                numbers[0] -= self.stage_offset
            part, _, leaf = rest.rpartition(".")
            ours = (self.first if numbers[0] == 0 and len(numbers) == 2 else self.later).get(part)
            place = ".".join(["stages" if len(numbers) == 2 else "blocks", *map(str, numbers)])
            return ours and f"{place}.{ours}.{leaf}"
        part, _, leaf = key.rpartition(".")
        return f"{self.outer[part]}.{leaf}" if part in self.outer else None


_DEPTHWISE = ("depthwise.conv", "depthwise.bn")
_SE = ("squeeze_excite.reduce", "squeeze_excite.expand")
_PROJECT = ("project.conv", "project.bn")
_FIRST = (*_DEPTHWISE, *_SE, *_PROJECT)
_LATER = ("expand.conv", "expand.bn", *_FIRST)
_OUTER = ("stem.conv", "stem.bn", "conv.conv", "conv.bn", "fc")


def _parts(theirs: str, ours: Iterable[str]) -> dict[str, str]:
    return dict(zip(theirs.split(), ours, strict=True))


_LUKEMELAS_PARTS = _parts("_expand_conv _bn0 _depthwise_conv _bn1 _se_reduce _se_expand _project_conv _bn2", _LATER)
OURS = Dialect(
    "effbackbones",
    re.compile(r"stages\.(\d+)\.(\d+)\.(.+)"),
    {name: name for name in _FIRST},
    {name: name for name in _LATER},
    {name: name for name in ("stem.conv", "stem.bn")},
)
TORCHVISION = Dialect(
    "torchvision",
    re.compile(r"features\.([1-7])\.(\d+)\.block\.(.+)"),
    _parts("0.0 0.1 1.fc1 1.fc2 2.0 2.1", _FIRST),
    _parts("0.0 0.1 1.0 1.1 2.fc1 2.fc2 3.0 3.1", _LATER),
    _parts("features.0.0 features.0.1 features.8.0 features.8.1 classifier.1", _OUTER),
    stage_offset=1,
)
TIMM = Dialect(
    "timm",
    re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)"),
    _parts("conv_dw bn1 se.conv_reduce se.conv_expand conv_pw bn2", _FIRST),
    _parts("conv_pw bn1 conv_dw bn2 se.conv_reduce se.conv_expand conv_pwl bn3", _LATER),
    _parts("conv_stem bn1 conv_head bn2 classifier", _OUTER),
)
LUKEMELAS = Dialect(
    "lukemelas",
    re.compile(r"_blocks\.(\d+)\.(.+)"),
    _LUKEMELAS_PARTS,
    _LUKEMELAS_PARTS,
    _parts("_conv_stem _bn0 _conv_head _bn1 _fc", _OUTER),
)
_ZYLO117_PARTS = {
    re.sub(r"_(conv|reduce|expand)$", r"_\1.conv", theirs): ours for theirs, ours in _LUKEMELAS_PARTS.items()
}
ZYLO117 = Dialect(  # lukemelas's names, every convolution wrapped in a module that pads
    "zylo117", LUKEMELAS.block, _ZYLO117_PARTS, _ZYLO117_PARTS, _parts("_conv_stem.conv _bn0", _OUTER[:2])
)
KERAS = Dialect(
    "keras",
    re.compile(r"block([1-7])([a-z])_(.+)"),
    _parts("dwconv bn se_reduce se_expand project_conv project_bn", _FIRST),
    _parts("expand_conv expand_bn dwconv bn se_reduce se_expand project_conv project_bn", _LATER),
    _parts("stem_conv stem_bn top_conv top_bn predictions", _OUTER),
    stage_offset=1,
)
DIALECTS = (OURS, TORCHVISION, TIMM, LUKEMELAS, ZYLO117, KERAS)


def clean(key: str) -> str:
    """``key`` without the marks of ``torch.compile`` and of DataParallel."""
    return key.replace("_orig_mod.", "").removeprefix("module.")


@dataclass(frozen=True)
class Shape:
    """What the tensors of a file say about its variant: output channels of each block, in order."""

    stem: int
    blocks: tuple[int, ...]
    squeeze_excite: bool

    def fits(self, row: Scaling) -> bool:
        """Whether this is ``row``, or its beginning (deep stages may have been left out)."""
        family, expected = "b" if self.squeeze_excite else "lite", block_channels(row)
        same = row.family == family and stem_channels(row) == self.stem
        return same and bool(self.blocks) and expected[: len(self.blocks)] == self.blocks


def block_channels(row: Scaling) -> tuple[int, ...]:
    """Output channels of every block of a variant, in order."""
    return tuple(
        width for width, layers in zip(stage_channels(row), stage_layers(row), strict=True) for _ in range(layers)
    )


def shape_of(state: Mapping[str, Tensor]) -> Shape:
    """Read a :class:`Shape` off translated names."""
    outputs = {_place(key): tensor.shape[0] for key, tensor in state.items() if key.endswith(".project.conv.weight")}
    squeeze_excite = any(".squeeze_excite." in key for key in state)
    return Shape(state["stem.conv.weight"].shape[0], tuple(outputs[place] for place in sorted(outputs)), squeeze_excite)


def _place(key: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", key))


def variants(shape: Shape) -> list[str]:
    """Names of the rows that a file may be: those it fits wholly, or else those it begins."""
    fitting = [row for row in SCALINGS.values() if shape.fits(row)]
    whole = [row.name for row in fitting if len(block_channels(row)) == len(shape.blocks)]
    return whole or [row.name for row in fitting]


def restage(key: str, row: Scaling) -> str:
    """``blocks.{number}.*`` to ``stages.{stage}.{layer}.*`` by the depths of ``row``; other names stay."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if not match:
        return key
    number = int(match[1])
    starts = (0, *accumulate(stage_layers(row)))
    stage = max(i for i, start in enumerate(starts) if start <= number)
    return f"stages.{stage}.{number - starts[stage]}.{match[2]}"
