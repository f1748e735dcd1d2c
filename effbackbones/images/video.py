"""Video files and camera streams, frame by frame: upright, with their times, never more than one held. Needs PyAV, an extra.

A file is known by its content, and read through a Python file: no name in it, and none of its own, leads anywhere else. What is
there of a damaged one comes, and :attr:`Video.fault` says afterwards what was not.
"""

import heapq
import importlib.util
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.images.opening import MAX_PIXELS, check_pixels
from effbackbones.pointers import LONGEST, refuse_pointer

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
    ]
)
"""Endings, in lower case, that video files have. What a named file is, its first bytes say: :func:`is_video`."""
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,ivf,h264,hevc,mpegvideo,m4v"
"""FFmpeg's names of what is read. Playlists, which name other files, are not among them."""
_STREAM = re.compile(r"(?:rtsps?|rtmps?|https?|udp|rtp|srt|tcp)://", re.IGNORECASE)
_PROTOCOLS = "rtsp,rtp,udp,tcp,tls,http,https,httpproxy,crypto,rtmp,rtmps,srt,hls"
"""What a stream may be fetched by: nothing that reads files of this machine on its word."""
_OPEN_WITHIN, _READ_WITHIN = 20.0, 30.0
"""Seconds that a stream gets to begin, and to send the next of its data."""
_STILLS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"jp2 ", b"crx ")
"""Brands of files in MP4's container that are images."""
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""What other images begin with, whatever their names."""
_NEEDS = 'install "effbackbones[video]"'


@dataclass(frozen=True)
class Moment:
    """Which frame an image is: of the ``video`` (its path or address), ``index`` from 0, ``ticks`` of ``tick`` seconds after its start."""

    video: str
    index: int
    ticks: int
    tick: Fraction
    live: bool = False
    """Whether it is of a stream, which is no file."""

    @property
    def time(self) -> float:
        """Seconds after the start, as a player shows them."""
        return float(self.ticks * self.tick)

    @property
    def name(self) -> str:
        """``clip.mp4#12``."""
        return f"{self.video}#{self.index}"

    def to_dict(self) -> dict[str, Any]:
        return {"video": self.video, "frame": self.index, "time": round(self.time, 6)}

    def to_row(self) -> list[Any]:
        """All of it in a list of plain values; :meth:`of_row` makes it again."""
        return [self.video, self.index, self.ticks, *self.tick.as_integer_ratio(), self.live]

    @classmethod
    def of_row(cls, row: list[Any]) -> Self:
        video, index, ticks, above, below, live = row
        return cls(video, index, ticks, Fraction(above, below), live)


@dataclass(frozen=True)
class Frame:
    """A frame of a video: ``pixels`` uint8 [H, W, C], upright, and its ``moment``."""

    moment: Moment
    pixels: Pixels


def is_stream(name: str) -> bool:
    """Whether a name is the address of a stream (``rtsp://...``), or a camera of this machine (``/dev/video0``)."""
    if _STREAM.match(name):
        return True
    try:
        return name.startswith("/dev/video") and stat.S_ISCHR(os.stat(name).st_mode)
    except OSError:
        return False


def is_video_name(name: str) -> bool:
    """Whether a file of that name is taken for a video in a folder."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_video(path: str | Path) -> bool:
    """Whether a file is a video by its first bytes, or where these say nothing, as of damaged ones, by its name."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return is_video_name(str(path))
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILLS
    if head[:4] in (b"\x1aE\xdf\xa3", b"OggS") or head[:3] == b"FLV" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return is_video_name(str(path)) and not head.startswith(_PICTURES)


def is_film(path: str | Path) -> bool:
    """Whether a file of a folder, which nobody named, is a video: by its name and by its first bytes. Those that say nothing do for
    names that no other files have (``.ts`` is TypeScript's too)."""
    if not (is_video_name(str(path)) and is_video(path)):
        return False
    if not str(path).lower().endswith((".ts", ".mts")):
        return True
    with open(path, "rb") as file:
        return b"G" in file.read(5)[::4]  # packets begin with it, or a time of four bytes is before


