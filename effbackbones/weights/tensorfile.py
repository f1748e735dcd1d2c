"""Files of tensors in the safetensors format: read, and written so that no crash can spoil them; and what other files are.

Every fault of a file is one :class:`UserError` that names it.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from effbackbones.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar", ".h5", ".hdf5", ".keras")
"""How files of weights are called. A name says no more: what they are is told by what they begin with."""
_KERAS_FIRST = (b"metadata.json", b"config.json", b"model.weights.h5")
"""With one of these a ``.keras`` file begins, which is a zip."""
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
}
_OTHERS = {
    b"\x93NUMPY": "is an array of NumPy, without names",
    b"GGUF": "is a GGUF file",
    b"\x08": "looks like an ONNX graph",  # its first field, of which each has one
}
"""How files of other kinds begin."""
_FEW = 3  # a new head may be all 0
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


def file_kind(path: Path) -> str:
    """``safetensors``, ``keras``, or ``pickled``, as ``torch.save`` writes it, by how the file begins. Raises :class:`UserError` as
    :func:`check_file` does, and for what is neither: a web page, a pointer of Git LFS, an archive, a file of another kind."""
    check_file(path)
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(str(path), "is a pointer of Git LFS, not the file that it stands for", "run git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(str(path), "is a web page, not a file of weights", "download the file that the page links to")
    if head.startswith(b"\x89HDF") or (head.startswith(b"PK\x03\x04") and head[30:].startswith(_KERAS_FIRST)):
        return "keras"
    if (
        head[5:9] == b"\0\0\0{"
    ):  # before pickles: the length in front of it may begin with the byte that they begin with
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pickled"
    if head[8:9] == b"{" or path.suffix.lower() == ".safetensors":
        return "safetensors"
    _refuse_other_kinds(path, head)
    return "pickled"


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    """Raise :class:`UserError` for a file whose first bytes say that it is something else."""
    packed = next((name for start, name in _COMPRESSED.items() if head.startswith(start)), None)
    if packed or head[257:262] == b"ustar":
        raise UserError(str(path), f"is packed ({packed or 'tar'})", "unpack it, and name the file in it")
    if head.lstrip()[:1] in (b"{", b"["):
        index = (
            "is the index of a model in several files"
            if b'"weight_map"' in head or "index" in path.name
            else "is JSON text"
        )
        raise UserError(str(path), f"{index}, without weights", "name a file of tensors")
    what = next((what for start, what in _OTHERS.items() if head.startswith(start)), None)
    what = "is a TensorFlow Lite graph" if head[4:8] == b"TFL3" else what
    if what:
        raise UserError(str(path), what, "name a file of tensors, as torch.save or safetensors write it")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file on the CPU, by name, and its metadata. Ours are checked against the sha256 they carry."""
    return parse_safetensors(read_bytes(path), path)


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse numbers that are not finite, variances below 0 and weights that are all 0: a network would answer with them, and
    nonsense. So are tensors refused that are no plain numbers."""
    weights = [tensor for tensor in tensors.values() if tensor.ndim > 1]
    for name, tensor in tensors.items():
        if odd := _odd_kind(tensor):
            raise UserError(str(path), f"{name} is {odd}", "save it as plain numbers in floating point")
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            what = f"{name} has {count:,} of {tensor.numel():,} values that are NaN or infinite"
        elif name.endswith("running_var") and tensor.numel() and tensor.min() < 0:
            what = f"{name} has variances below 0, such as {float(tensor.min()):.3g}"
        else:
            continue
        raise UserError(str(path), what, "take an earlier checkpoint, or get the file again")
    if len(weights) > _FEW and not any(bool(tensor.any()) for tensor in weights):
        raise UserError(str(path), "every weight in it is 0", "take an earlier checkpoint, or get the file again")


def _odd_kind(tensor: Tensor) -> str:
    """What a tensor is that no network here can take; empty for plain numbers."""
    if tensor.is_meta:
        return "a shape without values (device meta)"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.is_complex():
        return f"complex ({tensor.dtype})"
    return "" if tensor.layout == torch.strided else f"sparse ({tensor.layout})"


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
