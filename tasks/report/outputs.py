"""What ``predict`` writes for each image: names that are used once and overwrite nothing of others, and images to draw on."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from effbackbones.drawing.boxes import Picture
from effbackbones.drawing.videofile import VideoFile
from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.images.video import Moment
from effbackbones.inference.results import Result

KEPT_BYTES = 2**28
"""So much of images that results are drawn on is kept in memory; what does not fit is read from its file a second time."""
_TAIL = 1_000_000
"""Bytes at the end of a video in which its comment is."""
_LONGEST = 200  # bytes of a file name, with room for a number


def stem_of(result: Result) -> str:
    """What the files of a result are called: as the image, or as its video and the number of the frame."""
    moment = result.moment
    return Path(result.source).stem if moment is None else f"{_stem_of_video(moment)}-{moment.index:06d}"


def place_of(result: Result) -> str:
    """Where an image is: its whole path; of a stream its address."""
    live = result.moment is not None and result.moment.live
    return result.source if live else os.path.abspath(result.source)


def _stem_of_video(moment: Moment) -> str:
    return re.sub(r"[^\w.-]+", "_", moment.video).strip("_.") if moment.live else Path(moment.video).stem


class OutputNames:
    """Gives each image a name under which all its files can be written.

    ``places``: the files that a name stands for. ``mark``: the comment in the pictures of this command, by which a later
    run knows what it may overwrite.
    """

    def __init__(self, places: Callable[[str], Iterable[Path]], mark: str) -> None:
        self.places, self.mark = places, mark
        self._taken: Counter[str] = Counter()

    def take(self, stem: str) -> str:
        """``stem``, or with a number (``stem-2``): no other image has that name, and at none of its places anything is lost;
        names differ by more than capitals."""
        stem = os.fsdecode(os.fsencode(stem)[:_LONGEST])
        while True:
            self._taken[stem.casefold()] += 1
            number = self._taken[stem.casefold()]
            name = stem if number == 1 else f"{stem}-{number}"
            if (number == 1 or name.casefold() not in self._taken) and all(
                is_free(path, self.mark) for path in self.places(name)
            ):
                self._taken[name.casefold()] |= 1
                return name


class DrawnVideos:
    """Drawn frames as one video file for each video, one after the other. ``place``: the file of a name, which names nothing of others."""

    def __init__(self, place: Callable[[str], Path], mark: str) -> None:
        self.place, self.mark = place, mark
        self._names = OutputNames(lambda name: [place(name)], mark)
        self._video = ""
        self._file: VideoFile | None = None

    def add(self, picture: Picture, moment: Moment) -> None:
        """Add the picture of a frame."""
        if self._file is None or moment.video != self._video:
            self.close()
            self._video = moment.video
            self._file = VideoFile(self.place(self._names.take(_stem_of_video(moment))), self.mark)
        self._file.add(picture, moment)

    def close(self) -> None:
        """Finish the file that is being written."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Originals:
    """Reads image files by ``read``, and keeps them, as far as there is room, until they are drawn on."""

    def __init__(self, read: Callable[[str], Pixels]) -> None:
        self.read = read
        self._kept: dict[str, Pixels] = {}

    def __call__(self, path: str) -> Pixels:
        """The image [H, W, C] of a file; decoded again, where it was not kept."""
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        image = self.read(path)
        if image.nbytes + sum(one.nbytes for one in list(self._kept.values())) <= KEPT_BYTES:
            self._kept[path] = image
        return image

    def forget(self, paths: Iterable[str]) -> None:
        """Keep these images no longer."""
        for path in paths:
            self._kept.pop(path, None)


def is_free(path: Path, mark: str) -> bool:
    """Whether there is nothing at ``path``, or a picture (JPEG, PNG, MP4) whose comment is ``mark``."""
    if not path.exists() and not path.is_symlink():
        return True
    if not path.is_file():
        return False
    try:
        if path.suffix == ".mp4":
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                return mark.encode() in file.read()
        with Image.open(path, formats=["JPEG", "PNG"]) as picture:
            return any(picture.info.get(key) in (mark, mark.encode()) for key in ("comment", "Comment"))
    except (OSError, ValueError, SyntaxError):
        return False


def make_folder(folder: Path) -> None:
    """Make ``folder``, if it is not there; :class:`UserError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            str(folder), f"cannot be made a folder ({error.strerror})", "name another folder with --out"
        ) from error
