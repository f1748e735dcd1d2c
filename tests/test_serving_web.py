"""The web application and the verb ``serve``: what goes in, what comes out, and every way to say no."""

import asyncio
import http.client
import io
import json
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_inference_predictor import narrow
from tests_support import ONE_THREAD, ROOT, printed_by

from effbackbones import load_predictor, save_model
from effbackbones.images.opening import Encoded
from effbackbones.inference.predictor import Predictor
from effbackbones.serving.limits import Limits
from effbackbones.serving.service import Service
from tasks.verbs.command import run_command

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


IMAGE = Image.fromarray(PIXELS)
JPEG, PNG = encoded(IMAGE, "JPEG", quality=90), encoded(IMAGE, "PNG")
LIMITS = Limits(max_bytes=60_000, max_files=3, queue=4, body_seconds=0.5)


class Answered:
    """What came back of a request: ``status``, ``headers`` (names in lower case), ``body``."""

    def __init__(self, messages: list[Any]) -> None:
        self.status: int = messages[0]["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    app: Any, path: str, *parts: bytes, kind: str = "", pause: float = 0.0, leaves: bool = False, **more: str
) -> Answered:
    """A request to an ASGI application, its body in ``parts``; a GET where there is none. It may come slowly, or its sender leave."""
    path, _, query = path.partition("?")
    headers = [(b"content-type", kind.encode())] * bool(kind)
    headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    coming.append({"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(pause)
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    method = "POST" if parts else "GET"
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("c", 1)}
    await app({**scope, "root_path": "", "asgi": {"version": "3.0"}}, receive, send)
    return Answered(sent)


def form(*files: tuple[str, bytes], plain: str = "") -> tuple[bytes, str]:
    """A form of files, and of a field that is none, and its content type."""
    body = b""
    for name, content in files:
        head = f'--xx\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    if plain:
        body += f'--xx\r\nContent-Disposition: form-data; name="{plain}"\r\n\r\n1\r\n'.encode()
    return body + b"--xx--\r\n", "multipart/form-data; boundary=xx"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_predictor(narrow("det", size=32), on_error="return", batch_size=4, max_pixels=1_000_000)


@pytest.fixture
def service(predictor: Predictor) -> Iterator[Service]:
    made = Service(predictor, limits=LIMITS, wait=0.0)
    yield made
    made.close()


Ask = Callable[..., Answered]


@pytest.fixture
def ask(service: Service) -> Ask:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("python_multipart", reason="the extra serve is not installed")
    from effbackbones.serving.web import web_app

    app = web_app(service)
    return lambda *given, **more: asyncio.run(request(app, *given, **more))


def test_an_image_gives_its_result_and_a_form_a_list(ask: Ask, predictor: Predictor) -> None:
    expected = predictor(Encoded("image", JPEG)).to_dict()
    for kind in ("image/jpeg", "application/octet-stream", "image/png"):  # what a file is its bytes say
        found = ask("/predict", JPEG[:99], JPEG[99:], kind=kind)
        assert (found.status, found.json) == (200, expected)
    body, kind = form(("a.jpg", JPEG))
    assert ask("/predict", body, kind=kind).json == [{**expected, "source": "a.jpg"}]
    body, kind = form(("b.png", PNG), ("../a.jpg", JPEG))
    found = ask("/predict?top_k=2", body, kind=kind)
    assert [one["source"] for one in found.json] == ["b.png", "a.jpg"]
    assert found.json[1]["boxes"] == expected["boxes"][:2]


def test_one_bad_file_of_a_form_loses_no_other(ask: Ask, predictor: Predictor) -> None:
    body, kind = form(("a.jpg", JPEG), ("b.jpg", JPEG[:400]), ("c.png", PNG))
    found = ask("/predict", body, kind=kind)
    assert found.status == 422
    assert found.json["error"].startswith("b.jpg: cannot be read as an image")
    assert found.json["results"][0] == {**predictor(Encoded("a.jpg", JPEG)).to_dict()}
    assert found.json["results"][1] == {"source": "b.jpg", "error": found.json["error"]}
    assert found.json["results"][2]["source"] == "c.png"


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that announces a size and has a few bytes of pixels, which would unpack to much more."""
    chunks = b""
    packed = zlib.compress(bytes(1_000_000))
    for name, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)),
        (b"IDAT", packed),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return b"\x89PNG\r\n\x1a\n" + chunks


ANIMATION = encoded(IMAGE, "GIF", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])
LONG = encoded(Image.new("L", (100_000, 1)), "PNG")
PAGES = encoded(IMAGE, "TIFF", save_all=True, append_images=[IMAGE])
DEEP = encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG")
BROKEN_EXIF = encoded(IMAGE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20))
HOSTILE: dict[str, tuple[bytes, str, int, str]] = {
    "nothing": (b"", "image/jpeg", 422, "the file is empty"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "image/jpeg", 422, "runcated"),
    "a jpeg's header": (JPEG[:20], "image/jpeg", 422, "cannot be read as an image"),
    "text": (b"hello, I am no image", "image/jpeg", 422, "not in one of the formats"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "image/svg+xml", 422, "not in one of the formats"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "image/eps", 422, "not in one of the formats"),
    "a bomb": (png_header(20_000, 20_000), "image/png", 422, "announces 20000 x 20000 = 400,000,000 pixels; allowed are 1,000,000"),
    "a bomb of 2 ** 31": (png_header(2**31 - 1, 2**31 - 1), "image/png", 422, "cannot be read|allowed are"),
    "a flipped bit": (PNG[:200] + bytes([PNG[200] ^ 1]) + PNG[201:], "image/png", 422, "checksum"),
    "two pages": (PAGES, "image/tiff", 422, "2 pages"),
    "no type": (JPEG, "", 415, "Content-Type is missing"),
    "another type": (JPEG, "text/html", 415, "'text/html' is not taken"),
    "a form of the address kind": (JPEG, "application/x-www-form-urlencoded", 415, "is not taken"),
    "too many bytes": (bytes(60_001), "image/png", 413, "allowed are 60,000 bytes"),
    "a form without a boundary": (JPEG, "multipart/form-data", 400, "without a boundary"),
    "a form that is none": (JPEG, "multipart/form-data; boundary=xx", 400, "form"),
    "a form that breaks off": (form(("a.jpg", JPEG))[0][:-20], "multipart/form-data; boundary=xx", 400, "breaks off"),
    "a form without files": (*form(plain="size"), 400, "'size' is no file"),
    "an empty form": (*form(), 400, "no file|form cannot be read"),
    "too many files": (*form(*[("a.jpg", b"x")] * 4), 413, "holds 4 files; allowed are 3"),
    "a file outside": (*form(("../../etc/passwd", b"root:x:0:0")), 422, "passwd: cannot be read as an image: not in one"),
    "an array of objects": (*form(("a.npy", b"\x93NUMPY\x01\x00\x16\x00{'descr':'|O','x':(2,)}\n")), 422, "a.npy: "),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bodies_are_refused_with_a_reason(ask: Ask, service: Service, what: str, predictor: Predictor) -> None:
    body, kind, status, says = HOSTILE[what]
    found = ask("/predict", body, kind=kind)
    reason = found.json["error"]
    assert found.status == status, reason
    assert re.search(says, reason), reason
    assert "\n" not in reason
    assert not re.search(r"Traceback|/work|/tmp|/home|\.py", found.body.decode())
    assert (service.room.images, service.room.bytes) == (0, 0)
    assert ask("/predict", JPEG, kind="image/jpeg").status == 200  # and it goes on


@pytest.mark.parametrize(
    "content",
    [ANIMATION, LONG, encoded(IMAGE.convert("CMYK"), "JPEG"), BROKEN_EXIF, DEEP],
    ids=["animation", "100,000 x 1", "cmyk", "broken exif", "16 bits"],
)
def test_odd_images_are_judged_as_predict_judges_files(
    ask: Ask, predictor: Predictor, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "image").write_bytes(content)
    of_file = predictor(tmp_path / "image")
    found = ask("/predict", content, kind="image/png")
    assert found.status == (422 if hasattr(of_file, "error") else 200)
    expected = {"error": of_file.error.replace(f"{tmp_path}/", "")} if found.status == 422 else of_file.to_dict()
    assert found.json == {**expected, **({} if found.status == 422 else {"source": "image"})}


def test_a_body_without_a_length_is_cut_off_and_a_slow_one_too(ask: Ask) -> None:
    found = ask("/predict", *[bytes(10_000)] * 8, kind="image/png")
    assert (found.status, "allowed are 60,000 bytes" in found.json["error"]) == (413, True)
    found = ask("/predict", *[b"x"] * 9, kind="image/png", pause=0.2)
    assert (found.status, "did not come whole within 0.5 s" in found.json["error"]) == (408, True)
    found = ask("/predict", JPEG, kind="image/png", content_length="70000")
    assert (found.status, "has 70,000 bytes" in found.json["error"]) == (413, True)
    assert ask("/predict", JPEG, kind="image/png", content_encoding="gzip").status == 415
    assert ask("/predict", JPEG, kind="image/png", leaves=True).status == 499
    assert ask("/predict", JPEG, kind="text/plain", leaves=True).status == 499


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("threshold=2", "threshold: expected 0 to 1, got 2.0"),
        ("threshold=nan", "threshold: expected 0 to 1, got nan"),
        ("threshold=high", "threshold: .*got 'high'"),
        ("top_k=0", "top_k: expected at least 1, got 0"),
        ("top_k=1.5", "top_k: .*got '1.5'"),
        ("topk=3", "option 'topk' is not known; there are threshold, top_k"),
        ("top_k=1&top_k=2", "option 'top_k' is there 2 times"),
    ],
)
def test_options_are_all_understood(ask: Ask, query: str, says: str) -> None:
    found = ask(f"/predict?{query}", JPEG, kind="image/jpeg")
    assert found.status == 422
    assert re.search(says, found.json["error"])


def test_a_full_queue_says_when_to_come_again(ask: Ask, service: Service) -> None:
    with service.room.held() as share:
        share.take(images=3)
        assert ask("/predict", JPEG, kind="image/jpeg").status == 200  # the fourth
        share.take(images=1)
        found = ask("/predict", JPEG, kind="image/jpeg")
        assert (found.status, found.headers["retry-after"]) == (503, "1")
        assert "busy" in found.json["error"]
        assert "effbackbones_queue_images 4" in ask("/metrics").body.decode()
    assert ask("/predict", JPEG, kind="image/jpeg").status == 200


def test_who_sends_slowly_keeps_no_place_from_others(ask: Ask, service: Service) -> None:
    from effbackbones.serving.web import web_app

    app = web_app(service)

    async def crowd() -> list[int]:
        slow = [request(app, "/predict", *[b"x"] * 9, kind="image/png", pause=0.2) for _ in range(LIMITS.queue)]
        slow_ones = [asyncio.ensure_future(one) for one in slow]
        await asyncio.sleep(0.1)
        quick = await request(app, "/predict", JPEG, kind="image/jpeg")
        return [quick.status, *[(await one).status for one in slow_ones]]

    assert asyncio.run(crowd()) == [200, *[408] * LIMITS.queue]


def test_what_goes_wrong_inside_has_an_id_and_leaks_nothing(
    ask: Ask, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(batch: Any) -> Any:
        raise RuntimeError("/home/me/secret.py broke")

    with monkeypatch.context() as patch, caplog.at_level("ERROR", "effbackbones.serving"):
        patch.setattr(service.predictor, "answer", broken)
        found = ask("/predict", JPEG, kind="image/jpeg")
    assert found.status == 500
    assert "secret" not in found.body.decode()
    (record,) = caplog.records
    assert found.json["id"] in record.getMessage()
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])
    assert ask("/predict", JPEG, kind="image/jpeg").status == 200
    assert (service.room.images, service.room.bytes) == (0, 0)


def test_it_tells_what_it_is_and_how_it_is(ask: Ask, service: Service) -> None:
    about = ask("/").json
    assert (about["task"], about["backbone"], about["image_size"]) == ("det", "b0", [32, 32])
    assert about["classes"] == ["class 0", "class 1", "class 2"]
    assert about["limits"] == {"max_bytes": 60_000, "max_pixels": 1_000_000, "max_files": 3}
    assert ask("/health").status == 200
    assert (ask("/ready").status, ask("/ready").json) == (503, {"error": "not warmed yet"})
    service.warm()
    assert ask("/ready").status == 200
    ask("/predict", b"x", kind="image/jpeg")
    ask("/predict", JPEG, kind="image/jpeg")
    ask("/nowhere")
    figures = ask("/metrics").body.decode()
    assert "effbackbones_batch_images_count 1\n" in figures  # those of warming are nobody's
    assert 'requests_total{path="/predict",status="422"} 1' in figures
    assert 'requests_total{path="other",status="404"} 1' in figures
    assert ask("/predict").status == 405
    assert "the paths are /, /predict" in ask("/nowhere").json["error"]
    described = ask("/openapi.json").json["paths"]["/predict"]["post"]
    assert {one["name"] for one in described["parameters"]} == {"threshold", "top_k"}
    kinds = {"image/*", "audio/*", "application/octet-stream", "multipart/form-data"}
    assert set(described["requestBody"]["content"]) == kinds
    assert {"200", "400", "408", "413", "415", "422", "500", "503"} == set(described["responses"])
    assert ask("/docs").status == 200
    service.draining = True
    assert ask("/ready").json == {"error": "going down"}
    found = ask("/predict", JPEG, kind="image/jpeg")
    assert (found.status, found.headers["connection"], "going down" in found.json["error"]) == (503, "close", True)
    service.draining = False
    service.close()
    assert (ask("/health").status, ask("/ready").status) == (503, 503)


# The verb


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
        ([], "--checkpoint: no trained model is named"),
        (["--checkpoint", "m", "--port", "70000"], "expected 0 to 65535, got 70000"),
        (["--checkpoint", "m", "--port", "x"], "--port"),
        (["--checkpoint", "m", "--queue", "0"], "queue: expected at least 1, got 0"),
        (["--checkpoint", "m", "--threshold", "2"], "--threshold: expected 0 to 1, got '2'"),
        (["--checkpoint", "m", "--wait-ms", "-1"], "--wait-ms: expected 0 or more, got -1"),
        (["--checkpoint", "m", "--plugins", "no_such_plugin.py"], "no_such_plugin.py"),
    ],
)
def test_mistakes_on_the_line_are_told(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.verbs.serve.require_packages", lambda: None)
    port = [] if "--port" in line else ["--port", "0"]
    assert run_command("detect", ["serve", *line, *port]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_the_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effbackbones.serving.running.importlib.util.find_spec", lambda name: None)
    assert run_command("detect", ["serve", "--checkpoint", "m"]) == 2
    assert "pip install 'effbackbones[serve]'" in capsys.readouterr().err


class Started:
    """The verb in a process of its own."""

    def __init__(self, model: Path, *more: str) -> None:
        line = [sys.executable, "-m", "tasks.detect", "serve", "--checkpoint", str(model), "--port", "0", *more]
        self.process = subprocess.Popen(line, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for text in self.process.stderr:
            self.lines.append(text)
            if found := re.search(r"http://127.0.0.1:(\d+)", text):
                self.port = int(found[1])
                break
        assert self.lines, "it did not start"

    def post(self, content: bytes, seconds: float = 60) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        connection.request("POST", "/predict", content, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    path = tmp_path_factory.mktemp("served") / "model.safetensors"
    save_model(narrow("det", size=64), path)
    return path


@pytest.mark.slow
def test_it_loads_no_training_library() -> None:
    loaded = "import sys, torch; before = set(sys.modules); import tasks.verbs.serve; print(*set(sys.modules) - before)"
    tops = {name.partition(".")[0] for name in printed_by(loaded).split()}
    assert tops & {"lightning", "torchvision", "torchmetrics", "albumentations", "matplotlib", "timm", "cv2"} == set()


@pytest.mark.slow
def test_a_signal_in_the_midst_loses_nothing(model_file: Path) -> None:
    started = Started(model_file, "--wait-ms", "1500", "--batch-size", "64", "--threshold", "0.5")
    found: list[Any] = []
    asking = [threading.Thread(target=lambda: found.append(started.post(JPEG))) for _ in range(6)]
    for one in asking:
        one.start()
    time.sleep(0.7)  # they wait for more to fill the batch
    started.process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    with pytest.raises(OSError):  # nobody new is taken
        started.post(JPEG)
    for one in asking:
        one.join()
    expected = load_predictor(model_file, threshold=0.5)(Encoded("image", JPEG)).to_dict()
    assert found == [(200, expected)] * 6
    assert started.process.wait(30) == 143
    assert "stopped by SIGTERM" in started.process.communicate()[1]


@pytest.mark.slow
def test_a_second_signal_ends_at_once(model_file: Path) -> None:
    started = Started(model_file, "--wait-ms", "60000", "--batch-size", "64")

    def lost() -> None:
        with pytest.raises(OSError):
            started.post(JPEG)

    threading.Thread(target=lost, daemon=True).start()
    time.sleep(0.7)
    started.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert started.process.poll() is None
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(5) == 130
