"""Graphs kept on disk: a file for each model, image size and set of versions, below ``graphs`` in the cache folder.

A file is written under another name, flushed, and then renamed: two processes that make the same one, and one that is killed, leave
whole files alone. The folder is bounded: what was not used for longest goes first. It may be deleted at any time.
"""

import contextlib
import hashlib
import inspect
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from effbackbones.model import Model
from effbackbones.weights.hub import cache_folder
from effbackbones.weights.record import versions

MOST_BYTES = 2 * 2**30
"""The folder holds no more; the file that is being used stays."""
_STALE = 3600.0  # seconds after which an unfinished file is nobody's


def graph_folder() -> Path:
    """Where graphs are kept: below ``EFFBACKBONES_CACHE``, default ``~/.cache/effbackbones``."""
    return cache_folder() / "graphs"


def fingerprint(model: Model, *facts: object) -> str:
    """What a graph of ``model`` depends on, as a sha256 in hexadecimal: names, shapes and values of parameters and buffers, the modules and
    the files that define them, the config, versions, and ``facts``."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().clone().view(torch.uint8).numpy().data if tensor.numel() else b"")
    files = {_defined_in(type(module)) for module in model.modules()}
    for file in sorted(file for file in files if file):
        digest.update(Path(file).read_bytes())
    about = (str(model), model.config, model.image_spec, sorted({**versions(), **_of_exporters()}.items()), *facts)
    digest.update(repr(about).encode())
    return digest.hexdigest()


def _defined_in(kind: type) -> str | None:
    try:
        return inspect.getsourcefile(kind)
    except (TypeError, OSError):  # of a notebook, or built in
        return None


def _of_exporters() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("onnx", "onnxscript"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def kept(key: str, make: Callable[[Path], None], *, anew: bool = False) -> tuple[Path, bool]:
    """The file of ``key``, made by ``make`` (path) where there is none, or ``anew``; and whether it was made. Where the folder cannot be
    written the file lies in a temporary one, which is the caller's to delete."""
    path = graph_folder() / f"{key}.onnx"
    if not anew and path.is_file():
        with contextlib.suppress(OSError):  # of somebody else's folder
            os.utime(path)
        return path, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{key[:12]}.", suffix=".onnx", dir=path.parent)
    except OSError:
        descriptor, name = tempfile.mkstemp(suffix=".onnx")
        path = Path(name)
    os.close(descriptor)
    written = Path(name)
    try:
        make(written)
        with open(written, "rb") as file:
            os.fsync(file.fileno())
        os.replace(written, path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    _bound(path)
    return path, True


def _bound(newest: Path) -> None:
    """Delete what was not used for longest, and what a killed process left behind."""
    found = []
    for path in newest.parent.glob("*.onnx") if newest.parent == graph_folder() else ():
        with contextlib.suppress(OSError):  # another process may be deleting too
            about = path.stat()
            if path.name.startswith("."):
                if time.time() - about.st_mtime > _STALE:
                    path.unlink()
                continue
            found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= MOST_BYTES:
            break
        if path != newest:
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
