"""Which process of which run this is, by what the environment says; and on which device."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import ONE_THREAD, ROOT, TINY, one_line, two_processes

from effbackbones import UserError
from tasks.classify import main
from tasks.engine import hardware, processes
from tasks.engine.processes import Place, place
from tasks.settings.commandline import parse

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
ALLOCATION = {"SLURM_JOB_ID": "1234567", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def summary(found: Place) -> tuple[int, int, int, str, bool]:
    return found.rank, found.world, found.local_rank, found.launcher, found.outside


@pytest.mark.parametrize("left", ["RANK=1", "SLURM_PROCID=2", "NODE_RANK=1", "LOCAL_RANK=3"])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_rank_without_a_world_size_is_passed_over_and_told(left: str, devices: int) -> None:
    name, value = left.split("=")
    found = place({name: value, "WORLD_SIZE": "7"} if name != "RANK" else {name: value}, devices)
    assert (found.rank, found.world, found.local_rank) == (0, devices, 0)
    (line,) = found.told
    assert left in line


@pytest.mark.parametrize(
    ("variables", "run", "expected"),
    [
        ({}, (1, 1), (0, 1, 0, "lightning", True)),
        ({}, (2, 1), (0, 2, 0, "lightning", False)),
        (TORCHRUN, (1, 1), (1, 2, 1, "torchrun", True)),
        (TORCHRUN | SRUN, (1, 1), (1, 2, 1, "torchrun", True)),  # torchrun comes first
        (TORCHRUN | ALLOCATION, (2, 1), (1, 2, 1, "torchrun", True)),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, (1, 1), (0, 1, 1, "lightning", True)),
        (SRUN, (2, 2), (2, 4, 0, "slurm", True)),
        (SRUN, (1, 4), (2, 4, 0, "slurm", True)),
        (ALLOCATION, (1, 1), (0, 1, 0, "lightning", True)),
        (ALLOCATION, (2, 1), (0, 2, 0, "lightning", False)),  # an allocation is no launcher
        (ALLOCATION | {"SLURM_NTASKS": "4"}, (2, 1), (0, 2, 0, "lightning", False)),  # a batch script, without srun
        (ALLOCATION | {"SLURM_NTASKS": "2", "ENVIRONMENT": "BATCH"}, (2, 1), (0, 2, 0, "lightning", False)),
        (SRUN | {"ENVIRONMENT": "BATCH"}, (4, 1), (2, 4, 0, "slurm", True)),  # srun within a batch script
        (SRUN, (1, 1), (0, 1, 0, "lightning", True)),  # four runs of one process each
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, (2, 1), (1, 2, 1, "lightning", True)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "8"}, (2, 1), (0, 2, 0, "lightning", False)),  # of another run
        (
            {"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            (2, 2),
            (2, 4, 0, "lightning", False),
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"},  # an operator of Kubernetes
            (1, 1),
            (1, 3, 0, "torchrun", True),
        ),
    ],
)
def test_who_this_is(variables: dict[str, str], run: tuple[int, int], expected: tuple[Any, ...]) -> None:
    assert summary(place(variables, *run)) == expected


def test_what_was_decided_is_told_where_it_is_not_the_ordinary_case() -> None:
    assert place({}).told == place(TORCHRUN).told == place(ALLOCATION, 2).told == ()
    assert "each task is a run of its own" in place(SRUN).told[0]
    assert place(SRUN, 4).told == ("process 2 of 4 that SLURM started",)
    assert "run.devices and run.nodes (4) are not used" in place(TORCHRUN, 4).told[0]


@pytest.mark.parametrize(
    ("variables", "run", "words"),
    [
        (TORCHRUN | {"RANK": "2"}, (1, 1), ("RANK", "is 2 where WORLD_SIZE is 2")),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 1), ("process 1 of 2", "MASTER_ADDR and MASTER_PORT", "unset RANK")),
        (SRUN, (2, 1), ("SLURM started 4 tasks, and the run has 2", "srun -n 2")),
        ({}, (1, 2), ("run.nodes", "nothing says which machine this is")),
    ],
)
def test_what_contradicts_itself_is_one_line(
    variables: dict[str, str], run: tuple[int, int], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        place(variables, *run)
    one_line(error, *words)


NUMBERS = st.sampled_from(["", "0", "1", "2", "3", "4", "x", "-1"])


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*TORCHRUN, *SRUN, "NODE_RANK", "GROUP_RANK"]), NUMBERS, max_size=6),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_whatever_the_environment_a_rank_is_one_of_its_world(
    variables: dict[str, str], devices: int, nodes: int
) -> None:
    try:
        found = place(variables, devices, nodes)
    except UserError:
        return
    assert 0 <= found.rank < found.world
    assert 0 <= found.node < found.nodes
    assert 0 <= found.local_rank < found.local_world or found.world == 1
    if found.world == 1:
        assert found.outside
        assert (devices * nodes == 1) or "WORLD_SIZE" in variables


def test_a_rank_that_is_left_over_does_not_make_a_run_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in (("RANK", "1"), ("SLURM_PROCID", "2"), ("NODE_RANK", "1"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    assert main([*TINY, "--optim.max_steps", "1", "--run.out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().err
    assert "RANK=1, LOCAL_RANK=3, NODE_RANK=1, SLURM_PROCID=2" in told
    assert (tmp_path / "run/metrics.json").is_file()


def test_a_program_that_calls_the_command_is_not_started_again(tmp_path: Path, capsys: Any) -> None:
    assert main([*TINY, "--run.devices", "2", "--run.out", str(tmp_path / "run")]) == 2
    assert "error: run.devices: is 2, and a command that is called by another program" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Several processes, as launchers start them -------------------------------------------------------------------------------


def lines(out: Path, *more: str) -> list[str]:
    return ["-m", "tasks.classify", *TINY, "--optim.max_steps", "2", "--run.out", str(out), *more]


def finished(command: list[str], **variables: str) -> str:
    """What a command tells that ends well."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=ONE_THREAD | variables, cwd=ROOT, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_torchrun_and_own_processes_within_an_allocation_are_one_run(tmp_path: Path) -> None:
    told = finished([*two_processes(), *lines(tmp_path / "torchrun")], **ALLOCATION)
    assert told.count("run folder") == 2  # first and last
    told = finished([sys.executable, *lines(tmp_path / "own", "--run.devices", "2")], **ALLOCATION)
    assert told.count("run folder") == 2
    resumed = ["-m", "tasks.classify", "--run.resume", str(tmp_path / "own"), "--optim.max_steps", "3"]
    told = finished([*two_processes(), *resumed])
    assert "continuing after step 2 of 3" in told
    told = finished([sys.executable, *resumed[:-1], "4", "--run.devices", "1"])
    assert "batch norm takes its statistics from 8 at a time, before from 4" in told


