"""Damaged and hostile files of tensors: no code runs, nothing loads silently, every refusal is one line naming the file."""

import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tests_support import one_line

from effbackbones import build_model, load_model, save_model
from effbackbones.errors import UserError
from effbackbones.weights.content import read_content
from effbackbones.weights.reading import read_weights
from effbackbones.weights.record import read_metadata
from effbackbones.weights.tensorfile import pack, read_tensors, write_atomically


def refused(action, path: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        action(path)
    one_line(error, str(path), *words)


def as_weights(path: Path):
    return read_weights(path, "b0", numerics="torch")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A small model file of ours."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("good") / "m.safetensors"
    model = build_model(
        "cls", "lite0", num_classes=2, backbone_options={"width": 0.1, "depth": 0.1}, head_options={"channels": 8}
    )
    save_model(model, path, classes=("a", "b"))
    return path


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files(good, tmp_path, share):
    data = good.read_bytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(data[: int(len(data) * share)])
    for action in (load_model, as_weights):
        refused(action, path)
    buffer = io.BytesIO()
    torch.save({"conv_stem.weight": torch.zeros(32, 3, 3, 3)}, buffer)
    path = tmp_path / "m.pth"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    refused(as_weights, path)


def test_one_flipped_byte_anywhere(good, tmp_path):
    data, path = good.read_bytes(), tmp_path / "m.safetensors"
    generator = torch.Generator().manual_seed(7)
    length = 8 + int.from_bytes(data[:8], "little")
    # Header and data alike: every byte of the length, 150 places in the header, 150 anywhere; one bit, or all of them.
    offsets = [*range(8), *torch.randint(8, length, (150,), generator=generator).tolist()]
    offsets += torch.randint(0, len(data), (150,), generator=generator).tolist()
    for n, offset in enumerate(offsets):
        flip = 0xFF if n % 2 else 1 << int(torch.randint(0, 8, (), generator=generator))
        path.write_bytes(data[:offset] + bytes([data[offset] ^ flip]) + data[offset + 1 :])
        refused(load_model, path)


def test_damaged_pickles_load_whole_or_not_at_all(tmp_path):
    path, generator, refusals = tmp_path / "w.pth", torch.Generator().manual_seed(5), []
    for legacy in (False, True):
        state = {"conv_stem.weight": torch.zeros(4, 3, 3, 3), "x": torch.arange(9)}
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
        data = path.read_bytes()
        for offset in torch.randint(0, len(data), (200,), generator=generator).tolist():
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :])
            try:
                tables = read_content(path).tables
            except UserError as error:
                refusals.append(str(error))
            else:
                assert all(isinstance(tensor, torch.Tensor) for table in tables.values() for tensor in table.values())
    assert len(refusals) > 100
    assert all(str(path) in text for text in refusals)


def test_every_byte_of_the_digest_and_the_padding_counts(good, tmp_path):
    data, path = good.read_bytes(), tmp_path / "m.safetensors"
    start = data.index(b'"sha256":"')
    for offset in range(start, start + 76):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        refused(load_model, path)
    end = 8 + int.from_bytes(data[:8], "little")
    padding = end - len(data[8:end].rstrip(b" ")) - 8
    for offset in range(end - padding, end):
        path.write_bytes(data[:offset] + b"\t" + data[offset + 1 :])
        refused(load_model, path, "sha256 expected")


def test_safetensors_faults(tmp_path):
    whole = save({"stem.conv.weight": torch.zeros(32, 3, 3, 3), "b": torch.ones(4)})
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def built(text: bytes, body: bytes = whole[8 + length :]) -> bytes:
        return len(text).to_bytes(8, "little") + text + body

    assert header["b"]["data_offsets"] == [0, 16]
    overlap = {**header, "stem.conv.weight": {**header["stem.conv.weight"], "data_offsets": [8, 8 + 32 * 3 * 9 * 4]}}
    cases = {
        "huge header": (1 << 62).to_bytes(8, "little") + whole[8:],
        "header past the end": (len(whole) * 2).to_bytes(8, "little") + whole[8:],
        "overlap": built(json.dumps(overlap).encode()),
        "extra tail": whole + b"tail",
        "cut": whole[:-3],
        "only a length": whole[:8],
        "not json": built(b"{" * 64),
        "deep json": built(b"[" * 100_000),
        "a list": built(b"[]  "),
        "no utf-8": built(b"\xff\xfe\xfd\xfc"),
        "metadata a list": built(json.dumps({**header, "__metadata__": [1]}).encode()),
        "metadata of numbers": built(json.dumps({**header, "__metadata__": {"sha256": 7}}).encode()),
        "bad dtype": built(json.dumps({**header, "b": {**header["b"], "dtype": "X9"}}).encode()),
        "negative offset": built(json.dumps({**header, "b": {**header["b"], "data_offsets": [-4, 12]}}).encode()),
        "wrong shape": built(json.dumps({**header, "b": {**header["b"], "shape": [1 << 40]}}).encode()),
    }
    for name, data in cases.items():
        path = tmp_path / f"{name.replace(' ', '_')}.safetensors"
        path.write_bytes(data)
        for action in (as_weights, load_model, read_tensors):
            refused(action, path)


