"""Data set ``shapes``, procedural images of simple shapes: class, boxes and mask at once, drawn from (seed, split, index); no files needed.

One large shape on a textured background, up to three smaller ones that may cover parts of it, noise over everything.
Colours, sizes, positions and angles are random, so that only the outline tells the class.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from effbackbones.images.classsets import set_of
from effbackbones.images.geometry import Mask, Size, resize
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
SPLITS = {"train": 4096, "val": 512, "test": 512}
"""Images of each split, unless the option of the split's name says otherwise."""
_MIN_VISIBLE = 12  # pixels; less of an object is no object
_CONTRAST = 70  # least distance of a shape's colour from the mean background, in levels, root mean square over channels


def _regular(corners: int) -> NDArray[np.float64]:
    """Corners of a regular polygon in the unit circle, [corners, 2]."""
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _star() -> NDArray[np.float64]:
    points = _regular(10)
    points[1::2] *= 0.42
    return points


def _cross() -> NDArray[np.float64]:
    """A plus sign whose bars are a third of its width."""
    arm = np.array([[3, -1], [3, 1], [1, 1]], np.float64) / math.sqrt(10)
    turn = np.array([[0, 1], [-1, 0]], np.float64)
    return np.concatenate([arm, arm @ turn, arm @ turn @ turn, arm @ turn @ turn @ turn])


_OUTLINES = {
    "circle": _regular(32),
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _star(),
    "cross": _cross(),
    "ring": _regular(32),
}
_HOLE = 0.55
"""Inner radius of a ring, as a share of its outer one."""


class ShapesDataset:
    """``count`` images of ``size`` (H, W), uint8 RGB, each with 1..``objects`` shapes.

    A sample has the ``label`` of the largest visible shape; ``boxes``, tight around the visible pixels of each shape, with
    ``box_labels`` and ``crowd`` (all False); ``mask``, 0 = background and class k at k + 1, or with ``sets`` the set of classes of
    each pixel: those of the shapes that lie there, also behind others. ``split`` separates the random streams of train, val and test.
    """

    classes = CLASSES

    def __init__(
        self,
        size: Size = (64, 64),
        count: int = 4096,
        *,
        seed: int = 0,
        split: str = "train",
        objects: int = 4,
        sets: bool = False,
    ) -> None:
        self.size, self.count, self.seed, self.split, self.objects = size, count, seed, split, objects
        self.sets, self.mask_classes = sets, CLASSES if sets else ("background", *CLASSES)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"shape image {index} of {self.count}")
        rng = np.random.default_rng((self.seed, list(SPLITS).index(self.split), index))
        kinds = rng.integers(len(CLASSES), size=int(rng.integers(1, self.objects + 1))).tolist()
        owner, stencils = self._layout(kinds, rng)
        image = self._painted(owner, len(kinds), rng)
        labels = np.array(kinds, np.int64)
        areas = np.bincount(owner.ravel(), minlength=len(kinds) + 1)[1:]
        mask: Mask = np.concatenate([[0], labels + 1]).astype(np.uint8)[owner]
        if self.sets:
            whole = [(kind, stencils[place]) for place, kind in enumerate(kinds) if areas[place]]
            planes = ([inside for kind, inside in whole if kind == label] for label in range(len(CLASSES)))
            mask = set_of(np.any([np.zeros(self.size, np.bool_), *inside], 0) for inside in planes)
        visible = np.flatnonzero(areas >= _MIN_VISIBLE)
        boxes = np.array([_tight_box(owner == which + 1) for which in visible.tolist()], np.float32).reshape(-1, 4)
        crowd = np.zeros(len(visible), np.bool_)
        name = f"{self.split}-{index}"
        return Sample(
            image,
            name,
            label=kinds[int(areas.argmax())],
            boxes=boxes,
            box_labels=labels[visible],
            crowd=crowd,
            mask=mask,
        )

    def known(self, index: int) -> Known:
        """What is known of a sample without drawing it: what it is drawn from."""
        return Known(f"{self.split}-{index}", repr((self.size, self.seed, self.objects)).encode() + b"sets" * self.sets)

    def _layout(self, kinds: list[int], rng: np.random.Generator) -> tuple[NDArray[np.int64], list[NDArray[np.bool_]]]:
        """Which object each pixel belongs to, int64 [H, W]: 0 none, i + 1 the i-th of ``kinds``, later ones in front; and the pixels
        [H, W] of each by itself.

        The first has a circumradius of 0.22 to 0.4 of the shorter side, the others at most half of it.
        """
        height, width = self.size
        largest = min(height, width) * rng.uniform(0.22, 0.4)
        owner: NDArray[np.int64] = np.zeros(self.size, np.int64)
        stencils: list[NDArray[np.bool_]] = []
        for number, kind in enumerate(kinds):
            radius = largest if number == 0 else largest * rng.uniform(0.3, 0.5)
            # Half of the outline may cross the border for the small ones, none for the large one.
            margin = radius if number == 0 else radius / 2
            center = rng.uniform((margin, margin), (width - margin, height - margin))
            stencils.append(_stencil(self.size, CLASSES[kind], center, radius, rng.uniform(0, 2 * math.pi)))
            owner[stencils[-1]] = number + 1
        for number in np.flatnonzero(np.bincount(owner.ravel(), minlength=len(kinds) + 1) < _MIN_VISIBLE).tolist():
            owner[owner == number] = 0
        return owner, stencils

    def _painted(self, owner: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Texture behind, one colour with a slight gradient for each object, noise on top."""
        height, width = self.size
        coarse = rng.integers(30, 226, 3) + rng.integers(-45, 46, (5, 5, 3))
        canvas = resize(coarse.clip(0, 255).astype(np.uint8), self.size, "bicubic").astype(np.int16)
        behind = coarse.mean((0, 1))
        colours = np.array([behind, *(_distinct(behind, rng) for _ in range(count))]).astype(np.int16)
        front = owner > 0
        shade = np.linspace(-18, 18, width).astype(np.int16)[None, :, None]
        canvas = np.where(front[..., None], colours[owner] + shade, canvas)
        noise = rng.integers(-20, 21, (height, width, 3), dtype=np.int16)
        return (canvas + noise).clip(0, 255).astype(np.uint8)


def _stencil(size: Size, kind: str, center: NDArray[np.float64], radius: float, angle: float) -> NDArray[np.bool_]:
    """The pixels [H, W] of one shape."""
    cosine, sine = math.cos(angle) * radius, math.sin(angle) * radius
    turn = np.array([[cosine, sine], [-sine, cosine]])
    stencil = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(stencil)
    points = _OUTLINES[kind] @ turn
    draw.polygon((points + center).ravel().tolist(), fill=1)
    if kind == "ring":
        draw.polygon((points * _HOLE + center).ravel().tolist(), fill=0)
    return np.asarray(stencil, dtype=np.bool_)


def _distinct(behind: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A random colour that stands out from the background."""
    colours: NDArray[np.float64] = rng.integers(0, 256, (20, 3)).astype(np.float64)
    far = np.flatnonzero(((colours - behind) ** 2).mean(1) >= _CONTRAST**2)
    return colours[far[0]] if len(far) else np.full(3, 255.0 if behind.mean() < 128 else 0.0)


def _tight_box(pixels: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """xyxy around the true pixels [H, W]; the far edges are those of the last pixel."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
