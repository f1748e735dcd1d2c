"""Models to and from a stand-in of the Hugging Face Hub."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import one_line

from effbackbones import (
    ImageSpec,
    UserError,
    build_model,
    create_backbone,
    load_model,
    load_predictor,
    push_to_hub,
    save_model,
)
from effbackbones.weights import repository
from tasks.run import main

SMALL = {"width": 0.25, "depth": 0.3, "image_spec": ImageSpec((32, 32))}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories of files; ``gated/x`` asks for access, ``broken/x`` fails."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {"gated/x": {}, "broken/x": {}}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refused(self, name: str) -> bool:
        if name.startswith("gated/"):
            self.answer(403, X_Error_Code="GatedRepo")
        elif name.startswith("broken/"):
            self.answer(418)
        elif name not in self.server.files:
            self.answer(404, X_Error_Code="RepoNotFound")
        else:
            return False
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if self.refused(name):
            return
        if revision not in ("main", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif file not in self.server.files[name]:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            data = self.server.files[name][file]
            self.answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=COMMIT)

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        self.server.stored[self.path.rpartition("/")[2]] = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = self.body()
        if self.path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            if name.startswith("other/"):
                return self.answer(403, {"error": "no"})
            self.server.files.setdefault(name, {})
            return self.answer(200, {"url": f"{self.server.base}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.base}/store/{one['oid']}", "header": {}}}}
                for one in wanted
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files, "commitOid": COMMIT})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.server.files[name][value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                self.server.files[name][value["path"]] = self.server.stored[value["oid"]]
        return self.answer(200, {"commitUrl": f"{self.server.base}/{name}/commit/{COMMIT}", "commitOid": COMMIT})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run leaves."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model("cls", "b0", num_classes=3, backbone_options=SMALL).eval()
    save_model(model, folder / "best.safetensors", classes=["cat", "dog", "red panda"])
    scores = {"images": 24, "top1": 0.75, "ece": None, "per_class": {"cat": {"recall": 1.0}}}
    whole = {"finished": True, "split": "val", "best": "ema", "ema": scores, "raw": {"top1": 0.5}, "history": []}
    (folder / "metrics.json").write_text(json.dumps(whole))
    return folder


def test_a_model_goes_there_and_comes_back(hub: Hub, run: Path) -> None:
    address = push_to_hub(run, "me/pets", licence="apache-2.0")
    assert address == f"{hub.base}/me/pets"
    files = hub.files["me/pets"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert files["model.safetensors"] == (run / "best.safetensors").read_bytes()
    config = json.loads(files["config.json"])
    assert (config["backbone"], config["classes"], config["image_spec"]["size"]) == (
        "b0",
        ["cat", "dog", "red panda"],
        [32, 32],
    )
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = load_model(run / "best.safetensors")(images)
        torch.testing.assert_close(load_model("hf-hub:me/pets")(images), expected)
        assert load_predictor(f"hf-hub:me/pets@{COMMIT}").classes == ("cat", "dog", "red panda")
        model = build_model("cls", "b0", num_classes=3, weights="hf-hub:me/pets", backbone_options=SMALL).eval()
        torch.testing.assert_close(model(images), expected)
    assert create_backbone("b0", weights="hf-hub:me/pets", width=0.25, depth=0.3).image_spec.size == (32, 32)
    assert {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path} == {"model.safetensors"}


def test_the_card_has_the_figures_that_were_measured_and_no_others(hub: Hub, run: Path, tmp_path: Path) -> None:
    push_to_hub(run, "me/pets", licence="apache-2.0")
    card = hub.files["me/pets"]["README.md"].decode()
    assert 'license: "apache-2.0"' in card
    assert 'pipeline_tag: "image-classification"' in card
    assert "| top1 | 0.75 |" in card
    assert "On the split val" in card
    assert "the ema weights" in card
    assert "0.5 |" not in card
    assert "ece" not in card
    assert "cat, dog, red panda" in card
    assert 'load_predictor("hf-hub:me/pets")' in card
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "best.safetensors").read_bytes())
    push_to_hub(alone, "me/alone")
    card = hub.files["me/alone"]["README.md"].decode()
    assert "Nothing was measured" in card
    assert "license:" not in card
    assert "|" not in card


@pytest.mark.slow
def test_commands_take_it_as_a_checkpoint(hub: Hub, run: Path, tmp_path: Path) -> None:
    push_to_hub(run, "me/pets")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    words = ["--checkpoint", "hf-hub:me/pets", str(tmp_path / "a.png"), "--out", str(tmp_path / "f.npy")]
    assert main(["classify", "embed", *words, "--run.device", "cpu", "--run.progress", "false"]) == 0
    assert np.load(tmp_path / "f.npy").shape == (1, 80)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf-hub:nobody/nothing", "no such repository"),
        ("hf-hub:gated/x", "is gated"),
        ("hf-hub:me/empty", "holds no model.safetensors"),
        ("hf-hub:me/empty@v9", "no such revision"),
        ("hf-hub:a b/c", "write hf-hub:USER/NAME"),
        ("hf-hub:broken/x", "status 418"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub: Hub, name: str, words: str) -> None:
    hub.files["me/empty"] = {"config.json": b"{}"}
    for action in (load_model, lambda name: create_backbone("b0", weights=name)):
        with pytest.raises(UserError) as error:
            action(name)
        one_line(error, name, words)


def test_without_a_server_the_cache_serves_or_it_is_said(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(run, "me/pets")
    load_model("hf-hub:me/pets")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between its tries
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    load_model("hf-hub:me/pets")
    with pytest.raises(UserError) as error:
        load_model("hf-hub:me/other")
    one_line(error, "hf-hub:me/other", "cannot be reached")
    with pytest.raises(UserError) as error:
        push_to_hub(run, "me/pets")
    one_line(error, "hf-hub:me/pets", "cannot be reached")


def test_a_push_that_is_refused_and_a_run_that_is_none_are_one_line(hub: Hub, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        push_to_hub(run, "other/pets")
    one_line(error, "other/pets", "refuses access")
    with pytest.raises(UserError) as error:
        push_to_hub(tmp_path, "me/pets")
    one_line(error, "best.safetensors", "no such file")
    for name in ("best.safetensors", "metrics.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "metrics.json").write_text('{"finished": true}')
    with pytest.raises(UserError) as error:
        push_to_hub(tmp_path, "me/pets")
    one_line(error, "metrics.json", "finished run")
    assert repository.is_repository("hf-hub:a/b")
    assert not repository.is_repository("a/b")
