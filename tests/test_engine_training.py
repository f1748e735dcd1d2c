"""The engine's promises on real runs of the command, small enough for seconds: exact resumption, skipped steps, exit codes."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import ONE_THREAD, ROOT, TINY, Synchronisations, poison, shapes_line, small_line
from torch import nn

from effbackbones import UserError, build_model, load_model
from effbackbones.weights.tensorfile import read_tensors
from tasks.classification.task import TASK
from tasks.classify import main
from tasks.detect import main as detect
from tasks.engine.announcing import told_of_start
from tasks.engine.divergence import DIVERGED_AFTER
from tasks.engine.hardware import Hardware
from tasks.engine.launch import make_fabric
from tasks.engine.optim import lr_factor
from tasks.engine.order import GlobalBatches, Share, shuffled
from tasks.engine.owning import RunFolder
from tasks.engine.plan import Plan
from tasks.engine.resume import flatten_optimizer, load_state, restore_optimizer, save_state, seed_step
from tasks.engine.rundir import choose
from tasks.engine.state import RunState
from tasks.engine.stepping import StepLog
from tasks.engine.watching import Watcher, watching
from tasks.settings.commandline import parse
from tasks.settings.sections import Config
from tasks.verbs.check import refuse_dead_parameters


def run(folder: Path, *more: str) -> int:
    return main([*TINY, "--run.out", str(folder), *more])


def digest(folder: Path) -> str:
    """Of every tensor of the newest state: weights, averages, optimiser."""
    tensors, _ = read_tensors(sorted((folder / "checkpoints").glob("step-*.safetensors"))[-1])
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(folder) == 0
    return folder


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["finished"]
    assert {"raw", "ema"} <= metrics.keys()
    assert metrics["best"] == "ema"
    assert [row["step"] for row in metrics["history"]] == [4, 8]
    assert 0 <= metrics[metrics["best"]]["top1"] <= 1
    assert {"config.yaml", "report.html", "metrics.csv", "best.safetensors"} <= {path.name for path in whole.iterdir()}
    assert not (whole / "lock").exists()
    assert any(path.name.startswith("events.out.tfevents") for path in whole.iterdir())
    model = load_model(whole / "best.safetensors")
    assert model.classes == ("circle", "square", "triangle", "star", "cross", "ring")
    assert not model.training


def test_the_saved_config_repeats_the_run_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["--config", str(whole / "config.yaml"), "--run.out", str(again)]) == 0
    assert digest(again) == digest(whole)


def test_another_seed_gives_other_weights(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "other", "--run.seed", "1") == 0
    assert digest(tmp_path / "other") != digest(whole)


@pytest.mark.parametrize("multiplies", [True, False])
def test_bf16_on_a_processor_trains_and_tells_where_it_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], multiplies: bool
) -> None:
    monkeypatch.setattr("tasks.engine.hardware.computes_bfloat16", lambda: multiplies)
    assert run(tmp_path / "half", "--run.precision", "bf16", "--optim.epochs", "1") == 0
    assert ("does not multiply bfloat16" in capsys.readouterr().err) is not multiplies


class After(Watcher):
    """Calls ``look`` with the state of the run after each step."""

    def __init__(self, look: Callable[[RunState], object]) -> None:
        self.look = look

    @contextmanager
    def step(self, state: RunState) -> Iterator[None]:
        yield
        self.look(state)


class PowerFailsError(Exception):
    """The power fails."""


def stop_at(after: int, folder: Path, *more: str) -> None:
    """Start a run that saves at every second step and breaks off in the step after ``after`` of them."""

    def fail(state: RunState) -> None:
        if state.step == after + 1:
            raise PowerFailsError

    with watching(After(fail)):
        assert run(folder, "--run.save_minutes", "1e-9", *more) == 1


@pytest.mark.parametrize("after", [2, 4, 7])  # within an epoch, at its border, one before the end
def test_stopped_and_continued_equals_never_stopped(after: int, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    stop_at(after, folder)
    assert run(folder) == 0
    assert digest(folder) == digest(whole)
    history = [json.loads((f / "metrics.json").read_text())["history"] for f in (folder, whole)]
    for key in ("val_top1", "train_loss"):
        assert [row[key] for row in history[0]] == [row[key] for row in history[1]]


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop_tf", "muon"])
def test_other_optimisers_continue_as_exactly(optimizer: str, tmp_path: Path) -> None:
    more = ["--optim.name", optimizer, "--optim.lr", "0.001", "--optim.max_steps", "4"]
    assert run(tmp_path / "whole", *more) == 0
    stop_at(2, tmp_path / "stopped", *more)
    assert run(tmp_path / "stopped", *more) == 0
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


@pytest.mark.parametrize(("step", "told"), [(0, ["which weights", "what was assumed"]), (5, [])])
def test_a_run_that_continues_says_nothing_of_the_weights_that_it_began_with(step: int, told: list[str]) -> None:
    given = {"loaded": "which weights", "assumed": ["what was assumed"]}
    model = SimpleNamespace(parameters=list, config={"backbone": "b0", "head": "linear"}, provenance=given)
    state = SimpleNamespace(model=model, step=step, statistics=None, simulation=None, set_lr=float)
    plan, sizes = SimpleNamespace(total=9, per_epoch=3), {"train": range(4), "val": range(2)}
    prepared: Any = SimpleNamespace(
        state=state,
        plan=plan,
        training=sizes["train"],
        datasets=sizes,
        classes=("a", "b"),
        fabric=SimpleNamespace(device="cpu"),
        hardware=SimpleNamespace(remark=""),
    )
    assert list(told_of_start(parse("classify", TINY).config, prepared))[2:] == told


def test_the_training_loss_is_the_mean_of_the_steps_since_the_last_evaluation(
    tmp_path: Path,
) -> None:
    losses: dict[int, float] = {}

    class Noted(Watcher):
        def log(self, state: RunState, log: StepLog) -> None:
            losses[log.step] = sum(log.losses.values())

    with watching(Noted()):
        assert run(tmp_path / "run") == 0
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    wanted = [sum(losses[step] for step in steps) / 4 for steps in (range(1, 5), range(5, 9))]
    assert [row["train_loss"] for row in history] == pytest.approx(wanted, rel=1e-12)


def test_an_unfinished_run_of_another_config_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse("classify", [*TINY, "--optim.lr", "0.001"]).config
    told: list[str] = []
    assert choose(config, "classify", "shapes", told.append) == Path("runs/classify/shapes")
    with RunFolder(Path("runs/classify/shapes"), config):
        pass
    assert choose(config, "classify", "shapes", told.append) == Path("runs/classify/shapes")  # continued
    assert told == []
    other = parse("classify", [*TINY, "--optim.lr", "0.002"]).config
    assert choose(other, "classify", "shapes", told.append) == Path("runs/classify/shapes-2")
    (line,) = told
    assert "shapes holds an unfinished run of another config (optim.lr differ)" in line
    (tmp_path / "runs/classify/shapes/metrics.json").write_text('{"finished": true}')
    assert choose(other, "classify", "shapes", told.append) == Path("runs/classify/shapes-2")
    assert len(told) == 1


def test_two_workers_give_the_same_run_as_none(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "workers", "--data.workers", "2") == 0
    assert digest(tmp_path / "workers") == digest(whole)


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_state(tmp_path, 1, {"a": torch.ones(3)}, {})
    newest = save_state(tmp_path, 2, {"a": torch.zeros(3)}, {})
    data = bytearray(newest.read_bytes())
    data[-2] ^= 1
    newest.write_bytes(data)
    told: list[str] = []
    found = load_state(tmp_path, told.append)
    assert found is not None
    assert found[1]["step"] == 1
    assert newest.name in told[0]


def test_only_two_states_are_kept(tmp_path: Path) -> None:
    for step in range(4):
        save_state(tmp_path, step, {"a": torch.ones(1)}, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop_tf", "muon"])
def test_a_nan_step_is_skipped_and_told(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def copied(state: RunState) -> None:
        states.append({name: value.clone() for name, value in state.tensors().items()})

    poison(monkeypatch, TASK, {2})
    with watching(After(copied)):
        assert run(tmp_path / "nan", "--optim.max_steps", "4", "--optim.name", optimizer, "--optim.lr", "0.001") == 0
    for name, value in states[1].items():
        assert torch.equal(value, states[2][name]), name
    assert not torch.equal(states[2]["model.head.fc.weight"], states[3]["model.head.fc.weight"])
    assert all(torch.isfinite(value).all() for value in states[3].values() if value.is_floating_point())
    assert "step 3 was not finite" in capsys.readouterr().err
    (row,) = [json.loads(line) for line in (tmp_path / "nan" / "nonfinite-0.jsonl").read_text().splitlines()]
    assert row["step"] == 3
    assert len(row["samples"]) == 8


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop_tf", "muon"])
def test_no_step_reads_a_value_on_the_host(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Synchronisations()

    class Held(Watcher):
        def step(self, state: RunState) -> AbstractContextManager[object]:
            return counted if state.step else nullcontext()  # the first one makes the loader, which draws a seed

    poison(monkeypatch, TASK, {2})
    with watching(Held()):
        more = ["--optim.clip_norm", "1", "--optim.accumulate", "2", "--optim.max_steps", "4"]
        assert run(tmp_path / "run", "--optim.name", optimizer, *more) == 0
    assert counted.seen == []


def test_gradients_of_a_weight_that_is_used_twice_add_up_in_full_precision() -> None:
    fabric = make_fabric(config := parse("classify", [*TINY, "--run.precision", "bf16"]).config, Hardware.of(config))
    torch.manual_seed(0)
    layer, inputs = nn.Linear(64, 64, bias=False), torch.randn(2, 8, 64)

    def gradient(*rows: int) -> torch.Tensor:
        layer.zero_grad()
        with fabric.autocast():
            fabric.backward(torch.stack([layer(inputs[row]).square().sum() for row in rows]).sum())
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    assert torch.equal(gradient(0, 1), gradient(0) + gradient(1))


def test_a_step_of_efficientdet_adds_up_the_levels_in_full_precision(tmp_path: Path) -> None:
    """A gradient that comes from one place has the digits of bfloat16; the sum over the levels that share a weight has more."""
    gradients: dict[str, torch.Tensor] = {}

    def keep(name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradients[name] = parameter.grad.clone()

    class OneStep(Watcher):
        @contextmanager
        def step(self, state: RunState) -> Iterator[None]:
            for name, parameter in state.model.head.named_parameters():
                parameter.register_post_accumulate_grad_hook(partial(keep, name))
            yield
            raise InterruptedError("one step is enough")

    line = shapes_line(small_line("--model.head_options", "{channels: 16, cells: 1, repeats: 1}"))
    with watching(OneStep()):
        assert detect([*line, "--run.precision", "bf16", "--run.out", str(tmp_path)]) == 1

    def exact_share(name: str) -> float:
        gradient = gradients[name]
        assert gradient.dtype == torch.float32
        return float((gradient == gradient.bfloat16()).float().mean())

    assert exact_share("neck.cells.0.nodes.0.conv.pointwise.weight") == 1
    for layer in ("depthwise", "pointwise"):
        assert exact_share(f"class_net.{layer}.0.weight") < 0.5


def test_many_nan_steps_end_the_run_with_exit_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    poison(monkeypatch, TASK, set(range(2, 100)))
    assert run(tmp_path / "nan", "--optim.epochs", "9") == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: training: {DIVERGED_AFTER} steps in a row")


@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [
        ("0", signal.SIGINT, 130),
        ("2", signal.SIGTERM, 143),
        pytest.param("0", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("2", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_continues(
    workers: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Sent, as terminals and schedulers do, to the loader processes too; SIGUSR1 before it saves and does not stop."""
    folder = tmp_path / "signal"
    more = ["--optim.epochs", "400", "--run.log_every", "1", "--run.eval_every", "400", "--data.workers", workers]
    command = [sys.executable, "-m", "tasks.classify", *TINY, "--run.out", str(folder), *more]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            os.killpg(process.pid, signal.SIGUSR1)
        if list((folder / "checkpoints").glob("*.safetensors")):  # by then, for nothing else saves
            os.killpg(process.pid, number)
            break
    start = time.monotonic()
    rest = process.stderr.read()
    assert process.wait(30) == code, rest
    assert time.monotonic() - start < 10
    found = load_state(folder / "checkpoints", print)
    assert found is not None
    assert f"after step {found[1]['step']}" in rest


