"""What ``predict`` leaves of a segmentation whose classes overlap: for each image a mask of each class, and all over the image."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from effbackbones.drawing.masks import overlay, palette_of
from effbackbones.errors import UserError
from effbackbones.images.classsets import set_of
from effbackbones.inference.results import Masks
from effbackbones.weights.tensorfile import write_atomically
from tasks.report.outputs import DrawnVideos, OutputNames, make_folder, place_of, stem_of
from tasks.report.spool import Spool
from tasks.segmentation.files import FORMS, LARGEST, MARK, encoded, is_ours, share, stored, write_record

_FILES = {
    "masks": "CLASS/NAME.png, grey: 255 where the class is, else 0",
    "overlay": "NAME.jpg, the image under the colours, striped where classes overlap; for the eye alone",
}
_PROBABILITIES = {"probabilities": "NAME.npy, float16 [classes, height, width]"}
_TOLD = 5  # classes


class SetFiles:
    """Writes ``OUT/masks/CLASS/NAME.png`` and ``OUT/overlay/NAME.jpg`` for each image, of its size, and at the end
    ``OUT/classes.json``, which says what the folders and thresholds of the classes are, of which image each NAME is, and what share of
    it each class has; tells the largest classes of each image. With ``probabilities`` also ``OUT/probabilities/NAME.npy``.

    ``OUT/masks`` is in the form that ``data.options.mask_names: "{class}/{name}"`` reads. Names and overlays as of
    :class:`tasks.segmentation.files.SegmentationFiles`.
    """

    def __init__(
        self,
        out: Path,
        classes: Sequence[str],
        tell: Callable[[str], None],
        *,
        probabilities: bool = False,
        forms: Sequence[str] = FORMS,
    ) -> None:
        self.out, self.classes, self.tell = out, classes, tell
        self.folders = folders_of(classes)
        self.draws = "pictures" in forms
        self.kinds = _FILES | (_PROBABILITIES if probabilities else {})
        self.kinds = {
            kind: text
            for kind, text in self.kinds.items()
            if (kind != "overlay" and "masks" in forms) or (kind == "overlay" and self.draws)
        }
        self._images = Spool(out / ".images.jsonl.part")
        self._thresholds: tuple[float, ...] = ()
        self._names = OutputNames(lambda name: [*self._masks(name), self._overlay(name)], MARK)
        self._videos = DrawnVideos(lambda name: out / "overlay" / f"{name}.mp4", MARK)
        for kind in self.kinds:
            for folder in self.folders if kind == "masks" else ["."]:
                make_folder(out / kind / folder)
        if not is_ours(out / "classes.json"):
            raise UserError(
                str(out / "classes.json"), "is there, and was not written by predict", "name another folder with --out"
            )

    def update(self, results: Sequence[Masks]) -> None:
        """Write the files of images."""
        for result in results:
            self._write(result)

    def close(self) -> None:
        self._videos.close()
        colours = [f"#{bytes(colour).hex()}" for colour in palette_of(self.classes)]
        thresholds = self._thresholds or (None,) * len(self.classes)  # of no image nothing was said
        rows = zip(self.classes, self.folders, thresholds, colours, strict=False)  # the palette goes on
        record = {
            "about": MARK,
            "files": self.kinds,
            "classes": [
                {"name": name, "folder": folder, "threshold": threshold, "color": colour}
                for name, folder, threshold, colour in rows
            ],
        }
        write_record(self.out / "classes.json", record, self._images)

    def _write(self, result: Masks) -> None:
        name = self._names.take(stem_of(result))
        self._thresholds = result.thresholds
        comment = PngInfo()
        comment.add_text("Comment", MARK)
        shares = {}
        for text, inside, path in zip(self.classes, result.masks, self._masks(name), strict=True):
            shares[text] = float(inside.mean())
            if "masks" not in self.kinds:
                continue
            picture = Image.fromarray(inside.astype(np.uint8) * np.uint8(255))
            write_atomically(path, encoded(picture, "PNG", pnginfo=comment))
        self._images.add([name, place_of(result), result.moment and result.moment.to_dict(), shares])
        if "probabilities" in self.kinds:
            write_atomically(self.out / "probabilities" / f"{name}.npy", stored(result.probabilities))
        reduced = self._overlaid(result, self._overlay(name)) if "overlay" in self.kinds else ""
        self.tell(f"{result.source}: {_summary(shares)}{reduced}")

    def _overlaid(self, result: Masks, path: Path) -> str:
        """Draw an image, and say whether it had to be reduced."""
        drawn = Image.fromarray(overlay(result.original(), set_of(result.masks), self.classes, at_most=LARGEST))
        if result.moment is not None:
            self._videos.add(np.asarray(drawn), result.moment)
        else:
            write_atomically(path, encoded(drawn, "JPEG", quality=92, comment=MARK.encode()))
        return f"; overlay reduced to {drawn.width} x {drawn.height}" if max(result.size) > LARGEST else ""

    def _masks(self, name: str) -> list[Path]:
        return [self.out / "masks" / folder / f"{name}.png" for folder in self.folders]

    def _overlay(self, name: str) -> Path:
        return self.out / "overlay" / f"{name}.jpg"


def folders_of(classes: Sequence[str]) -> list[str]:
    """A folder for each class, called like it as far as a file system allows; two that would be one get numbers."""
    found: list[str] = []
    for text in classes:
        plain = re.sub(r'[/\\:*?"<>|\0]', "_", text).strip(". ")[:100] or "_"
        name, number = plain, 1
        while name.casefold() in {other.casefold() for other in found}:
            number += 1
            name = f"{plain}-{number}"
        found.append(name)
    return found


def _summary(shares: dict[str, float]) -> str:
    """The classes with the largest shares of the pixels."""
    ranked = sorted((name for name, part in shares.items() if part), key=lambda name: -shares[name])
    texts = [f"{name} {share(shares[name])}" for name in ranked]
    return (", ".join(texts[:_TOLD]) or "no class") + (f", and {len(texts) - _TOLD} more" if len(texts) > _TOLD else "")
