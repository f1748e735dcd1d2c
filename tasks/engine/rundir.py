"""Run folders: which one a run gets, who else is in it, and whether it can continue there."""

import itertools
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from uuid import uuid4

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.engine import processes
from tasks.settings.sections import Config
from tasks.settings.tree import changed_keys, dump, from_mapping
from tasks.settings.yamlfile import read_tree

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]  # a module or nothing

METRICS, CONFIG, BEST, STATES = "metrics.json", "config.yaml", "best.safetensors", "checkpoints"


def choose(config: Config, command: str, config_name: str, tell: Callable[[str], None]) -> Path:
    """The folder of a training run: ``run.out``, a folder to resume, or ``runs/COMMAND/CONFIG`` with a number if taken.

    An unfinished run of the same config is continued there, unless ``run.resume`` is never; one of another config is told. A
    named folder that holds another config or a finished run raises :class:`UserError`.
    """
    resume = config.run.resume
    if resume not in ("auto", "never"):
        return _named(config, Path(resume), resume_only=True)
    if config.run.out:
        return _named(config, Path(config.run.out), resume_only=False)
    found: Path | None = None
    newest: tuple[Path, list[str] | None] | None = None
    for number in itertools.count(1):
        folder = Path("runs") / command / (config_name if number == 1 else f"{config_name}-{number}")
        if not folder.exists():
            break
        newest = folder, _differences(config, folder) if resume == "auto" else None
        if newest[1] == []:
            found = folder
    if found is None and newest and newest[1]:
        keys = ", ".join(newest[1][:5])
        tell(
            f"{newest[0]} holds an unfinished run of another config ({keys} differ): it stays, and this one starts anew"
        )
    return found or folder


def _differences(config: Config, folder: Path) -> list[str] | None:
    """Keys in which the unfinished run in ``folder`` differs from ``config``; None if it holds none."""
    if not (folder / CONFIG).is_file() or finished(folder):
        return None
    try:
        return _changed(config, folder)
    except UserError:  # of another version, or not a config at all
        return None


def finished(folder: Path) -> bool:
    """Whether the run in ``folder`` came to its end."""
    try:
        return bool(json.loads((folder / METRICS).read_text(encoding="utf-8")).get("finished"))
    except (OSError, ValueError, AttributeError):
        return False


def _named(config: Config, folder: Path, *, resume_only: bool) -> Path:
    if not processes.is_first():  # which has made it its own by now
        return folder
    if resume_only and not (folder / CONFIG).is_file():
        raise UserError(f"run.resume: {folder}", f"holds no run ({CONFIG} is missing)", "name a run folder")
    if not (folder / CONFIG).is_file():
        return folder
    changed = _changed(config, folder)
    if changed:
        keys = ", ".join(changed[:5])
        raise UserError(
            str(folder), f"holds a run of another config ({keys} differ)", "choose another run.out, or undo the change"
        )
    if finished(folder):
        raise UserError(str(folder), "holds a finished run", "choose another run.out, or remove it")
    if config.run.resume == "never":
        raise UserError(
            str(folder), "holds an unfinished run, and run.resume is never", "choose another run.out, or remove it"
        )
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
        self._held: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._create()
        except OSError as error:
            raise UserError(str(self.path), f"cannot be written ({error.strerror})", "choose another run.out") from None
        self._take_lock()
        for orphan in [*self.states.glob("*.tmp"), *self.path.glob("*.tmp")]:
            orphan.unlink()
        write_atomically(self.path / CONFIG, dump(self.config).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._held is not None
        if fcntl is None:
            self._held.close()  # such systems remove no open file
        self._lock.unlink(missing_ok=True)
        self._held.close()

    def _create(self) -> None:
        """Make the folder with its config inside in one step: another process of the run sees all of it or nothing."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.parent / f".{self.path.name}-{uuid4().hex}"
            draft.mkdir()
            (draft / CONFIG).write_text(dump(self.config), encoding="utf-8")
            draft.rename(self.path)
        self.states.mkdir(parents=True, exist_ok=True)

    def _take_lock(self) -> None:
        """A lock of the system's: it ends with the process, however that ends."""
        while True:
            self._held = self._lock.open("a+", encoding="utf-8")
            try:
                if fcntl is not None:
                    fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._held.seek(0)
                owner = self._held.read().strip() or "another process"
                self._held.close()
                raise UserError(
                    str(self.path), f"is used by {owner}", "wait for it, or choose another run.out"
                ) from None
            if fcntl is None or _is_at(self._held, self._lock):
                break
            self._held.close()  # its owner removed it between our opening and our locking: it guards nothing
        self._held.truncate(0)
        self._held.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._held.flush()


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether ``path`` still leads to that open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
