"""The levels of a pyramid: which maps of a backbone it reads, and the strides of those that it adds."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from effbackbones.contracts import FeatureSpec
from effbackbones.errors import UserError
from heads.options import require, wholes

STANDARD = (3, 4, 5, 6, 7)
"""Levels of strides 8 to 128, which most detectors on a pyramid read."""
DEEPEST = 5
"""The last level that a backbone has; coarser ones are made."""


class Source(NamedTuple):
    """A map that a pyramid may read: its channels and its stride in pixels."""

    channels: int
    stride: int


def sources(spec: FeatureSpec) -> list[Source]:
    """The maps of a backbone, finest first."""
    return [Source(width, stride) for width, stride in zip(spec.channels, spec.strides, strict=True)]


def consecutive(levels: Sequence[int]) -> tuple[int, ...]:
    """``levels`` of the option of that name: level l has stride 2**l on a backbone of ordinary strides."""
    chain = tuple(wholes("levels", levels)) if levels else ()
    follows = len(chain) > 1 and chain == tuple(range(chain[0], chain[0] + len(chain)))
    known = follows and chain[0] <= DEEPEST and chain[-1] <= 2 * DEEPEST
    expected = "at least two consecutive levels, the first one of 1 to 5, such as [3, 4, 5, 6, 7]"
    require("levels", levels, known, expected)
    return chain


def names_of(levels: Sequence[int]) -> tuple[str, ...]:
    """The maps of a backbone that ``levels`` read: C1 to C5."""
    return tuple(f"C{level}" for level in levels if level <= DEEPEST)


def check_names(head: str, spec: FeatureSpec, levels: Sequence[int]) -> None:
    """The backbone's maps must be the first of ``levels``, or :class:`UserError` says so."""
    expected = tuple(f"C{level}" for level in levels)[: len(spec.names)]
    if spec.names != expected:
        what = f"reads the maps {', '.join(expected)} as levels {list(levels)}, got {', '.join(spec.names)}"
        raise UserError(f"head {head}", what, "set head_options.levels or backbone_options.levels")


def level_strides(strides: Sequence[int], count: int, head: str = "efficientdet") -> tuple[int, ...]:
    """Strides of ``count`` levels: those of the backbone's maps, then doubling. Neighbours must divide each other, or
    :class:`UserError` says so."""
    known = list(strides[:count])
    for fine, coarse in pairwise(known):
        if coarse % fine:
            text = (
                f"a pyramid needs strides that are multiples of the next finer one, got {', '.join(map(str, strides))}"
            )
            raise UserError(f"head {head}", text, "choose other levels of the backbone")
    while len(known) < count:
        known.append(2 * known[-1])
    return tuple(known)