class Video:
    """The frames of a file or stream, to be gone through once. A context manager, which closes it.

    ``channels``: 3 (RGB) or 1. ``upright``: turned as the file says. ``every``: each so many-th frame alone; ``index`` counts all of
    them. Damaged frames, which decoders fill up with what they guess, are counted and left out. Raises :class:`UserError` where
    PyAV is missing, for what is no video, has no picture, or larger ones than ``max_pixels``.
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        *,
        channels: int = 3,
        upright: bool = True,
        every: int = 1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name, self.live = os.fspath(name), is_stream(os.fspath(name))
        if channels not in (1, 3):
            raise UserError(self.name, f"a video has 3 colours, the model wants {channels} channels", "give images")
        self._format, self.upright, self.every = ("gray" if channels == 1 else "rgb24"), upright, every
        self._av: Any = import_av(self.name)
        self._file: IO[bytes] | None = None
        self.seen, self.damaged, self.fault = 0, 0, ""
        self._last = Fraction(0)
        self._cut: set[int | None] = set()  # times of frames whose data is not whole
        self._lost: list[int] = []  # of those that gave none, and have not been counted yet
        self._matrix: Any = None
        self._container = self._opened()
        try:
            cover = self._av.stream.Disposition.attached_pic
            moving = [stream for stream in self._container.streams.video if not stream.disposition & cover]
            if not moving:
                raise UserError(self.name, "has no pictures, sound at most", "name a video")
            self._stream = moving[0]
            self._stream.thread_type = "SLICE"  # threads of frames lose whole ones around a damaged one
            self.size = (self._stream.codec_context.height, self._stream.codec_context.width)
            check_pixels(self.name, (self.size[1], self.size[0]), max_pixels)
        except BaseException:
            self.close()
            raise
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._container.close()
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[Frame]:
        start = self._stream.start_time
        for frame in self._decoded():
            tick = frame.time_base or 1 / self.rate
            if frame.pts is None:
                ticks, tick = self.seen, 1 / self.rate
            else:
                start = frame.pts if start is None or (self.live and not self.seen) else start
                ticks = frame.pts - start
            while self._lost and (frame.pts is None or self._lost[0] < frame.pts):
                heapq.heappop(self._lost)
                self.seen += 1
            index, self.seen = self.seen, self.seen + 1
            self._last = max(self._last, ticks * Fraction(tick))
            if frame.is_corrupt or frame.pts in self._cut:
                self.damaged += 1
            elif index % self.every == 0:
                yield Frame(Moment(self.name, index, ticks, Fraction(tick), self.live), self._pixels(frame))
        self.seen += len(self._lost)
        self._conclude()

    def summary(self) -> str:
        """What came of it, in a few words."""
        return f"{self.seen - self.damaged:,} frames, {float(self._last):.2f} s"

    def _decoded(self) -> Iterator[Any]:
        """Frames in the order that they are shown in; what ends them early is noted in :attr:`fault`."""
        wrong = self._av.error.FFmpegError
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except wrong as error:
                self.fault = f"breaks off ({_said(error)})"
                packet = None
            if packet is not None and packet.is_corrupt and packet.pts is not None:
                self._cut.add(packet.pts)  # decoders fill up the frame
            try:
                yield from self._stream.decode(packet)
            except self._av.error.EOFError:
                pass
            except wrong:  # the next ones may be whole
                heapq.heappush(self._lost, -1 if packet is None or packet.pts is None else packet.pts)
                self.damaged += 1
            if packet is None:
                return

    def _pixels(self, frame: Any) -> Pixels:
        pixels: Pixels = frame.to_ndarray(format=self._format)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":
                self._matrix = np.frombuffer(bytes(data)[:36], np.int32)
        return pixels if self._matrix is None or not self.upright else turned_by(pixels, self._matrix)

    def _conclude(self) -> None:
        """Compare what came with what the file says there is."""
        expected, whole = self._promised()
        last, came = self._last, self.seen - self.damaged
        count = f"{came:,} frames"
        short = bool(whole) and whole - last > max(2 / self.rate, Fraction(1, 2), whole / 50) + self._gap()
        if expected is not None:
            short = came < expected and (short or bool(self.damaged or self.fault))
            count = f"{came:,} of {expected:,} frames"
        elif short and self.seen > 1 and last:
            count = f"{came:,} of about {round((self.seen - 1) * whole / last):,} frames"
        if not short and not self.fault and not self.damaged and came:
            return
        where = f"stops at {float(last):.2f} s" + (f" of {float(whole):.2f} s" if whole > last else "")
        words = [self.fault or ("is cut off" if short else "is damaged"), f"{count}, {where}"]
        words += [f"{self.damaged:,} damaged ones left out"] if self.damaged else []
        self.fault = ": ".join(words[:2]) + "".join(f", {word}" for word in words[2:])
        if not came:
            self.fault = f"has no frame that can be read ({self.fault})"

    def _promised(self) -> tuple[int | None, Fraction]:
        """How many frames a file says that it has, and for how many seconds (0: it does not say)."""
        if self.live:
            return None, Fraction(0)
        stream, tick = self._stream, self._stream.time_base or Fraction(0)
        kind = self._container.format.name
        if kind == "avi":  # which counts frames that are shown for longer several times
            return None, max(stream.duration or 0, stream.frames) * tick
        if stream.duration:
            return (stream.frames or None) if kind.startswith("mov") else None, stream.duration * tick
        told = _seconds(stream.metadata.get("DURATION", ""))
        if told or len(self._container.streams) > 1:  # the whole may be that of the sound
            return None, told
        return None, Fraction(self._container.duration or 0, self._av.time_base)

    def _gap(self) -> Fraction:
        """How long the last frame may be shown: as long as others in the mean, twice."""
        return 2 * self._last / (self.seen - 1) if self.seen > 1 else Fraction(0)

    def _opened(self) -> Any:
        error = self._av.error
        try:
            if self.live:
                return self._opened_stream()
            self._file = open(self.name, "rb")  # noqa: SIM115  # closed with this
            head = self._file.read(LONGEST)
            if not head:
                raise UserError(self.name, "is empty", "copy it again")
            refuse_pointer(self.name, head)
            self._file.seek(0)
            return self._av.open(self._file, container_options={"format_whitelist": _CONTAINERS})
        except (OSError, ValueError, error.FFmpegError) as reason:
            if self._file is not None:
                self._file.close()
            if self.live:
                raise UserError(self.name, f"cannot be opened ({_said(reason)})", "correct the address") from None
            what = "is no video, or lacks its index, as of one that was not written to the end"
            raise UserError(self.name, f"{what} ({_said(reason)})", "repair or replace it") from None
        except UserError:
            if self._file is not None:
                self._file.close()
            raise

    def _opened_stream(self) -> Any:
        within = (_OPEN_WITHIN, _READ_WITHIN)
        if not _STREAM.match(self.name):
            return self._av.open(self.name, format="v4l2", timeout=within)
        options = {"protocol_whitelist": _PROTOCOLS}
        if self.name.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # over UDP frames are lost, and filled up with what is guessed
        return self._av.open(self.name, container_options=options, timeout=within)


def turned_by(image: Pixels, matrix: Any) -> Pixels:
    """An image [H, W, C] as a display matrix of MP4 (9 numbers; ISO/IEC 14496-12, 6.2.2: x' = a x + c y, y' = b x + d y) shows it: in
    one of eight ways, the nearest."""
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _seconds(text: str) -> Fraction:
    """``00:01:02.5`` in seconds; 0 for anything else."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text.strip())
    if not found:
        return Fraction(0)
    hours, minutes, seconds = (Fraction(part) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _said(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]


def import_av(name: str) -> Any:
    """PyAV, which is an extra; :class:`UserError` about ``name`` where it is missing."""
    try:
        import av  # an extra
    except ImportError:
        raise UserError(name, "videos need PyAV", _NEEDS) from None
    return av


def has_av() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None
