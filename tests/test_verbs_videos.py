"""``predict`` of videos and streams: each frame is a row, drawn ones are a video, and what came is kept whatever ends it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from films import film, painted
from PIL import Image
from tests_support import ONE_THREAD, QUIET, ROOT, error_of

from effbackbones import build_model, load_predictor, save_model
from effbackbones.images.video import Video
from tasks.classify import main as classify
from tasks.detect import main as detect
from tasks.segment import main as segment

av = pytest.importorskip("av")
CUT = range(60)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model file of each task, of random weights and three classes."""
    found = {}
    for task in ("cls", "det", "seg"):
        torch.manual_seed(0)
        model = build_model(task, "b0", num_classes=3, backbone_options={"width": 0.25, "depth": 0.3})
        model.classes = ("a", "b", "c")
        found[task] = str(tmp_path_factory.mktemp(task) / "model.safetensors")
        save_model(model.eval(), found[task])
    return found


def line(model: str, out: Path, *more: str) -> list[str]:
    return ["predict", "--checkpoint", model, "--out", str(out), *QUIET, "--data.image_size", "64", *more]


def cut(path: Path) -> Path:
    film(path, CUT, gop=1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def test_each_frame_is_a_row_and_a_cut_video_keeps_what_came(models: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    whole, half = film(tmp_path / "in" / "a b.mp4", [0, 1, 2, 5]), cut(tmp_path / "in" / "cut.mkv")
    Image.fromarray(painted(3)).save(tmp_path / "in" / "c.png")
    words = line(models["cls"], tmp_path / "out", "--every", "2", "--data.batch_size", "3")
    assert classify([*words, str(tmp_path / "in")]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith(f"error: {half}: is cut off: ")
    assert f"{whole}: 4 frames, 0.50 s" in told.err
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert rows[0]["file"] == str(tmp_path / "in" / "c.png")
    assert "frame" not in rows[0]
    first = [(row["file"], row["video"], row["frame"], row["time"]) for row in rows[1:3]]
    assert first == [(f"{whole}#{index}", str(whole), index, index / 10) for index in (0, 2)]
    rest = [row["frame"] for row in rows[3:]]
    assert rest == list(range(0, 2 * len(rest), 2))
    assert 15 < len(rest) < 30
    assert f"predictions of 1 image and {2 + len(rest)} frames in" in told.err
    ask = load_predictor(models["cls"])
    with Video(whole) as video:
        found = [ask(frame).to_dict() for frame in video]
    assert [(row["source"], row["time"]) for row in found] == [
        (f"{whole}#{index}", time) for index, time in enumerate([0.0, 0.1, 0.2, 0.5])
    ]


@pytest.mark.parametrize(("task", "main", "drawn"), [("det", detect, "clip.mp4"), ("seg", segment, "overlay/clip.mp4")])
def test_drawn_frames_are_a_video_of_the_same_times(
    task: str, main: Any, drawn: str, models: Any, tmp_path: Path, capsys: Any
) -> None:
    path, out = film(tmp_path / "clip.mp4", [0, 1, 4], size=(64, 80)), tmp_path / "out"
    for _ in range(2):  # the second run overwrites what is its own
        assert main([*line(models[task], out), str(path)]) == 0, error_of(capsys)
    with Video(out / drawn) as video:
        frames = [(frame.moment.time, frame.pixels.shape[1] / frame.pixels.shape[0]) for frame in video]
    assert frames == [(0.0, 1.25), (0.1, 1.25), (0.4, 1.25)]
    if task == "det":
        rows = json.loads((out / "predictions.json").read_text())
        assert {(row["image_id"], row["frame"], row["time"]) for row in rows} == {
            (f"clip.mp4#{index}", index, time) for index, time in enumerate([0.0, 0.1, 0.4])
        }
    else:
        assert sorted(file.name for file in (out / "index").iterdir()) == [f"clip-{n:06d}.png" for n in range(3)]
    assert len(list(out.rglob("*.mp4"))) == 1
    # A video of one's own is no earlier run's.
    (out / drawn).write_bytes(path.read_bytes())
    assert main([*line(models[task], out), str(path)]) == 0, error_of(capsys)
    assert (out / drawn).read_bytes() == path.read_bytes()
    assert (out / drawn).with_name("clip-2.mp4").exists()


def test_wrong_videos_and_options_are_one_line(
    models: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, image = tmp_path / "text.mp4", tmp_path / "a.png"
    text.write_text("no video")
    Image.fromarray(painted(0)).save(image)
    words = line(models["cls"], tmp_path / "out")
    cases = [
        ([str(text)], f"{text}: is no video"),
        (["--every", "2", str(image)], "--every: is for videos"),
        (["--every", "x", str(text)], "--every: expected a count"),
        ([str(tmp_path / "films")], "x.MP4: is empty"),
        (["rtsp://127.0.0.1:9/none"], "rtsp://127.0.0.1:9/none: cannot be opened"),
    ]
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "x.MP4").touch()
    for more, said in cases:
        assert classify([*words, *more]) == 2
        assert said in error_of(capsys)
    monkeypatch.setitem(sys.modules, "av", None)
    assert classify([*words, str(text)]) == 2
    assert 'install "effbackbones[video]"' in error_of(capsys)


class _Endless(BaseHTTPRequestHandler):
    """A camera: pictures without an end."""

    def do_GET(self) -> None:  # its name there
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        stop, number = time.monotonic() + 60, 0
        path = Path(self.server.folder) / "frame.jpg"  # type: ignore[attr-defined]  # set below
        while time.monotonic() < stop:
            Image.fromarray(np.roll(painted(number % 1024), number)).save(path)
            data = path.read_bytes()
            try:
                self.wfile.write(b"--next\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n")
            except OSError:
                return
            number += 1
            time.sleep(0.05)

    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def sending(address: str, count: int) -> Iterator[None]:
    """Another process sends so many frames."""
    with subprocess.Popen([sys.executable, str(ROOT / "tests" / "films.py"), address, str(count)]) as process:
        try:
            yield
        finally:
            process.kill()


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.slow
def test_a_stream_that_ends_is_predicted_to_its_end(models: Any, tmp_path: Path, capsys: Any) -> None:
    port = free_port(socket.SOCK_STREAM)
    address = f"tcp://127.0.0.1:{port}"
    with sending(f"{address}?listen=1", 30):
        while f":{port:04X} " not in Path("/proc/net/tcp").read_text():  # until it waits for who asks
            time.sleep(0.1)
        assert classify([*line(models["cls"], tmp_path / "out"), address]) == 0, error_of(capsys)
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [(row["video"], row["frame"], row["time"]) for row in rows] == [
        (address, index, pytest.approx(index / 20)) for index in range(30)
    ]


@contextmanager
def camera(kind: str, folder: Path) -> Iterator[str]:
    """The address of a stream without an end."""
    if kind == "udp":
        address = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        with sending(address, 100_000):
            yield address
        return
    with HTTPServer(("127.0.0.1", 0), _Endless) as server:
        server.folder = folder  # type: ignore[attr-defined]  # for the handler
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/camera"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "udp"])
def test_an_interrupt_ends_a_stream_and_keeps_what_came(kind: str, models: Any, tmp_path: Path) -> None:
    with camera(kind, tmp_path) as address:
        code = "import sys; from tasks.detect import main; sys.exit(main(sys.argv[1:]))"
        words = line(models["det"], tmp_path / "out", address)
        env = {**ONE_THREAD, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-c", code, *words], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            for _ in range(4):
                process.stdout.readline()
            os.kill(process.pid, signal.SIGINT)
            _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"stopped by SIGINT" in err
    frames = {row["frame"] for row in json.loads((tmp_path / "out" / "predictions.json").read_text())}
    assert len(frames) >= 4
    assert kind == "udp" or frames == set(range(len(frames)))  # there a slow reader loses some
    assert f"predictions of {len(frames)} frames" in err.decode()
    (drawn,) = (tmp_path / "out").glob("*.mp4")
    with Video(drawn) as video:
        assert sum(1 for _ in video) == len(frames)


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_frames(models: Any, tmp_path: Path, capsys: Any) -> None:
    """Held, the frames would be 460 MB."""
    path = film(tmp_path / "long.mp4", range(2000), size=(240, 320))
    used: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            used.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert detect([*line(models["det"], tmp_path / "out"), str(path)]) == 0, error_of(capsys)
    finally:
        over.set()
        watcher.join()
    with Video(tmp_path / "out" / "long.mp4") as video:
        assert sum(1 for _ in video) == 2000
    half = len(used) // 2
    assert max(used[half:]) - max(used[half // 2 : half]) < 40, [round(one) for one in used[:: max(1, half // 20)]]
