"""Files of tensors in the safetensors format: read, and written so that no crash can spoil them; and what other files are.

Every fault of a file is one :class:`UserError` that names it.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.weights.kinds import check_file

_BLANK = b"0" * 64
_BLANK_FIELD = b'"sha256":"' + _BLANK + b'"'


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises as :func:`check_file` does."""
    check_file(path)
    return path.read_bytes()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file on the CPU, by name, and its metadata. Ours are checked against the sha256 they carry."""
    return parse_safetensors(read_bytes(path), path)


def parse_safetensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file given as bytes; ``path`` is for messages."""
    metadata = header(data, path).get("__metadata__", {})
    if {"sha256", "record"} <= metadata.keys():  # others may have a key of that name, which says something else
        _verify(data, metadata["sha256"], path)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise _damaged(path, str(error)) from None
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def read_header(path: Path) -> dict[str, Any]:
    """As :func:`header`, of a file of which nothing else is read."""
    check_file(path)
    with open(path, "rb") as file:
        length = file.read(8)
        return header(length + file.read(min(int.from_bytes(length, "little"), path.stat().st_size)), path)


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
    """:func:`write_parts` of a file that is in memory."""
    write_parts(path, [data])


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Replace ``path`` by a file of ``parts``, or leave it as it was; on return it is on disk, folder entry included.

    The temporary file lies in the target folder (a rename does not cross file systems) under a fixed name, so a kill
    leaves at most one, which the next save overwrites. One writer per path.
    """
    temporary, size = path.with_name(f".{path.name}.tmp"), 0
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                size += len(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(str(path), f"there is no folder {path.parent}", "make it, or correct the path") from error
        temporary.unlink(missing_ok=True)
        raise UserError(
            str(path), f"cannot write {size:,} bytes ({error.strerror})", "free space or choose another folder"
        ) from error
    except BaseException:  # of what makes the parts
        temporary.unlink(missing_ok=True)
        raise


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
