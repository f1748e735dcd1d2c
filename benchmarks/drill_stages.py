"""The stages of the drill, each run as a process: ``python -m benchmarks.drill_stages STAGE --found FILE``. See ``drill.py``."""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"cls": "classify", "det": "detect", "seg": "segment", "joint": "joint"}
FULL = {"cls": (224, 64), "det": (512, 16), "seg": (256, 16), "joint": (256, 16)}  # side and batch
PRECISIONS = ("bf16", "fp32", "fp16")
STEPS = 50


class Stage:
    """What a stage knows: where it runs, how long it may, where data are, and where to put what it finds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.dry, self.seconds = options.device, options.dry, options.seconds
        self.data, self.file = options.data.resolve(), options.found
        self.folder = Path(tempfile.mkdtemp(prefix="drill-"))
        self.failed = False

    def found(self, **what: Any) -> None:
        """Keep one finding."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what, default=str) + "\n")

    def expect(self, true: bool, **what: Any) -> None:
        """Keep a finding that makes the stage fail unless it is ``true``."""
        self.failed |= not true
        self.found(**what, passed=true)

    def run(self, command: Sequence[str], **environment: str) -> int:
        """Run a program; its output goes where this one's goes."""
        print("$", " ".join(command), flush=True)
        return subprocess.run(list(command), cwd=ROOT, env={**os.environ, **environment}, check=False).returncode


