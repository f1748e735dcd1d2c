"""What ``predict`` leaves of a segmentation: for each image its classes as numbers, in colours, and over the image."""

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from effbackbones.drawing.masks import overlay, palette_of
from effbackbones.errors import UserError
from effbackbones.inference.results import Mask as Segments
from effbackbones.weights.tensorfile import write_atomically, write_parts
from tasks.data.sample import IGNORE
from tasks.report.outputs import DrawnVideos, OutputNames, make_folder, place_of, stem_of
from tasks.report.spool import Spool, long_json
from tasks.segmentation.values import OwnValues

MARK = "segmentation by effbackbones"
LARGEST = 65_500  # pixels on a side of a JPEG file
FORMS = ("masks", "pictures")
"""What is written for each image: masks, and the image under them."""
_TOLD = 5  # classes
_FILES = {
    "index": "NAME.png, grey: the value of each pixel is its class",
    "color": "NAME.png, with a palette: the index of each pixel is its class",
    "overlay": "NAME.jpg, the image under the colours; for the eye alone",
}
_OWN = {
    "values": "NAME.png, like the masks of training, with their palette: each pixel has the value of its class there (stored, below)"
}
PROBABILITIES = {"probabilities": "NAME.npy, float16 [classes, height, width]; of one channel that of the second class"}


class SegmentationFiles:
    """Writes ``OUT/index/NAME.png``, ``OUT/color/NAME.png`` and ``OUT/overlay/NAME.jpg`` for each image, of its size, and at the
    end ``OUT/classes.json``, which says what the values are and of which image each NAME is; tells the largest classes of each image.

    With ``values`` (those of the training masks, as :func:`tasks.segmentation.values.stored_values` has them) also
    ``OUT/values/NAME.png``, with ``probabilities`` also ``OUT/probabilities/NAME.npy``.

    A pixel that is less sure than the threshold, or not finite, has the value 255, which is no class. The overlay lies on the
    image, and is reduced where JPEG cannot hold its size. Images of one name get numbers
    (``NAME-2``); a file that is not one of an earlier run is never overwritten, and where ``classes.json`` is such a file, a
    :class:`UserError` says so.
    """

    def __init__(
        self,
        out: Path,
        classes: Sequence[str],
        tell: Callable[[str], None],
        values: Mapping[str, Any] | None = None,
        probabilities: bool = False,
        forms: Sequence[str] = FORMS,
    ) -> None:
        self.out, self.classes, self.tell = out, classes, tell
        self.own = OwnValues.of(values, classes)
        self.draws = "pictures" in forms
        self.kinds = _FILES | (_OWN if self.own else {}) | (PROBABILITIES if probabilities else {})
        self.kinds = {
            kind: text
            for kind, text in self.kinds.items()
            if (kind != "overlay" and "masks" in forms) or (kind == "overlay" and self.draws)
        }
        self._colours = palette_of(classes)
        self._images = Spool(out / ".images.jsonl.part")
        # Arrays bear no mark: the pictures beside them say whose they are.
        marked = [kind for kind in self.kinds if kind not in PROBABILITIES]
        self._names = OutputNames(lambda name: [self._places(name)[kind] for kind in marked], MARK)
        self._videos = DrawnVideos(lambda name: out / "overlay" / f"{name}.mp4", MARK)
        for kind in self.kinds:
            make_folder(out / kind)
        if not is_ours(out / "classes.json"):
            raise UserError(
                str(out / "classes.json"), "is there, and was not written by predict", "name another folder with --out"
            )

    def update(self, results: Sequence[Segments]) -> None:
        """Write the files of images."""
        for result in results:
            self._write(result)

    def close(self) -> None:
        self._videos.close()
        colours = [f"#{bytes(colour).hex()}" for colour in self._colours]
        classes = [{"value": value, "name": name, "color": colours[value]} for value, name in enumerate(self.classes)]
        undefined = {
            "value": IGNORE,
            "meaning": "no class: less sure than asked for, or not finite",
            "color": colours[IGNORE],
        }
        if self.own:
            undefined["stored"] = self.own.word(self.own.undefined)
            for row, value in zip(classes, self.own.values, strict=True):
                row["stored"] = self.own.word(value)
        record = {
            "about": MARK,
            "files": self.kinds,
            "classes": classes,
            "undefined": undefined,
        }
        write_record(self.out / "classes.json", record, self._images)

    def _write(self, result: Segments) -> None:
        name, labels = self._names.take(stem_of(result)), result.labels
        self._images.add([name, place_of(result), result.moment and result.moment.to_dict()])
        places = self._places(name)
        comment = PngInfo()
        comment.add_text("Comment", MARK)
        drawn = Image.fromarray(labels)
        counts = np.array(drawn.histogram())
        if "index" in places:
            write_atomically(places["index"], encoded(drawn, "PNG", pnginfo=comment))
            drawn.putpalette(self._colours.tobytes())
            write_atomically(places["color"], encoded(drawn, "PNG", pnginfo=comment))
        if self.own and "values" in places:
            write_atomically(places["values"], encoded(self.own.picture(labels), "PNG", pnginfo=comment))
        if "probabilities" in places:
            write_atomically(places["probabilities"], stored(result.probabilities))
        reduced = self._overlaid(result, places["overlay"]) if "overlay" in places else ""
        self.tell(f"{result.source}: {self._summary(counts)}{reduced}")

    def _overlaid(self, result: Segments, path: Path) -> str:
        """Draw an image, and say whether it had to be reduced."""
        picture = Image.fromarray(overlay(result.original(), result.labels, self.classes, at_most=LARGEST))
        if result.moment is not None:
            self._videos.add(np.asarray(picture), result.moment)
        else:
            write_atomically(path, encoded(picture, "JPEG", quality=92, comment=MARK.encode()))
        return f"; overlay reduced to {picture.width} x {picture.height}" if max(result.size) > LARGEST else ""

    def _summary(self, counts: np.ndarray) -> str:
        """The classes with the largest shares of the pixels."""
        ranked = [int(value) for value in np.argsort(-counts, kind="stable") if counts[value]]
        shares = [
            f"{self.classes[value] if value != IGNORE else 'no class'} {share(counts[value] / counts.sum())}"
            for value in ranked
        ]
        return ", ".join(shares[:_TOLD]) + (f", and {len(shares) - _TOLD} more" if len(shares) > _TOLD else "")

    def _places(self, name: str) -> dict[str, Path]:
        endings = {"overlay": "jpg", "probabilities": "npy"}
        return {kind: self.out / kind / f"{name}.{endings.get(kind, 'png')}" for kind in self.kinds}


