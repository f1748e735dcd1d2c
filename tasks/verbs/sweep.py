"""``train --seeds N --grid '{KEY: [VALUES]}'``: runs of one config side by side, and what they reached.

Each run is a process of its own, started with a config file that says all, in a folder of the sweep: so a sweep that was stopped goes
on where it was when the same command is given again, and each run can be looked at, continued or repeated by itself.
"""

import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.engine import processes
from tasks.engine.rundir import METRICS, config_of, finished, fitting
from tasks.report.spread import Reached, settings, told_of_spread
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.settings.tree import changed_keys, dump, from_mapping, to_mapping
from tasks.spec import TaskSpec
from tasks.strictyaml import Plain, read_value
from tasks.telling import Teller
from tasks.verbs.compare import compare

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]  # a module or nothing

MOST_RUNS = 1000
_PATIENCE = 60.0
"""Seconds in which a file must be seen by all machines: network file systems take some."""
_DIVERGED = 3  # exit code
_LONGEST = 100  # characters of a folder's name
_OWN = ("run.out", "run.resume", "plugins")


@dataclass(frozen=True)
class Trial:
    """A run of a sweep: its ``config``, and the ``changes`` of the grid in it, by dotted key."""

    name: str
    changes: Mapping[str, Plain]
    config: Config

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return Path(str(self.config.run.out))

    @property
    def file(self) -> Path:
        """Its config, which starts it."""
        return self.folder.with_name(f"{self.folder.name}.yaml")


def sweep(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Run all that ``--seeds`` and ``--grid`` say, those that are finished aside, and compare them; returns the exit code.

    Of a SLURM array each task takes its share of the runs; the one that finishes the last compares them. Processes that torchrun
    started do each run together. A run that diverges is told and passed over; another that fails ends the sweep.
    """
    root = Path(config.run.out or f"runs/{task.command}/{extras.config_name}-sweep")
    found = list(trials(config, extras.own["seeds"], extras.own["grid"], root))
    tell, place = Teller(config.run.progress), processes.place(os.environ, config.run.processes, config.run.nodes)
    first = place.rank == 0
    for trial in found:
        _is_done(trial)  # refuses another config now, not after hours
    _meet(root, place)
    mine = found[_share(os.environ)]
    if first:
        tell(f"{len(found)} runs in {root}" + ("" if len(mine) == len(found) else f", {len(mine)} of them here"))
    code = 0
    for number, trial in enumerate(mine):
        if _is_done(trial):
            continue
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(trial.file, dump(trial.config).encode())  # all processes do: none waits for another here
        if first:
            tell(f"run {found.index(trial) + 1} of {len(found)}: {trial.name}")
        ended = _run(task, trial, number)
        if ended not in (0, _DIVERGED):
            return ended
        code = max(code, ended)
    if first and root.is_dir():
        with _alone(root) as waited:
            if waited and _is_concluded(root, found):
                tell(f"another task of the array has compared them: {root / 'sweep.csv'}")
            else:
                _conclude(found, root, tell)
    return code


def _meet(root: Path, place: processes.Place) -> None:
    """Of processes on several machines: see that all have the folder ``root``. What one has done the others must find there, or the
    second run would begin on one machine and be over on another."""
    if place.nodes < 2:
        return
    known = "-".join(
        os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    )
    sign = root / f".sweep-{sha256(known.encode()).hexdigest()[:12]}"
    if place.rank == 0:
        root.mkdir(parents=True, exist_ok=True)
        sign.touch()
        return
    began = time.monotonic()
    while not sign.exists():
        if time.monotonic() - began > _PATIENCE:
            what = f"machine {place.node + 1} of {place.nodes} does not see what the first wrote there within {_PATIENCE:g} seconds"
            raise UserError(str(root), what, "put run.out on a disk that all of them share")
        time.sleep(0.2)


@contextmanager
def _alone(root: Path) -> Iterator[bool]:
    """Inside, no other process is: tasks of an array may finish together. Gives whether another was there before."""
    if fcntl is None:
        yield False
        return
    handle, waited = os.open(root, os.O_RDONLY), False
    try:
        with suppress(OSError):  # file systems without locks: both write the same
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield waited
    finally:
        os.close(handle)


def trials(config: Config, seeds: int | None, grid: str | None, root: Path) -> Iterator[Trial]:
    """The runs: each combination of the values of ``grid`` (YAML: dotted keys to lists) with each of so many seeds from ``run.seed``
    on. What no config can hold raises :class:`UserError`."""
    if seeds is not None and seeds < 1:
        raise UserError("--seeds", f"is {seeds}", "give how many, 1 or more")
    if config.run.resume != "auto":
        raise UserError("run.resume", "a sweep continues its runs by itself", "leave it out, and repeat the command")
    values = _grid(grid, seeded=seeds is not None)
    count = (seeds or 1) * len(list(itertools.product(*values.values())))
    if count > MOST_RUNS:
        raise UserError("--grid", f"asks for {count:,} runs", f"leave values out, for {MOST_RUNS:,} at most")
    mapping = to_mapping(config)
    for chosen in itertools.product(*values.values()):
        changes = dict(zip(values, chosen, strict=True))
        for seed in range(config.run.seed, config.run.seed + (seeds or 1)):
            named = {**_short(changes), **({"seed": seed} if seeds is not None else {})}
            name = _name(named)
            changed: dict[str, Plain] = {**changes, **({"run.seed": seed} if seeds is not None else {})}
            own = from_mapping(_changed(mapping, changed), "--grid")
            yield Trial(name, changes, replace(own, run=replace(own.run, out=str((root / name).absolute()))))


def _grid(text: str | None, *, seeded: bool) -> dict[str, list[Plain]]:
    found, _ = read_value(text, "--grid") if text else ({}, {})
    if not isinstance(found, dict):
        what = f"expected keys of the config with lists of values, got {str(text)[:60]!r}"
        raise UserError("--grid", what, "write it as '{optim.lr: [0.001, 0.003]}'")
    for key, values in found.items():
        if not isinstance(values, list) or not values:
            raise UserError(
                f"--grid {key}", f"expected a list of values, got {str(values)[:60]!r}", f"write {key}: [...]"
            )
        if len({json.dumps(value) for value in values}) < len(values):
            raise UserError(f"--grid {key}", "has a value twice", "leave it out")
        if key in _OWN or (seeded and key == "run.seed"):
            raise UserError(f"--grid {key}", "is what the sweep itself sets", "leave it out")
    return {key: values for key, values in found.items() if isinstance(values, list)}


def _changed(mapping: Mapping[str, Plain], changes: Mapping[str, Plain]) -> dict[str, Plain]:
    whole: dict[str, Any] = json.loads(json.dumps(mapping))
    for key, value in changes.items():
        *path, last = key.split(".")
        place = whole
        for name in path:
            inner = place.setdefault(name, {})
            if not isinstance(inner, dict):
                raise UserError(f"--grid {key}", f"{name} holds no keys", "name a key of the config")
            place = inner
        place[last] = value
    return whole


def _short(changes: Mapping[str, Plain]) -> dict[str, Plain]:
    """By the last word of each key, where that says which it is."""
    words = [key.rpartition(".")[2] for key in changes]
    return {word if words.count(word) == 1 else key: changes[key] for key, word in zip(changes, words, strict=True)}


def _name(named: Mapping[str, Plain]) -> str:
    """A folder's name: the same values always give the same."""
    text = ",".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in named.items())
    plain = re.sub(r"[^A-Za-z0-9=.,+-]+", "_", text).strip("._") or "run"
    if plain == text and len(plain) <= _LONGEST:
        return plain
    return f"{plain[:_LONGEST]}-{sha256(text.encode()).hexdigest()[:8]}"


