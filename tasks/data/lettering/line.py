"""A line of text and its picture, drawn from a generator alone."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from effbackbones.errors import UserError
from tasks.data.lettering.style import Style
from tasks.data.lettering.textfile import JOINERS
from tasks.data.lettering.typefaces import with_letters

DRAWN_AT = 32
"""Lines of fewer pixels are drawn so large at least, and reduced: as a scan of few dots has them."""
_MEASURED = 200  # pixels at which the height of a font is measured
_SHAPED = re.compile(
    "[\u0590-\u109f\u1780-\u18af\u1900-\u1cff\ua800-\uabff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00011fff\U0001e800-\U0001efff]"
)
"""Letters of scripts that are written from right to left, or in which neighbours change each other's form."""


class Written(NamedTuple):
    """A picture, uint8 [H, W, 3], and the part of the line that it shows."""

    image: NDArray[np.uint8]
    text: str


@dataclass(frozen=True)
class Line:
    """A text and the ways in which it may look."""

    text: str
    style: Style

    def drawn(self, rng: np.random.Generator) -> Written:
        """A picture of it: a function of text, style and ``rng``. All that is shown lies inside, in whole characters. A text that no font
        has all letters of raises :class:`UserError`."""
        style = self.style
        names = [*Style.LIMITS, "font", "start", "turn", "dark", "left", "right", "top", "bottom"]
        chance = dict(
            zip(names, rng.random(len(names)).tolist(), strict=True)
        )  # always as many: options do not move others

        def at(name: str, chance_of: str = "") -> float:
            low, high = getattr(style, name)
            return float(low + (high - low) * chance[chance_of or name])

        fonts = with_letters(style.fonts, self.text)
        if not fonts:
            raise UserError(repr(self.text[:40]), "no font has all its letters", "name one that has")
        height = at("height")
        factor = max(1, math.ceil(DRAWN_AT / height))
        engine = _engine(self.text, style.direction)
        face = _face(fonts[int(chance["font"] * len(fonts))], height * factor, engine)
        sides = {side: round(at("margin", side) * height * factor) for side in ("left", "right", "top", "bottom")}
        room = style.aspect * height * factor - sides["left"] - sides["right"]
        said = {} if style.direction == "auto" else {"direction": style.direction}
        count = round(at("characters"))
        text = _window(self.text, face, room, count, chance["start"], said)
        mask = _mask(text, face, sides, factor, said)
        if angle := at("rotation"):
            mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        mask = mask.rotate(style.turns[int(chance["turn"] * len(style.turns))], expand=True)
        if spread := at("blur") * height:
            mask = mask.filter(ImageFilter.GaussianBlur(spread))
        paper, ink = _colours(at("contrast"), at("tint"), chance, chance["inverted"] < style.inverted, rng)
        cover = np.asarray(mask, np.float32)[..., None] / 255
        pixels = paper + (ink - paper) * cover
        if noise := at("noise"):
            pixels += rng.standard_normal(cover.shape, np.float32) * np.float32(255 * noise)
        np.rint(pixels.clip(0, 255, out=pixels), out=pixels)
        return Written(np.repeat(pixels.astype(np.uint8), 3 // len(paper), 2), text)


def needs_shaping(text: str, direction: str = "auto") -> bool:
    """Whether a text is drawn right by a library of complex layout alone (Raqm, with FriBiDi)."""
    return direction != "auto" or _SHAPED.search(text) is not None


def can_shape() -> bool:
    """Whether Pillow has found that library here."""
    return bool(features.check("raqm") and features.check("fribidi"))


def _engine(text: str, direction: str) -> int:
    # The plain one wherever it will do: pictures are the same then whether or not the other is installed.
    return int(ImageFont.Layout.RAQM if needs_shaping(text, direction) else ImageFont.Layout.BASIC)


@lru_cache(maxsize=512)
def _face(path: str, height: float, engine: int) -> ImageFont.FreeTypeFont:
    """The font of a file at the size of which its ascent and descent are ``height`` pixels."""
    size = max(4, round(_MEASURED * height / _reach(path)))
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout(engine))


@lru_cache(maxsize=512)
def _reach(path: str) -> int:
    return sum(ImageFont.truetype(path, _MEASURED).getmetrics())


def _window(text: str, face: ImageFont.FreeTypeFont, room: float, count: int, start: float, said: Any) -> str:
    """The part of a text that is shown: at most ``count`` characters, as many as have ``room`` (pixels), from the beginning of a word on
    that ``start`` (0..1) chooses; whole characters with their accents, at least one."""
    ends = _ends(text)
    length = face.getlength(text, **said)
    if len(ends) <= count and length <= room:
        return text
    count = min(count, max(1, int(len(ends) * room / length)))
    starts = [0] + [place for place in range(1, len(ends)) if text[ends[place - 1] - 1] == " "]
    starts = [place for place in starts if place + count <= len(ends)]
    first = starts[int(start * len(starts))]
    begin = ends[first - 1] if first else 0
    last = first + count
    while last > first + 1 and face.getlength(text[begin : ends[last - 1]], **said) > room:
        last -= 1
    return text[begin : ends[last - 1]].rstrip()


def _ends(text: str) -> list[int]:
    """Where each character ends that a reader counts: a letter with all marks on it is one."""
    joined = [unicodedata.category(letter)[0] == "M" or letter in JOINERS for letter in text]
    return [
        place
        for place in range(1, len(text) + 1)
        if place == len(text) or not (joined[place] or text[place - 1] == JOINERS[1])
    ]


def _mask(text: str, face: ImageFont.FreeTypeFont, sides: dict[str, int], factor: int, said: Any) -> Image.Image:
    """How much of each pixel is ink, 0..255, with paper on all ``sides``, reduced by ``factor``."""
    left, top, right, bottom = (
        round_(side) for round_, side in zip(_OUTWARD, face.getbbox(text, anchor="ls", **said), strict=True)
    )
    ascent, descent = face.getmetrics()
    above, below = max(ascent, -top) + sides["top"], max(descent, bottom) + sides["bottom"]
    left, right = min(0, left), max(1, right)
    width, height = right - left + sides["left"] + sides["right"], above + below
    size = (math.ceil(width / factor) * factor, math.ceil(height / factor) * factor)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).text((sides["left"] - left, above), text, 255, face, anchor="ls", **said)
    return mask.reduce(factor) if factor > 1 else mask


_OUTWARD = (math.floor, math.floor, math.ceil, math.ceil)


def _colours(
    contrast: float, tint: float, chance: dict[str, float], inverted: bool, rng: np.random.Generator
) -> Sequence[NDArray[np.float32]]:
    """Paper and ink, float32 in 0..255: [3] each, or [1] where both are grey."""
    dark = 255 * (1 - contrast) * chance["dark"]
    light = dark + 255 * contrast
    drawn = rng.random((2, 3), np.float32) * np.float32(tint)
    if not tint:
        drawn = drawn[:, :1]
    pair = (
        np.float32(light) - drawn[0] * np.float32(light - dark),
        np.float32(dark) + drawn[1] * np.float32(light - dark),
    )
    return pair[::-1] if inverted else pair
