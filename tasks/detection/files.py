"""What ``predict`` leaves of a detector: a drawn picture of each image, and one COCO results file of all of them."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from effbackbones.drawing.boxes import Picture, draw_boxes
from effbackbones.images.geometry import Pixels
from effbackbones.inference.results import Boxes
from effbackbones.weights.tensorfile import write_atomically
from tasks.data.batch import Batch
from tasks.data.boxes.table import xyxy
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Knowledge
from tasks.detection.examples import confident
from tasks.detection.numbering import category_ids, write_categories
from tasks.detection.results import ImageDetections, SpooledDetections, detections_of
from tasks.detection.resultsfile import write_results
from tasks.report.outputs import DrawnVideos, OutputNames, make_folder, stem_of

_MARK = "detections drawn by effbackbones"
_LARGEST = 65_500  # pixels on a side of a JPEG file


def _write(
    folder: Path,
    detections: Iterable[ImageDetections],
    category_ids: Sequence[int],
    classes: Sequence[str],
    tell: Callable[[str], None],
) -> Path:
    """The results file in ``folder``, with the names of its ids beside it; what JSON has no word for is counted and told."""
    path = folder / "predictions.json"
    left_out = write_results(path, detections, category_ids)
    write_categories(path, category_ids, classes)
    if left_out:
        tell(f"{left_out:,} detections are not finite and were left out of predictions.json")
    return path


class DetectionRecorder:
    """Keeps the detections of an evaluation for ``FOLDER/predictions.json``, a COCO results file with the ids of images and categories
    that the data's own files have (``category_ids``, of each label), and their names beside it."""

    def __init__(self, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        self.classes, self.category_ids = classes, category_ids
        self._detections: list[ImageDetections] = []

    def update(self, batch: Batch, predictions: Sequence[ImageDetections]) -> None:
        self._detections += predictions

    def write(self, folder: Path, tell: Callable[[str], None]) -> Path:
        return _write(folder, self._detections, self.category_ids, self.classes, tell)


class DetectionFiles:
    """Writes ``OUT/NAME.jpg`` for each image, ``OUT/NAME.mp4`` for each video, and at the end ``OUT/predictions.json`` with the names
    of its ids beside it
    (:func:`tasks.detection.numbering.write_categories`); tells a line for each image.

    The pictures are in original size (tiny ones enlarged, see :func:`draw_boxes`), with boxes of a
    score of at least their result's ``threshold``. The results file has all boxes, in original pixels, with
    ``category_ids`` (the id of each label), and of images the ids of a data set (:meth:`number_as`) or what
    :func:`tasks.detection.resultsfile.write_results` makes of their paths. Images of one name get numbers (``NAME-2.jpg``); a file that
    is not such a picture of an earlier run is never overwritten.
    """

    def __init__(
        self,
        out: Path,
        classes: Sequence[str],
        category_ids: Sequence[int],
        tell: Callable[[str], None],
        *,
        pictures: bool = True,
        results: bool = True,
    ) -> None:
        self.out, self.classes, self.category_ids, self.tell = out, classes, category_ids, tell
        self.draws, self.results = pictures, results
        self._ids: Mapping[str, str] = {}
        self._detections = SpooledDetections(out / ".predictions.jsonl.part")
        self._names = OutputNames(lambda name: [out / f"{name}.jpg"], _MARK)
        self._videos = DrawnVideos(lambda name: out / f"{name}.mp4", _MARK)
        make_folder(out)

    def number_as(self, dataset: Dataset) -> None:
        """Take the ids of images and categories from the files of ``dataset``."""
        known = Knowledge.of(dataset)
        self._ids = dict(zip(map(os.path.abspath, known.paths), known.ids, strict=True))
        self.category_ids = category_ids(dataset)

    def update(self, results: Sequence[Boxes]) -> None:
        """Draw images, and keep what was found for the results file."""
        for result in results:
            found = detections_of(result)
            if self.results:
                self._detections.add(replace(found, id=self._ids.get(os.path.abspath(result.source), found.id)))
            shown = confident(found, result.threshold)
            if self.draws:
                self._draw(result, shown)
            self.tell(f"{result.source}: {self._summary(shown, result.threshold)}")

    def close(self) -> None:
        self._videos.close()
        if self.results:
            _write(self.out, self._detections, self.category_ids, self.classes, self.tell)
            self._detections.close()

    def _draw(self, result: Boxes, shown: ImageDetections) -> None:
        drawn = self._drawn(result.original(), shown)
        if result.moment is not None:
            self._videos.add(drawn, result.moment)
            return
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, "JPEG", quality=92, comment=_MARK.encode())
        write_atomically(self.out / f"{self._names.take(stem_of(result))}.jpg", buffer.getvalue())

    def _drawn(self, image: Pixels, shown: ImageDetections) -> Picture:
        # Should the file have another size than it was predicted at, boxes follow it.
        corners = xyxy(shown.boxes) * np.tile(np.array(image.shape[1::-1]) / np.array(shown.size[::-1]), 2)
        texts = [f"{self.classes[label]} {score:.2f}" for label, score in zip(shown.labels, shown.scores, strict=True)]
        return draw_boxes(image, corners, texts, shown.labels, at_most=_LARGEST)

    def _summary(self, shown: ImageDetections, threshold: float) -> str:
        counts = Counter(self.classes[label] for label in shown.labels.tolist())
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or f"nothing above {threshold:g}"
