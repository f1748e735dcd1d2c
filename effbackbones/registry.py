"""Names to classes. Three doors: the decorators, entry points of installed packages, and built-ins named by import string.

Looking up a name is all that happens here; building is the caller's, outside of any ``try``.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from effbackbones.errors import UserError, nearest

T = TypeVar("T")
_HOUSE = Path(__file__).resolve().parent.parent


def _owner(thing: Any) -> str:
    """Where a registered object was defined: file and qualified name."""
    try:
        file = inspect.getfile(thing)
    except TypeError:
        file = getattr(thing, "__module__", "?")
    return f"{file}:{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def import_built_in(target: str) -> Any:
    """Import ``module:attribute`` of this distribution; another package of that name in front of ours is named."""
    module_name, _, attribute = target.partition(":")
    module = importlib.import_module(module_name.partition(".")[0])
    # A namespace package or a module of the user's called `heads` would otherwise fail far from its cause.
    where = Path(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ["?"])))).resolve()
    if _HOUSE not in where.parents:
        raise UserError(
            str(where),
            f"stands in front of effbackbones' own package {module.__name__!r}",
            "rename it, or run the console scripts from another folder",
        )
    return getattr(importlib.import_module(module_name), attribute)


class Registry:
    """One table of names. Order of lookup: registered in this process, built-in, entry point; none of them twice.

    ``patterns`` are built-in too: regular expressions for names that cannot be listed.
    """

    def __init__(
        self,
        kind: str,
        built_in: Mapping[str, str] = {},
        aliases: Mapping[str, str] = {},
        patterns: Mapping[str, str] = {},
    ) -> None:
        self.kind = kind
        self.group = f"effbackbones.{kind}s"
        self._built_in = dict(built_in)
        self._aliases = dict(aliases)
        self._patterns = dict(patterns)
        self._registered: dict[str, Any] = {}

    def target(self, name: str) -> str | None:
        """The import string of a built-in name, None for others."""
        found = (target for pattern, target in self._patterns.items() if re.fullmatch(pattern, name))
        return self._built_in.get(name) or next(found, None)

    def _entry(self, name: str) -> EntryPoint | None:
        """The entry point of an installed package that stands for ``name``.

        A name that stands for two things raises :class:`UserError` naming both, so that none wins by the order of a search path.
        """
        entries = [entry for entry in _installed(self.group) if self.canonical(entry.name) == name]
        theirs = self._registered.get(name)
        for entry in entries:
            owner = self.target(name) or (None if theirs is None or _made_by(theirs, entry) else _owner(theirs))
            remedy = f"uninstall {_distribution(entry)}"
            if entry.value != entries[0].value:
                owner, remedy = _package(entries[0]), "uninstall one of these packages"
            if owner:
                raise UserError(f"{self.kind} {name!r}", f"is both {owner} and {_package(entry)}", remedy)
        return entries[0] if entries else None

    def names(self) -> list[str]:
        """All known names, sorted, without aliases and without those of ``patterns``; also one of two owners, which :meth:`get`
        refuses."""
        _read_installed.cache_clear()  # a notebook may have installed something
        installed = {self.canonical(entry.name) for entry in _installed(self.group)}
        return sorted({*self._registered, *self._built_in, *(name for name in installed if not self.target(name))})

    def is_built_in(self, name: str) -> bool:
        """Whether ``get(name)`` gives a class of this distribution."""
        name = self.canonical(name)
        return name not in self._registered and self.target(name) is not None

    @contextmanager
    def temporary(self, things: Mapping[str, Any], *, alone: bool = False) -> Iterator[None]:
        """Within, ``things`` are registered too, or (``alone``) instead of what was; afterwards all is as before. For tests."""
        kept = self._registered
        self._registered = {**({} if alone else kept), **things}
        try:
            yield
        finally:
            self._registered = kept

    def canonical(self, name: str) -> str:
        """``name`` with an alias resolved; nothing is looked up."""
        return self._aliases.get(name, name)

    def room(self, name: str) -> str | None:
        """The first two parts of the module that a built-in name lies in (``heads.detection``), None for others."""
        target = self.target(self.canonical(name))
        return ".".join(target.partition(":")[0].split(".")[:2]) if target else None

    def aliases(self, name: str) -> list[str]:
        """Other words for ``name``."""
        return sorted(alias for alias, meant in self._aliases.items() if meant == name)

    def owner(self, name: str) -> str:
        """Who registered ``name``: file and qualified name, or import string and package; empty for what is built in and not known."""
        if name in self._registered:
            return _owner(self._registered[name])
        entry = None if self.target(name) else self._entry(name)
        return _package(entry) if entry else ""

    def spoken(self, name: str) -> str:
        """The alias of ``name`` that people write, ``name`` itself where it has none."""
        return next((alias for alias, meant in self._aliases.items() if meant == name), name)

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or factory under ``name``.

        A name that is taken raises :class:`UserError` naming both owners; defining the same object again (re-running a
        notebook cell) replaces it.
        """
        if not isinstance(name, str):  # the decorator without its brackets would register nothing, and say nothing
            what = f"expected a name, got {getattr(name, '__name__', type(name).__name__)}"
            raise UserError(f"register a {self.kind}", what, 'write the decorator with one: @register_...("name")')

        def decorate(thing: T) -> T:
            owner = self.target(self.canonical(name))
            if name in self._registered and not _redefined(self._registered[name], thing):
                owner = _owner(self._registered[name])
            if owner:
                raise UserError(
                    f"{self.kind} {name!r}",
                    f"belongs to {owner}, and {_owner(thing)} asks for it",
                    "choose another name",
                )
            self._registered[name] = thing
            return thing

        return decorate

    def get(self, name: str) -> Any:
        """The class or factory of ``name``; an unknown name raises :class:`UserError` with the nearest known ones."""
        name = self.canonical(name)
        entry = self._entry(name)
        if name in self._registered:
            return self._registered[name]
        if target := self.target(name):
            return import_built_in(target)
        known = "" if entry else nearest(name, self.names(), self._aliases)
        entry = entry or self._entry(name)  # of what was installed meanwhile
        if entry:
            return entry.load()
        raise UserError(
            f"{self.kind} {name!r}", "no such name", f"{known}; your own must be imported first (`plugins:`)"
        )


