"""Models to and from a stand-in of the Hugging Face Hub."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import ROOT, one_line

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
from tasks.settings.commandline import parse

SMALL = {"width": 0.25, "depth": 0.3, "image_spec": ImageSpec((32, 32))}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories of files; ``gated/x`` asks for access, ``broken/x`` fails, ``secret/`` wants the token ``hf_good``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {"gated/x": {}, "broken/x": {}, "secret/x": {}}
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
        elif name.startswith("secret/") and self.stranger():
            pass
        elif name.startswith("broken/"):
            self.answer(418)
        elif name not in self.server.files:
            self.answer(404, X_Error_Code="RepoNotFound")
        else:
            return False
        return True

    def stranger(self) -> bool:
        """Whether the request brings no token or a wrong one, and has been answered so, as the Hub does."""
        given = self.headers.get("Authorization")
        if given == "Bearer hf_good":
            return False
        if given:
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        else:
            self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
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
            if name.startswith("nowhere/"):
                return self.answer(404, {"error": "This organization does not exist"})
            if name.startswith("secret/") and self.stranger():
                return None
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
        ("hf-hub:c", "write hf-hub:USER/NAME"),
        ("hf-hub:broken/x", "status 418"),
        ("hf-hub:secret/x", "refuses access (status 401)"),
        ("hf-hub:me/empty@", "no revision behind the @"),
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


def test_offline_the_cache_serves_or_it_is_said(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    push_to_hub(run, "me/pets")
    load_model("hf-hub:me/pets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets before the library is imported
    hub.asked.clear()
    load_model("hf-hub:me/pets")
    for name in ("hf-hub:me/other", "hf-hub:me/pets@v9"):
        with pytest.raises(UserError) as error:
            load_model(name)
        one_line(error, name, "not in the cache", "HF_HUB_OFFLINE")
    with pytest.raises(UserError) as error:
        push_to_hub(run, "me/pets")
    one_line(error, "hf-hub:me/pets: HF_HUB_OFFLINE keeps from asking")
    assert hub.asked == []


@pytest.mark.slow
def test_a_command_that_is_told_to_stay_offline(hub: Hub, run: Path, tmp_path: Path) -> None:
    """As the test above, with the variable itself, which the library reads when it is imported."""
    push_to_hub(run, "me/pets")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    line = [sys.executable, "-m", "tasks.classify", "embed", str(tmp_path / "a.png"), "--out", str(tmp_path / "f.npy")]
    line += ["--run.device", "cpu", "--checkpoint", "hf-hub:me/pets"]
    told = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    codes = []
    for offline in ("1", "0", "1"):
        environment = {**told, "HF_HUB_OFFLINE": offline}
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)
        codes.append(done.returncode)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            assert said[-1].startswith(
                "error: hf-hub:me/pets: its model.safetensors is not in the cache, and HF_HUB_OFFLINE"
            )
            assert "Traceback" not in done.stderr
    assert codes == [2, 0, 0]


def test_a_model_of_several_tasks_goes_there_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    head_options = {"det": {"channels": 16, "cells": 1, "repeats": 1}, "seg": {"channels": [16, 16, 8, 8, 8]}}
    model = build_model(
        ("det", "seg"), "b0", num_classes={"det": 2, "seg": 3}, backbone_options=SMALL, head_options=head_options
    ).eval()
    save_model(model, tmp_path / "joint.safetensors", classes={"det": ["cat", "dog"], "seg": ["sky", "sea", "sand"]})
    push_to_hub(tmp_path / "joint.safetensors", "me/both")
    assert "Task: det, seg. Classes: det: cat, dog; seg: sky, sea, sand." in hub.files["me/both"]["README.md"].decode()
    ask = load_predictor(f"hf-hub:me/both@{COMMIT}")
    assert set(ask(np.zeros((40, 50, 3), np.uint8))) == {"det", "seg"}
    tasks = parse("joint", ["evaluate", "--checkpoint", f"hf-hub:me/both@{COMMIT}"]).config.model.task
    assert tasks == ("det", "seg")
    with pytest.raises(UserError) as error:
        load_predictor("hf-hub:me/both@v9")
    one_line(error, "hf-hub:me/both@v9", "has no such revision")


def test_the_verb_pushes(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setattr("effbackbones.publishing.push_to_hub", lambda *words, **own: sent.update(own) or words)
    line = ["classify", "push", "--checkpoint", str(run)]
    assert main([*line, "me/pets"]) == 0
    assert (capsys.readouterr().out, sent) == (
        f"{(str(run), 'me/pets')}\n",
        {"licence": None, "message": "Upload model", "private": False},
    )
    assert main([*line, "hf-hub:me/pets", "--private", "--licence", "mit", "--message", "First"]) == 0
    assert sent == {"licence": "mit", "message": "First", "private": True}
    monkeypatch.undo()
    for words, said in (
        ([], "expected one repository, got none"),
        (["a/b", "c/d"], "expected one repository, got a/b, c/d"),
        (["pets"], "pets: is no USER/NAME"),
        (["me/pets@v1"], "me/pets@v1: names a revision"),
        (["me/pets", "--licnce", "mit"], "--licnce: no such option; did you mean --licence?"),
    ):
        assert main([*line, *words]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert main(["classify", "push", "me/pets"]) == 2
    assert "--checkpoint: no trained model is named" in capsys.readouterr().err
    assert main(["classify", "push", "me/pets", "--checkpoint", "hf-hub:me/pets"]) == 2
    assert "is on the Hub already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("other/pets", "hf_none", "refuses access (status 403); run hf auth login, or set HF_TOKEN"),
        ("secret/x", "hf_wrong", "refuses access (status 401); run hf auth login, or set HF_TOKEN"),
        ("secret/x", None, "refuses access (status 401); run hf auth login, or set HF_TOKEN"),
        ("nowhere/pets", "hf_none", "no such user or organisation"),
    ],
)
def test_a_push_that_is_refused_is_one_line(
    name: str, token: str | None, words: str, hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError) as error:
        push_to_hub(run, name)
    one_line(error, f"hf-hub:{name}: ", words)
    assert name not in hub.files or not hub.files[name]


def test_a_connection_that_breaks_is_one_line(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between its tries
    monkeypatch.setattr(Handler, "do_POST", lambda handler: handler.connection.close())
    with pytest.raises(UserError) as error:
        push_to_hub(run, "me/pets")
    one_line(error, "hf-hub:me/pets", "cannot be reached")


def test_a_run_that_is_none_is_one_line(hub: Hub, run: Path, tmp_path: Path) -> None:
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
