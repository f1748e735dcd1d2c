"""Files of tensors: reading foreign ones without running their code, writing ours so that no crash can spoil them.

The only place that calls ``torch.load``. Every fault of a file is one :class:`UserError` that names it.
"""

import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from effbackbones.errors import UserError

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_BLANK = b"0" * 64
_BLANK_FIELD = b'"sha256":"' + _BLANK + b'"'


def check_file(path: Path) -> None:
    """Raise :class:`UserError` unless ``path`` is a readable file with something in it."""
    if path.is_dir():
        raise UserError(str(path), "expected a file, found a folder", "name a .safetensors file in it")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise UserError(str(path), "is empty", "copy or download it again")
    except FileNotFoundError:
        raise UserError(str(path), "no such file", "check the path") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises as :func:`check_file` does."""
    check_file(path)
    return path.read_bytes()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` file on the CPU, by name, and its metadata
    (safetensors only).

    Wrappers such as ``{"state_dict": ...}`` are opened. Our own safetensors files are checked against the sha256 they carry.
    """
    if path.suffix == ".safetensors" or path.is_dir():
        return parse_safetensors(read_bytes(path), path)
    if path.suffix not in PICKLED:
        raise UserError(str(path), f"unknown suffix {path.suffix!r}", f"expected .safetensors, {', '.join(PICKLED)}")
    return _tensors_in(read_pickled(path), path), {}


def read_pickled(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors in plain containers. Anything else, such as code, is refused unread."""
    if os.environ.get(_UNSAFE, "").lower() in ("1", "y", "yes", "true"):
        raise UserError(_UNSAFE, "is set, which lets files run code as they are opened", "unset it")
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on odd pickle protocols, for files that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # damaged bytes fail inside the zip reader, the unpickler or the tensor code, with any exception
        # torch's own text advises to switch the protection off; only the name of what it refused is of use.
        refused = re.search(r"Unsupported (?:global|class|operand).*?([\w.]+\.\w+)", str(error))
        what = (
            f"holds more than tensors ({refused[1]})"
            if refused
            else f"is damaged or no file of tensors ({type(error).__name__})"
        )
        raise UserError(str(path), what, "get it again, or convert it to safetensors") from None


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside ``content``, through the wrappers that training scripts put around it."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        content = next(
            (content[key] for key in ("state_dict", "model", "model_state_dict", "net") if key in content), None
        )
    raise UserError(
        str(path), "holds no state dict", "expected tensors by name, at the top or under `state_dict` or `model`"
    )


def parse_safetensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file given as bytes; ``path`` is for messages."""
    metadata = header(data, path).get("__metadata__", {})
    if "sha256" in metadata:
        _verify(data, metadata["sha256"], path)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise _damaged(path, str(error)) from None
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def header(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: 8 bytes of length, little-endian, then the text."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise _damaged(path, "its header is longer than the file")
    try:
        found = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("__metadata__", {}), dict):
        raise _damaged(path, "its header is not a table")
    return found


def _damaged(path: Path, why: str) -> UserError:
    return UserError(str(path), f"is damaged or not a safetensors file ({why[:120]})", "copy or download it again")


def _verify(data: bytes, digest: object, path: Path) -> None:
    """Check the sha256 that :func:`pack` wrote; it covers every byte of the file, itself counted as zeros."""
    field = f'"sha256":"{digest}"'.encode()
    found = hashlib.sha256(data.replace(field, _BLANK_FIELD, 1)).hexdigest()
    if found != digest:
        what = f"its content was changed: sha256 expected {str(digest)[:12]}..., found {found[:12]}..."
        raise UserError(str(path), what, "copy it again from where it was whole")


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file as bytes, with a sha256 over all of it in its metadata; the same content gives the same bytes."""
    whole: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # Tied parameters share memory, which the format refuses; each name gets its own copy.
        whole[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    data = safetensors.torch.save(whole)
    body = memoryview(data)[8 + int.from_bytes(data[:8], "little") :]
    # The library writes metadata in random order, so the header is written again. Quotes inside values are escaped: the
    # blank digest can only be the field itself.
    table = {"__metadata__": {**metadata, "sha256": _BLANK.decode()}, **header(data, Path())}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blank = len(text).to_bytes(8, "little") + text + body
    return blank.replace(_BLANK_FIELD, f'"sha256":"{hashlib.sha256(blank).hexdigest()}"'.encode(), 1)


_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""How file systems (CIFS, FUSE) say that they cannot bring a folder to the disk; the file itself is there."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file of ``data``, or leave it as it was; on return it is on disk, folder entry included.

    The temporary file lies in the target folder (a rename does not cross file systems) under a fixed name, so a kill
    leaves at most one, which the next save overwrites. One writer per path.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            str(path), f"cannot write {len(data):,} bytes ({error.strerror})", "free space or choose another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