@cache
def _read_installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of a group on a search path. Kept, for they take milliseconds to read, and names are asked for in every batch."""
    return tuple(entry_points(group=group))


def _installed(group: str) -> tuple[EntryPoint, ...]:
    return _read_installed(group, tuple(map(str, sys.path)))


def _made_by(thing: Any, entry: EntryPoint) -> bool:
    """Whether a registered object is the one that an entry point names: a package may use both doors."""
    return entry.value == f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _package(entry: EntryPoint) -> str:
    return f"{entry.value} ({_distribution(entry)})"


def _redefined(old: Any, new: Any) -> bool:
    """Whether ``new`` is ``old`` defined again: a module reloaded, or a notebook cell, which has a new file name each time."""
    old, new = (thing if hasattr(thing, "__qualname__") else type(thing) for thing in (old, new))
    same_name = (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return same_name and (old.__module__ == "__main__" or _owner(old) == _owner(new))


_EFFICIENTNETS = [f"b{i}" for i in range(8)] + [f"lite{i}" for i in range(5)]
BACKBONES = Registry(
    "backbone",
    dict.fromkeys(_EFFICIENTNETS, "effbackbones.backbones.efficientnet:EfficientNet"),
    {f"efficientnet_{name}": name for name in _EFFICIENTNETS},
    {
        r"(b|lite)-?\d+\.\d+": "effbackbones.backbones.efficientnet:EfficientNet",  # in between, such as b2.5
        r"timm:.*": "effbackbones.backbones.timm_backbone:TimmBackbone",
        r"sound:.*": "effbackbones.backbones.sound:SoundBackbone",  # any of them behind a spectrogram
    },
)
HEADS = Registry(
    "head",
    {
        "classification": "heads.classification:ClassificationHead",
        "sed": "heads.sed:SedHead",
        "efficientdet": "heads.detection.efficientdet:EfficientDetHead",
        "retinanet": "heads.detection.retinanet:RetinaNetHead",
        "ssd": "heads.detection.ssd:SSDHead",
        "fcos": "heads.detection.fcos:FCOSHead",
        "yolo": "heads.detection.yolo:YoloHead",
        "unet": "heads.segmentation.ushaped:UNetHead",
        "unetplusplus": "heads.segmentation.ushaped:UNetPlusPlusHead",
        "manet": "heads.segmentation.ushaped:MAnetHead",
        "linknet": "heads.segmentation.ushaped:LinkNetHead",
        "segformer": "heads.segmentation.ushaped:SegFormerHead",
        "fpn": "heads.segmentation.pyramids:FPNHead",
        "upernet": "heads.segmentation.pyramids:UPerNetHead",
        "pspnet": "heads.segmentation.pyramids:PSPNetHead",
        "deeplabv3": "heads.segmentation.pyramids:DeepLabV3Head",
        "deeplabv3plus": "heads.segmentation.pyramids:DeepLabV3PlusHead",
        "pan": "heads.segmentation.pyramids:PANHead",
        "dpt": "heads.segmentation.pyramids:DPTHead",
    },
    {"bifpn": "efficientdet", "ssdlite": "ssd", "unet++": "unetplusplus", "deeplabv3+": "deeplabv3plus"},
)
TASKS = Registry(
    "task",
    {
        "cls": "tasks.classification.task:TASK",
        "det": "tasks.detection.task:TASK",
        "seg": "tasks.segmentation.task:TASK",
        "multi": "tasks.multitask.task:TASK",
    },
    {"classify": "cls", "detect": "det", "segment": "seg", "joint": "multi"},
)
# How the heads of other libraries' files are recognised: functions of a `Remainder`, which answer with a `ForeignHead` or None.
LAYOUTS = Registry(
    "layout",
    {
        "efficientdet": "heads.detection.efficientdet_names:read_detector",
        "smp": "heads.segmentation.smp_names:read_segmenter",
    },
)
COMMAND = "tasks.run:main"
"""What the distribution installs as ``effbackbones``."""
DEFAULT_HEADS = {"cls": "classification", "det": "efficientdet", "seg": "unet"}
ROOMS_OF_HEADS = {
    "cls": ("heads.classification", "heads.sed"),
    "det": ("heads.detection",),
    "seg": ("heads.segmentation",),
}
"""Where our heads for a task lie, so that they can be told apart without being loaded."""
DEFAULT_CLASSES = {"cls": 1000, "det": 80, "seg": 21}


def register_backbone(name: str) -> Callable[[T], T]:
    """Register a :class:`Backbone` subclass, or a factory of one, under ``name``; called with the options asked for."""
    return BACKBONES.register(name)


def register_head(name: str) -> Callable[[T], T]:
    """Register a :class:`Head` subclass under ``name``."""
    return HEADS.register(name)


def list_backbones() -> list[str]:
    """Names for ``create_backbone``, sorted; any ``timm:NAME``, and ``sound:`` before each of them, come on top."""
    return BACKBONES.names()


def list_heads() -> list[str]:
    """Names for ``build_model(head=...)``, sorted."""
    return HEADS.names()
