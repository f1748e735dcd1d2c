"""Files that ``torch.save`` wrote, read without running what they hold. The only place that calls ``torch.load``.

Training scripts put more than tensors into them: arguments, configs, numbers of numpy, whole modules. torch's restricted reader
builds none of these, and neither do we: a stand-in takes the place of each object of such a class, does nothing with what the file
gives it, and is counted. Only classes are stood in for, told by their names, and none of modules that a file of weights has no
business with: what calls functions, or runs programs, is refused unread.
"""

import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from effbackbones.errors import UserError

_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_DEPTH = 6
"""How deep wrappers are looked into."""
_MOST = 200
"""Classes that a file may name."""
_PLAIN = ("bool", "dict", "float", "frozenset", "int", "list", "object", "slice", "str", "tuple")
_NAMED = frozenset(
    [f"builtins.{name}" for name in _PLAIN]
    + [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
    + ["numpy.dtype", "numpy.ndarray", "collections.defaultdict", "collections.deque", "copyreg._reconstructor"]
    + [f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta")]
    + ["functools.partial", "uuid.UUID"]
)
"""Names of classes, and of what makes numbers of numpy, in lower case."""
_SYSTEM = frozenset(
    [
        "_io",
        "_pickle",
        "asyncio",
        "bdb",
        "builtins",
        "cloudpickle",
        "code",
        "codeop",
        "commands",
        "concurrent",
        "ctypes",
        "dill",
        "http",
        "importlib",
        "inspect",
        "io",
        "joblib",
        "marshal",
        "multiprocessing",
        "nt",
        "os",
        "pdb",
        "pickle",
        "pip",
        "pkgutil",
        "posix",
        "posixpath",
        "pty",
        "pydoc",
        "runpy",
        "shelve",
        "shutil",
        "signal",
        "site",
        "socket",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "types",
        "urllib",
        "webbrowser",
        "zipimport",
    ]
)
"""Packages of which no class is stood in for."""


class StandIn:
    """What is made in place of an object of a class that a file names; ``named`` is that class. ``state`` is what the file set it
    to, untouched."""

    named: ClassVar[str] = ""
    state: Any = None

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Table(StandIn):
    """Dictionaries of classes of their own, which the reader fills as it does its own."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return OrderedDict()


class _Listed(list[Any]):
    """Lists of classes of their own."""

    named: ClassVar[str] = ""

    def __setstate__(self, state: Any) -> None:
        pass


def read_tables(path: Path) -> tuple[dict[str, dict[str, Tensor]], tuple[str, ...]]:
    """State dicts in a file, by the dotted place where each was found (``""``: at the top), and its top entries that are no tensors,
    with their class where that is not plain. Raises :class:`UserError` for a file without tensors."""
    whole, dropped = read_objects(path)
    tables = dict(_tables(whole, ""))
    if not tables:
        held = f"; it holds {', '.join(dropped[:3])}" if dropped else ""
        remedy = "expected tensors by name, at the top or under a name such as `state_dict` or `model`"
        raise UserError(str(path), f"holds no state dict{held}", remedy)
    return tables, tuple(_others(whole))


def _tables(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    value = module_state(value) or value
    if not isinstance(value, dict) or depth > _DEPTH:
        return
    # By the methods of dict: a file may have set attributes of the same names.
    tensors = {str(key): item for key, item in dict.items(value) if isinstance(item, Tensor)}
    if tensors:
        yield place, tensors
    for key, item in dict.items(value):
        if not isinstance(item, Tensor):
            yield from _tables(item, f"{place}.{key}" if place else str(key), depth + 1)


def _others(whole: Any) -> Iterator[str]:
    for key, item in dict.items(whole) if isinstance(whole, dict) else ():
        if isinstance(item, StandIn) and module_state(item) is None:
            yield f"{key} ({item.named})"
        elif not isinstance(item, Tensor):
            yield str(key)


def read_objects(path: Path) -> tuple[Any, tuple[str, ...]]:
    """What ``torch.save`` wrote: tensors, numbers and text in plain containers, and a :class:`StandIn` for each object of another
    class; the names of these classes. What would run code is refused unread."""
    if os.environ.get(_UNSAFE, "").lower() in ("1", "y", "yes", "true"):
        raise UserError(_UNSAFE, "is set, which lets files run code as they are opened", "unset it")
    classes: dict[str, type] = {}
    while True:
        found = read_pickled(path, classes)
        if not isinstance(found, _Unknown):
            return found, tuple(classes)
        if not _inert(found.name) or found.name in classes or len(classes) >= _MOST:
            what = f"holds more than tensors ({found.name})"
            raise UserError(str(path), what, "get it again, or convert it to safetensors")
        classes[found.name] = _stand_in(found.name)


class _Unknown(str):
    """A class or function that the reader does not build."""

    @property
    def name(self) -> str:
        return f"builtins.{self}" if "." not in self else str(self)


def read_pickled(path: Path, classes: Mapping[str, type]) -> Any:
    """One try, with stand-ins for ``classes``; :class:`_Unknown` where there is one more."""
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (kind, name) for name, kind in classes.items()
    ]
    try:
        with open(path, "rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # advice on odd pickle protocols, for files that are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # damaged bytes fail inside the zip reader, the unpickler or the tensor code, with any exception
        # torch's own text advises to switch the protection off; only the name of what it refused is of use.
        if unknown := re.search(r"Unsupported global: GLOBAL ([\w.]+) was not", str(error)):
            return _Unknown(unknown[1])
        refused = re.search(r"unsupported GLOBAL ([\w.]+)", str(error))
        refused = refused or re.search(r"Unsupported (?:class|operand).*?([\w.]+\.\w+)", str(error))
        if refused:
            what = f"holds more than tensors ({refused[1]})"
        elif "TorchScript" in str(error):
            what = "is a TorchScript program, not a file of tensors"
        elif (held := _archived(path)) is not None:
            what = f"is a ZIP archive of other files ({held})"
        else:
            what = f"is damaged or no file of tensors ({type(error).__name__})"
        raise UserError(str(path), what, "get it again, or convert it to safetensors") from None


def _archived(path: Path) -> str | None:
    """The first names in a ZIP archive that ``torch.save`` did not write; None for what is no such archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged bytes fail in the zip reader with any exception, names that are no text among them
        return None
    return None if any(name.endswith("/data.pkl") for name in names) else ", ".join(names[:3]) or "empty"


def _inert(name: str) -> bool:
    """Whether ``name`` is a class that ordinary checkpoints hold objects of."""
    if name in _NAMED:
        return True
    package, last = name.partition(".")[0], name.rpartition(".")[2]
    return package not in _SYSTEM and last[:1].isupper()


def _stand_in(name: str) -> type:
    last = name.rpartition(".")[2]
    like = last.lower()
    base: type = StandIn
    if (like.endswith("dict") and last != "dict") or last in ("CfgNode", "Munch", "Box"):
        base = _Table
    elif like.endswith("list") and last != "list":
        base = _Listed
    return type(last, (base,), {"named": name})


def module_state(value: object) -> dict[str, Tensor] | None:
    """The state dict of a whole module that was saved, read off its stand-ins; None for anything else."""
    if not isinstance(value, StandIn) or not isinstance(value.state, dict):
        return None
    parameters, buffers, modules = (value.state.get(name) for name in ("_parameters", "_buffers", "_modules"))
    if not (isinstance(parameters, dict) and isinstance(buffers, dict) and isinstance(modules, dict)):
        return None
    passing = value.state.get("_non_persistent_buffers_set") or ()
    own = {**parameters, **{name: item for name, item in buffers.items() if name not in passing}}
    found = {str(name): item for name, item in own.items() if isinstance(item, Tensor)}
    for name, module in modules.items():
        found |= {f"{name}.{key}": item for key, item in (module_state(module) or {}).items()}
    return found
