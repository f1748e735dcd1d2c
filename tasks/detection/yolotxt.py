"""What ``predict`` leaves of a detector for YOLO's tools: a text file of boxes for each image."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.inference.results import Boxes
from tasks.report.outputs import make_folder, stem_of

_MARK = "# labels that effbackbones predicted"


class YoloFiles:
    """Writes ``OUT/labels/NAME.txt`` for each image, also where nothing was found: a line ``class cx cy w h`` for each box that counts
    by the result's ``threshold``, shares of the image, or with ``scores`` of every box, the score behind it. ``OUT/classes.txt`` and
    ``OUT/data.yaml`` name the classes. NAME is the image's path below the folder that all of them share (:meth:`below`), so that
    labels and images fit together when ``OUT/images`` is that folder; of frames it is the video's name and the number.

    Scores are what other programs read as results, and not as labels. Labels that are not of an earlier run, and images that differ
    by their endings alone, raise :class:`UserError`.
    """

    draws = False

    def __init__(self, out: Path, classes: Sequence[str], *, scores: bool = False) -> None:
        self.out, self.scores = out, scores
        self.root = ""
        described, labels = out / "data.yaml", out / "labels"
        ours = described.is_file() and described.read_bytes().startswith(_MARK.encode())
        if not ours and (described.exists() or (labels.is_dir() and any(labels.iterdir()))):
            what = "is there, and was not written by predict"
            raise UserError(str(labels if labels.exists() else described), what, "name another folder with --out")
        make_folder(labels)
        names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(classes))
        text = (
            f"{_MARK}; lay the images into the folder images beside them\ntrain: images\nval: images\nnames:\n{names}"
        )
        described.write_text(text, encoding="utf-8")
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")

    def below(self, files: Iterable[str]) -> None:
        """Take names from the paths of all images, which are gone through twice."""
        folders = {os.path.dirname(os.path.abspath(file)) for file in files}
        self.root = os.path.commonpath(folders) if folders else ""
        taken: dict[str, str] = {}
        for file in files:
            other = taken.setdefault(self._name(file).casefold(), file)
            if other != file:
                what = f"and {other} would have the same labels, {self._name(file)}.txt"
                raise UserError(file, what, "YOLO tells images apart by their stems: rename one, or predict them apart")

    def update(self, results: Sequence[Boxes]) -> None:
        """Write the files of images."""
        for result in results:
            moment = result.moment
            path = self.out / "labels" / f"{self._name(result.source) if moment is None else stem_of(result)}.txt"
            make_folder(path.parent)
            try:
                path.write_text("".join(self._lines(result)), encoding="utf-8")
            except OSError as error:
                what = f"cannot be written ({error.strerror})"
                raise UserError(str(path), what, "free space or choose another folder") from error

    def close(self) -> None:
        """Everything is written."""

    def _name(self, file: str) -> str:
        return os.path.splitext(os.path.relpath(os.path.abspath(file), self.root) if self.root else Path(file).name)[0]

    def _lines(self, result: Boxes) -> Iterable[str]:
        height, width = result.size
        least = 0.0 if self.scores else result.threshold
        for (x1, y1, x2, y2), score, label in zip(result.boxes, result.scores, result.labels, strict=True):
            if score >= least:
                middle = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
                numbers = " ".join(f"{value:.9f}" for value in (*middle, (x2 - x1) / width, (y2 - y1) / height))
                yield f"{label} {numbers}" + (f" {score:.6f}\n" if self.scores else "\n")