DIFFERENT = """
import os
from tasks.data.sets.shapes import ShapesDataset
from tasks.spec import register_dataset


@register_dataset("different")
def different(data, split, classes):
    return ShapesDataset((32, 32), 16, split=split, seed=int(os.environ["RANK"]))
"""


@pytest.mark.slow
def test_processes_that_read_other_data_do_not_train_together(tmp_path: Path) -> None:
    (tmp_path / "different.py").write_text(DIFFERENT)
    more = ["--plugins", str(tmp_path / "different.py"), "--data.name", "different", "--data.options", "{}"]
    line = [*two_processes(), *lines(tmp_path / "run", *more)]
    done = subprocess.run(line, capture_output=True, text=True, env=ONE_THREAD, cwd=ROOT, timeout=300, check=False)
    assert done.returncode != 0
    assert "error: process 1: reads other data than the first process" in done.stderr
    assert "step 1/" not in done.stderr


@pytest.mark.slow
def test_tasks_of_slurm_are_the_processes_of_one_run(tmp_path: Path) -> None:
    with_rank = [
        subprocess.Popen(
            [sys.executable, *lines(tmp_path / "run", "--run.devices", "2")],
            env=ONE_THREAD
            | ALLOCATION
            | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=300)[1] for process in with_rank]
    assert [process.returncode for process in with_rank] == [0, 0], told
    assert "process 0 of 2 that SLURM started" in told[0]
    assert "run folder" not in told[1]


