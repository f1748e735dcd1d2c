"""What a run is: the folder that is its own, the data that it must find again, what may change while it rests."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine_training import After, PowerFailsError, digest, run, stop_at
from tests_support import QUIET, TINY, one_line
from torch import nn

from effbackbones import UserError, build_model, load_model, save_model
from effbackbones.weights.tensorfile import pack, read_tensors, write_atomically
from tasks.classify import main
from tasks.engine.folderlock import FolderLock
from tasks.engine.hardware import Hardware
from tasks.engine.identity import compare, identity
from tasks.engine.owning import RunFolder, own_folder, refuse_full_disk
from tasks.engine.resume import FORMAT, State, load_state, save_state, state_files
from tasks.engine.rundir import choose, finished
from tasks.engine.state import Progress, RunState
from tasks.engine.watching import watching
from tasks.settings.commandline import parse
from tasks.settings.sections import Config


def config(*more: str) -> Config:
    return parse("classify", [*TINY, *more]).config


def learnt(folder: Path, *, ended: bool = False) -> None:
    """Leave in a run folder what a run that has learnt something leaves."""
    save_state(folder / "checkpoints", 3, {"a": torch.ones(1)}, {})
    (folder / "metrics.json").write_text(json.dumps({"finished": ended}))


# The folder --------------------------------------------------------------------------------------------------------------


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    with (
        own_folder(config("--run.seed", "1"), "classify", "shapes", told.append) as first,
        own_folder(config("--run.seed", "2"), "classify", "shapes", told.append) as second,
    ):
        assert (first, second) == (Path("runs/classify/shapes"), Path("runs/classify/shapes-2"))
        assert "holds an unfinished run of another config (run.seed differ)" in told[0]
        with pytest.raises(UserError, match=f"is used by process {os.getpid()}"):  # the same command twice
            own_folder(config("--run.seed", "2"), "classify", "shapes", told.append).__enter__()
        with own_folder(config("--run.resume", "never"), "classify", "shapes", told.append) as third:
            assert third == Path("runs/classify/shapes-3")


def test_what_keeps_a_run_from_continuing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    with own_folder(config("--data.root", "here"), "classify", "shapes", told.append) as first:
        learnt(first)
    assert choose(config("--data.root", "there"), "classify", "shapes", told.append) == Path("runs/classify/shapes-2")
    assert "--run.resume runs/classify/shapes continues it" in told[0]
    (first / "config.yaml").write_text("optim: {speed: 3}\n")
    assert choose(config(), "classify", "shapes", told.append) == Path("runs/classify/shapes-2")
    assert "config cannot be read" in told[1]
    assert "starts anew in runs/classify/shapes-2" in told[1]


@pytest.mark.parametrize(("later", "expected"), [("ended", "holds a finished run"), ("other", "optim.lr 0.5 -> 0.0")])
def test_a_folder_is_looked_at_again_under_the_lock(later: str, expected: str, tmp_path: Path) -> None:
    """Another process trained there between the choice and the lock."""
    other = config("--optim.lr", "0.5") if later == "other" else config()
    waiting = RunFolder(tmp_path / "run", config())
    with RunFolder(tmp_path / "run", other):
        learnt(tmp_path / "run", ended=later == "ended")
    before = (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(UserError, match=expected):
        waiting.__enter__()
    assert (tmp_path / "run/config.yaml").read_text() == before
    assert not (tmp_path / "run/lock").exists()


def test_a_run_that_cannot_begin_leaves_no_folder_and_one_that_was_killed_gives_way(tmp_path: Path) -> None:
    folder, told = tmp_path / "out/run", list[str]()
    with pytest.raises(ValueError, match="broken"), RunFolder(folder, config()):
        raise ValueError("broken")
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="broken"), RunFolder(folder, config()):
        raise ValueError("broken")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with RunFolder(folder, config()):
        pass
    with RunFolder(folder, changed := config("--optim.lr", "0.5"), told.append):
        assert "lr: 0.5" in (folder / "config.yaml").read_text()
    assert "learnt nothing yet" in told[0]
    learnt(folder)
    with pytest.raises(UserError, match=r"data.batch_size 8 -> 4"):
        RunFolder(folder, config("--optim.lr", "0.5", "--data.batch_size", "4")).__enter__()
    with RunFolder(folder, changed):
        pass


@pytest.mark.parametrize("where", ["out", "out/run", "out/run/checkpoints"])
def test_a_folder_that_cannot_be_written_is_one_line_before_the_work(where: str, tmp_path: Path) -> None:
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text("a file where a folder should be")
    with pytest.raises(UserError) as error:
        RunFolder(tmp_path / "out/run", config()).__enter__()
    one_line(error, str(tmp_path / "out/run"), "cannot be written", "choose another run.out")


def test_a_disk_that_takes_no_byte_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        RunFolder(tmp_path / "run", config()).__enter__()
    assert not (tmp_path / "run").exists()


def test_a_disk_too_small_for_the_states_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**9, free=10**6))
    assert run(tmp_path / "run") == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
    assert "1 MB are free, and the states and weights of this run take 10 MB" in line
    assert not (tmp_path / "run").exists()
    free = {"run": 10**6, "checkpoints": 10**9}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**9, free=free[Path(path).name]))
    refuse = partial(refuse_full_disk, tmp_path / "run", 10**8, 10**5)
    with RunFolder(tmp_path / "run", config()):
        with pytest.raises(UserError, match="1 MB are free"):
            refuse()
        honest = os.stat

        def elsewhere(path: Any, **given: Any) -> Any:
            """The states lie on a disk of their own."""
            found = honest(path, **given)
            return SimpleNamespace(st_dev=7) if Path(path).name == "checkpoints" and not given else found

        monkeypatch.setattr("os.stat", elsewhere)
        refuse()
        free["checkpoints"] = 10**6
        with pytest.raises(UserError, match=r"checkpoints: 1 MB are free"):
            refuse()
        monkeypatch.undo()


def test_loaders_do_not_keep_the_folder_of_a_run_that_was_killed(tmp_path: Path) -> None:
    (lock := FolderLock(tmp_path, print)).take()
    coming, going = os.pipe()
    child = os.fork()
    if not child:
        os.write(going, b"1")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(coming, 1)
        os.close(lock._handle)  # as the system does when the parent is killed
        (again := FolderLock(tmp_path, print)).take()
        again.release()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize("number", [37, 38, 95, 22])  # ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL
def test_a_file_system_without_locks_is_not_in_use(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    told: list[str] = []
    with RunFolder(tmp_path / "run", config(), told.append):
        assert "cannot be locked" in told[0]
    assert not (tmp_path / "run/lock").exists()


@pytest.mark.parametrize("number", [22, 95])
def test_a_folder_that_cannot_be_synchronised_is_no_fault(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.fsync

    def picky(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        honest(handle)

    monkeypatch.setattr("os.fsync", picky)
    write_atomically(tmp_path / "file", b"1")
    assert (tmp_path / "file").read_bytes() == b"1"


# The data ----------------------------------------------------------------------------------------------------------------


def classes_of_images(root: Path, *, count: int = 8) -> Path:
    """Class folders of small images of two colours."""
    for split in ("train", "val"):
        for number, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((24, 24, 3), 40 + 150 * number + index, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def replaced(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(root / "train/dark/3.png")


def swapped(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / "away")
        (root / split / "light").rename(root / split / "dark")
        (root / split / "away").rename(root / split / "light")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "renamed": (lambda root: (root / "train/dark/3.png").rename(root / "train/dark/33.png"), "training samples"),
    "swapped": (swapped, "training files were replaced"),
    "moved": (
        lambda root: (root / "val/dark/3.png").rename(root / "val/light/33.png"),
        "validation samples are others",
    ),
    "replaced": (replaced, "training files were replaced"),
    "halved": (
        lambda root: [(root / f"val/{name}/1.png").unlink() for name in ("dark", "light")],
        "were 16 and are now 14",
    ),
}


@pytest.fixture(scope="module")
def rested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and a run on them that was stopped."""
    folder = tmp_path_factory.mktemp("rested")
    (folder / "mine.yaml").write_text(f"data: {{name: folder, root: {classes_of_images(folder / 'data')}}}")
    line = ["--config", str(folder / "mine.yaml"), *TINY[2:], "--data.limit_val", "null"]

    def fail(state: RunState) -> None:
        if state.step == 3:
            raise PowerFailsError

    with watching(After(fail)):
        assert main([*line, "--run.out", str(folder / "run"), "--run.save_minutes", "1e-9"]) == 1
    return folder / "data", folder / "run"


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_not_trained_on_under_the_old_name(
    change: str, rested: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    data, folder = (Path(shutil.copytree(path, tmp_path / path.name)) for path in rested)
    edit, expected = CHANGES[change]
    edit(data)
    before = (folder / "config.yaml").read_text()
    assert main(["--run.resume", str(folder), "--data.root", str(data)]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "config.yaml").read_text() == before


def test_the_same_data_in_another_place_are_the_same(rested: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    data, folder = (Path(shutil.copytree(path, tmp_path / path.name)) for path in rested)
    assert main(["--run.resume", str(folder), "--data.root", str(data)]) == 0  # its config need not be named
    told = capsys.readouterr().err
    assert "continuing after step 2" in told
    assert f"data.root {rested[0]}"[:20] in told
    assert str(data) in (folder / "config.yaml").read_text()
    evaluate = ["evaluate", "--checkpoint", str(folder), *QUIET]
    assert main(evaluate) == 0
    assert "not as it was" not in capsys.readouterr().err
    (data / "val/dark/3.png").rename(data / "val/light/33.png")
    assert main(evaluate) == 0
    assert "data.val is not as it was when the model was trained: its samples are others" in capsys.readouterr().err


def test_a_run_continues_without_the_file_that_it_began_with(tmp_path: Path, capsys: Any) -> None:
    """Also where the file decided how images are seen and convolved, which its own states know."""
    options = {"width": 0.25, "depth": 0.3, "drop_path": 0.2, "numerics": "tf"}
    model = build_model("cls", "b0", num_classes=6, backbone_options=options)
    model.use_image_spec(replace(model.image_spec, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)))
    started, folder = tmp_path / "started.safetensors", tmp_path / "run"
    save_model(model, started, provenance={"licence": "mine"})
    line = ["--model.init_from", str(started), "--optim.max_steps", "6"]
    assert run(tmp_path / "whole", *line) == 0
    stop_at(4, folder, *line)
    started.unlink()
    capsys.readouterr()
    assert run(folder, *line) == 0
    assert "continuing after step 4 of 6" in capsys.readouterr().err
    assert digest(folder) == digest(tmp_path / "whole")
    ours, theirs = (load_model(path / "best.safetensors") for path in (folder, tmp_path / "whole"))
    assert ours.image_spec == theirs.image_spec
    assert ours.image_spec.mean == (0.1, 0.2, 0.3)
    assert ours.config == theirs.config
    assert ours.config["backbone_options"]["numerics"]["padding"] == "same"
    assert ours.provenance == theirs.provenance
    assert ours.provenance["licence"] == "mine"


# The config --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_at(3, folder)
    return folder


def test_what_cannot_change_the_result_may_change_and_is_told(
    stopped: Path, whole: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    free = ["--data.workers", "1", "--data.timeout", "50", "--data.eval_batch_size", "5", "--data.on_error", "skip"]
    assert run(folder, *free) == 0
    assert digest(folder) == digest(whole)
    told = capsys.readouterr().err
    for words in (
        "data.workers 0 -> 1",
        "data.timeout 300.0 -> 50.0",
        "data.eval_batch_size null -> 5",
        "stop -> skip",
    ):
        assert words in told
    assert "workers: 1" in (folder / "config.yaml").read_text()


def test_accumulation_may_change_and_what_that_means_is_told(stopped: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert run(folder, "--optim.accumulate", "2") == 0
    assert "batch norm takes its statistics from 4 at a time, before from 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--run.precision", "bf16"), "run.precision was fp32 and is now bf16"),
        (("--data.batch_size", "4"), "data.batch_size 8 -> 4"),
        (("--run.seed", "1"), "run.seed 0 -> 1"),
        (("--optim.epochs", "3"), "optim.epochs 2.0 -> 3.0"),
    ],
)
def test_what_changes_the_result_is_refused_by_name(
    more: tuple[str, ...], expected: str, stopped: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert run(folder, *more) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_a_state_of_another_config_is_not_continued_from(stopped: Path, tmp_path: Path, capsys: Any) -> None:
    """config.yaml edited by hand, or states copied from another run."""
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    file = folder / "config.yaml"
    file.write_text(re.sub(r"(\n  seed:) .*", r"\1 77", file.read_text()))
    assert main(["--run.resume", str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "its state was saved under another config (run.seed " in said
    assert "-> 77" in said
    file.write_text("")
    assert main(["--run.resume", str(folder)]) == 2
    assert "config.yaml: is empty" in capsys.readouterr().err.splitlines()[-1]


def test_code_of_a_plug_in_that_changed_is_told(tmp_path: Path, capsys: Any) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("x = 1\n")
    model, told = nn.Module(), list[str]()
    model.config, model.image_spec = {}, ""  # type: ignore[assignment]  # what is asked of a model

    def now() -> dict[str, Any]:
        return identity(
            model, [], {}, [str(plugin), "json"], Hardware(torch.device("cpu"), "fp32", 1), seen=8, settings={}
        )  # type: ignore[arg-type]

    before = json.loads(json.dumps(now()))
    compare(before, now(), tmp_path, told.append)
    assert told == []
    plugin.write_text("x = 2\n")
    compare(before, now(), tmp_path, told.append)
    assert told == [f"warning: the code of plug-in {plugin} has changed since the run stopped"]
    compare(now() | {"device": "cuda"}, now(), tmp_path, told.append)
    assert told[1].startswith("it goes on on cpu, before on cuda")


# Longer runs -------------------------------------------------------------------------------------------------------------


def test_a_finished_run_becomes_longer_by_name_alone(tmp_path: Path, capsys: Any) -> None:
    """With a schedule that does not depend on the length it is, bit for bit, the longer run from the start."""
    constant, long = ("--optim.schedule", "constant"), ("--optim.epochs", "2")
    short = tmp_path / "short"
    assert run(short, *constant, "--optim.epochs", "1") == 0
    assert run(short, *constant, *long) == 2
    assert f"--run.resume {short} with more optim.epochs trains on" in capsys.readouterr().err
    assert main(["--run.resume", str(short), *long]) == 0
    assert "4 steps became 8, and the schedule constant is that of the new length" in capsys.readouterr().err
    assert run(tmp_path / "long", *constant, *long) == 0
    assert digest(short) == digest(tmp_path / "long")
    assert finished(short)
    assert main(["--run.resume", str(short), "--optim.epochs", "1"]) == 2
    assert "optim.epochs 2.0 -> 1.0" in capsys.readouterr().err


def test_a_run_that_patience_ended_trains_on_when_it_becomes_longer(tmp_path: Path) -> None:
    folder, still = tmp_path / "run", ("--optim.lr", "0", "--optim.ema", "null", "--run.patience", "1")
    assert run(folder, *still, "--optim.epochs", "9") == 0
    assert main(["--run.resume", str(folder), "--optim.epochs", "10"]) == 0
    history = json.loads((folder / "metrics.json").read_text())["history"]
    assert [row["step"] for row in history] == [4, 8, 12]


def test_a_longer_run_says_how_its_schedule_goes_on(whole: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    stop_at(9, folder, "--run.resume", str(folder), "--optim.epochs", "3", "--optim.warmup_steps", "null")
    told = capsys.readouterr().err
    assert "8 steps became 12" in told
    assert not finished(folder)  # and the same line goes on where it was
    assert "epochs: 3" in (folder / "config.yaml").read_text()
    shutil.rmtree(folder / "checkpoints")
    assert main(["--run.resume", str(folder), "--optim.epochs", "4"]) == 2
    assert "holds no state to train on from" in capsys.readouterr().err


# States ------------------------------------------------------------------------------------------------------------------


def test_only_the_names_of_states_are_states(tmp_path: Path) -> None:
    for step in (2, 10):
        path = save_state(tmp_path, step, {"a": torch.ones(1)}, {})
    for name in ("step-backup", "step-00000011 (1)", "step-11", "copy-step-00000012"):
        shutil.copy(path, tmp_path / f"{name}.safetensors")
    assert [file.name for file in state_files(tmp_path)] == ["step-00000010.safetensors", "step-00000002.safetensors"]
    shutil.copy(path, tmp_path / "step-00000099.safetensors")
    with pytest.raises(UserError, match="is the state after step 10 by its record"):
        load_state(tmp_path, print)


def test_best_weights_that_are_gone_are_replaced_and_told(whole: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "metrics.json").unlink()  # as if it had ended just before
    (folder / "best.safetensors").write_bytes((folder / "best.safetensors").read_bytes()[:-40])
    assert run(folder) == 0
    assert "the weights after step 8 take its place" in capsys.readouterr().err
    (folder / "metrics.json").unlink()
    (folder / "best.safetensors").unlink()
    assert run(folder) == 0
    assert "best.safetensors is gone" in capsys.readouterr().err
    assert finished(folder)


class Tiny(nn.Linear):
    """As much of a model as a state needs."""

    def __init__(self) -> None:
        super().__init__(3, 2)


def tiny_state(folder: Path) -> tuple[RunState, Path]:
    """The state of a small training after one step, and its file."""
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = RunState(model, optimizer, None, None)  # type: ignore[arg-type]  # a network is enough
    state.step = 1
    return state, save_state(folder, 1, state.tensors(), {"progress": vars(Progress()), "identity": {}})


def read_back(state: RunState, folder: Path) -> None:
    """Restore the newest state in a folder."""
    found = load_state(folder, print)
    assert found is not None
    state.restore(found)


def dropped(name: str) -> Callable[[Any, Any], object]:
    return lambda tensors, record: tensors.pop(name)


def setting(part: Callable[[Any, Any], Any], key: str, value: object) -> Callable[[Any, Any], object]:
    return lambda tensors, record: part(tensors, record).__setitem__(key, value)


def tensors_of(tensors: Any, record: Any) -> Any:
    return tensors


def record_of(tensors: Any, record: Any) -> Any:
    return record


def progress_of(tensors: Any, record: Any) -> Any:
    return record["progress"]


FOREIGN: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "newer": (setting(record_of, "format", FORMAT + 1), f"is a state of format {FORMAT + 1}"),
    "older": (lambda tensors, record: record.pop("format"), "is a state of format 1"),
    "no step": (lambda tensors, record: record.pop("step"), "has no 'step'"),
    "no progress": (lambda tensors, record: record.pop("progress"), "has no 'progress'"),
    "more progress": (setting(progress_of, "mood", 1), "other keys: mood"),
    "less progress": (lambda tensors, record: record["progress"].pop("best"), "other keys: best"),
    "no bias": (dropped("model.bias"), "lacks the tensor model.bias"),
    "no average": (dropped("optimizer.1.exp_avg"), "lacks the tensor optimizer.1.exp_avg"),
    "other shape": (
        setting(tensors_of, "model.bias", torch.zeros(5)),
        r"model.bias is \(5,\) float32, expected \(2,\)",
    ),
    "other dtype": (setting(tensors_of, "model.bias", torch.zeros(2).half()), "float16, expected"),
    "unknown root": (setting(tensors_of, "spirit.x", torch.zeros(1)), "has besides the tensor spirit.x"),
    "unknown parameter": (
        setting(tensors_of, "optimizer.9.exp_avg", torch.zeros(1)),
        r"besides the tensor optimizer.9",
    ),
    "other state": (setting(tensors_of, "optimizer.1.exp_avg", torch.zeros(9)), r"optimizer.1.exp_avg is \(9,\)"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("counted", [False, True])
def test_a_state_of_another_kind_is_one_line(kind: str, counted: bool, tmp_path: Path) -> None:
    state, path = tiny_state(tmp_path)
    tensors, metadata = read_tensors(path)
    record = json.loads(metadata["record"])
    change, expected = FOREIGN[kind]
    change(tensors, record)
    if counted:  # who changed it was thorough
        record["tensors"] = len(tensors)
    path.write_bytes(pack(tensors, {"record": json.dumps(record)}))
    before = {name: value.clone() for name, value in state.tensors().items()}
    expected = expected if counted else f"{expected}|and was saved with"
    with pytest.raises(UserError, match=expected) as error:
        read_back(state, tmp_path)
    one_line(error, str(path))
    for name, value in state.tensors().items():
        assert torch.equal(value, before[name])


def test_a_safetensors_file_that_is_no_state_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.safetensors").write_bytes(pack({"a": torch.ones(1)}, {}))
    with pytest.raises(UserError, match="is a safetensors file and no state of a run"):
        load_state(tmp_path, print)


def test_a_state_restores_what_it_was(tmp_path: Path) -> None:
    state, _ = tiny_state(tmp_path)
    found = load_state(tmp_path, print)
    assert isinstance(found, State)
    (tmp_path / "other").mkdir()
    other, _ = tiny_state(tmp_path / "other")
    other.restore(found)
    assert other.step == 1
    for name, value in other.tensors().items():
        assert torch.equal(value, state.tensors()[name]), name
