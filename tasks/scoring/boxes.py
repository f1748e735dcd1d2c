"""Outcomes of images in which boxes are found: COCO's matching, image by image, from which average precision is computed for any
weights of the images.

Along the detections of a class, falling by score, precision matters only at those that are right, for between two of them it only
falls. So a set of weights costs one addition for each detection and a few operations for each that is right.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tasks.scoring.outcomes import Floats, Outcomes, Tables, mean_of_known

SIZES = ("", "_small", "_medium", "_large")
"""Ends of the names of scores by the area of objects: all of them, and COCO's three."""
THRESHOLDS = 10
"""IoUs 0.50, 0.55, ..., 0.95."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_CELLS = 2**22  # numbers of a block: what is worked on at once
Flags = NDArray[np.bool_]


class Found(NamedTuple):
    """Detections of all images, by class and within it by falling score, ties in COCO's order: ``image`` int32 [N], ``label`` int32 [N],
    ``score`` float64 [N]; ``right`` and ``ignored`` uint16 [N, 4], a bit for each IoU: right about an object of that size; neither
    right nor wrong where objects of that size alone count."""

    image: NDArray[np.int32]
    label: NDArray[np.int32]
    score: Floats
    right: NDArray[np.uint16]
    ignored: NDArray[np.uint16]

    def take(self, rows: Any) -> "Found":
        """These rows alone."""
        return Found(self.image[rows], self.label[rows], self.score[rows], self.right[rows], self.ignored[rows])


class Objects(NamedTuple):
    """True objects, crowds left out: ``image`` int32 [M], ``label`` int32 [M], ``sizes`` uint8 [M], a bit for each of :data:`SIZES` that
    it counts for."""

    image: NDArray[np.int32]
    label: NDArray[np.int32]
    sizes: NDArray[np.uint8]

    def take(self, rows: Any) -> "Objects":
        """These rows alone."""
        return Objects(self.image[rows], self.label[rows], self.sizes[rows])


@dataclass(frozen=True)
class BoxOutcomes(Outcomes):
    """``found`` and ``objects`` of all images; of each class and image the best ``most`` detections."""

    found: Found
    objects: Objects
    most: int = 100
    kind: ClassVar[str] = "boxes"
    lead: ClassVar[tuple[str, ...]] = ("AP", "ap")

    @classmethod
    def of_tables(
        cls, ids: tuple[str, ...], classes: tuple[str, ...], truth: NDArray[np.uint32], tables: Tables
    ) -> Self:
        found = Found(*(tables[f"found_{name}"] for name in Found._fields))
        objects = Objects(*(tables[f"object_{name}"] for name in Objects._fields))
        for columns in (found, objects):
            lengths, images, labels = {len(column) for column in columns}, columns.image, columns.label
            inside = not len(images) or (images.min() >= 0 and images.max() < len(ids) and labels.min() >= 0)
            if len(lengths) > 1 or not inside or labels.max(initial=0) >= len(classes):
                raise ValueError("rows of boxes that fit no image or class")
        most = tables.get("most")  # older files have none
        return cls(ids, classes, truth, found, objects, 100 if most is None else int(most[0]))

    def tables(self) -> dict[str, NDArray[Any]]:
        found = {f"found_{name}": column for name, column in self.found._asdict().items()}
        objects = {f"object_{name}": column for name, column in self.objects._asdict().items()}
        return found | objects | {"most": np.array([self.most], np.int64)}

    def take(self, rows: NDArray[np.int64]) -> Self:
        place = np.full(len(self.ids), -1, np.int32)
        place[rows] = np.arange(len(rows))
        found, objects = (_of_images(columns, place) for columns in (self.found, self.objects))
        ids = tuple(self.ids[row] for row in rows.tolist())
        return replace(self, ids=ids, truth=self.truth[rows], found=found, objects=objects)

    def cost(self) -> float:
        right = sum(int((self.found.right >> bit & 1).sum()) for bit in range(THRESHOLDS))
        return 1e-6 * (2 * len(self.found.image) + 22 * right)

    def scores(self, weights: NDArray[np.integer[Any]]) -> dict[str, Floats]:
        weights = np.ascontiguousarray(weights, np.int32)
        k, sets = len(self.classes), weights.shape[1]
        precision, recall = (np.full((len(SIZES), THRESHOLDS, k, sets), np.nan) for _ in range(2))
        found_at, objects_at = (np.searchsorted(one.label, np.arange(k + 1)) for one in (self.found, self.objects))
        for label in range(k):
            mine = self.found.take(slice(found_at[label], found_at[label + 1]))
            objects = self.objects.take(slice(objects_at[label], objects_at[label + 1]))
            for size in range(len(SIZES)):
                images = objects.image[objects.sizes >> size & 1 > 0]
                if not len(images):
                    continue
                block = max(1, _CELLS // max(1, len(mine.image)))
                for start in range(0, sets, block):
                    part = slice(start, start + block)
                    some = np.ascontiguousarray(weights[:, part])
                    ap, ar = _curve(mine, size, some, some[images].sum(0))
                    precision[size, :, label, part], recall[size, :, label, part] = ap, ar
        return {
            **{f"AP{end}": _mean(precision[size]) for size, end in enumerate(SIZES)},
            "AP50": _mean(precision[0, :1]),
            "AP75": _mean(precision[0, 5:6]),
            f"AR_{self.most}": _mean(recall[0]),
            **{f"AR{end}": _mean(recall[size]) for size, end in enumerate(SIZES) if end},
            "per_class/ap": mean_of_known(precision[0]),
            "per_class/ap50": precision[0, 0],
            "per_class/ar": mean_of_known(recall[0]),
        }


def _of_images(columns: Any, place: NDArray[np.int32]) -> Any:
    """The rows of images that have a place, in the same order."""
    kept = place[columns.image] >= 0
    return columns.take(kept)._replace(image=place[columns.image[kept]])


def _mean(values: Floats) -> Floats:
    """Mean [B] over IoUs and classes [T, K, B] that are defined."""
    return mean_of_known(values.reshape(-1, values.shape[-1]))


def _curve(
    found: Found, size: int, weights: NDArray[np.int32], objects: NDArray[np.integer[Any]]
) -> tuple[Floats, Floats]:
    """Average precision and recall [T, B] of one class at one size; ``objects`` [B], how many there are."""
    bits = 1 << np.arange(THRESHOLDS, dtype=np.uint16)
    ignored: Flags = found.ignored[:, size, None] & bits > 0
    right: Flags = (found.right[:, size, None] & bits > 0) & ~ignored
    precision, recall = (np.zeros((THRESHOLDS, weights.shape[1])) for _ in range(2))
    some = np.flatnonzero(right.any(1))
    if len(some):
        end = some[-1] + 1
        counted: Flags = ~np.all(ignored[:end], 1)
        above = _summed(
            weights, found.image[:end], counted, some
        )  # all detections down to each that is right somewhere
        for index in range(THRESHOLDS):
            rows = np.flatnonzero(right[some, index])
            if len(rows):
                left_out = counted & ignored[:end, index]
                at = some[rows]
                places = above[rows]
                if left_out.any():
                    places = places - _summed(weights, found.image[:end], left_out, at)
                precision[index], recall[index] = _average_precision(weights[found.image[at]], places, objects)
    undefined = objects == 0
    precision[:, undefined] = recall[:, undefined] = np.nan
    return precision, recall


def _summed(
    weights: NDArray[np.int32], image: NDArray[np.int32], counted: Flags, at: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Summed weights [len(at), B] of the detections that are ``counted``, from the first to each row of ``at``."""
    result = np.empty((len(at), weights.shape[1]), np.int32)
    total = np.zeros(weights.shape[1], np.int32)
    wanted = np.zeros(len(image), np.bool_)
    wanted[at] = True
    place = 0
    # Row by row, for an addition of rows costs less than a cumulative sum along the long axis.
    for row in np.flatnonzero(counted | wanted).tolist():
        if counted[row]:
            total += weights[image[row]]
        if wanted[row]:
            result[place] = total
            place += 1
    return result