def test_missing_empty_and_folders(tmp_path):
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("missing.safetensors", "empty.safetensors", "folder.safetensors", "missing.pth"):
        for action in (load_model, as_weights, read_metadata):
            refused(action, tmp_path / name)


# --- hostile files ---------------------------------------------------------------------------------------------------


class Payload:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Build:
    """Pickles to an object whose state is set by a call of its own."""

    def __init__(self, payload):
        self.payload = payload

    def __reduce__(self):
        return dict, (), None, None, iter([("x", self.payload)])


def payloads(marker: Path) -> dict[str, object]:
    """Eight ways to have code run when a pickle is opened; each would create ``marker``."""
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Payload(os.system, f"touch {marker}"),
        "eval": Payload(eval, touch),
        "exec": Payload(exec, touch),
        "popen": Payload(subprocess.Popen, ["touch", str(marker)]),
        "open": Payload(open, str(marker), "w"),
        "getattr": Payload(getattr, Payload(__import__, "os"), "system"),
        "nested in a state dict": {"state_dict": {"conv_stem.weight": Build(Payload(exec, touch))}},
        "unpickler in bytes": Payload(pickle.loads, pickle.dumps(Payload(os.system, f"touch {marker}"))),
    }


@pytest.mark.parametrize("kind", list(payloads(Path("x"))))
@pytest.mark.parametrize("form", ["torch zip", "torch legacy", "plain pickle"])
def test_payloads_never_run(kind, form, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    payload = payloads(marker)[kind]
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "torch zip")
    refused(as_weights, path)
    for suffix in (".safetensors", ".pt", ".bin", ".ckpt"):
        other = path.rename(path.with_suffix(suffix))
        refused(as_weights, other)
        other.rename(path)
    time.sleep(0.05)
    assert not marker.exists()


def test_the_payloads_do_run_when_unprotected(tmp_path):
    """The test above would pass with harmless payloads; these are not."""
    worked = 0
    for n, payload in enumerate(payloads(tmp_path / "marker").values()):
        (tmp_path / "marker").unlink(missing_ok=True)
        found = pickle.loads(pickle.dumps(payload))  # noqa: S301  # on purpose
        if isinstance(found, subprocess.Popen):
            found.wait()
        if hasattr(found, "close"):
            found.close()
        worked += (tmp_path / "marker").exists() or (n == 5 and found is os.system)
    assert worked == 8


def test_payload_inside_a_model_file_that_lies_about_its_kind(good, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "m.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payloads(marker)["system"]))
    refused(load_model, path)
    assert not marker.exists()


def test_unsafe_switch_of_torch_is_refused(tmp_path, monkeypatch):
    torch.save({"conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "w.pth")
    for value in ("1", "true", "Y"):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
        with pytest.raises(UserError, match="unset it"):
            as_weights(tmp_path / "w.pth")


def test_one_function_alone_unpickles():
    root = Path(__file__).resolve().parent.parent
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for folder in ("effbackbones", "heads", "tasks")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if any(
            word in line
            for word in (
                " torch.load(",
                "pickle.load",
                "import pickle",
                "weights_only=False",
                "yaml.load(",
                "shell=True",
            )
        )
    ]
    assert found == ['effbackbones/weights/pickled.py: return torch.load(file, map_location="cpu", weights_only=True)']


# --- writing ---------------------------------------------------------------------------------------------------------


def save_for_ever(path: Path, tell: int) -> None:
    """Save files full of n = 1, 2, ..., and write a byte to ``tell`` after each."""
    try:
        for n in itertools.count(1):
            write_atomically(path, pack({"n": torch.full((200_000,), float(n))}, {}))
            os.write(tell, b".")
    finally:
        os._exit(1)


def test_kills_during_a_save_leave_a_whole_file(tmp_path):
    path, generator = tmp_path / "m.safetensors", torch.Generator().manual_seed(3)
    for _ in range(12):
        listen, tell = os.pipe()
        child = os.fork()  # far quicker than a new interpreter
        if child == 0:
            save_for_ever(path, tell)
        os.close(tell)
        saved = len(os.read(listen, 1))
        time.sleep(0.1 * float(torch.rand((), generator=generator)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while chunk := os.read(listen, 1 << 16):
            saved += len(chunk)
        os.close(listen)
        found, _ = read_tensors(path)
        assert int(found["n"].min()) == int(found["n"].max()) in (saved, saved + 1)
        assert {entry.name for entry in tmp_path.iterdir()} <= {path.name, f".{path.name}.tmp"}


def test_full_disk_and_read_only_folder_keep_the_old_file(tmp_path, monkeypatch, good):
    path = tmp_path / "m.safetensors"
    path.write_bytes(good.read_bytes())
    model = load_model(path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(lambda p: save_model(model, p), path, "No space left", "bytes")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [path.name]
    load_model(path)
    refused(lambda p: save_model(model, p), tmp_path / "missing" / "m.safetensors", "there is no folder")
