"""What a predictor found in an image, in pixels of the image as it was given: arrays, names, a picture, JSON.

Every result has ``source`` (path, or what else names the image), ``size`` (H, W) of the image, ``draw()``, ``to_dict()`` of plain
values, and ``to_json()``. What is not finite is in none of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effbackbones.drawing.boxes import draw_boxes
from effbackbones.drawing.masks import overlay
from effbackbones.errors import UserError
from effbackbones.images.classsets import set_of
from effbackbones.images.geometry import Pixels, Size
from effbackbones.images.video import Moment
from effbackbones.inference.thresholds import BOXES, SURE
from effbackbones.inference.timelines import Event, Timeline


class Original(Protocol):
    """Gives the image [H, W, C] that a result is of."""

    def __call__(self) -> Pixels: ...


@dataclass(frozen=True, eq=False)
class Result:
    """What all results have."""

    source: str
    size: Size
    classes: tuple[str, ...]
    original: Original = field(repr=False)
    """Gives the pixels that it is of: kept where they were given as pixels, read again where they were a file."""

    @property
    def moment(self) -> Moment | None:
        """Of a frame of a video: which, and when it is shown."""
        moment: Moment | None = getattr(self.original, "moment", None)
        return moment

    def to_dict(self) -> dict[str, Any]:
        """Plain values alone."""
        raise NotImplementedError

    def to_json(self) -> str:
        """The same as JSON text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def draw(self, at_most: int | None = None) -> Image.Image:
        """The image with what was found: an RGB picture of its size, or with a longest side of ``at_most`` pixels; tiny ones enlarged
        under boxes and words."""
        return Image.fromarray(draw_boxes(self.original(), np.zeros((0, 4)), at_least=1, at_most=at_most))

    def _head(self) -> dict[str, Any]:
        return {"source": self.source, **(self.moment.to_dict() if self.moment else {}), "size": list(self.size)}


@dataclass(frozen=True, eq=False)
class Classes(Result):
    """``probabilities`` float32 [K] of the ``classes``. ``multilabel``: several may be right, and each stands for itself; those are there
    whose probability is at least its of the K ``thresholds``. ``timeline``: of a recording, where the head says when."""

    probabilities: NDArray[np.float32]
    multilabel: bool = False
    thresholds: tuple[float, ...] = ()
    top_k: int | None = None
    timeline: Timeline | None = None

    @property
    def events(self) -> list[Event]:
        """What is heard when, by its begin: stretches of frames of at least the threshold of their class (0.5, or that asked for). Empty
        where the head does not say when."""
        over = self.thresholds or (SURE,) * len(self.classes)
        return [] if self.timeline is None else self.timeline.events(self.classes, over)

    @property
    def order(self) -> NDArray[np.int64]:
        """Labels, the most probable first; the ``top_k`` first, where that was asked for."""
        return np.argsort(-self.probabilities, kind="stable")[: self.top_k]

    @property
    def label(self) -> int:
        """The most probable label."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """The name of the most probable class."""
        return self.classes[self.label]

    @property
    def score(self) -> float:
        """Its probability."""
        return float(self.probabilities[self.label])

    @property
    def names(self) -> tuple[str, ...]:
        """The classes whose probability is at least their threshold, the most probable first: those that are there, of several labels."""
        return tuple(self.classes[label] for label in self._there())

    def _there(self) -> list[int]:
        over = self.thresholds or (SURE,) * len(self.classes)
        return [label for label in self.order.tolist() if self.probabilities[label] >= over[label]]

    def to_dict(self) -> dict[str, Any]:
        rows = [(self.classes[label], int(label), float(self.probabilities[label])) for label in self.order]
        found = [{"class": name, "label": label, "probability": value} for name, label, value in rows]
        told = {**self._head(), "classes": len(self.classes), "multilabel": self.multilabel}
        if self.multilabel:  # of several labels those that are there
            told |= {"there": list(self.names)}
            found = [row | {"threshold": self.thresholds[row["label"]]} for row in found] if self.thresholds else found
        events = {} if self.timeline is None else {"events": [event.to_dict() for event in self.events]}
        return told | {"predictions": found} | events

    def draw(self, at_most: int | None = None) -> Image.Image:
        height, width = self.size
        shown = self._there() if self.multilabel else [self.label]
        text = ", ".join(f"{self.classes[row]} {self.probabilities[row]:.2f}" for row in shown) or "none"
        whole = np.array([[0, 0, width, height]], np.float64)
        return Image.fromarray(draw_boxes(self.original(), whole, [text], [self.label], at_most=at_most))


@dataclass(frozen=True, eq=False)
class Boxes(Result):
    """``boxes`` float64 [n, 4] xyxy in pixels, ``scores`` float64 [n] in descending order, ``labels`` int64 [n] in 0..K-1.
    ``threshold``: the score from which boxes count as found, and are drawn; those below it are here too, unless it was asked for."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    threshold: float = BOXES

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> tuple[str, ...]:
        """The class of each box."""
        return tuple(self.classes[label] for label in self.labels)

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        found = [
            {"box": box, "score": score, "label": label, "class": self.classes[label]} for box, score, label in rows
        ]
        return {**self._head(), "threshold": self.threshold, "boxes": found}

    def draw(self, at_most: int | None = None) -> Image.Image:
        shown = self.scores >= self.threshold
        pairs = zip(self.labels[shown], self.scores[shown], strict=True)
        texts = [f"{self.classes[label]} {score:.2f}" for label, score in pairs]
        drawn = draw_boxes(self.original(), self.boxes[shown], texts, self.labels[shown], at_most=at_most)
        return Image.fromarray(drawn)


