"""Hub code against a web server of our own: fetch, verify, cache, mirror, and what is said when something is wrong."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.weights import hub
from effbackbones.weights.classifiers import find_source, sources_for
from effbackbones.weights.source import WeightSource

BODY = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY at any path; ``/cut`` breaks off half way, ``/hub`` redirects as the Hugging Face hub does, ``/gone`` is 404."""

    body = BODY
    linked = SHA

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/gone"):
            return self.send_error(404)
        if self.path.startswith("/hub"):
            self.send_response(302)
            self.send_header("Location", f"{self.server.base}/storage")
            self.send_header("X-Linked-Etag", f'"{self.server.linked}"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.send_header("ETag", f'"{"0" * 64}"' if self.path == "/storage" else '"0-abc"')
        self.end_headers()
        self.wfile.write(
            self.server.body[: len(self.server.body) // 2] if self.path.startswith("/cut") else self.server.body
        )
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFBACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EFFBACKBONES_MIRROR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def source(url: str, prefix: str | None = SHA[:8]) -> WeightSource:
    return WeightSource("test:w", "b0", url, "w.pth", prefix, "torchvision", "torch", ImageSpec(), "Apache-2.0")


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def fails(action: object, *words: str) -> None:
    with pytest.raises(UserError) as error:
        action()  # type: ignore[operator]
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_fetch_verifies_pins_and_keeps(server, tmp_path, capsys):
    path = hub.fetch(source(f"{server.base}/w.pth"))
    assert path == tmp_path / "cache" / "w.pth"
    assert path.read_bytes() == BODY
    assert hub.pinned(path) == {"sha256": SHA, "source": "test:w", "backbone": "b0", "url": f"{server.base}/w.pth"}
    assert files(tmp_path) == ["w.pth", "w.pth.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~hub._umask(), "the file mode must follow the umask"
    assert "w.pth" in capsys.readouterr().err, "no progress bar"
    hub.fetch(source(f"{server.base}/w.pth"))
    assert len(server.asked) == 1, "a cached file was fetched again"


def test_wrong_hash_keeps_nothing(server, tmp_path):
    fails(
        lambda: hub.fetch(source(f"{server.base}/w.pth", "deadbeef")),
        "expected deadbeef...",
        f"found {SHA}",
        "try again",
    )
    assert files(tmp_path) == []


def test_hub_states_its_own_hash(server, tmp_path):
    path = hub.fetch(source(f"{server.base}/hub/w.pth", None))
    assert path.read_bytes() == BODY
    assert server.asked == ["/hub/w.pth", "/storage"]
    path.unlink()
    hub._pin_of(path).unlink()
    server.linked = "1" * 64
    fails(lambda: hub.fetch(source(f"{server.base}/hub/w.pth", None)), "expected " + "1" * 64, f"found {SHA}")
    assert files(tmp_path) == []


def test_interrupted_download_leaves_nothing(server, tmp_path):
    place = str(tmp_path / "cache" / "w.pth")
    fails(lambda: hub.fetch(source(f"{server.base}/cut/w.pth")), "ended after 524,288 of 1,048,576 bytes", place)
    assert files(tmp_path) == []


def test_killed_download_leaves_an_orphan_that_goes_later(server, tmp_path):
    old, young = (tmp_path / "cache" / f".w.pth.{name}.part" for name in ("old", "young"))
    old.parent.mkdir()
    for part in (old, young):
        part.write_bytes(BODY[:9])
    day_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (day_ago, day_ago))
    hub.fetch(source(f"{server.base}/w.pth"))
    assert files(tmp_path) == [young.name, "w.pth", "w.pth.json"], "another process may still be writing the young one"


def test_prefilled_cache_needs_no_network(tmp_path):
    nowhere = source("http://127.0.0.1:9/w.pth")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "w.pth").write_bytes(BODY)
    path = hub.fetch(nowhere)
    assert hub.pinned(path)["sha256"] == SHA
    (tmp_path / "cache" / "w.pth").write_bytes(BODY[:-1] + b"x")
    fails(lambda: hub.fetch(nowhere), str(path), f"expected {SHA}", "delete")


def test_prefilled_file_without_a_known_hash_is_pinned_at_first_use(tmp_path):
    nowhere = source("http://127.0.0.1:9/w.pth", None)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "w.pth").write_bytes(BODY)
    path = hub.fetch(nowhere)
    path.write_bytes(BODY[1:])
    fails(lambda: hub.fetch(nowhere), f"expected {SHA}")


