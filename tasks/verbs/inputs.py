"""What the words of a line name: files, folders, globs, streams, and with ``-`` a list of paths that comes through standard input."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from effbackbones.errors import UserError
from effbackbones.images import recordings
from effbackbones.images.reading import SUFFIXES, is_image_name
from effbackbones.images.recordings import is_sound_name
from effbackbones.images.video import has_av, is_film, is_stream, is_video, is_video_name
from tasks.data.files.listing import files_below, shown

LIST = "-"
"""The word for a list of paths through standard input."""
_NAMED = 3  # lines of a list that a message names


class Inputs(NamedTuple):
    """What a line names: ``images``, files each named once, and ``videos``, files and addresses of streams."""

    images: list[Path]
    videos: list[str]


def image_files(
    inputs: Sequence[str], links: str = "anywhere", tell: Callable[[str], None] | None = None
) -> list[Path]:
    """The images of :func:`named_inputs`; a video that is named raises :class:`UserError`, those in folders are passed over."""
    images, videos = named_inputs(inputs, links, tell, films=False)
    if videos:
        raise UserError(videos[0], "is a video, and images are needed", "predict takes videos")
    return images


def named_inputs(
    inputs: Sequence[str],
    links: str = "anywhere",
    tell: Callable[[str], None] | None = None,
    *,
    films: bool = True,
    sounds: bool = False,
) -> Inputs:
    """The images and videos that files, folders (all below them), globs and lists (:data:`LIST`) name, sorted within each, each once,
    and streams; a name without any raises :class:`UserError`. ``links`` as in
    :func:`tasks.data.files.listing.files_below`. What is passed over in folders, and how many are named twice, is told to ``tell``.
    ``films``: whether videos in folders are wanted; where PyAV is missing they are passed over beside images. ``sounds``: recordings are
    wanted, in the place of images, and no videos."""
    if not inputs:
        raise UserError("INPUT", "nothing is named", "name files, folders or globs")
    if inputs.count(LIST) > 1:
        raise UserError(LIST, "is there twice, and there is one standard input", "name it once")
    images: list[Path] = []
    videos: list[str] = []
    passed = Counter[str]()
    for name in inputs:
        if is_stream(name):
            videos.append(name)
        elif os.path.isdir(name):
            below = (
                _sounds_below(Path(name), links, passed) if sounds else _below(Path(name), links, passed, films=films)
            )
            images += below.images
            videos += below.videos
        else:
            found = listed(sys.stdin.buffer, tell) if name == LIST else _named(name, sounds=sounds)
            if sounds:  # what they are their reader sees
                images += found
                continue
            # Of many files those that are called images are not opened for it.
            moving = {path for path in found if (path == Path(name) or not is_image_name(path.name)) and is_video(path)}
            images += [path for path in found if path not in moving]
            videos += [str(path) for path in found if path in moving]
    once: dict[str, str] = {}
    for name in videos:
        once.setdefault(name if is_stream(name) else os.path.realpath(name), name)
    return Inputs(distinct(images, passed, tell), list(once.values()))


def distinct(files: Sequence[Path], passed: Counter[str], tell: Callable[[str], None] | None) -> list[Path]:
    """Each file once, under the first of its names, also where links lead to its folder in several ways; says how many were
    named again, and what was ``passed`` over."""
    real: dict[str, str] = {}

    def identity(file: Path) -> str:
        folder, name = os.path.split(file)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        return os.path.join(real[folder], name)

    once: dict[str, Path] = {}
    for file in files:
        once.setdefault(identity(file), file)
    if tell and len(once) < len(files):
        tell(f"{len(files) - len(once):,} images are named more than once, and predicted once")
    if tell and passed:
        kinds = ", ".join(
            f"{count:,} {kind}" for kind, count in sorted(passed.items(), key=lambda one: (-one[1], one[0]))
        )
        tell(f"passed over in folders: {kinds}")
    return list(once.values())


def _below(folder: Path, links: str, passed: Counter[str], *, films: bool) -> Inputs:
    """The images and videos below a folder."""
    here = Counter[str]()
    found = [folder / below for below in files_below(folder, _is_input_name, links=links, passed=here)]
    images, videos = [path for path in found if is_image_name(path.name)], list[str]()
    for path in found:
        if is_image_name(path.name):
            continue
        if not is_film(path):  # TypeScript, and other files of such names
            here[path.suffix.lower()] += 1
        elif not films:
            here["videos"] += 1
        elif images and not has_av():
            here["videos, which need PyAV"] += 1
        else:
            videos.append(str(path))
    passed.update(here)
    if images or videos:
        return Inputs(images, videos)
    if here["videos"]:
        raise UserError(str(folder), f"no image found, but {here['videos']:,} videos", "predict takes videos")
    raise _nothing(str(folder))


def _sounds_below(folder: Path, links: str, passed: Counter[str]) -> Inputs:
    """The recordings below a folder."""
    found = [folder / below for below in files_below(folder, is_sound_name, links=links, passed=passed)]
    if not found:
        raise _nothing(str(folder), sounds=True)
    return Inputs(found, [])


def _is_input_name(name: str) -> bool:
    return is_image_name(name) or is_video_name(name)


def _named(name: str, *, sounds: bool = False) -> list[Path]:
    """The files that a word names."""
    path = Path(name)
    found = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
    if not found and not glob.has_magic(name):
        raise UserError(name, "no such file or folder", "correct the path, relative to the working folder")
    if not found:
        raise _nothing(name, sounds=sounds)
    return found


def _nothing(name: str, *, sounds: bool = False) -> UserError:
    noun, endings = ("recording", recordings.SUFFIXES) if sounds else ("image", SUFFIXES)
    return UserError(name, f"no {noun} found", f"{noun}s end in {', '.join(sorted(endings))}")


def listed(stream: IO[bytes], tell: Callable[[str], None] | None = None) -> list[Path]:
    """The files of a list, one path a line, or with zero bytes between them (``find -print0``), which keeps names with line ends.
    Blank lines are passed over and told. Raises :class:`UserError` with the lines of what is no file, and for an empty list."""
    files: list[Path] = []
    blank, wrong = 0, list[tuple[int, str, str]]()
    for number, line in _lines(stream):
        path = Path(os.fsdecode(line))
        if not line.strip():
            blank += 1
        elif path.is_file():
            files.append(path)
        else:
            what = "is a folder: list its files, or name it on the line" if path.is_dir() else "no such file"
            wrong.append((number, str(path), what))
    if wrong:
        number, name, what = wrong[0]
        others = shown([f"line {row}: {text}" for row, text, _ in wrong[1:]], _NAMED)
        more = f" ({len(wrong) - 1:,} more: {others})" if others else ""
        raise UserError(f"standard input, line {number}", f"{name}: {what}{more}", "correct the list")
    if not files:
        raise UserError("standard input", "lists no file", "write one path a line: find FOLDER -name '*.jpg' | ...")
    if tell and blank:
        tell(f"standard input: {blank:,} blank lines are passed over")
    return files


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each path."""
    whole = stream.read()
    if b"\0" in whole:
        parts = whole.split(b"\0")
    else:
        parts = [line.removesuffix(b"\r") for line in whole.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    yield from enumerate(parts if parts[-1] else parts[:-1], 1)
