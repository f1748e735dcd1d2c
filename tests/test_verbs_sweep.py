"""Several runs of one config: which they are, that they go on after a stop, and what is said of their spread."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from effbackbones import UserError
from tasks.classify import main
from tasks.engine.processes import Place
from tasks.engine.rundir import CONFIG, METRICS
from tasks.report.spread import Reached, settings, told_of_spread
from tasks.settings.sections import Config, RunConfig
from tasks.settings.tree import dump
from tasks.verbs import sweep

TINY = [
    *("--config", "shapes", "--optim.max_steps", "2", "--run.device", "cpu", "--run.progress", "false"),
    *("--model.weights", "null", "--model.backbone", "b0", "--model.backbone_options", "{width: 0.25, depth: 0.3}"),
    *("--data.workers", "0", "--data.limit_train", "16", "--data.limit_val", "8", "--data.image_size", "32"),
    *("--data.batch_size", "8"),
]


def of(seeds: int | None, grid: str | None, config: Config = Config()) -> list[sweep.Trial]:  # noqa: B008  # frozen
    return list(sweep.trials(config, seeds, grid, Path("root")))


def test_each_combination_of_values_runs_with_each_seed() -> None:
    found = of(2, "{optim.lr: [0.1, 0.2], model.backbone: [b0, lite0]}", Config(run=RunConfig(seed=5)))
    assert len(found) == 8
    seen = {(one.config.optim.lr, one.config.model.backbone, one.config.run.seed) for one in found}
    assert seen == {(lr, name, seed) for lr in (0.1, 0.2) for name in ("b0", "lite0") for seed in (5, 6)}
    assert found[0].name == "lr=0.1,backbone=b0,seed=5"
    assert found[0].config.run.out == str(Path("root/lr=0.1,backbone=b0,seed=5").absolute())
    assert len({one.folder for one in found}) == 8
    (alone,) = of(1, None)
    assert (alone.name, alone.changes) == ("seed=0", {})
    assert [one.name for one in of(None, "{run.seed: [3, 4]}")] == ["seed=3", "seed=4"]


def test_keys_below_keys_and_lists_are_values_too() -> None:
    found = of(None, "{model.head_options.dropout: [0.1, 0.5], data.image_size: [[64, 96], 64]}")
    assert [one.config.model.head_options for one in found] == [{"dropout": 0.1}] * 2 + [{"dropout": 0.5}] * 2
    assert [one.config.data.image_size for one in found[:2]] == [(64, 96), 64]
    assert found[0].name.startswith("dropout=0.1,image_size=_64,_96-")  # what no folder can be called


@pytest.mark.parametrize(
    ("seeds", "grid", "where"),
    [
        (0, None, "--seeds"),
        (None, "optim.lr", "--grid"),
        (None, "{optim.lr: 0.1}", "--grid optim.lr"),
        (None, "{optim.lr: []}", "--grid optim.lr"),
        (None, "{optim.lr: [0.1, 0.1]}", "--grid optim.lr"),
        (None, "{optim.lrr: [0.1]}", "--grid"),
        (None, "{optim.lr: [-1]}", "optim.lr"),
        (None, "{optim.lr.x: [1]}", "--grid optim.lr.x"),
        (2, "{run.seed: [1]}", "--grid run.seed"),
        (None, "{run.out: [a]}", "--grid run.out"),
        (None, "{optim.lr: [0.1", "--grid"),
        (1001, None, "--grid"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(seeds: int | None, grid: str | None, where: str) -> None:
    with pytest.raises(UserError) as caught:
        of(seeds, grid)
    assert where in str(caught.value)


def test_a_task_of_an_array_has_its_share() -> None:
    def share(number: int, low: int, count: int) -> slice:
        return sweep._share(
            {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in (("ID", number), ("MIN", low), ("COUNT", count))}
        )

    parts = [list(range(10))[share(number, 1, 3)] for number in (1, 2, 3)]
    assert sorted(number for part in parts for number in part) == list(range(10))
    assert {len(part) for part in parts} == {3, 4}
    assert list(range(10))[sweep._share({})] == list(range(10))


def test_a_finished_run_of_another_config_is_refused(tmp_path: Path) -> None:
    (trial,) = sweep.trials(Config(), 1, None, tmp_path)
    assert not sweep._is_done(trial)
    trial.folder.mkdir()
    (trial.folder / CONFIG).write_text(dump(trial.config))
    (trial.folder / METRICS).write_text(json.dumps({"finished": True}))
    assert sweep._is_done(trial)
    other = replace(trial, config=replace(trial.config, optim=replace(trial.config.optim, lr=0.5)))
    with pytest.raises(UserError, match=r"finished run of another config \(optim\.lr differ\)"):
        sweep._is_done(other)


def test_of_tasks_that_finish_together_one_compares(tmp_path: Path) -> None:
    """The second waits for the first, and sees whether it has seen all."""
    found = list(sweep.trials(Config(), 2, None, tmp_path))
    for trial in found:
        trial.folder.mkdir()
        (trial.folder / METRICS).write_text(json.dumps({"finished": True}))
    entered, said = threading.Event(), list[bool]()

    def second() -> None:
        entered.set()
        with sweep._alone(tmp_path) as waited:
            said.append(waited and sweep._is_concluded(tmp_path, found))

    for write in (True, False):
        entered.clear()
        (tmp_path / "compare.json").unlink(missing_ok=True)
        thread = threading.Thread(target=second)
        with sweep._alone(tmp_path) as waited:
            assert not waited
            thread.start()
            entered.wait(5)
            time.sleep(0.1)
            if write:
                (tmp_path / "sweep.csv").touch()
                (tmp_path / "compare.json").touch()
        thread.join(5)
    assert said == [True, False]


def test_machines_that_do_not_share_the_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_PATIENCE", 0.3)
    monkeypatch.setenv("MASTER_PORT", "29500")
    first, second = (Place(rank=rank, world=4, local_world=2, launcher="torchrun") for rank in (0, 2))
    with pytest.raises(
        UserError, match=r"machine 2 of 2 does not see .*; put run\.out on a disk that all of them share"
    ):
        sweep._meet(tmp_path / "s", second)
    sweep._meet(tmp_path / "s", first)
    sweep._meet(tmp_path / "s", second)
    monkeypatch.setenv("MASTER_PORT", "29501")  # another start: what the first one left says nothing
    with pytest.raises(UserError, match="machine 2"):
        sweep._meet(tmp_path / "s", second)
    sweep._meet(tmp_path / "other", Place())


def reached(values: dict[str, list[float | None]], higher: bool = True) -> list[Reached]:
    return [
        Reached(f"{name}{seed}", {"optim.lr": name}, seed, {"val_AP": value}, higher)
        for name, row in values.items()
        for seed, value in enumerate(row)
    ]


def test_settings_are_told_best_first_with_their_spread() -> None:
    values: dict[str, list[float | None]] = {
        "a": [0.1, 0.2, 0.3],
        "b": [0.5, 0.6, 0.7],
        "c": [None, None],
        "d": [0.4, None],
    }
    found = settings(reached(values))
    assert [one.name for one in found] == ["optim.lr b", "optim.lr d", "optim.lr a", "optim.lr c"]
    assert found[0].deviation == pytest.approx(0.1)
    lines = list(told_of_spread(reached(values)))
    assert "0.6000 ± 0.1000" in lines[1]
    assert "0.4000 (1 undefined)" in lines[2]
    assert "undefined" in lines[4]
    assert "--seeds 3" in lines[-1]
    assert [one.name for one in settings(reached({"a": [0.1], "b": [0.5]}, higher=False))] == [
        "optim.lr a",
        "optim.lr b",
    ]


@given(st.integers(0, 2**20), st.integers(2, 6), st.integers(2, 6))
@hypothesis_settings(max_examples=30, deadline=None)
def test_the_quantiles_are_those_of_the_test_by_students_t(seed: int, n: int, m: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    one, two = rng.normal(0.0, 0.1, n).tolist(), rng.normal(0.1, 0.2, m).tolist()
    verdict = list(told_of_spread(reached({"a": one, "b": two})))[-1]
    test = stats.ttest_ind(one, two, equal_var=False)
    # Whole degrees of freedom make the interval a little wider, never narrower.
    if test.pvalue > 0.05:
        assert "is not certain" in verdict
    freedom = int(test.df)
    bound = stats.t.ppf(0.975, freedom) * np.hypot(statistics.stdev(one) / n**0.5, statistics.stdev(two) / m**0.5)
    assert f"up to {bound:.3f}" in verdict or abs(float(verdict.rsplit(" ", 1)[1]) - bound) < 2e-3 * max(bound, 1)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_and_ends_with_a_comparison(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [*TINY, "--seeds", "2", "--grid", "{optim.lr: [0.001, 0.01]}", "--run.out", str(tmp_path / "s")]
    command = [sys.executable, "-m", "tasks.classify", *line, "--optim.max_steps", "400"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        states = tmp_path / "s" / "lr=0.001,seed=0" / "checkpoints"
        for _ in range(1200):
            time.sleep(0.1)
            if any(states.glob("step-*")):
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert list(states.glob("step-*"))
    assert not (tmp_path / "s" / "lr=0.001,seed=1").exists()
    capfd.readouterr()
    again = [*line[:-2], "--run.out", str(tmp_path / "t")]
    assert main(again) == 0
    told = capfd.readouterr()
    assert "4 runs in" in told.err
    rows = list(csv.DictReader((tmp_path / "t" / "sweep.csv").open()))
    assert [(row["optim.lr"], row["seed"]) for row in rows] == [
        ("0.001", "0"),
        ("0.001", "1"),
        ("0.01", "0"),
        ("0.01", "1"),
    ]
    assert "mean and standard deviation between seeds" in told.out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").glob("*/best.safetensors")}
    assert main(again) == 0  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_two_processes_of_torchrun_do_each_run_together(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tasks.classify"]
    done = subprocess.run(
        [sys.executable, *line, *TINY, "--seeds", "2", "--run.out", str(tmp_path / "s")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert done.stdout.count("mean and standard deviation") == 1
