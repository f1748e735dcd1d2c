"""How an image is looked at more than once: mirrored, at other sizes, in slices, a recording in windows; and what is said of it in a
word."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from effbackbones.errors import UserError
from effbackbones.images.colours import fill_of
from effbackbones.images.geometry import Pixels, ResizePlan, Size, resize
from effbackbones.inference.fitting import Fitting
from effbackbones.inference.inputs import ImageSource
from effbackbones.inference.preparing import Fit, Fitted, Prepared, fitted, looked_at, together, views_together
from effbackbones.inference.results import Failed
from effbackbones.inference.slicing import Grid
from effbackbones.numbers import plain_number

SCALES = (0.2, 5.0)
"""Between these are the factors of the size at which images may be looked at."""
_MOST_PIXELS = 2**29  # of an image that is brought to the scale of its slices
_SAYS = "flip, or factors of the size between 0.2 and 5, such as flip,0.8,1.25"
_SLICES_SAY = "SIDE, SIDE,OVERLAP in pixels of the image, or SIDE,OVERLAP,whole"


@dataclass(frozen=True)
class Views:
    """Looks at an image beside the usual one: mirrored left to right (``flip``), and at its size times each of ``scales``, mirrored too
    with ``flip``. Krizhevsky et al. 2012 (section 4.1) averaged over crops and mirrored ones so."""

    flip: bool = False
    scales: tuple[float, ...] = ()

    @classmethod
    def of(cls, given: "str | bool | Views | None", where: str = "tta") -> Self:
        """Views by a word such as ``flip,0.8,1.25``; True is ``flip``. Other words raise :class:`UserError`."""
        if isinstance(given, cls):
            return given
        if isinstance(given, bool) or given is None:
            return cls(flip=bool(given))
        if not isinstance(given, str):
            raise UserError(where, f"expected a word, got {type(given).__name__}", f"give {_SAYS}")
        words = [word.strip() for word in given.split(",")]
        factors = [_factor(word, where) for word in words if word != "flip"]
        return cls("flip" in words, tuple(dict.fromkeys(factor for factor in factors if factor != 1)))

    @property
    def count(self) -> int:
        """How many looks these are, the usual one among them."""
        return (1 + len(self.scales)) * (2 if self.flip else 1)

    def __iter__(self) -> Iterator[tuple[float, bool]]:
        """Pairs of a factor and whether it is mirrored; the usual one first."""
        for scale in (1.0, *self.scales):
            yield from ((scale, turned) for turned in ((False, True) if self.flip else (False,)))


@dataclass(frozen=True)
class Slices:
    """Pieces of a large image, ``side`` pixels of it in square, or as wide and high as the network is given (None), each at least
    ``overlap`` over the next (None: a quarter). ``whole``: the image is also looked at as a whole, for what no slice holds."""

    side: int | None = None
    overlap: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 32:
            raise UserError("slices", f"expected a side of at least 32 pixels, got {self.side}", "take larger ones")
        if self.overlap is not None and not 0 < self.overlap < (self.side or math.inf):
            raise UserError("slices", f"an overlap of {self.overlap} pixels", "give less than the side, and at least 1")

    @classmethod
    def of(cls, given: "str | int | Slices | None", where: str = "slices") -> "Slices | None":
        """Slices by a number, or a word such as ``640,128,whole``. Other words raise :class:`UserError`."""
        if given is None or isinstance(given, cls):
            return given
        if isinstance(given, bool) or not isinstance(given, str | int):
            raise UserError(where, f"expected a number or a word, got {given!r}", f"give {_SLICES_SAY}")
        words = [word.strip() for word in str(given).split(",")]
        numbers = [word for word in words if word != "whole"]
        if not 1 <= len(numbers) <= 2 or not all(word.isascii() and word.isdecimal() for word in numbers):
            raise UserError(where, f"cannot be read: {str(given)[:60]!r}", f"give {_SLICES_SAY}")
        return cls(int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else None, "whole" in words)


class Scan(NamedTuple):
    """One look at an image: ``views`` are what the network gets, all of it or its slices by ``grid``; ``back`` leads from the image as
    it was sliced to the original. ``overview``: whether the last view is all of the image."""

    views: tuple[ResizePlan, ...]
    grid: Grid | None = None
    back: ResizePlan | None = None
    overview: bool = False


@dataclass(frozen=True)
class Looks:
    """Every look at an image: a callable from pixels [H, W, C] to what the network gets, with the plans that lead back.

    ``fit`` brings an image to size once; only a :class:`Fitting` can at other scales and in slices. ``window``: the size (H, W) of
    slices as the network gets them, ``divisor`` what their corners are multiples of, where their overlap allows. ``one_size``: the
    network takes images of the size of ``fit`` alone, and sees at other scales slices, but no whole image.
    """

    fit: Fit
    views: Views = Views()
    slices: Slices | None = None
    window: Size = (0, 0)
    divisor: int = 1
    one_size: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.fit, Fitting) and (self.views.scales or self.slices):
            name = "slices" if self.slices else "tta"
            what = f"images are brought to size by {type(self.fit).__name__}, which knows one size"
            raise UserError(name, what, "use flip alone")

    def __call__(self, image: Pixels) -> list[tuple[Pixels, ResizePlan]]:
        """Pixels and plan of each view of ``image`` [H, W, C], in the order of :meth:`scans`."""
        if self.slices is None:
            return [one for view in self.views for one in self._look(image, *view)]
        found: list[tuple[Pixels, ResizePlan]] = []
        for scan in self.scans((image.shape[0], image.shape[1])):
            found += self._sliced(image, scan)
        return found

    def scans(self, original: Size) -> list[Scan]:
        """The looks at an image of size ``original``; only for a :class:`Fitting`."""
        return [self._scan(original, *view) for view in self.views]

    def _look(self, image: Pixels, scale: float, turned: bool) -> list[tuple[Pixels, ResizePlan]]:
        fit = self.fit.scaled(scale) if isinstance(self.fit, Fitting) else self.fit
        if not turned:
            return fit.looked(image) if isinstance(fit, Fitting) else [fit(image)]
        pixels, plan = fit(image[:, ::-1])
        return [(pixels, replace(plan, mirrored=(plan.mirrored[0], not plan.mirrored[1])))]

    def _scan(self, original: Size, scale: float, turned: bool) -> Scan:
        assert isinstance(self.fit, Fitting)
        assert self.slices is not None
        side = self.slices.side or min(self.window)
        factor = scale * min(self.fit.size) / side if self.slices.side else scale
        height, width = (max(1, round(length * factor)) for length in original)
        if height * width > _MOST_PIXELS:
            what = f"in slices of {side} pixels it would be enlarged from {list(original)} to {[height, width]}"
            raise UserError("slices", what, "take larger slices")
        shared = side / 4 if self.slices.overlap is None else self.slices.overlap
        grid = Grid.of((height, width), self.window, math.ceil(shared * factor), self.divisor)
        scaled = ResizePlan(original, (height, width), (0, 0), (height, width), (False, turned))
        views = tuple(replace(scaled, offset=corner, size=self.window) for corner in grid.corners)
        if self.slices.whole and len(views) > 1:
            whole = self.fit.scaled(1.0 if self.one_size else scale).plan(original)
            return Scan((*views, replace(whole, mirrored=(False, turned))), grid, scaled, overview=True)
        return Scan(views, grid, scaled)

    def _sliced(self, image: Pixels, scan: Scan) -> Iterator[tuple[Pixels, ResizePlan]]:
        """The slices of an image, which is resized once."""
        assert isinstance(self.fit, Fitting)
        assert scan.back is not None
        fill = fill_of(image, self.fit.mean).tolist()
        upright = image[:, ::-1] if scan.back.mirrored[1] else image
        scaled = resize(upright, scan.back.scaled, self.fit.interpolation)
        slices = scan.views[:-1] if scan.overview else scan.views
        for plan in slices:
            part = ResizePlan(plan.scaled, plan.scaled, plan.offset, plan.size)
            yield part.apply_image(scaled, self.fit.interpolation, fill), plan
        if scan.overview:
            yield scan.views[-1].apply_image(image, self.fit.interpolation, fill), scan.views[-1]


@dataclass(frozen=True)
class Preparation:
    """What readers of images do for a predictor, in whatever process: a callable from a source to its pixels at the size of the network,
    or where ``looks`` are several to those of each; and batches of these."""

    fit: Fit
    looks: Looks | None = None

    def __call__(self, source: ImageSource) -> Fitted | list[Fitted] | Failed:
        """An image, read and brought to size; a :class:`Failed` where that cannot be."""
        return fitted(source, self.fit) if self.looks is None else looked_at(source, self.looks)

    def together(self, images: Sequence[Any]) -> Prepared:
        """A batch of what this gives."""
        return together(images) if self.looks is None else views_together(images)


def _factor(word: str, where: str) -> float:
    try:
        value = plain_number(word)
    except ValueError:
        value = math.nan
    if not SCALES[0] <= value <= SCALES[1]:
        raise UserError(where, f"cannot be read: {word[:60]!r}", f"give {_SAYS}")
    return value


def looks_of(fit: Fit, tta: Any, slices: Any, model: Any) -> Looks | None:
    """Every look that is asked for at images for ``model``, by words or as :class:`Views` and :class:`Slices`; None where it is the
    usual one alone. What the task, or an exported file, has no use for raises :class:`UserError`."""
    views, sliced = Views.of(tta), Slices.of(slices)
    if model.image_spec.rate is not None:
        if views.count > 1 or sliced:
            what = "is for pictures: the model hears recordings, whole, window by window"
            raise UserError("slices" if sliced else "tta", what, "leave it out")
        return Looks(fit)
    if views.count == 1 and sliced is None:
        return None
    head = model.head
    tasks = tuple(getattr(head, "heads", (head.task,)))
    for task in tasks:
        if task not in ("cls", "det", "seg"):
            raise UserError("tta", f"what a head of task {task} predicts cannot be averaged", "leave it out")
    if sliced and tasks != ("det",):
        raise UserError("slices", "are for detectors", "leave it out; masks of large images come in tiles: data.tile")
    if model.resizes and (views.scales or sliced):
        name = "slices" if sliced else "tta"
        raise UserError(name, "the exported graph resizes images itself", "export with preprocessing normalize")
    if model.fixed_size and views.scales and not sliced:
        what = "the exported graph takes images of one size, and looks at other sizes are of others"
        raise UserError("tta", what, "use flip, or ask the checkpoint")
    room = fit.size if isinstance(fit, Fitting) else (0, 0)
    # What a network pads anyway is seen instead; a graph of one size takes no other.
    window = room if model.fixed_size else (head.padded(room[0]), head.padded(room[1]))
    return Looks(fit, views, sliced, window, head.size_divisor, one_size=model.fixed_size)