def test_pin_outlives_its_file(server, tmp_path):
    path = hub.fetch(source(f"{server.base}/w.pth", None))
    path.unlink()
    server.body = BODY[1:]
    fails(lambda: hub.fetch(source(f"{server.base}/w.pth", None)), f"expected {SHA}", f"delete {path}.json")
    assert files(tmp_path) == ["w.pth.json"]


def test_offline_says_what_to_put_where(tmp_path):
    url = "http://127.0.0.1:9/models/w.pth"
    fails(
        lambda: hub.fetch(source(url)),
        "test:w (b0)",
        url,
        "refused",
        f"put it as {tmp_path / 'cache' / 'w.pth'}",
        "EFFBACKBONES_MIRROR",
    )


def test_missing_page_is_said(server, tmp_path):
    fails(lambda: hub.fetch(source(f"{server.base}/gone")), "404")
    assert files(tmp_path) == []


def test_mirror_stands_in_for_scheme_and_host(server, monkeypatch):
    monkeypatch.setenv("EFFBACKBONES_MIRROR", f"{server.base}/mirror/")
    hub.fetch(source("https://nowhere.invalid/models/w.pth"))
    assert server.asked == ["/mirror/models/w.pth"]


def test_folder_mirror(tmp_path, monkeypatch):
    (tmp_path / "mirror" / "models").mkdir(parents=True)
    (tmp_path / "mirror" / "models" / "w.pth").write_bytes(BODY)
    monkeypatch.setenv("EFFBACKBONES_MIRROR", (tmp_path / "mirror").as_uri())
    assert hub.fetch(source("https://nowhere.invalid/models/w.pth")).read_bytes() == BODY


def test_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    fails(
        lambda: hub.fetch(source(f"{server.base}/w.pth"), tmp_path / "file" / "cache"),
        str(tmp_path / "file"),
        "EFFBACKBONES_CACHE",
    )


def test_cached_hub_file_is_recognised_when_given_as_a_file(tmp_path):
    from effbackbones.weights.reading import _locate

    known = next(s for s in sources_for("b0") if s.name == "timm:tf_efficientnet_b0.ap_in1k")
    path = tmp_path / "cache" / known.file
    path.parent.mkdir()
    path.write_bytes(BODY)
    assert _locate(path, "b0")[2] is None
    hub.verify(path, known)
    assert _locate(path, "b0")[2] is known
    hub._pin_of(path).write_text(json.dumps({"sha256": "0" * 64, "source": known.name}))
    assert _locate(path, "b0")[2] is None


def test_command_lists_and_fetches(server, tmp_path, monkeypatch, capsys):
    assert hub.main(["list", "b1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(sources_for("b1"))
    assert any("torchvision:IMAGENET1K_V2" in line and "79.838" in line for line in lines)
    assert hub.main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 152

    monkeypatch.setenv("EFFBACKBONES_MIRROR", server.base)
    timm = replace(find_source("timm:tf_efficientnet_b0.in1k", "b0"))
    assert hub.main(["fetch", timm.name, "--cache", str(tmp_path / "here")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "here" / timm.file)
    assert server.asked == ["/timm/tf_efficientnet_b0.in1k/resolve/main/model.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["fetch", "torchvision:IMAGENET1K_V1"], "say --backbone"),
        (["fetch", "b0"], "efficientnet_b0_rwightman-7f5810bc.pth"),
        (["fetch", "torchvision:IMAGENET1K_V1", "--backbone", "b3"], "efficientnet_b3_rwightman-b3899882.pth"),
        (["fetch", "timm:tf_efficientnet_b0.in2k"], "did you mean"),
        (["list", "b9"], "did you mean"),
    ],
)
def test_command_faults_are_one_line_and_exit_2(arguments, word, monkeypatch, capsys):
    monkeypatch.setenv("EFFBACKBONES_MIRROR", "http://127.0.0.1:9")
    assert hub.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err


def test_help_needs_no_torch():
    script = (
        "import sys\nfrom effbackbones.weights.hub import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