@dataclass(frozen=True, eq=False)
class Mask(Result):
    """``labels`` uint8 [H, W]: the class of each pixel, 255 where it has none (not finite, or less sure than the threshold).
    ``confidence`` float32 [H, W]: its probability. ``probabilities`` float16 [K, H, W], where they were asked for; K = 1: of the
    second class."""

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float16] | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels by class, the largest first; those that have none are in no class."""
        counts = np.bincount(self.labels.ravel(), minlength=256)[: len(self.classes)]
        order = np.argsort(-counts, kind="stable")
        return {self.classes[label]: float(counts[label] / self.labels.size) for label in order if counts[label]}

    def to_dict(self) -> dict[str, Any]:
        """Shares, and the labels as runs: flat [value, count, value, count, ...] by rows."""
        flat = self.labels.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        runs = np.stack([flat[starts].astype(np.int64), np.diff(np.append(starts, flat.size))], 1)
        return {**self._head(), "classes": list(self.classes), "shares": self.shares, "runs": runs.ravel().tolist()}

    def draw(self, at_most: int | None = None) -> Image.Image:
        return Image.fromarray(overlay(self.original(), self.labels, self.classes, at_most=at_most))


@dataclass(frozen=True, eq=False)
class Masks(Result):
    """``masks`` bool [K, H, W]: where each of the ``classes`` is, which may overlap: where its probability is over its of ``thresholds``.
    ``probabilities`` float16 [K, H, W], where they were asked for."""

    masks: NDArray[np.bool_]
    thresholds: tuple[float, ...]
    probabilities: NDArray[np.float16] | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that is there, the largest first; they need not add up to 1."""
        shares = self.masks.mean((1, 2))
        order = np.argsort(-shares, kind="stable")
        return {self.classes[label]: float(shares[label]) for label in order if shares[label]}

    def to_dict(self) -> dict[str, Any]:
        """Shares, and the mask of each class that is there as runs: lengths by rows, of pixels without it and with it in turn."""
        found = [
            {"class": self.classes[label], "label": int(label), "runs": _lengths(self.masks[label])}
            for label in np.flatnonzero(self.masks.any((1, 2)))
        ]
        known = {"classes": list(self.classes), "thresholds": list(self.thresholds), "shares": self.shares}
        return {**self._head(), **known, "masks": found}

    def draw(self, at_most: int | None = None) -> Image.Image:
        """The image under the colours of its classes, in stripes where they overlap."""
        return Image.fromarray(overlay(self.original(), set_of(self.masks), self.classes, at_most=at_most))


def _lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of a mask, of False first, which may be none."""
    flat = np.concatenate([[False], mask.ravel()])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()
    return lengths


@dataclass(frozen=True, eq=False)
class Values(Result):
    """What the head of a task of one's own predicts of an image, as it came: a tensor, or tensors in tuples and dicts, on the CPU.
    Nothing is brought back to original pixels; a type of its own can be registered (:func:`register_result`)."""

    values: Any

    def to_dict(self) -> dict[str, Any]:
        return {**self._head(), "values": _plain(self.values, self.source)}


@dataclass(frozen=True, eq=False)
class Failed:
    """An image that could not be predicted, where errors are to be returned: ``error`` says why in a line."""

    source: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "error": self.error}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


RESULTS: dict[str, Callable[..., Result]] = {}


def register_result(task: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Register what makes the results of a head whose ``task`` is that word: called with ``prediction`` (that of one image, on the
    CPU), ``plan`` (its :class:`effbackbones.images.geometry.ResizePlan`), and ``source``, ``size``, ``classes``, ``original`` of a
    :class:`Result`."""

    def register(make: Callable[..., Result]) -> Callable[..., Result]:
        RESULTS[task] = make
        return make

    return register


def _plain(values: Any, source: str) -> Any:
    """Tensors as lists of numbers; what is not finite raises :class:`UserError`."""
    if isinstance(values, Mapping):
        return {key: _plain(value, source) for key, value in values.items()}
    if hasattr(values, "_asdict"):
        return _plain(values._asdict(), source)
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [_plain(value, source) for value in values]
    array = np.asarray(values)
    if not np.isfinite(array).all():
        raise UserError(source, "its prediction is not finite", "look at the weights, or predict in fp32")
    return array.tolist()