@pytest.mark.slow
def test_tasks_of_slurm_with_a_seed_each_are_runs_of_their_own(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, *lines(tmp_path)[:-2], "--run.seed", rank],
            env=ONE_THREAD | SRUN | {"SLURM_PROCID": rank, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "0123"
    ]
    told = [process.communicate(timeout=600)[1] for process in runs]
    assert [process.returncode for process in runs] == [0] * 4, told
    assert sorted(path.name for path in (tmp_path / "runs/classify").iterdir() if path.name[0] != ".") == [
        "shapes",
        "shapes-2",
        "shapes-3",
        "shapes-4",
    ]


# Devices ------------------------------------------------------------------------------------------------------------------


def device(*words: str, there: int, monkeypatch: pytest.MonkeyPatch, mps: bool = False) -> torch.device:
    """The device of a run where PyTorch sees so many GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    config = parse("classify", ["--config", "shapes", *words]).config
    monkeypatch.setattr(processes, "_settled", [place(os.environ, config.run.processes)])
    return hardware.run_device(config)


@pytest.mark.parametrize(
    ("words", "there", "expected"),
    [
        ((), 0, "cpu"),
        ((), 2, "cuda:0"),
        (("--run.device", "cpu"), 2, "cpu"),
        (("--run.device", "cuda"), 2, "cuda:0"),
        (("--run.device", "cuda:1"), 2, "cuda:1"),
        (("--run.devices", "[1]"), 2, "cuda:1"),
        (("--run.devices", "[2, 0]"), 3, "cuda:2"),
        (("--run.device", "mps"), 0, "mps"),
    ],
)
def test_devices_by_name_and_number(
    words: tuple[str, ...], there: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(device(*words, there=there, monkeypatch=monkeypatch, mps=True)) == expected


@pytest.mark.parametrize(
    ("words", "there", "message"),
    [
        (("--run.device", "cuda:2"), 2, ("run.device: GPU 2 was asked for", "sees 2 (0 to 1)")),
        (("--run.device", "gpu"), 0, ("run.device: gpu was asked for", "sees no GPU")),
        (("--run.devices", "[0, 4]"), 2, ("run.devices: GPU 4 was asked for",)),
        (("--run.devices", "[0]"), 0, ("run.devices: [0] was asked for", "sees no GPU")),
        (("--run.devices", "4"), 2, ("GPU 3 was asked for",)),
        (("--run.device", "mps"), 0, ("run.device: mps was asked for",)),
        (("--run.device", "cude:1"), 1, ("run.device: unknown value 'cude:1'", "cuda")),
        (("--run.devices", "[1, 1]"), 2, ("run.devices: expected different numbers",)),
        (("--run.devices", "[]"), 2, ("run.devices: expected different numbers",)),
        (("--run.devices", "0"), 2, ("run.devices: expected a number in [1, 1024]",)),
        (("--run.device", "cpu", "--run.devices", "[0, 1]"), 2, ("run.devices: names GPUs [0, 1]",)),
        (("--run.device", "cuda:1", "--run.devices", "2"), 2, ("run.devices: is 2, and run.device cuda:1 is one GPU",)),
    ],
)
def test_devices_that_are_not_there_are_one_line(
    words: tuple[str, ...], there: int, message: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as error:
        device(*words, there=there, monkeypatch=monkeypatch)
    one_line(error, *message)