def _average_precision(
    mine: NDArray[np.int32], above: NDArray[np.int32], objects: NDArray[np.integer[Any]]
) -> tuple[Floats, Floats]:
    """Mean over COCO's 101 recalls of the best precision at that recall or a higher one, and the recall in the end: [B] each.
    ``mine`` [R, B]: weights of what is right; ``above`` [R, B]: of all that counts down to it."""
    hits = np.empty_like(mine)
    total = np.zeros(mine.shape[1], np.int32)
    for row in range(len(mine)):
        total += mine[row]
        hits[row] = total
    kind = np.float64 if mine.shape[1] == 1 else np.float32  # an interval needs no more digits
    precision = np.divide(hits, np.maximum(above, 1), dtype=kind, casting="unsafe")
    for row in range(len(precision) - 2, -1, -1):
        np.maximum(precision[row], precision[row + 1], out=precision[row])
    counted = np.maximum(objects, 1)
    reached = _recalls_reached(hits, counted)
    # Summed by parts: each recall has the precision of the first hit that reaches it.
    precision[:-1] -= precision[1:]
    return np.einsum("rb,rb->b", precision, reached) / len(_RECALLS), total / counted


def _recalls_reached(hits: NDArray[np.int32], objects: NDArray[np.integer[Any]]) -> NDArray[np.floating[Any]]:
    """How many of the 101 recalls are at most ``hits / objects``, [R, B]."""
    if hits.shape[1] == 1:  # to the last bit as COCO compares them
        return np.searchsorted(_RECALLS, hits / objects, side="right").astype(np.float64)
    # A recall that is met exactly may count here where rounding denies it there: a hundredth of one step of one curve.
    found: NDArray[np.float32] = np.multiply(hits, 100 / objects, dtype=np.float32, casting="unsafe")
    found += np.float32(1.00001)
    return np.floor(found, out=found)
