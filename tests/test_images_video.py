"""Frames of videos: the right ones, at the right times, upright, and all that is there of a damaged file."""

import sys
import threading
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import film, number_of, painted
from tests_support import one_line

from effbackbones.drawing.videofile import VideoFile
from effbackbones.errors import UserError
from effbackbones.images.video import Moment, Video, is_stream, is_video, turned_by

av = pytest.importorskip("av")
UNEVEN = [0, 1, 2, 3, 7, 8, 20, 21, 25, 26, 27, 40]


def seen(video: Video) -> list[tuple[int, int, float]]:
    """Index, painted number and time of each frame."""
    return [(frame.moment.index, number_of(frame.pixels), round(frame.moment.time, 3)) for frame in video]


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "libx264"), ("mov", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")],
)
def test_frames_come_in_order_at_the_times_that_the_file_says(ending: str, codec: str, tmp_path: Path) -> None:
    path = film(tmp_path / f"clip.{ending}", UNEVEN, codec=codec)
    with Video(path) as video:
        assert seen(video) == [(index, index, ticks / 10) for index, ticks in enumerate(UNEVEN)]
    assert (video.fault, video.summary()) == ("", "12 frames, 4.00 s")
    with Video(path, every=5, channels=1) as video:
        frames = list(video)
    assert [frame.moment.name for frame in frames] == [f"{path}#{index}" for index in (0, 5, 10)]
    assert frames[0].pixels.shape == (24, 80, 1)
    assert is_video(path)
    path.rename(tmp_path / "clip.jpg")
    assert is_video(tmp_path / "clip.jpg")  # by what it is, not by what it is called


def test_times_count_from_where_the_stream_starts(tmp_path: Path) -> None:
    with Video(film(tmp_path / "clip.ts", range(14, 74), codec="mpeg2video", ticks=25, gop=60)) as video:
        assert seen(video) == [(index, index, index / 25) for index in range(60)]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_are_turned_as_the_file_says(ending: str, tmp_path: Path) -> None:
    one = 65536
    quarter = [0, -one, 0, one, 0, 0, 0, 0, 1 << 30]  # counter-clockwise
    path = film(tmp_path / f"clip.{ending}", range(3), matrix=quarter)
    with Video(path) as video:
        frames = list(video)
    assert all(frame.pixels.shape == (80, 24, 3) for frame in frames)
    assert [number_of(np.rot90(frame.pixels, -1)) for frame in frames] == [0, 1, 2]
    with Video(path, upright=False) as video:
        assert [row[1] for row in seen(video)] == [0, 1, 2]


def test_a_matrix_moves_a_corner_to_where_it_says() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    rows, columns = np.mgrid[:2, :3] - np.array([0.5, 1.0]).reshape(2, 1, 1)
    for a, b, c, d in [(s, 0, 0, t) for s in (1, -1) for t in (1, -1)] + [
        (0, s, t, 0) for s in (1, -1) for t in (1, -1)
    ]:
        turned = turned_by(image, [a, b, 0, c, d, 0, 0, 0, 1])
        x, y = a * columns + c * rows, b * columns + d * rows
        expected = np.zeros_like(turned)
        expected[(y - y.min()).astype(int), (x - x.min()).astype(int), 0] = image[..., 0]
        assert (turned == expected).all(), (a, b, c, d)


@pytest.mark.parametrize(
    ("ending", "codec", "words"),
    [
        ("mp4", "libx264", "of 100 frames, stops at"),
        ("mkv", "libx264", "of about 100 frames"),
        ("avi", "mpeg4", "of about 100 frames"),
    ],
)
def test_a_cut_file_gives_what_is_there_and_says_where_it_stops(
    ending: str, codec: str, words: str, tmp_path: Path
) -> None:
    path = film(tmp_path / f"clip.{ending}", range(100), codec=codec, movflags="faststart")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with Video(path) as video:
        rows = seen(video)
    assert 20 < len(rows) < 100
    assert [row[:2] for row in rows] == [(index, index) for index in range(len(rows))]
    assert video.fault.startswith("is cut off: ")
    assert words in video.fault
    assert "s of 10.00 s" in video.fault
    assert f"{len(rows)} of " in video.fault


def test_a_frame_that_is_damaged_is_left_out_and_counted(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.avi", range(24), gop=1)
    data = bytearray(path.read_bytes())
    places = [place for place in range(len(data)) if data[place : place + 4] == b"00dc"]
    start, end = places[6] + 12, places[7] - 8  # the first of them is in the header
    data[start:end] = b"\xff" * (end - start)
    path.write_bytes(data)
    with Video(path) as video:
        rows = seen(video)
    assert [row[:2] for row in rows] == [(index, index) for index in range(24) if index != 5]
    assert video.fault.startswith("is damaged: 23 frames, ")
    assert video.fault.endswith("1 damaged ones left out")


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("hello\n" * 99), "is no video, or lacks its index"),
        (lambda path: path.write_text("ffconcat version 1.0\nfile /etc/passwd\n"), "is no video"),
        (lambda path: path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://a/b.ts\n"), "is no video"),
        (Path.touch, "is empty"),
        (sound, "has no pictures, sound at most"),
        (lambda path: film(path, range(50)).write_bytes(path.read_bytes()[:-1500]), "is no video, or lacks its index"),
    ],
)
def test_what_is_no_video_is_said_in_a_line(make: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(UserError) as caught:
        Video(path)
    one_line(caught, str(path), words)


def test_what_a_model_or_the_machine_has_no_use_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "clip.mp4", range(2))
    with pytest.raises(UserError) as caught:
        Video(path, channels=4)
    one_line(caught, str(path), "4 channels")
    with pytest.raises(UserError) as caught:
        Video(path, max_pixels=100)
    one_line(caught, str(path), "allowed are 100")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError) as caught:
        Video(path)
    one_line(caught, str(path), 'install "effbackbones[video]"')


def test_a_stream_gives_its_frames_and_says_when_it_breaks(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.mkv", range(40), gop=1)
    half = path.read_bytes()[: path.stat().st_size // 2]

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # its name there
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(half)))
            self.end_headers()
            self.wfile.write(half)

        def log_message(self, *words: Any) -> None:
            pass

    class Whole(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

    for handler, whole in ((partial(Whole, directory=str(tmp_path)), True), (Broken, False)):
        with HTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/clip.mkv"
            assert is_stream(address)
            with Video(address) as video:
                rows = seen(video)
            server.shutdown()
        assert [number for _, number, _ in rows] == list(range(len(rows)))
        assert (len(rows) == 40) == whole == (video.fault == "")
        assert whole or video.fault.startswith("breaks off (")
    with pytest.raises(UserError) as caught:
        Video(address)
    one_line(caught, address, "cannot be opened")
    assert not is_stream(str(path))
    assert not is_stream("/dev/video99")


def test_a_drawn_video_shows_its_pictures_when_the_original_does(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "out.mp4", "by us") as out:
        for index, ticks in enumerate(UNEVEN):
            out.add(painted(index)[:-1, :-1], Moment("clip", index, ticks, Fraction(1, 10)))
        assert not (tmp_path / "out.mp4").exists()  # it has its name when it is whole
    with Video(tmp_path / "out.mp4") as video:
        assert seen(video) == [(index, index, ticks / 10) for index, ticks in enumerate(UNEVEN)]
        assert video.size == (24, 80)
    assert b"by us" in (tmp_path / "out.mp4").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
