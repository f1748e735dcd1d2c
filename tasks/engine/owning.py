"""A run folder that is this process's own: made if need be, probed for writing, locked, and looked at under the lock."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.engine.folderlock import FolderLock
from tasks.engine.resume import KEEP, state_files
from tasks.engine.rundir import BEST, CONFIG, STATES, Tell, choose, config_of, fitting, trained
from tasks.settings.sections import Config
from tasks.settings.tree import changed_keys, dump


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
        self._parents: list[Path] = []
        self._before = {CONFIG, STATES, FolderLock.NAME}
        """What may lie in it beside what the run has brought about."""
        self._lock = FolderLock(path, tell)

    def __enter__(self) -> Self:
        try:
            self._create()
            for folder in (self.path, self.states):
                probe(folder)
            self._lock.take()
        except OSError as error:
            self._undo()
            self._leave()
            raise UserError(str(self.path), f"cannot be written ({error.strerror})", "choose another run.out") from None
        try:
            fitting(self.config, self.path)
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
            self._parents = [parent for parent in self.path.absolute().parents if not parent.exists()]
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
                orphan.unlink(missing_ok=True)
        if trained(self.path):
            return
        if self.path not in self._made and (self.path / CONFIG).is_file():
            if changed_keys(config_of(self.path), self.config):
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
        """Give the folder up; one that was made here and is empty now goes, and those that were made for it to lie in."""
        self._lock.release()
        with suppress(OSError):
            for folder in ([self.path] if self.path in self._made else []) + self._parents:
                folder.rmdir()


def probe(folder: Path) -> None:
    """Write a byte to the disk and remove it: a folder that is read-only or full shows before the work, not after hours of it."""
    file = folder / f".probe-{os.getpid()}.tmp"
    try:
        with file.open("wb") as opened:
            opened.write(b"0")
            opened.flush()
            os.fsync(opened.fileno())
    finally:
        file.unlink(missing_ok=True)