def _is_done(trial: Trial) -> bool:
    """Whether a run came to its end before. One of another config in its folder raises :class:`UserError`."""
    if not finished(trial.folder):
        fitting(trial.config, trial.folder)
        return False
    changed = changed_keys(config_of(trial.folder), trial.config)
    if changed:
        what = f"holds a finished run of another config ({', '.join(changed[:5])} differ)"
        raise UserError(str(trial.folder), what, "choose another run.out")
    return True


def _share(environment: Mapping[str, str]) -> slice:
    """Which of the runs a task of a SLURM array does; all of them outside of one."""
    try:
        number, low = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN"))
        count = int(environment["SLURM_ARRAY_TASK_COUNT"])
    except (KeyError, ValueError):
        return slice(None)
    return slice((number - low) % count, None, count)


def _run(task: TaskSpec, trial: Trial, number: int) -> int:
    """A run in a process of its own; signals go on to it. Its exit code, as a shell has it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    if "MASTER_PORT" in environment and environment["MASTER_PORT"].isdecimal():
        # torchrun's own store knows the processes of one run; those of the next would meet its leavings.
        environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + 1 + number % 100)
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    line = [sys.executable, "-P", "-m", "tasks.run", task.command, "--config", str(trial.file)]
    with subprocess.Popen(line, env=environment, process_group=0) as process, _passing_on(process):
        code = process.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Inside, what this process is told by signals is told to the run."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakeup = signal.set_wakeup_fd(-1)  # the run has its own watch over signals that nobody answers
    numbers = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]  # what nohup has made ignored stays so
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)


def _conclude(found: Sequence[Trial], root: Path, tell: Teller) -> None:
    """Tell what was reached, and write it down, once all runs are at their end."""
    missing = [trial for trial in found if not finished(trial.folder)]
    reached = [_reached(trial) for trial in found if finished(trial.folder)]
    if missing:
        tell(f"{len(missing)} of {len(found)} runs are not finished: {', '.join(trial.name for trial in missing[:5])}")
    if not reached:
        return
    rows = [{"run": one.name, **one.changes, "seed": one.seed, **one.scores} for one in reached]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(root / "sweep.csv", out.getvalue().encode())
    for line in told_of_spread(reached):
        print(line)
    tell(f"scores of each run {root / 'sweep.csv'}")
    best_first = [one.name for setting in settings(reached) for one in setting.runs]
    if len(best_first) > 1:
        compare(Extras(inputs=tuple(str(root / name) for name in best_first), out=str(root)))


def _is_concluded(root: Path, found: Sequence[Trial]) -> bool:
    """Whether all runs are finished, and the last thing that is written of a sweep is younger than them."""
    if not all(finished(trial.folder) for trial in found):
        return False
    last = root / ("compare.json" if len(found) > 1 else "sweep.csv")
    newest = max((trial.folder / METRICS).stat().st_mtime_ns for trial in found)
    return last.is_file() and (root / "sweep.csv").is_file() and last.stat().st_mtime_ns > newest


def _reached(trial: Trial) -> Reached:
    record = json.loads((trial.folder / METRICS).read_text(encoding="utf-8"))
    monitor, split = record["monitor"], record["split"]
    name, scores = monitor["name"], {f"val_{monitor['name']}": monitor["best"]}
    if split != "val":
        scores[f"{split}_{name}"] = record[record["best"]].get(name)
    return Reached(trial.name, trial.changes, trial.config.run.seed, scores, monitor["higher_is_better"])
