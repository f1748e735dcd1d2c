"""The lock of a run folder: one of the system's, which ends with its process however that ends, and which no child inherits."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from effbackbones.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]  # a module or nothing

_HELD: set[int] = set()
"""Files of the locks that this process holds."""
_IN_USE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def _leave_to_parent() -> None:
    """A forked loader shares the parent's open files: as long as one has this open, the folder would count as in use."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class FolderLock:
    """The file ``lock`` in a folder, locked. Where the file system has no locks (some of NFS and Lustre), this is told, and
    nothing keeps two runs apart."""

    NAME = "lock"

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self.path, self.tell = folder, folder / self.NAME, tell
        self._handle = -1

    def take(self) -> None:
        """Lock it; :class:`UserError` if another process has."""
        while True:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock()
            except BaseException:
                os.close(self._handle)
                raise
            if fcntl is None or self._is_at_path():
                break
            os.close(self._handle)  # its owner removed it between our opening and our locking: it guards nothing
        _HELD.add(self._handle)
        os.truncate(self._handle, 0)
        os.write(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Unlock it, and remove the file; nothing if it is not held."""
        if self._handle not in _HELD:
            return
        if fcntl is not None:  # other systems remove no open file
            self.path.unlink(missing_ok=True)
        _HELD.discard(self._handle)
        os.close(self._handle)
        if fcntl is None:
            self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _IN_USE:  # ENOLCK, ENOSYS, ENOTSUP, EINVAL: by file system
                self.tell(f"warning: {self.folder} cannot be locked ({error.strerror}): start no second run there")
                return
            owner = os.read(self._handle, 200).decode(errors="replace").strip() or "another process"
            raise UserError(str(self.folder), f"is used by {owner}", "wait for it, or choose another run.out") from None

    def _is_at_path(self) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.fstat(self._handle), self.path.stat())
        except FileNotFoundError:
            return False
