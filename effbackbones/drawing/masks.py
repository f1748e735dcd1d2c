"""Masks drawn on images: a colour for each class, the ignored hatched, what is wrong in red.

Masks are uint8 [H, W], a class in each pixel, 255 ignored, or sets of classes (:mod:`effbackbones.images.classsets`), drawn in stripes
of all their colours. A class called ``background`` at number 0 is black in pictures of classes and leaves the image as it is in
overlays.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from effbackbones.drawing.boxes import COLOURS, Picture, rgb
from effbackbones.drawing.fonts import drawable
from effbackbones.images.classsets import MOST, UNKNOWN, Sets, are_sets, has, ignored_in
from effbackbones.images.geometry import IGNORE, Mask, resize, resize_nearest

WRONG = (224, 40, 40)
_GREY = (128, 134, 142)
_PAPER, _INK = (250, 250, 250), (28, 36, 48)
_NONE = 254  # no class, where sets are drawn
_BAND = 512  # rows that are blended at once
_VEIL, _HATCH, _BORDER = 70, 190, 235  # how far colours cover the image, of 255


def palette(num_classes: int = IGNORE, background: bool = False) -> NDArray[np.uint8]:
    """The colours of the classes, RGB [256, 3]; a class has the same whatever their number. Values of no class are black, 255 grey.

    The first seven are those of :data:`effbackbones.drawing.boxes.COLOURS`, the others as far from each other as can be, for the
    colour-blind too. With ``background`` class 0 is black and the first colour that of class 1. At most 255 classes.
    """
    if not 0 < num_classes <= IGNORE:
        raise ValueError(f"expected 1 to {IGNORE} classes, got {num_classes}")
    table = np.zeros((256, 3), np.uint8)
    table[int(background) : num_classes] = _spread()[: num_classes - background]
    table[IGNORE] = _GREY
    return table


def palette_of(classes: Sequence[str]) -> NDArray[np.uint8]:
    """The :func:`palette` of named classes; without names that of any."""
    return palette(len(classes) or IGNORE, has_background(classes))


def has_background(classes: Sequence[str]) -> bool:
    """Whether class 0 is called background."""
    return bool(classes) and classes[0].strip("_ ").casefold() == "background"


def overlay(
    image: NDArray[np.generic],
    labels: Mask,
    classes: Sequence[str] = (),
    *,
    alpha: float = 0.5,
    at_least: int = 1,
    at_most: int | None = None,
) -> Picture:
    """``image`` [H, W, C] (any C; uint8, uint16, or float in 0..1) under the colours of ``labels`` [H, W], which cover it by
    ``alpha``; regions have borders, pixels that are ignored are hatched. RGB of the image's size, within ``at_least`` and
    ``at_most`` as :func:`fitted` has it.
    """
    image, labels = fitted(image, labels, at_least, at_most)
    cover = np.full(256, round(255 * alpha), np.uint8)
    if are_sets(labels):
        cover[_NONE] = 0
        return _painted(image, _striped(labels), palette_of(classes), cover, outlined=labels)
    if has_background(classes):
        cover[0] = 0
    return _painted(image, labels, palette_of(classes), cover, outlined=labels)


def occurring(mask: Mask) -> list[int]:
    """The classes in a mask, rising; 255 last, where there are ignored pixels."""
    if not are_sets(mask):
        return [int(value) for value in np.unique(mask)]
    values = np.unique(mask)
    union = int(np.bitwise_or.reduce(values[values != UNKNOWN], initial=0))
    return [label for label in range(MOST) if union >> label & 1] + [IGNORE] * bool((values == UNKNOWN).any())


def errors(
    image: NDArray[np.generic], labels: Mask, mask: Mask, *, at_least: int = 1, at_most: int | None = None
) -> Picture:
    """``image`` with the pixels in red whose ``labels`` are not those of ``mask``; ignored ones are hatched, right ones
    untouched. Sizes as in :func:`overlay`."""
    wrong: Mask = np.where(mask == ignored_in(mask), IGNORE, labels != mask).astype(np.uint8)
    image, wrong = fitted(image, wrong, at_least, at_most)
    table = np.zeros((256, 3), np.uint8)
    table[1], table[IGNORE] = WRONG, _GREY
    cover = np.zeros(256, np.uint8)
    cover[1] = 190
    return _painted(image, wrong, table, cover)


def fitted(
    image: NDArray[np.generic], labels: Mask, at_least: int = 1, at_most: int | None = None
) -> tuple[NDArray[np.generic], Mask]:
    """Both in one size: enlarged by a whole factor where the longest side is below ``at_least`` pixels, reduced where it is
    above ``at_most``. Labels of another size than the image follow it."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if at_most is not None and longest > at_most:
        height, width = (max(1, round(side * at_most / longest)) for side in (height, width))
        image = resize(rgb(image), (height, width), "bilinear").astype(np.uint8, copy=False)
    labels = resize_nearest(labels, (height, width))
    factor = max(1, math.ceil(at_least / max(height, width)))
    if factor == 1:
        return image, labels
    # Pixels stay squares that can be counted.
    return image.repeat(factor, axis=0).repeat(factor, axis=1), labels.repeat(factor, axis=0).repeat(factor, axis=1)


