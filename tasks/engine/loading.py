"""Batches from loader processes: every wait for them ends and says why, and they end with whoever reads them."""

import atexit
import errno
import multiprocessing.util  # before the hook below is registered, so that it runs before that of multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from effbackbones.errors import UserError
from tasks.data.batch import Batch
from tasks.data.files.slate import Slate, reading_sample
from tasks.engine.signals import ignore_signals
from tasks.telling import say

try:
    import resource
except ImportError:  # Windows: nothing is limited there in this way
    resource = None  # type: ignore[assignment]  # a module or nothing

T = TypeVar("T")
LOOK_EVERY = 0.25
"""Seconds between two looks at the loader processes while a batch is waited for."""
LEAVE_WITHIN = 1.0
"""Seconds that loader processes get to end by themselves when their batches are no longer wanted."""
_SOCKET_PATH = 100
"""A socket's path has at most 107 bytes; the name that multiprocessing adds to its folder has fewer than the rest."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE)
_NO_SHARING = (errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSYS)


class Loader:
    """The batches of a :class:`DataLoader`, with or without loader processes: :class:`Batch`, or anything that is ``mapped`` as one.

    One that is not there after ``timeout`` seconds (0: never), or whose loader process has died, raises :class:`UserError` that
    names the process, what it was reading, and the cause. Without shared memory batches come through pipes, or from this
    process, and that is told.
    """

    def __init__(
        self,
        dataset: Any,
        batches: Any,
        collate: Callable[[Sequence[Any]], Any],
        *,
        workers: int,
        timeout: float,
        pin: bool,
        seed: int,
    ) -> None:
        """``batches``: lists of keys of ``dataset``. The loader's generator is its own, so that it draws nothing from a run's."""
        self.timeout, self.slate = timeout, Slate(workers)
        self._alone = {"batch_sampler": batches, "collate_fn": collate, "pin_memory": pin}
        self._alone["generator"] = torch.Generator().manual_seed(seed)
        self.dataset, self.workers, self.count = dataset, workers, len(batches)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        source: Iterator[Batch] | None = self._started() if self.workers else None
        return iter(DataLoader(self.dataset, **self._alone)) if source is None else source

    def _started(self) -> "_Waited | None":
        """The batches of new loader processes; None where this machine gives no means to talk to them."""
        piped = len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678/listener-12345678") > _SOCKET_PATH
        if piped:
            say(
                f"TMPDIR is too long for a socket ({tempfile.gettempdir()}): batches come through pipes, which is slower"
            )
        _raise_descriptor_limit(16 * self.workers + 256)
        options: dict[str, Any] = {
            **self._alone,
            "collate_fn": _Sent(self._alone["collate_fn"], piped),
            "num_workers": self.workers,
            "worker_init_fn": partial(_begin, self.slate),
        }
        before = set(multiprocessing.active_children())
        try:
            multiprocessing.Lock()  # where there can be none, torch leaves half a loader behind, which complains
            with _child_handler_kept():
                return _Waited(iter(DataLoader(self.dataset, **options)), self)
        except OSError as error:
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            if error.errno in _NO_SHARING:
                say(
                    f"no memory can be shared with loader processes here ({error.strerror}): this process reads by itself"
                )
                return None
            what = f"{self.workers} loader processes cannot be started: {error.strerror}"
            raise UserError("data.workers", what, _limits(error) or "lower it") from None


@contextmanager
def _child_handler_kept() -> Iterator[None]:
    """Puts back the handler of SIGCHLD, which torch takes for itself with the first loader processes of a process."""
    mine = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if mine else None
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)
            signal_handling._SIGCHLD_handler_set = False  # a loader that is not ours may need it


def _begin(slate: Slate, worker: int) -> None:
    """First thing in a loader process."""
    ignore_signals()
    slate.use(worker)


@dataclass
class _Array:
    """A tensor that goes through a pipe as a copy."""

    values: NDArray[Any]


@dataclass
class _Piped:
    """A batch of :class:`_Array`; ``why`` it is not in shared memory."""

    batch: Batch
    why: str


@dataclass
class _Sent:
    """Collates in a loader process, and puts the batch where the other process finds it. (Left to the queue, a failure of that
    would be lost in one of its threads, and the batch with it.)"""

    collate: Callable[[Sequence[Any]], Batch]
    piped: bool

    def __call__(self, samples: Sequence[Any]) -> "Batch | _Piped":
        batch, why = self.collate(samples), ""
        reading_sample("")
        if not self.piped:
            try:
                return batch.mapped(lambda tensor: tensor.share_memory_())
            except (RuntimeError, OSError) as error:
                why = " ".join(str(error).rpartition(": ")[2].split())[:100]
        return _Piped(batch.mapped(lambda tensor: _Array(tensor.numpy())), why)


class _Waited:
    """Iterator over the batches of loader processes. A thread asks for each, so that the one that works waits as long as it wants
    to, and hears of signals."""

    def __init__(self, source: Any, loader: Loader) -> None:
        self.source, self.left, self.timeout, self.slate = source, len(loader), loader.timeout, loader.slate
        self.processes: list[BaseProcess] = list(source._workers)
        self.told = False
        # We look after them ourselves. Torch's own watch raises from a signal handler, in the midst of a step or of a wait at exit.
        signal_handling._remove_worker_pids(id(source))  # type: ignore[attr-defined]  # private, as all that is needed here
        source._worker_pids_set = False
        self.ended = False
        _ALIVE.add(self)

    def __iter__(self) -> "_Waited":
        return self

    def __next__(self) -> Batch:
        if not self.left:
            self.end()
            raise StopIteration
        try:
            batch = self._waited_for(begun(partial(next, self.source)))
        except BaseException:
            self.end(0.0)
            raise
        self.left -= 1
        return batch

    def _waited_for(self, coming: "Future[Batch | _Piped]") -> Batch:
        start = time.monotonic()
        while wait([coming], LOOK_EVERY).not_done:
            self._look()
            if self.timeout and time.monotonic() - start > self.timeout:
                raise self._hanging()
        try:
            batch = coming.result()
        except (OSError, EOFError, RuntimeError) as error:
            if "Original Traceback" not in str(error):
                # A connection breaks a moment before the process at its other end counts as dead.
                broken = isinstance(error, ConnectionError | EOFError)
                ending = {process.sentinel: process for process in self.processes}
                for sentinel in connection.wait([*ending], LEAVE_WITHIN if broken else 0.0):
                    ending[cast(int, sentinel)].join(LEAVE_WITHIN)
                self._look()
                if remedy := _limits(error):
                    raise UserError("data loader", " ".join(str(error).split())[:160], remedy) from error
            raise
        return self._unpacked(batch) if isinstance(batch, _Piped) else batch

    def _unpacked(self, sent: _Piped) -> Batch:
        if sent.why and not self.told:
            self.told = True
            usage = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
            room = f" ({usage.free >> 20} of {usage.total >> 20} MB are free)" if usage else ""
            say(
                f"/dev/shm{room} cannot hold the batches ({sent.why}): they come through pipes, which is slower; "
                "give it more room (docker run --shm-size 8g), or lower data.workers"
            )
        return sent.batch.mapped(lambda array: torch.from_numpy(array.values), _Array)

    def _look(self) -> None:
        """Raise :class:`UserError` for a loader process that has ended although it is still needed."""
        for worker, process in enumerate(self.processes):
            if process.exitcode is not None:
                what, remedy = _death(process.exitcode)
                raise UserError(f"data loader: worker {worker}{self._at(worker)}", what, remedy)

    def _at(self, worker: int) -> str:
        line, _ = self.slate.read(worker)
        return f", reading {line}" if line else ""

    def _hanging(self) -> UserError:
        """Of the processes that are at something, the one that has been for the longest."""
        worker = max(
            range(len(self.processes)), key=lambda slot: self.slate.read(slot)[1] * bool(self.slate.read(slot)[0])
        )
        state = _state(self.processes[worker])
        what = f"no batch came within {self.timeout:g} seconds" + (f": the process {state[0]}" if state else "")
        remedy = state[1] if state else "leave that file out, raise data.timeout, or find the cause with data.workers 0"
        return UserError(f"data loader: worker {worker}{self._at(worker)}", what, remedy)

    def end(self, within: float = LEAVE_WITHIN) -> None:
        """End the loader processes: asked to for ``within`` seconds, then killed, for signals they leave to this process."""
        if self.ended:
            return
        self.ended = True
        if hasattr(self.source, "_pin_memory_thread_done_event"):
            self.source._pin_memory_thread_done_event.set()
        if within and all(
            process.is_alive() for process in self.processes
        ):  # a dead one may hold a lock that this would wait for
            self.source._workers_done_event.set()
            for queue in self.source._index_queues:
                queue.put(None)
            until = time.monotonic() + within
            for process in self.processes:
                process.join(max(until - time.monotonic(), 0.0))
        self.source._shutdown = True  # torch need not try it again
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(LEAVE_WITHIN)  # of one that waits for a disk that does not answer, the system takes care

    def __del__(self) -> None:
        self.end()


_ALIVE: "weakref.WeakSet[_Waited]" = weakref.WeakSet()
"""Those whose loader processes have not ended."""


@atexit.register
def _end_all() -> None:
    """What is alive when Python ends is ended before multiprocessing waits for it."""
    for waited in list(_ALIVE):
        waited.end(0.0)


def begun(read: Callable[[], T]) -> "Future[T]":
    """``read`` in a thread of its own, one that does not keep the process alive when it hangs."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _death(code: int) -> tuple[str, str]:
    """What to say of the exit code of a loader process, and what to do."""
    if code >= 0:
        return f"ended by itself with code {code}", "find what ends the process with data.workers 0"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    remedy = {
        "SIGKILL": "memory may have run out: lower data.workers or data.batch_size",
        "SIGBUS": "shared memory or a file that shrank: give /dev/shm more room, or lower data.workers",
    }.get(name, "leave that file out, or find the cause with data.workers 0")
    return f"was ended by {name}", remedy


def _state(process: BaseProcess) -> tuple[str, str] | None:
    """What hinders a process, as the system sees it, and what to do; None where it does not say."""
    try:
        letter = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None
    return {
        "T": (f"is stopped (process {process.pid})", f"let it go on: kill -CONT {process.pid}"),
        "D": ("waits for a disk or network drive that does not answer", "mend the drive, or raise data.timeout"),
    }.get(letter)


def _limits(error: BaseException) -> str:
    """What to do about an error that comes from a limit on open files or processes; empty for others."""
    number = getattr(error, "errno", None)
    if number in _NO_ROOM or "Too many open files" in str(error) or "ancdata" in str(error):
        soft = "" if resource is None else f" (now {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
        return f"raise the limit of open files{soft} with ulimit -n 4096, or lower data.workers"
    return "raise the limit of processes, or lower data.workers" if number == errno.EAGAIN else ""


def _raise_descriptor_limit(needed: int) -> None:
    """Allow this process as many open files as loader processes need, as far as it may."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < needed:
            most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
