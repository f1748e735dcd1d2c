"""Run folders: which one a run gets, and whether it can continue there."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.engine.folderlock import FolderLock
from tasks.engine.resume import KEEP, state_files
from tasks.settings.sections import Config
from tasks.settings.tree import changed_keys, differences, dump, from_mapping, is_free
from tasks.strictyaml import read_tree

METRICS, CONFIG, BEST, STATES = "metrics.json", "config.yaml", "best.safetensors", "checkpoints"
_LONGER = ("optim.epochs", "optim.max_steps")
"""Keys that say how long a run is: one that is continued by name may become longer."""
_UNTOLD = ("run.out", "run.resume", "run.progress", "run.log_every", "run.tensorboard")
"""Keys that say where and how a run shows itself."""
Tell = Callable[[str], None]


@contextmanager
def own_folder(config: Config, command: str, config_name: str, tell: Tell) -> Iterator[Path]:
    """Inside, the run folder is this process's own: chosen (:func:`choose`), made, locked, and looked at again under the lock.

    Where nobody names the folder and another run was quicker to take it, the next one is chosen. A folder that was made here
    is removed when the block fails before anything was trained.
    """
    before: Path | None = None
    with ExitStack() as stack:
        while True:
            path = choose(config, command, config_name, tell)
            try:
                stack.enter_context(RunFolder(path, config, tell))
                break
            except UserError:
                if path == before or config.run.out or config.run.resume not in ("auto", "never"):
                    raise
                before = path
        yield path


def choose(config: Config, command: str, config_name: str, tell: Tell) -> Path:
    """The folder of a training run: ``run.out``, a folder to resume, or ``runs/COMMAND/CONFIG`` with a number if taken.

    An unfinished run of the same config is continued there, unless ``run.resume`` is never; one of another config is told. A
    named folder that holds another config or a finished run raises :class:`UserError`.
    """
    resume = config.run.resume
    if resume not in ("auto", "never"):
        path = Path(resume)
        if not (path / CONFIG).is_file():
            raise UserError(f"run.resume: {path}", f"holds no run ({CONFIG} is missing)", "name a run folder")
        return _fitting(config, path)
    if config.run.out:
        return _fitting(config, Path(config.run.out))
    found: Path | None = None
    other: str | None = ""
    for number in itertools.count(1):
        folder = Path("runs") / command / (config_name if number == 1 else f"{config_name}-{number}")
        if not folder.exists():
            break
        other = _other(config, folder)
        if other is None:
            found = folder
    if found is None and other and resume == "auto":
        tell(f"{other}: it stays, and this one starts anew in {folder}")
    return found if found and resume == "auto" else folder


def _other(config: Config, folder: Path) -> str | None:
    """What keeps a run of ``config`` out of ``folder``, in words; "" if no unfinished run is there, None if nothing does. Another
    ``data.root`` most often means other data, so that it counts here."""
    if not (folder / CONFIG).is_file() or finished(folder):
        return ""
    try:
        changed = [key for key in differences(_config(folder), config) if not is_free(key) or key == "data.root"]
    except UserError as error:  # of another version, or not a config at all
        return f"{folder} holds an unfinished run whose config cannot be read ({error})"
    if not changed:
        return None
    text = f"{folder} holds an unfinished run of another config ({', '.join(changed[:5])} differ)"
    if changed == ["data.root"]:
        text += f" (the same data in another place: --run.resume {folder} continues it)"
    return text


def finished(folder: Path) -> bool:
    """Whether the run in ``folder`` came to its end."""
    try:
        return bool(json.loads((folder / METRICS).read_text(encoding="utf-8")).get("finished"))
    except (OSError, ValueError, AttributeError):
        return False


def trained(folder: Path) -> bool:
    """Whether there is anything in ``folder`` that a run has learnt."""
    return bool(state_files(folder / STATES)) or any((folder / name).exists() for name in (BEST, METRICS))


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    return from_mapping(read_tree(path, str(path)).values, str(path))


def _fitting(config: Config, folder: Path) -> Path:
    """``folder``, if the run can be there: it holds none, one that has learnt nothing yet, or an unfinished one of the same
    config; by ``run.resume`` also one that is to become longer."""
    if not (folder / CONFIG).is_file() or not trained(folder):
        return folder
    ended, by_name, old = finished(folder), config.run.resume not in ("auto", "never"), _config(folder)
    changed = changed_keys(old, config)
    longer = bool(changed) and all(key in _LONGER for key in changed) and _is_longer(old, config)
    extend = f"--run.resume {folder} with more optim.epochs trains on, --model.init_from {folder} starts anew from its weights"
    if longer and by_name:
        if not state_files(folder / STATES):
            raise UserError(
                str(folder), "holds no state to train on from", f"set model.init_from {folder} and another run.out"
            )
        return folder
    if changed:
        shown = "; ".join(f"{key} {text}" for key, text in differences(old, config).items() if key in changed[:5])
        remedy = extend if longer else "choose another run.out, or undo the change"
        raise UserError(str(folder), f"holds a run of another config ({shown} differ)", remedy)
    if ended:
        raise UserError(str(folder), "holds a finished run", f"choose another run.out; {extend}")
    if config.run.resume == "never":
        raise UserError(
            str(folder), "holds an unfinished run, and run.resume is never", "choose another run.out, or remove it"
        )
    return folder


def _is_longer(old: Config, new: Config) -> bool:
    before, after = old.optim, new.optim
    if before.max_steps is not None and after.max_steps is not None:
        return after.max_steps > before.max_steps
    return before.max_steps is None and after.max_steps is None and after.epochs > before.epochs


def keep_config(folder: Path, config: Config, tell: Tell) -> None:
    """Note in a folder whose run continues that it does so under ``config``; tell what changed, and that it is not finished."""
    changed = differences(_config(folder), config)
    shown = "; ".join(f"{key} {text}" for key, text in changed.items() if key not in _UNTOLD)
    if shown:
        tell(f"changed since it stopped: {shown}")
    if finished(folder):  # first, so that nothing between the two takes it for a finished run of the new config
        known = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        write_atomically(folder / METRICS, json.dumps(known | {"finished": False}, indent=2).encode())
    write_atomically(folder / CONFIG, dump(config).encode())


def refuse_full_disk(folder: Path, state: int, model: int) -> None:
    """Raise :class:`UserError` if the disks under ``folder`` and its states lack the room for what a run writes there: states of
    so many bytes, one more than are kept while one is written, and a model file. What lies there already makes room for the next.
    """
    there = sum(path.stat().st_size for path in state_files(folder / STATES))
    best = (folder / BEST).stat().st_size if (folder / BEST).is_file() else 0
    needs = {folder / STATES: (KEEP + 1) * state - there, folder: 2 * model - best}
    if os.stat(folder).st_dev == os.stat(folder / STATES).st_dev:
        needs = {folder: sum(needs.values())}
    for place, need in needs.items():
        disk = shutil.disk_usage(place)
        if disk.total and disk.free < need:  # some file systems do not say
            what = (
                f"{disk.free / 1e6:,.0f} MB are free, and the states and weights of this run take {need / 1e6:,.0f} MB"
            )
            raise UserError(str(place), what, "free space, or choose another run.out")


class RunFolder:
    """A run folder that this process owns: made if need be, probed for writing, locked, looked at under the lock, and cleaned of
    half-written files."""

    def __init__(self, path: Path, config: Config, tell: Tell = print) -> None:
        self.path, self.config, self.tell = path, config, tell
        self.states = path / STATES
        self._made: list[Path] = []
        self._before = {CONFIG, STATES, FolderLock.NAME}
        """What may lie in it beside what the run has brought about."""
        self._lock = FolderLock(path, tell)

    def __enter__(self) -> Self:
        try:
            self._create()
            for folder in (self.path, self.states):
                _probe(folder)
            self._lock.take()
        except OSError as error:
            self._undo()
            self._leave()
            raise UserError(str(self.path), f"cannot be written ({error.strerror})", "choose another run.out") from None
        try:
            _fitting(self.config, self.path)
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not trained(self.path):
            self._undo()
        self._leave()

    def _create(self) -> None:
        """Make the folder with its config inside in one step: another process of the run sees all of it or nothing."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.parent / f".{self.path.name}-{uuid4().hex}"
            draft.mkdir()
            try:
                (draft / CONFIG).write_text(dump(self.config), encoding="utf-8")
                draft.rename(self.path)
                self._made += [self.path, self.path / CONFIG]
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                if not self.path.is_dir():  # else another process was quicker
                    raise
        self._before |= set(os.listdir(self.path))
        if not self.states.is_dir():
            self.states.mkdir(parents=True, exist_ok=True)
            self._made.append(self.states)

    def _begin(self) -> None:
        """Write the config, unless there is a run to be continued, whose own stays until it is (:func:`keep_config`)."""
        for folder in (self.states, self.path):
            for orphan in folder.glob(".*.tmp"):
                orphan.unlink()
        if trained(self.path):
            return
        if self.path not in self._made and (self.path / CONFIG).is_file():
            if changed_keys(_config(self.path), self.config):
                text = "holds a run of another config that has learnt nothing yet: this one takes its place"
                self.tell(f"{self.path} {text}")
        elif self.path not in self._made:
            self._made.append(self.path / CONFIG)
        write_atomically(self.path / CONFIG, dump(self.config).encode())

    def _undo(self) -> None:
        """Remove what was made here, if nothing has come of it."""
        with suppress(OSError):
            if set(os.listdir(self.path)) <= self._before and not any(self.states.iterdir()):
                if self.path / CONFIG in self._made:
                    (self.path / CONFIG).unlink(missing_ok=True)
                if self.states in self._made:
                    self.states.rmdir()

    def _leave(self) -> None:
        """Give the folder up; one that was made here and is empty now goes."""
        self._lock.release()
        if self.path in self._made:
            with suppress(OSError):
                self.path.rmdir()


def _probe(folder: Path) -> None:
    """Write a byte to the disk and remove it: a folder that is read-only or full shows before the work, not after hours of it."""
    file = folder / f".probe-{os.getpid()}.tmp"
    try:
        with file.open("wb") as opened:
            opened.write(b"0")
            opened.flush()
            os.fsync(opened.fileno())
    finally:
        file.unlink(missing_ok=True)