def device(stage: Stage) -> None:
    """What machine this is, and the two ceilings: copying and multiplying."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if stage.device == "cpu":
        return stage.found(**versions, device="cpu")
    card = torch.cuda.get_device_properties(0)
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    product, copied = _seconds(lambda: a @ b), _seconds(lambda: target.copy_(source))
    stage.found(
        **versions,
        device=card.name,
        memory_gb=card.total_memory / 1e9,
        processors=card.multi_processor_count,
        bf16_tflops=2 * side**3 / product / 1e12,
        copy_tb_per_s=2 * source.nbytes / copied / 1e12,
    )
    return None


def _seconds(run: Callable[[], object], rounds: int = 10) -> float:
    """Median seconds of ``run`` on the GPU."""
    import torch

    times: list[float] = []
    for number in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch gives it no types
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) / 1e3] if number > 2 else []
    return sorted(times)[len(times) // 2]


def tests(stage: Stage) -> None:
    """The tests that need a GPU; in a dry run, whether they can be collected."""
    more = ["--collect-only"] if stage.dry or stage.device == "cpu" else []
    code = stage.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *more])
    stage.expect(code == 0, pytest=code)


def suite(stage: Stage) -> None:
    """The whole suite, on this machine's versions of Python and its packages."""
    more = ["--collect-only"] if stage.dry else []
    workers = str(min(os.cpu_count() or 1, 12))
    marks = ["-m", "not slow and not network and not gpu"]
    code = stage.run([sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", *marks, *more])
    stage.expect(code == 0, pytest=code)


def command_of(stage: Stage, task: str, out: str, *more: str) -> list[str]:
    """A short run of ``task`` on drawn shapes."""
    side, batch = (64, 4) if stage.dry else FULL[task]
    steps = 8 if stage.dry else STEPS
    return [
        "--config",
        "shapes",
        "--model.weights",
        "null",
        "--data.image_size",
        str(side),
        "--data.batch_size",
        str(batch),
        "--data.options",
        f"{{train: {batch * steps}, val: 16, test: 16}}",
        "--data.workers",
        str(min(8, os.cpu_count() or 1)),
        "--optim.max_steps",
        str(steps),
        "--run.device",
        "gpu" if stage.device == "cuda" else "cpu",
        "--run.progress",
        "false",
        "--run.eval_every",
        "1000",
        "--run.out",
        str(stage.folder / out),
        *more,
    ]


def steps(stage: Stage, task: str, compiled: bool, precisions: Sequence[str] = PRECISIONS) -> None:
    """Training steps by the task's own command, in each precision, with an error where the host waits for the device."""
    from benchmarks.watched import watch

    for precision in precisions:
        if precision == "fp16" and stage.device == "cpu":
            continue
        more = ["--run.precision", precision] + (["--run.compile", "true"] if compiled else [])
        argv = command_of(stage, task, f"{precision}-{compiled}", *more)
        with watch(stage.device, strict=True, after=6 if stage.dry else 10) as seen:
            code = run_here(COMMANDS[task], argv)
        stage.expect(code == 0, task=task, precision=precision, compiled=compiled, exit=code, **seen.summary())


def run_here(command: str, argv: Sequence[str]) -> int:
    """Run a command of the project in this process, with tracebacks."""
    from tasks.verbs.command import run_command

    os.environ["EFFBACKBONES_DEBUG"] = "1"
    try:
        return run_command(command, list(argv))
    except Exception:
        import traceback

        traceback.print_exc()
        return 1


def resume(stage: Stage) -> None:
    """A run that is stopped by a signal and continued ends in the tensors of one that was not, bit by bit."""
    from safetensors.torch import load_file

    from benchmarks.watched import watch

    if stage.device == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    for task in ("cls", "det", "seg"):
        for deterministic in ("true", "false") if task == "cls" else ("true",):
            name = f"{task}-{deterministic}"
            more = ["--run.deterministic", deterministic]
            with watch(stage.device):
                codes = [run_here(COMMANDS[task], command_of(stage, task, f"{name}-whole", *more))]
            with watch(stage.device, signal_at=5):
                codes.append(run_here(COMMANDS[task], command_of(stage, task, f"{name}-halves", *more)))
            codes.append(run_here(COMMANDS[task], command_of(stage, task, f"{name}-halves", *more)))
            what = {"task": task, "deterministic": deterministic, "exits": codes}
            if codes != [0, 143, 0]:
                stage.expect(deterministic == "false", **what, equal=None)
                continue
            whole, halves = (
                load_file(stage.folder / f"{name}-{part}" / "best.safetensors") for part in ("whole", "halves")
            )
            differ = [key for key, value in whole.items() if not value.equal(halves[key])]
            largest = max(
                (float((whole[key].double() - halves[key].double()).abs().max()) for key in differ), default=0.0
            )
            stage.expect(
                not differ or deterministic == "false", **what, tensors_that_differ=len(differ), largest=largest
            )


def row(stage: Stage, name: str, backends: str = "", **environment: str) -> None:
    """A row of ``benchmarks/`` against the other library; on a CPU the row of the same network there."""
    name = name if stage.device == "cuda" else ROWS[name]
    file = stage.folder / "row.json"
    command = [sys.executable, "-m", "benchmarks", name, "--device", stage.device, "--json", str(file)]
    command += ["--dry"] if stage.dry else ["--rounds", "7"]
    command += ["--backends", backends] if backends else []
    code = stage.run(command, **environment, **({} if stage.device == "cpu" else {"CUDA_MODULE_LOADING": "LAZY"}))
    found = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else {}
    stage.expect(code == 0 and name in found, row=name, exit=code, **found.get(name, {}))


def verbs(stage: Stage) -> None:
    """Latency of each task by the verb `bench`: plain, folded, compiled."""
    for task in ("cls", "det", "seg"):
        backbone = {"cls": "b0", "det": "b0", "seg": "b3"}[task]
        size = ["--data.image_size", "64"] if stage.dry else []
        argv = [
            "bench",
            "--config",
            "shapes",
            "--model.weights",
            "null",
            "--model.backbone",
            backbone,
            *(size or _published(task)),
        ]
        argv += [
            "--run.device",
            "gpu" if stage.device == "cuda" else "cpu",
            "--run.compile",
            str(not stage.dry).lower(),
        ]
        done = subprocess.run(
            [sys.executable, "-m", f"tasks.{COMMANDS[task]}", *argv], cwd=ROOT, stdout=subprocess.PIPE, check=False
        )
        record = json.loads(done.stdout) if done.returncode == 0 else {}
        stage.expect(done.returncode == 0, task=task, exit=done.returncode, **record)


def planned(stage: Stage) -> None:
    """What the verb `plan` foresees of memory and time, beside what is then measured: each task, one GPU's choice of a whole family."""
    for task, command in COMMANDS.items():
        size = ["--data.image_size", "64", "--backbone", "lite0"] if stage.dry else []
        chosen = ["--config", "shapes", "--batch", "4"] if stage.dry else ["--memory", "40G", "--batch", "64"]
        argv = ["plan", command, *chosen, *size, "--model.weights", "null", "--device", stage.device]
        argv += ["--run.progress", "false"]
        line = [sys.executable, "-m", "effbackbones", *argv]
        done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        rows = re.findall(
            r"^((?:training step|prediction), (?:GB|ms|s)) +(\S+) +(\S+) +([+-]\S+)%$", done.stdout, re.MULTILINE
        )
        off = {
            name: {"foreseen": float(foreseen), "measured": float(measured), "off_by_percent": float(share)}
            for name, foreseen, measured, share in rows
        }
        stage.expect(done.returncode == 0 and len(off) == 4, task=task, exit=done.returncode, **off)


def _published(task: str) -> list[str]:
    return ["--data.image_size", {"cls": "224", "det": "512", "seg": "256"}[task]]


def cifar(stage: Stage) -> None:
    """CIFAR-10 from scratch, for three minutes."""
    archive = stage.data / "cifar10.tar.xz"
    if not archive.is_file():
        return stage.found(skipped=f"no {archive}")
    stage.run(["tar", "-xJf", str(archive), "-C", str(stage.folder)])
    more = ["--optim.epochs", "5", "--run.eval_every", "5"]
    more += ["--data.limit_train", "256", "--data.limit_val", "64", "--optim.max_steps", "2"] if stage.dry else []
    return _accuracy(stage, "cls", "cifar10", stage.folder / "cifar10", *more)


def bccd(stage: Stage) -> None:
    """BCCD from ImageNet weights, as its config says."""
    _accuracy(stage, "det", "bccd", stage.data / "bccd", *(["--optim.max_steps", "2"] if stage.dry else []))


def camvid(stage: Stage) -> None:
    """CamVid, or the part of it that is here, from ImageNet weights."""
    more = (
        ["--data.limit_train", "16", "--data.limit_val", "4", "--optim.max_steps", "2"]
        if stage.dry
        else ["--optim.max_steps", "400"]
    )
    _accuracy(stage, "seg", "camvid", stage.data / "camvid", *more)


def _accuracy(stage: Stage, task: str, config: str, root: Path, *more: str) -> None:
    if not root.is_dir():
        return stage.found(skipped=f"no {root}")
    where = ["--run.device", "gpu" if stage.device == "cuda" else "cpu", "--run.progress", "false"]
    where += ["--data.workers", str(min(8, os.cpu_count() or 1)), "--run.out", str(stage.folder / "run")]
    start = time.monotonic()
    command = [
        sys.executable,
        "-m",
        f"tasks.{COMMANDS[task]}",
        "--config",
        config,
        "--data.root",
        str(root),
        *where,
        *more,
    ]
    code = stage.run(command, EFFBACKBONES_DEBUG="1")
    file = stage.folder / "run" / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    scores = {key: value for key, value in metrics.items() if key in ("finished", "split", "best", "ema", "raw")}
    stage.expect(code == 0, config=config, exit=code, seconds=round(time.monotonic() - start, 1), **_numbers(scores))
    return None


def _numbers(scores: dict[str, Any]) -> dict[str, Any]:
    """Without what has a value for each class or bin."""
    kept = {key: _numbers(value) for key, value in scores.items() if isinstance(value, dict) and key in ("ema", "raw")}
    return kept | {key: value for key, value in scores.items() if isinstance(value, str | int | float | bool)}


CHECKS = ["tests", "resume", *(f"steps-{task}" for task in COMMANDS)]
ROWS = {
    "gpu-d0-step": "d0-step",
    "gpu-b0": "b0-batch8",
    "gpu-b0-step": "b0-step",
    "gpu-unet-step": "unet-step",
    "gpu-d0-latency": "d0-predict",
}
COMPILED_B0: dict[str, dict[str, Any]] = {"gpu-b0-compiled": {}, "gpu-b0-kernels": {"EFFBACKBONES_FUSED": "1"}}
"""B0 once more in compiled code, which takes minutes to make: as the compiler has it, and with kernels of ours in every layer."""
SPEED = [*ROWS, *COMPILED_B0, "verbs", "plan"]
ACCURACY = ["cifar", "bccd", "camvid", "suite"]
COMPILED = [f"compiled-{task}-{precision}" for precision in PRECISIONS for task in COMMANDS]  # a process each: minutes
STAGES: dict[str, Callable[[Stage], None]] = {
    "device": device,
    "tests": tests,
    "resume": resume,
    **{f"steps-{task}": partial(steps, task=task, compiled=False) for task in COMMANDS},
    **{
        f"compiled-{task}-{precision}": partial(steps, task=task, compiled=True, precisions=(precision,))
        for precision in PRECISIONS
        for task in COMMANDS
    },
    **{name: partial(row, name=name) for name in ROWS},
    "gpu-b0": partial(row, name="gpu-b0", backends="eager"),
    **{name: partial(row, name="gpu-b0", backends="compile", **more) for name, more in COMPILED_B0.items()},
    "verbs": verbs,
    "plan": planned,
    "cifar": cifar,
    "bccd": bccd,
    "camvid": camvid,
    "suite": suite,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--found", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".drill"))
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    stage = Stage(options)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        STAGES[options.stage](stage)
    finally:
        shutil.rmtree(stage.folder, ignore_errors=True)
    return int(stage.failed)


if __name__ == "__main__":
    sys.exit(main())
