"""What a file of weights is, by what it begins with, and what others are that were given for one."""

from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.pointers import LONGEST, refuse_pointer

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


def check_file(path: Path) -> None:
    """Raise :class:`UserError` unless ``path`` is a readable file with something in it that is no pointer of Git LFS."""
    if path.is_dir():
        raise UserError(str(path), "expected a file, found a folder", "name a .safetensors file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(LONGEST)
    except FileNotFoundError:
        raise UserError(str(path), "no such file", "check the path") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from error
    if not head:
        raise UserError(str(path), "is empty", "copy or download it again")
    refuse_pointer(path, head)


def file_kind(path: Path) -> str:
    """``safetensors``, ``keras``, or ``pickled``, as ``torch.save`` writes it, by how the file begins. Raises :class:`UserError` as
    :func:`check_file` does, and for what is neither: a web page, an archive, a file of another kind."""
    check_file(path)
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
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
