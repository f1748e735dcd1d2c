"""Anchors that suit a data set: fitted to the sides of its boxes.

Boxes lie anywhere, anchors in the middles of their cells: where cells are large beside its anchors, a box is far from the nearest one, and
an anchor of its very sides is of no use to it. So boxes are laid out over the image, and overlap the anchors that are there.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDS = 30
_WORTHWHILE = 0.01  # gain in mean best IoU below which fitted anchors are not worth leaving the published ones
_SAMPLE = 5_000  # boxes looked at, evenly spaced over all
_STRIDE = (
    0.7548776662466927,
    0.5698402909980532,
)  # from one box to the next, in shares of the image: they fill it evenly (Roberts' R2)


class Fit(NamedTuple):
    """``ratios`` float64 [R, 2]: (x, y) sides of each aspect, in sides of the square anchor; ``quality``: the boxes' mean IoU
    with the best anchor of each."""

    ratios: Tensor
    quality: float


def fitted_options(
    box_sides: Tensor,
    strides: Sequence[Sequence[float]],
    anchor_scale: float,
    num_scales: int,
    aspect_ratios: Sequence[Sequence[float]],
    image_size: tuple[int, int],
) -> dict[str, object]:
    """``aspect_ratios`` and ``anchor_scale`` that raise the boxes' mean IoU with their best anchor by at least 0.01; empty if none are
    found. As many anchors as before. Deterministic.

    ``box_sides`` float [N, 2], (width, height) in pixels of images of ``image_size`` (H, W): those that are not positive are passed
    over. ``strides`` (x, y) of each level in pixels."""
    sides = _usable(box_sides)
    if not len(sides):
        return {}
    octaves = anchor_scale * 2 ** (torch.arange(num_scales, dtype=torch.float64) / num_scales)
    cells = torch.tensor(strides, dtype=torch.float64)
    bases = (cells[:, None] * octaves[:, None]).flatten(0, 1)
    apart = _apart(sides, cells, image_size).repeat_interleave(num_scales, 1)
    before, fit = fit_ratios(sides, bases, torch.tensor(aspect_ratios), apart)
    return as_options(fit, anchor_scale) if fit.quality - before.quality >= _WORTHWHILE else {}


def chosen_options(
    box_sides: Tensor,
    choices: Iterable[tuple[dict[str, object], Tensor]],
    cells: Tensor,
    image_size: tuple[int, int],
) -> dict[str, object]:
    """The options of those ``choices``, each with the sides [A, 2] of its anchors, whose anchors overlap boxes of ``box_sides`` [N, 2]
    most, ``cells`` [A, 2] being the sides of their cells; empty unless that raises the mean IoU by at least 0.01 over the first choice,
    which is what there is."""
    sides = _usable(box_sides)
    if not len(sides):
        return {}
    apart = _apart(sides, cells.double(), image_size)
    rated = [(float(_overlaps(sides, anchors.double(), apart).amax(1).mean()), options) for options, anchors in choices]
    best = max(rated, key=lambda one: one[0])
    return best[1] if best[0] - rated[0][0] >= _WORTHWHILE else {}


def _apart(sides: Tensor, cells: Tensor, image_size: tuple[int, int]) -> Tensor:
    """How far (x, y) the middles of boxes of ``sides`` [N, 2], laid out evenly over the image, are from the nearest middle of a cell, of
    sides [L, 2]: float64 [N, L, 2]."""
    image = torch.tensor(image_size[::-1], dtype=torch.float64)
    place = (0.5 + torch.arange(len(sides))[:, None] * torch.tensor(_STRIDE, dtype=torch.float64)).frac()
    middles = (sides / 2 + place * (image - sides).clamp(min=0))[:, None]
    nearest = torch.minimum((middles / cells - 0.5).round().clamp(min=0), (image / cells).round() - 1)
    return (middles - (nearest + 0.5) * cells).abs()


def _usable(sides: Tensor) -> Tensor:
    """Those of [N, 2] that are positive and finite, a sample of them: float64."""
    sound = sides[(sides > 0).all(1) & sides.isfinite().all(1)].double()
    return sound[:: -(-len(sound) // _SAMPLE)] if len(sound) else sound


def fit_ratios(sides: Tensor, bases: Tensor, start: Tensor, apart: Tensor) -> tuple[Fit, Fit]:
    """``start`` [R, 2] as it is, and the best that k-means in the space of log sides makes of it. Deterministic.

    ``sides`` float64 [N, 2], (width, height) in pixels, positive; ``bases`` float64 [L, 2], (x, y) sides in pixels of the square
    anchor of each level and octave, ``apart`` [N, L, 2] how far the nearest is. Each box is given to the anchor, base times aspect, that
    it overlaps most; then an aspect moves to the mean of what its boxes ask of it. That need not raise the IoU, so the best round of all
    is kept. Tried from ``start`` and from aspects at even quantiles of the boxes' own.
    """
    start = start.double()
    rounds: list[Fit] = []
    for ratios in (start, _spread(sides, len(start))):
        for _ in range(_ROUNDS):
            overlap, base, aspect = _best_anchor(sides, bases, ratios, apart)
            rounds.append(Fit(ratios, float(overlap.mean())))
            asked = (sides / bases[base]).log()
            sums = torch.zeros_like(ratios).index_add(0, aspect, asked)
            counts = torch.bincount(aspect, minlength=len(ratios))[:, None]
            ratios = torch.where(counts > 0, (sums / counts.clamp(min=1)).exp(), ratios)
    return rounds[0], max(rounds, key=lambda fit: fit.quality)


def as_options(fit: Fit, anchor_scale: float) -> dict[str, object]:
    """Options ``aspect_ratios`` and ``anchor_scale`` that say the same: the aspects, widest last, have area 1 on average."""
    size = math.exp(float(fit.ratios.log().mean()))
    ordered = sorted((fit.ratios / size).tolist(), key=lambda pair: pair[0] / pair[1])
    ratios = [[round(x, 3), round(y, 3)] for x, y in ordered]
    return {"aspect_ratios": ratios, "anchor_scale": round(anchor_scale * size, 3)}


def _spread(sides: Tensor, count: int) -> Tensor:
    """Aspects [count, 2] of area 1 at even quantiles of the boxes' width over height."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    half = torch.quantile((sides[:, 0] / sides[:, 1]).log(), share) / 2
    return torch.stack([half, -half], 1).exp()


def _best_anchor(sides: Tensor, bases: Tensor, ratios: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each box the IoU with the best anchor, that anchor's base and its aspect."""
    anchors = (bases[:, None] * ratios).flatten(0, 1)
    overlap, index = _overlaps(sides, anchors, apart.repeat_interleave(len(ratios), 1)).max(1)
    return overlap, index // len(ratios), index % len(ratios)


def _overlaps(sides: Tensor, anchors: Tensor, apart: Tensor) -> Tensor:
    """IoU [N, A] of boxes of sides [N, 2] with anchors of sides [A, 2] whose middles are ``apart`` [N, A, 2]."""
    sides = sides[:, None]
    shared = torch.minimum(torch.minimum(sides, anchors), (sides + anchors) / 2 - apart).clamp(min=0).prod(2)
    return shared / (sides.prod(2) + anchors.prod(1) - shared)
