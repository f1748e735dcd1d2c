"""Videos for tests, whose frames bear their numbers: ten blocks of 8 x 8 pixels, white for a one, the lowest bit first."""

import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 10
SIZE = (24, 8 * BITS)


def painted(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """The frame of a number: its blocks in the first rows, grey below."""
    image = np.full((*size, 3), 128, np.uint8)
    for bit in range(BITS):
        image[:8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
    return image


def number_of(image: NDArray[Any]) -> int:
    """The number of a frame."""
    return sum((int(image[2:6, 8 * bit + 2 : 8 * bit + 6].mean()) > 127) << bit for bit in range(BITS))


def film(
    path: Path,
    times: Sequence[int] = range(12),
    *,
    ticks: int = 10,
    codec: str = "mpeg4",
    size: tuple[int, int] = SIZE,
    matrix: Sequence[int] | None = None,
    gop: int = 12,
    **options: str,
) -> Path:
    """Write a video whose n-th frame is shown at ``times[n] / ticks`` seconds."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=ticks)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base, stream.gop_size = Fraction(1, ticks), gop
        if matrix is not None:
            stream.set_display_matrix(list(matrix))
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(painted(number, size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def send(address: str, count: int) -> None:
    """Send so many frames as MPEG's transport stream, as cameras and encoders do, at most twenty a second."""
    import av

    with av.open(address, "w", format="mpegts") as container:
        stream: Any = container.add_stream("mpeg2video", rate=20)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *SIZE, "yuv420p", 4
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(painted(number % 2**BITS), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 20)
            container.mux(stream.encode(frame))
            time.sleep(0.05)
        container.mux(stream.encode())


if __name__ == "__main__":  # another process: one that waits for who asks lets no other thread of it run
    send(sys.argv[1], int(sys.argv[2]))
