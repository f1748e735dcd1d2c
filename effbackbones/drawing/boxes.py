"""Boxes drawn on images, and images put side by side.

Lines and letters grow with the picture. Classes differ by colour, and what matters differs by line and word too, so that
nothing is lost to the colour-blind or in print.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from effbackbones.drawing.fonts import drawable
from effbackbones.drawing.spectrogram import is_recording, spectrogram
from effbackbones.images.geometry import resize

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Picture = NDArray[np.uint8]
"""RGB [H, W, 3]."""
Style = Literal["solid", "dashed", "hatched"]
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom; the last two are the first pixels outside."""

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Told apart by the colour-blind: Okabe and Ito, "Color Universal Design" (2008), without black."""
_DARK, _LIGHT = (16, 20, 26), (255, 255, 255)
_GAP = (128, 134, 142)  # between images of a grid; lies between a light and a dark page
_LINE, _LETTER = 1 / 250, 1 / 38  # width of a line and size of letters, as parts of the picture's mean side
_CROWD = 30  # of more boxes than these lines and letters grow with the boxes
_THIN = 1 / 12  # a line in a crowd, as part of a box's side
_COVERED = 1 / 5  # of a picture by tags in a crowd
_READABLE, _BREADTH = 10, 0.6  # size of letters, and how broad one is, as part of it


def draw_boxes(
    image: NDArray[np.generic],
    boxes: NDArray[np.floating],
    texts: Sequence[str] = (),
    labels: Sequence[int] | NDArray[np.int64] = (),
    styles: Sequence[Style] = (),
    *,
    at_least: int = 320,
    at_most: int | None = None,
) -> Picture:
    """``image`` [H, W, C] (any C; uint8, uint16, or float in 0..1) with ``boxes`` [n, 4] xyxy pixels of it: RGB [H', W', 3].

    ``texts``, ``labels`` (class, which chooses the colour) and ``styles`` have one entry for each box, or none at all. A text
    stands on a tag that stays inside the image, shortened where it must be. Of many boxes lines and letters are as small as these want
    it, and where letters cannot be read then, the first box of each class alone has its text. The picture is as large as the image, except
    that one whose longest side is below ``at_least`` pixels is enlarged by a whole factor first, and one above ``at_most``
    reduced. Boxes that are not finite or lie outside are left out; others are cut at the edge.
    """
    for name, given in (("texts", texts), ("labels", labels), ("styles", styles)):
        if len(given) not in (0, len(boxes)):
            raise ValueError(f"{len(given)} {name} for {len(boxes)} boxes")
    pixels = _fitted(rgb(image), at_least, at_most)
    (height, width), (old_height, old_width) = pixels.shape[:2], image.shape[:2]
    scaled = np.asarray(boxes, np.float64).reshape(-1, 4) * np.tile([width / old_width, height / old_height], 2)
    canvas = _Canvas(Image.fromarray(pixels))
    areas = np.nan_to_num((scaled[:, 2:] - scaled[:, :2]).prod(1))
    named = canvas.fit_crowd(areas, texts, labels)
    tags = []
    for row in np.argsort(-areas, kind="stable").tolist():  # small boxes lie above large ones
        place = _rectangle(scaled[row], width, height)
        if place is None:
            continue
        number = int(labels[row]) if len(labels) else None
        colour = COLOURS[(number or 0) % len(COLOURS)]
        canvas.outline(place, colour, styles[row] if len(styles) else "solid")
        if row in named:
            tags.append((place, colour, texts[row], number))
    for tag in tags:
        canvas.tag(*tag)
    return np.array(canvas.picture)


def grid(images: Sequence[NDArray[np.generic]], columns: int, gap: int = 6) -> Picture:
    """Images [H, W, C] of any sizes in rows of ``columns``, each centred in a cell as large as the largest: RGB."""
    if not images or columns < 1:
        raise ValueError(f"expected images and columns, got {len(images)} and {columns}")
    pictures = [rgb(image) for image in images]
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    rows, columns = math.ceil(len(pictures) / columns), min(columns, len(pictures))
    sheet: Picture = np.empty((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    sheet[:] = _GAP
    for index, picture in enumerate(pictures):
        (row, column), (h, w) = divmod(index, columns), picture.shape[:2]
        top, left = row * (height + gap) + (height - h) // 2, column * (width + gap) + (width - w) // 2
        sheet[top : top + h, left : left + w] = picture
    return sheet


def rgb(image: NDArray[np.generic]) -> Picture:
    """``image`` [H, W] or [H, W, C] of any kind that :func:`eight_bits` shows, in three bands."""
    pixels = eight_bits(image)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def eight_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image [H, W] or [H, W, C], uint8, uint16 or float 0..1, for the eye: uint8, [H, W] grey or [H, W, 3] RGB.

    Of two channels the first is shown in grey, of four or more the first three in colour. A recording is shown as its spectrogram.
    """
    if is_recording(image):
        return spectrogram(image)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype != np.uint8:
        image = (np.nan_to_num(image).clip(0, 1) * 255).round().astype(np.uint8)
    if image.ndim == 3:
        image = image[..., :3] if image.shape[2] >= 3 else image[..., 0]
    return image