def terminate_at(batch: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Send SIGTERM while that evaluated batch, counted from 1, is scored; returns the sizes of the batches scored, as they come."""
    scored, seen = type(TASK).scored, list[int]()

    def signalled(self: Any, images: Any, predictions: Any) -> Any:
        seen.append(len(images.meta))
        if len(seen) == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return scored(self, images, predictions)

    patch.setattr(type(TASK), "scored", signalled)
    return seen


def test_a_signal_leaves_an_evaluation_which_is_made_when_the_run_continues(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "left"
    # In the first evaluation; in the same, which is made up for before another step; in the last.
    for batch, step, read in (
        (1, 4, [8]),
        (1, 4, [8]),
        (3, 8, [8, 4, 8]),
    ):  # of 12 images: the second batch was not read
        with monkeypatch.context() as patch:
            seen = terminate_at(batch, patch)
            assert run(folder) == 143
        assert f"stopped by SIGTERM after step {step}" in capsys.readouterr().err
        assert seen == read
        found = load_state(folder / "checkpoints", print)
        assert found is not None
        assert (found[1]["step"], len(found[1]["progress"]["history"])) == (step, step // 4 - 1)
    assert run(folder) == 0
    assert digest(folder) == digest(whole)
    metrics = [json.loads((f / "metrics.json").read_text()) for f in (folder, whole)]
    for key in ("val_top1", "train_loss"):
        assert [row[key] for row in metrics[0]["history"]] == [row[key] for row in metrics[1]["history"]]
    assert metrics[0]["ema"] == metrics[1]["ema"]


def test_a_lock_that_its_owner_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, flock = parse("classify", TINY).config, fcntl.flock
    attempts: list[int] = []

    def late(file: Any, how: int) -> None:
        if not attempts:
            (tmp_path / "run" / "lock").unlink()  # between our opening and our locking
        attempts.append(how)
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", late)
    with RunFolder(tmp_path / "run", config):
        assert len(attempts) == 2
        with pytest.raises(UserError, match=f"process {os.getpid()}"), RunFolder(tmp_path / "run", config):
            pass
    assert not (tmp_path / "run" / "lock").exists()


def test_a_folder_in_use_or_finished_or_of_another_config_is_refused(whole: Path, tmp_path: Path, capsys: Any) -> None:
    def error() -> str:
        return str(capsys.readouterr().err.strip().splitlines()[-1])

    assert run(whole) == 2
    assert "finished" in error()
    assert run(whole, "--optim.lr", "0.5") == 2
    assert "optim.lr" in error()
    with (tmp_path / "lock").open("w") as lock:
        lock.write("process 7 elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(tmp_path) == 2
    assert "process 7 elsewhere" in error()


def test_another_seed_or_other_data_does_not_continue_a_run(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "stopped"
    stop_at(4, folder)
    assert run(folder, "--run.seed", "1") == 2
    assert "run.seed" in capsys.readouterr().err
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("limit_train: 28", "limit_train: 27")
    )
    assert run(folder, "--data.limit_train", "27") == 2
    assert "training samples were 28 and are now 27" in capsys.readouterr().err


def test_early_stop_ends_as_planned(tmp_path: Path) -> None:
    assert (
        run(tmp_path / "early", "--optim.epochs", "30", "--optim.lr", "0", "--run.patience", "2", "--optim.ema", "null")
        == 0
    )
    history = json.loads((tmp_path / "early" / "metrics.json").read_text())["history"]
    assert len(history) == 3


def test_freezing_and_thawing(tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def copied(state: RunState) -> None:
        states.append({name: value.clone() for name, value in state.model.state_dict().items()})

    with watching(After(copied)):
        assert run(tmp_path / "frozen", "--model.freeze", "all", "--model.unfreeze_epoch", "1") == 0
    before, thawed = states[3], states[-1]
    for name, value in states[0].items():
        if name.startswith("backbone."):
            assert torch.equal(value, before[name]), name  # parameters and statistics
    assert not torch.equal(before["head.fc.weight"], states[0]["head.fc.weight"])
    assert not torch.equal(before["backbone.stem.conv.weight"], thawed["backbone.stem.conv.weight"])
    assert not torch.equal(before["backbone.stem.bn.running_mean"], thawed["backbone.stem.bn.running_mean"])


def test_global_batches_are_the_same_for_any_share() -> None:
    def batches(world: int, accumulate: int) -> list[list[tuple[int, int]]]:
        shares = [Share(rank, world, accumulate) for rank in range(world)]
        pieces = [list(GlobalBatches(shuffled(21, 3), 21, 8, start=2, stop=7, share=share)) for share in shares]
        joined = []
        for step in range(5):
            joined.append(
                [key for a in range(accumulate) for rank in range(world) for key in pieces[rank][step * accumulate + a]]
            )
        return joined

    alone = batches(1, 1)
    assert batches(2, 1) == batches(1, 4) == batches(2, 2) == batches(4, 2) == alone
    assert [keys[0][0] for keys in alone] == [0, 1, 1, 1, 2]  # three steps an epoch
    epoch = [index for keys in alone[1:4] for _, index in keys]
    assert set(epoch) == set(range(21))
    assert epoch[21:] == epoch[:3]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    order = shuffled(50, 0)
    assert np.array_equal(order(3), shuffled(50, 0)(3))
    assert not np.array_equal(order(3), order(4))
    assert not np.array_equal(order(3), shuffled(50, 1)(3))


def test_seed_step_fixes_what_a_step_draws() -> None:
    seed_step(0, 5)
    first = torch.rand(3), np.random.rand(3)
    seed_step(0, 5)
    assert torch.equal(torch.rand(3), first[0])
    assert np.array_equal(np.random.rand(3), first[1])
    seed_step(0, 6)
    assert not torch.equal(torch.rand(3), first[0])


def test_optimizer_state_survives_as_plain_tensors() -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    again = torch.optim.AdamW(layer.parameters(), fused=True)
    restore_optimizer(again, flatten_optimizer(optimizer))
    for old, new in zip(optimizer.state_dict()["state"].values(), again.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_plan_counts_steps_and_phases() -> None:
    more = [
        "--optim.epochs",
        "1.5",
        "--model.freeze",
        "C2",
        "--model.unfreeze_epoch",
        "1",
        "--optim.warmup_epochs",
        "0.5",
    ]
    config = parse("classify", [*TINY, *more, "--optim.warmup_steps", "null"]).config
    plan = Plan.of(config, 21)
    assert plan == Plan(total=4, per_epoch=3, warmup=2, seen=8, thaw=3)
    assert list(plan.phases(0)) == [(0, 3), (3, 4)]
    assert list(plan.phases(3)) == [(3, 4)]
    assert list(plan.phases(4)) == []


def test_learning_rates_follow_the_schedule_and_the_layers(tmp_path: Path) -> None:
    rates: list[dict[str, float]] = []

    def noted(state: RunState) -> None:
        rates.append({group["name"]: group["lr"] for group in state.optimizer.param_groups})

    more = [
        "--optim.lr",
        "0.1",
        "--optim.base_batch",
        "16",
        "--optim.lr_scaling",
        "linear",
        "--optim.layer_decay",
        "0.5",
        "--optim.warmup_steps",
        "2",
        "--optim.schedule",
        "cosine",
    ]
    with watching(After(noted)):
        assert run(tmp_path / "lr", *more) == 0
    config = parse("classify", [*TINY, *more]).config
    factors = [lr_factor(step, total=8, warmup=2, per_epoch=4, config=config.optim) for step in range(8)]
    assert [rate["head/decay"] for rate in rates] == pytest.approx([0.05 * factor for factor in factors])
    assert rates[3]["backbone.C5/decay"] == pytest.approx(0.5 * rates[3]["head/decay"])
    assert rates[3]["backbone.stem/no_decay"] == pytest.approx(0.5**6 * rates[3]["head/decay"])


def test_dead_parameters_are_named() -> None:
    model = build_model("cls", "b0", num_classes=3, backbone_options={"width": 0.25, "depth": 0.3})
    model.head.unused = nn.Parameter(torch.zeros(2))
    loss = sum(model.loss(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])).values())
    assert isinstance(loss, torch.Tensor)
    with pytest.raises(Exception, match=r"head\.unused"):
        refuse_dead_parameters(model, loss)


def test_what_a_failed_start_made_goes_again(tmp_path: Path) -> None:
    def fails(path: Path, *others: Path) -> None:
        with RunFolder(path, Config()):
            assert path.is_dir()
            for other in others:
                other.mkdir()
            raise ZeroDivisionError

    (tmp_path / "kept").mkdir()
    for path in (tmp_path / "runs/classify/shapes", tmp_path / "kept/a/b"):
        with pytest.raises(ZeroDivisionError):
            fails(path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert not any((tmp_path / "kept").iterdir())
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "runs/classify/shapes", tmp_path / "runs/other")  # of a run that began meanwhile
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
