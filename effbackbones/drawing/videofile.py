"""Drawn frames as a video file, each shown when its original is."""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from effbackbones.drawing.boxes import Picture
from effbackbones.errors import UserError
from effbackbones.images.video import Moment, import_av

_MPEG4_TICKS = 65_535
"""The finest division of a second that MPEG-4 part 2 knows."""


class VideoFile:
    """Writes ``path`` (MP4, H.264 where there is an encoder) from pictures uint8 [H, W, 3], all of the size of the first, or brought to
    it; odd sides are extended by a pixel. ``mark`` is left in it as a comment. The file takes its name when it is closed:
    until then it is ``.NAME.part`` beside it. A context manager."""

    def __init__(self, path: Path, mark: str) -> None:
        self.path, self.mark, self.size = path, mark, (0, 0)
        self._part = path.with_name(f".{path.name}.part")
        self._av = import_av(str(path))
        self._container: Any = None
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, picture: Picture, moment: Moment, rate: Fraction = Fraction(25)) -> None:
        """Show a picture at its moment; ``rate``: about so many come a second. One that is not after the last is left out."""
        if self._container is None:
            self._open(picture.shape[:2], moment, rate)
        ticks = round(moment.ticks * moment.tick / self._tick)
        if ticks <= self._last:
            return
        height, width = self.size
        even = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), "edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame = frame.reformat(width=width, height=height, format="yuv420p")
        frame.pts, frame.time_base, self._last = ticks, self._tick, ticks
        self._write(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left, and give the file its name."""
        if self._container is None:
            return
        self._write(self._stream.encode())
        self._container.close()
        self._container = None
        os.replace(self._part, self.path)

    def _open(self, shape: tuple[int, ...], moment: Moment, rate: Fraction) -> None:
        codec = next((name for name in ("libx264", "mpeg4") if name in self._av.codecs_available), "mpeg4")
        self._tick = moment.tick
        if codec == "mpeg4" and self._tick.denominator > _MPEG4_TICKS:
            self._tick = Fraction(1, 1000)
        try:
            self._container = self._av.open(str(self._part), "w", format="mp4")
        except OSError as error:
            raise UserError(
                str(self.path), f"cannot be written ({error.strerror})", "free space or choose another folder"
            ) from error
        self._container.metadata["comment"] = self.mark
        options = {"crf": "23", "preset": "veryfast"} if codec == "libx264" else {"q": "4"}
        self._stream = self._container.add_stream(codec, rate=rate.limit_denominator(1001), options=options)
        self.size = (shape[0] + shape[0] % 2, shape[1] + shape[1] % 2)
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = self._tick

    def _write(self, packets: Any) -> None:
        for packet in packets:
            self._container.mux(packet)
