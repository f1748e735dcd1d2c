"""How the backbones of a name are made, and with which options."""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.contracts import Backbone
from effbackbones.errors import UserError
from effbackbones.optiontypes import parameter_types
from effbackbones.registry import BACKBONES


class Family(NamedTuple):
    """How the backbones of a name are made: ``make(**options)``, the options that it ``takes`` and the ``known`` ones, which users
    may give. ``kind`` reads their weights: the class itself, or the contract's for a factory that is no class."""

    kind: type[Backbone]
    make: Callable[..., Any]
    takes: Collection[str]
    known: Collection[str]
    types: Mapping[str, Any]
    """Of the known ones, as the signature says them."""


def family_of(name: str) -> Family:
    """The family of the backbone ``name``, whose alias is resolved; an unknown one raises :class:`UserError`."""
    try:
        factory = BACKBONES.get(name)
    except UserError:
        import timm  # slow to import, and only a hint

        if timm.is_model(name):
            raise UserError(f"backbone {name!r}", "no such name here, but timm has it", f"write timm:{name}") from None
        raise
    # A built-in class serves many names; what was registered serves one, and is not told it.
    make = partial(factory, name) if BACKBONES.is_built_in(name) else factory
    kind = factory if isinstance(factory, type) and issubclass(factory, Backbone) else Backbone
    types = kind.option_types(name)
    if types is None:
        parameters, types = inspect.signature(factory).parameters, parameter_types(factory)
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # those of the EfficientNets, then
            types = parameter_types(EfficientNet)
    takes = [key for key in types if key not in ("self", "name", "weights")]
    return Family(kind, make, takes, [key for key in takes if key != "pretrained"], types)
