"""Run folders: which one a run gets, who else is in it, and whether it can continue there."""

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from effbackbones.errors import UserError
from tasks.config import Config, changed_keys, dump, from_mapping
from tasks.configfile import read_tree

METRICS, CONFIG, BEST, STATES = "metrics.json", "config.yaml", "best.safetensors", "checkpoints"


def choose(config: Config, command: str, config_name: str) -> Path:
    """The folder of a training run: ``run.out``, a folder to resume, or ``runs/COMMAND/CONFIG`` with a number if taken.

    An unfinished run of the same config is continued there, unless ``run.resume`` is never. A named folder that holds
    another config or a finished run raises :class:`UserError`.
    """
    resume = config.run.resume
    if resume not in ("auto", "never"):
        return _named(config, Path(resume), resume_only=True)
    if config.run.out:
        return _named(config, Path(config.run.out), resume_only=False)
    for number in range(1, 10_000):
        folder = Path("runs") / command / (config_name if number == 1 else f"{config_name}-{number}")
        if not folder.exists() or (resume == "auto" and continues(config, folder)):
            return folder
    raise UserError(f"runs/{command}", "holds 10,000 runs of this config", "remove some, or set run.out")


def continues(config: Config, folder: Path) -> bool:
    """Whether ``folder`` holds an unfinished run of the same config."""
    return (folder / CONFIG).is_file() and not finished(folder) and not _changed(config, folder)


def finished(folder: Path) -> bool:
    """Whether the run in ``folder`` came to its end."""
    try:
        return bool(json.loads((folder / METRICS).read_text(encoding="utf-8")).get("finished"))
    except (OSError, ValueError, AttributeError):
        return False


def _named(config: Config, folder: Path, *, resume_only: bool) -> Path:
    if resume_only and not (folder / CONFIG).is_file():
        raise UserError(f"run.resume: {folder}", f"holds no run ({CONFIG} is missing)", "name a run folder")
    if not (folder / CONFIG).is_file():
        return folder
    changed = _changed(config, folder)
    if changed:
        keys = ", ".join(changed[:5])
        raise UserError(str(folder), f"holds a run of another config ({keys} differ)", "choose another run.out, or undo the change")
    if finished(folder):
        raise UserError(str(folder), "holds a finished run", "choose another run.out, or remove it")
    if config.run.resume == "never":
        raise UserError(str(folder), "holds an unfinished run, and run.resume is never", "choose another run.out, or remove it")
    return folder


def _changed(config: Config, folder: Path) -> list[str]:
    path = folder / CONFIG
    return changed_keys(from_mapping(read_tree(path, str(path)).values, str(path)), config)


class RunFolder:
    """A run folder that this process owns: created, probed for writing, locked, cleaned of half-written files."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        self.states = path / STATES
        self._lock = path / "lock"

    def __enter__(self) -> Self:
        try:
            self.states.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise UserError(str(self.path), f"cannot be written ({error.strerror})", "choose another run.out") from None
        for orphan in [*self.states.glob("*.tmp"), *self.path.glob("*.tmp")]:
            orphan.unlink()
        (self.path / CONFIG).write_text(dump(self.config), encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        owner = f"{socket.gethostname()} {os.getpid()}"
        for _ in range(2):
            try:
                with self._lock.open("x", encoding="utf-8") as file:
                    file.write(owner)
                return
            except FileExistsError:
                host, _, pid = self._lock.read_text(encoding="utf-8").partition(" ")
                if host == socket.gethostname() and not _alive(pid):
                    self._lock.unlink(missing_ok=True)
                    continue
                break
        text = f"is used by process {pid or '?'} on {host or '?'}"
        raise UserError(str(self.path), text, f"wait for it, or remove {self._lock} if that process is gone")


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()