def legend(classes: Sequence[str], shown: Sequence[int], width: int, size: int = 15) -> Picture:
    """Names of the classes ``shown`` (255: ignored) beside their colours in rows that fill ``width`` pixels; letters of
    ``size`` pixels. RGB [H, width, 3]."""
    table, gap = palette_of(classes), size // 2
    row = 2 * size
    places, x, y = [], gap, 0
    for value in shown:
        name, letters = drawable("ignored" if value == IGNORE else classes[value], size, value)
        while len(name) > 1 and letters.getlength(name) > width - size - 3 * gap:
            name = name[: len(name) * 3 // 4] + "…" if len(name) > 8 else name[:-1]
        step = size + gap + math.ceil(letters.getlength(name)) + 2 * gap
        if x > gap and x + step > width:
            x, y = gap, y + row
        places.append((x, y, value, name, letters))
        x += step
    picture = Image.new("RGB", (width, y + row), _PAPER)
    pen = ImageDraw.Draw(picture)
    for x, y, value, name, letters in places:
        top = y + (row - size) // 2
        pen.rectangle((x, top, x + size - 1, top + size - 1), fill=tuple(table[value].tolist()), outline=_INK)
        pen.text((x + size + gap, y + row // 2), name, font=letters, fill=_INK, anchor="lm")
    return np.array(picture)


def _painted(
    image: NDArray[np.generic],
    labels: Mask,
    table: NDArray[np.uint8],
    cover: NDArray[np.uint8],
    outlined: Mask | None = None,
) -> Picture:
    """``image`` under the colours of ``table`` [256, 3], which cover it by ``cover`` [256] of 255; ``outlined``: what has borders."""
    if labels.shape != image.shape[:2]:
        raise ValueError(f"expected labels of the image's size {image.shape[:2]}, got {labels.shape}")
    height, width = labels.shape
    line = _line(height, width)
    edges = None if outlined is None else _edges(outlined, line)
    hatch = np.arange(width) // line
    picture: Picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        part = labels[rows]
        strength = cover[part]
        if edges is not None:
            strength[edges[rows] & (strength > 0)] = _BORDER
        slanted = (hatch + np.arange(rows.start, rows.stop)[:, None] // line) % 7 < 2
        ignored = part == IGNORE
        strength[ignored] = np.where(slanted[ignored], _HATCH, _VEIL)
        ground, colours = Image.fromarray(rgb(image[rows])), Image.fromarray(table[part])
        picture[rows] = np.asarray(Image.composite(colours, ground, Image.fromarray(strength)))
    return picture


def _line(height: int, width: int) -> int:
    """Pixels of a line in a picture of that size."""
    return max(1, round(math.sqrt(height * width) / 400))


def _striped(sets: Sets) -> NDArray[np.uint8]:
    """One class for each pixel of its set, in slanted stripes; :data:`_NONE` for no class, 255 where it is ignored."""
    height, width = sets.shape
    stripe = (np.arange(height)[:, None] + np.arange(width)) // (4 * _line(height, width))
    labels = np.full(sets.shape, _NONE, np.uint8)
    union = int(np.bitwise_or.reduce(sets[sets != UNKNOWN], axis=None, initial=0))
    planes = {label: has(sets, label) for label in range(MOST) if union >> label & 1}
    count = np.maximum(1, sum(plane.astype(np.int64) for plane in planes.values()))
    before = np.zeros(sets.shape, np.int64)
    for label, plane in planes.items():
        labels[plane & (before == stripe % count)] = label
        before += plane
    labels[sets == UNKNOWN] = IGNORE
    return labels


def _edges(labels: Mask, width: int) -> NDArray[np.bool_]:
    """Pixels within ``width`` of another label, along rows and columns."""
    edges = np.zeros(labels.shape, np.bool_)
    for turned, found in ((labels, edges), (labels.T, edges.T)):
        for step in range(1, width + 1):
            differ = turned[step:] != turned[:-step]
            found[step:] |= differ
            found[:-step] |= differ
    return edges


@lru_cache(maxsize=1)
def _spread() -> NDArray[np.uint8]:
    """255 colours, RGB: after :data:`COLOURS` each is the one farthest from those before, from grey, black and white.

    Distances in Oklab (Ottosson 2020), the smaller of what all eyes and what those without green cones see.
    """
    levels = np.linspace(16, 248, 14).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    seen = _oklab(candidates)
    bright = (seen[0, :, 0] > 0.42) & (seen[0, :, 0] < 0.94)  # dark ones look alike on photographs
    candidates, seen = candidates[bright], seen[:, bright]
    chosen = [*COLOURS]
    distance = np.full(len(candidates), np.inf)
    for colour in ((0, 0, 0), (255, 255, 255), _GREY, *COLOURS):
        distance = np.minimum(distance, _apart(seen, _oklab(np.array([colour], np.uint8))))
    while len(chosen) < IGNORE:
        farthest = int(distance.argmax())
        chosen.append(tuple(candidates[farthest].tolist()))
        distance = np.minimum(distance, _apart(seen, seen[:, farthest : farthest + 1]))
    return np.array(chosen, np.uint8)


def _apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances between colours [2, n, 3] and [2, 1, 3] as both kinds of eyes see them, weighed."""
    all_eyes, without_green = np.linalg.norm(a - b, axis=-1)
    nearer: NDArray[np.float64] = np.minimum(all_eyes, 2 * without_green)
    return nearer


def _oklab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """RGB [n, 3] in Oklab, as all eyes see it and as deuteranopes do: [2, n, 3]."""
    linear = np.where(
        colours <= 10, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4
    )  # sRGB, IEC 61966-2-1
    both = np.stack([linear, (linear @ _DEUTERANOPE.T).clip(0)])
    lab: NDArray[np.float64] = np.cbrt(both @ _TO_LMS.T) @ _TO_LAB.T
    return lab


_DEUTERANOPE = np.array(  # Machado, Oliveira and Fernandes 2009, severity 1.0
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