def write_record(path: Path, record: Mapping[str, Any], images: Spool) -> None:
    """Write ``classes.json``: a record, and of ``images``, which are let go, by their NAMEs: the file of each, of frames which they are,
    and where more is said of each, the shares of its classes."""
    places = ((name, place) for name, place, *_ in images)
    more: dict[str, Iterable[Any]] = {"images": places}
    if any(moment for _, _, moment, *_ in images):
        more["frames"] = ((name, moment) for name, _, moment, *_ in images if moment)
    if any(len(row) > 3 for row in images):
        more["shares"] = ((row[0], row[3]) for row in images)
    write_parts(path, chain(long_json(record, more, 2, pairs=True), [b"\n"]))
    images.close()


def written_for(folder: Path) -> dict[str, str]:
    """NAME of each image whose files are in ``folder``, which ``predict`` wrote, by the image's real path; where that is not
    known, as for masks from elsewhere, nothing."""
    for place in (folder / "classes.json", folder.parent / "classes.json"):
        if place.is_file() and is_ours(place):
            try:
                images = json.loads(place.read_text(encoding="utf-8"))["images"]
                return {os.path.realpath(path): name for name, path in images.items()}
            except (KeyError, ValueError, AttributeError, TypeError) as error:
                raise UserError(
                    str(place), f"is damaged ({type(error).__name__})", "predict again, or remove it"
                ) from None
    return {}


def stored(probabilities: NDArray[np.float16] | None) -> bytes:
    """The file of an image's probabilities."""
    if probabilities is None:
        what = "asks for what several tasks together do not keep"
        raise UserError("run.probabilities", what, "predict with the command segment")
    buffer = io.BytesIO()
    np.save(buffer, probabilities)
    return buffer.getvalue()


def share(value: float) -> str:
    """A share of pixels in words."""
    return "< 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def is_ours(path: Path) -> bool:
    """Whether there is nothing at ``path``, or the record of an earlier run."""
    try:
        with open(path, encoding="utf-8") as file:
            return bool(MARK in file.read(200))  # it stands at the beginning
    except FileNotFoundError:
        return not path.is_symlink()
    except (OSError, ValueError):
        return False