def _fitted(pixels: Picture, at_least: int, at_most: int | None) -> Picture:
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if at_most is not None and longest > at_most:
        size = (max(1, round(height * at_most / longest)), max(1, round(width * at_most / longest)))
        return resize(pixels, size, "bilinear").astype(np.uint8, copy=False)
    factor = max(1, math.ceil(at_least / longest))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)  # pixels stay squares that can be counted


def _rectangle(box: NDArray[np.float64], width: int, height: int) -> Rectangle | None:
    """A box in whole pixels inside the picture, at least one pixel large; None if it shows nothing."""
    if (
        not np.isfinite(box).all()
        or box[2] < max(box[0], 0)
        or box[3] < max(box[1], 0)
        or box[0] > width
        or box[1] > height
    ):
        return None
    left, top = min(max(round(box[0]), 0), width - 1), min(max(round(box[1]), 0), height - 1)
    return left, top, max(min(round(box[2]), width), left + 1), max(min(round(box[3]), height), top + 1)


class _Canvas:
    """A picture with a pen for its size, which remembers where tags lie."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture, self.draw = picture, ImageDraw.Draw(picture)
        mean = math.sqrt(picture.width * picture.height)
        self.line, self.letter = max(2, round(mean * _LINE)), max(12, round(mean * _LETTER))
        self.tags: list[Rectangle] = []

    def fit_crowd(self, areas: NDArray[np.float64], texts: Sequence[str], labels: Any) -> Collection[int]:
        """Take the pen for boxes of these ``areas``; gives the rows whose texts are written."""
        side = math.sqrt(max(1.0, float(np.median(areas)))) if len(areas) else 1.0
        if len(areas) <= _CROWD:
            return range(len(texts))
        self.line = min(self.line, max(1, round(side * _THIN)))
        widths = np.array([_BREADTH * self.letter * len(text) for text in texts])
        covered = widths.sum() * self.letter / (self.picture.width * self.picture.height)
        if covered <= _COVERED:
            return range(len(texts))
        smaller = self.letter * min(math.sqrt(_COVERED / covered), side / float(np.median(widths)))
        if smaller >= _READABLE:
            self.letter = int(min(self.letter, smaller))
            return range(len(texts))
        self.letter = max(_READABLE, self.letter // 2)
        firsts: dict[int, int] = {}
        for row, label in enumerate(labels if len(labels) else [0]):
            firsts.setdefault(int(label), row)
        return set(firsts.values())

    def outline(self, place: Rectangle, colour: tuple[int, int, int], style: Style) -> None:
        """The inner edge of ``place`` in ``colour`` on a dark seam, which keeps it visible on any ground."""
        left, top, right, bottom = place
        width = max(1, min(self.line, (right - left) // 3, (bottom - top) // 3))
        if style == "hatched":
            self._hatch(place, colour)
        strokes = list(_strokes(place, width, 5 * self.line if style != "solid" else None))
        seam = max(1, self.line // 4)
        for x0, y0, x1, y1 in strokes:
            self.draw.rectangle((x0 - seam, y0 - seam, x1 + seam - 1, y1 + seam - 1), fill=_DARK)
        for x0, y0, x1, y1 in strokes:
            self.draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)

    def _hatch(self, place: Rectangle, colour: tuple[int, int, int]) -> None:
        left, top, right, bottom = place
        width, height = right - left, bottom - top
        mask = Image.new("L", (width, height))
        pen = ImageDraw.Draw(mask)
        for start in range(-height, width, 6 * self.line):
            pen.line((start, height, start + height, 0), fill=150, width=max(1, self.line // 2))
        self.picture.paste(Image.new("RGB", mask.size, colour), (left, top), mask)

    def tag(self, place: Rectangle, colour: tuple[int, int, int], text: str, number: int | None = None) -> None:
        """``text`` on a filled tag at ``place``, where it hides no other tag if that can be had; ``#number`` stands in it for letters
        that no font has."""
        margin = max(2, self.line)
        text, letters = drawable(text, self.letter, number)
        text = _shortened(text, self.picture.width - 2 * margin, letters)
        ascent, descent = letters.getmetrics()
        width, height = math.ceil(letters.getlength(text)) + 2 * margin, ascent + descent
        if not text or height > self.picture.height:
            return
        spots = [self._inside(x, y, width, height) for x, y in _corners(place, width, height)]
        spot = next((spot for spot in spots if not any(_overlap(spot, other) for other in self.tags)), spots[0])
        self.tags.append(spot)
        self.draw.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=colour)
        luminance = (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255
        self.draw.text((spot[0] + margin, spot[1]), text, font=letters, fill=_DARK if luminance > 0.45 else _LIGHT)

    def _inside(self, x: int, y: int, width: int, height: int) -> Rectangle:
        left, top = max(0, min(x, self.picture.width - width)), max(0, min(y, self.picture.height - height))
        return left, top, left + width, top + height


def _shortened(text: str, room: float, letters: "FreeTypeFont") -> str:
    """The longest beginning of ``text`` that fits, with an ellipsis; nothing where not even that does."""
    if letters.getlength(text) <= room:
        return text
    fitting = (text[:end].rstrip() + "…" for end in range(len(text) - 1, 0, -1))
    return next((short for short in fitting if letters.getlength(short) <= room), "")


def _strokes(place: Rectangle, width: int, dash: int | None) -> Iterator[Rectangle]:
    """The four sides of a rectangle as filled pieces; ``dash`` pixels long with gaps of two thirds of that, or whole."""
    left, top, right, bottom = place
    for x0, x1 in _pieces(left, right, dash):
        yield from ((x0, top, x1, top + width), (x0, bottom - width, x1, bottom))
    for y0, y1 in _pieces(top, bottom, dash):
        yield from ((left, y0, left + width, y1), (right - width, y0, right, y1))


def _pieces(start: int, stop: int, dash: int | None) -> list[tuple[int, int]]:
    """Dashes along a side that begins and ends with one, so that corners are always drawn."""
    length = stop - start
    if dash is None or length < 2 * dash:
        return [(start, stop)] if dash is None else [(start, start + -(-length // 3)), (stop - -(-length // 3), stop)]
    count = max(2, round(length / (dash * 5 / 3)))
    step = (length - dash) / (count - 1)
    return [(start + round(step * i), start + round(step * i) + dash) for i in range(count)]


def _corners(place: Rectangle, width: int, height: int) -> list[tuple[int, int]]:
    """Where a tag of a box may begin, best first: on top of it, inside, below."""
    left, top, right, bottom = place
    return [
        (left, top - height),
        (left, top),
        (right - width, top - height),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom - height),
        (left, bottom),
        (right - width, bottom),
    ]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
