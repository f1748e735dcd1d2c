"""Outlines of objects in columns: polygons and runs of pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outlines:
    """Outlines of N objects, each polygons, or runs of pixels, or nothing. Arrays only, so that forked workers share them uncopied.

    Polygons: object n has the parts ``parts[n]`` to ``parts[n + 1]``, int64 [N + 1]; part p the numbers ``ends[p]`` to
    ``ends[p + 1]``, int64 [P + 1], of ``coordinates``, float64: x and y of each point in pixels, three points at least.
    Runs: object n has the numbers ``runs[n, 0]`` to ``runs[n, 1]``, int64 [N, 2], of ``counts``, uint32: lengths of pixels
    outside, inside, outside, ... in turn, down the columns of an image of ``sizes[n]``, int32 [N, 2] (H, W), -1 where no runs are.
    ``thin``: which objects had polygons of fewer points beside, which are left out, bool [N].
    """

    parts: NDArray[np.int64]
    ends: NDArray[np.int64]
    coordinates: NDArray[np.float64]
    runs: NDArray[np.int64]
    counts: NDArray[np.uint32]
    sizes: NDArray[np.int32]
    thin: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which objects have no outline, bool [N]."""
        missing: NDArray[np.bool_] = (np.diff(self.parts) == 0) & (self.sizes[:, 0] < 0)
        return missing

    @property
    def owners(self) -> NDArray[np.int64]:
        """The object of each part, int64 [P]."""
        owners: NDArray[np.int64] = np.repeat(np.arange(len(self)), np.diff(self.parts))
        return owners

    def extents(self) -> NDArray[np.float64]:
        """Least and greatest x and y of each part, float64 [P, 2, 2]."""
        points, starts = self.coordinates.reshape(-1, 2), self.ends[:-1] // 2
        if not len(starts):
            return np.zeros((0, 2, 2))
        return np.stack([np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)], 1)

    def boxes(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """The box around each outline as x, y, width, height, float64 [N, 4]; NaN where there is none, or no pixel inside. ``rows``:
        runs are looked at in these alone, for they take longer."""
        found = np.full((len(self), 2, 2), np.nan)
        drawn = np.flatnonzero(np.diff(self.parts))
        if len(drawn):
            extents, starts = self.extents(), self.parts[drawn]
            found[drawn, 0] = np.minimum.reduceat(extents[:, 0], starts)
            found[drawn, 1] = np.maximum.reduceat(extents[:, 1], starts)
        run = np.flatnonzero(self.sizes[:, 0] >= 0)
        for row in (run if rows is None else np.intersect1d(run, rows)).tolist():
            ends = np.cumsum(self.counts[slice(*self.runs[row])], dtype=np.int64)
            first, last = ends[:-1:2], ends[1::2] - 1  # of each run inside, where pixels are numbered down the columns
            first = first[: len(last)][(inside := last >= first[: len(last)])]
            last = last[inside]
            if not len(last):
                continue
            height = int(self.sizes[row, 0])
            left, right, whole = first.min() // height, last.max() // height, (first // height < last // height).any()
            top, bottom = (0, height - 1) if whole else ((first % height).min(), (last % height).max())
            found[row] = [[left, top], [right + 1, bottom + 1]]
        return np.concatenate([found[:, 0], found[:, 1] - found[:, 0]], 1)

    def areas(self) -> NDArray[np.float64]:
        """Square pixels inside of each outline, float64 [N]: those of the parts added up (the trapezium formula), or of the runs."""
        before = np.concatenate(
            [[0], np.cumsum(self.counts * (_places(self.runs, len(self.counts)) % 2), dtype=np.int64)]
        )
        areas: NDArray[np.float64] = (before[self.runs[:, 1]] - before[self.runs[:, 0]]).astype(np.float64)
        if len(self.coordinates):
            starts, points = self.ends[:-1] // 2, self.coordinates.reshape(-1, 2)
            following = np.arange(1, len(points) + 1)
            following[self.ends[1:] // 2 - 1] = starts
            twice = np.add.reduceat(points[:, 0] * points[following, 1] - points[following, 0] * points[:, 1], starts)
            areas += np.bincount(self.owners, np.abs(twice) / 2, len(self))
        return areas

    def pixels(self, row: int) -> int:
        """How many pixels the polygons of an object are, where its image is large enough."""
        from pycocotools import mask as engine

        spans = [self.coordinates[slice(*self.ends[part : part + 2])] for part in range(*self.parts[row : row + 2])]
        height, width = (max(1, int(max(span[side::2].max() for span in spans)) + 2) for side in (1, 0))
        return int(engine.area(engine.merge(engine.frPyObjects([span.tolist() for span in spans], height, width))))

    def known(self, row: int) -> bytes:
        """The outline of an object as bytes."""
        if self.sizes[row, 0] >= 0:
            return bytes(self.sizes[row].tobytes() + self.counts[slice(*self.runs[row])].tobytes())
        ends = self.ends[self.parts[row] : self.parts[row + 1] + 1]
        return bytes((ends - ends[0]).tobytes() + self.coordinates[ends[0] : ends[-1]].tobytes())

    def paint(self, canvas: NDArray[np.uint8], row: int, value: int) -> None:
        """Set the pixels of an object in ``canvas``, uint8 [W, H], to ``value``; which ones they are pycocotools says."""
        from pycocotools import mask as engine

        width, height = canvas.shape
        if self.sizes[row, 0] >= 0:
            counts = self.counts[self.runs[row, 0] : self.runs[row, 1]].tolist()
            drawn = engine.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            spans = (slice(*self.ends[part : part + 2]) for part in range(self.parts[row], self.parts[row + 1]))
            drawn = engine.merge(engine.frPyObjects([self.coordinates[span].tolist() for span in spans], height, width))
        left, top, across, down = (int(side) for side in engine.toBbox(drawn))
        window = (slice(left, left + across), slice(top, top + down))
        canvas[window][engine.decode(drawn).T[window] > 0] = value


def _places(runs: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """The place of each number within its object's runs, int64 [total]."""
    starts, stops = runs[runs[:, 1] > runs[:, 0]].T
    order = np.argsort(starts)
    places: NDArray[np.int64] = np.arange(total) - np.repeat(starts[order], (stops - starts)[order])
    return places
