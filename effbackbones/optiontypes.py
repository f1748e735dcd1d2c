"""Values of options held against the signature that takes them: a text is no number, and ``no`` in quotes is no truth value."""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from effbackbones.errors import UserError, nearest

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The type of each parameter of a function, or of a class's ``__init__``: its annotation, else what its default is."""
    target = inspect.getattr_static(function, "__init__") if isinstance(function, type) else function
    try:
        hints = get_type_hints(target)
    except (NameError, TypeError, AttributeError):  # names that only a type checker knows
        hints = {}
    named = inspect.signature(function).parameters.values()
    return {p.name: hints.get(p.name, _of_default(p.default)) for p in named if p.kind is not p.VAR_KEYWORD}


def field_types(record: object) -> dict[str, Any]:
    """The type of each field of a dataclass instance."""
    hints = get_type_hints(type(record))
    return {field.name: hints.get(field.name, Any) for field in fields(record)}  # type: ignore[arg-type]


def _of_default(default: object) -> Any:
    if isinstance(default, bool | str):
        return type(default)
    return float if isinstance(default, int | float) else Any


def takes_null(hint: Any) -> bool:
    """Whether null is a value of the type ``hint``."""
    return hint is Any or _fits(None, hint)


def checked(where: str, value: Any, hint: Any) -> Any:
    """``value``, which must be of the type ``hint``; :class:`UserError` names ``where``. Types that are not plain take anything."""
    if not _fits(value, hint):
        words = [word for member in _members(hint) for word in [_described(member)] if word and member is not NoneType]
        words = words or ["null"]
        expected = ", ".join(words[:-1]) + (" or " if len(words) > 1 else "") + words[-1]
        got = repr(value[:60]) if isinstance(value, str) else str(value)[:60]
        raise UserError(where, f"expected {expected}, got {got}", _remedy(value, hint))
    return value


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    return any(_fits_one(value, member) for member in _members(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if hint is None or hint is NoneType:
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return _listed(value) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _listed(value) and all(_fits(item, inner[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    return value is not None  # a record, a function, a name that only a type checker knows


def _listed(value: Any) -> bool:
    return not isinstance(value, str | Mapping) and hasattr(value, "__len__") and hasattr(value, "__iter__")


def _described(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} values"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        each = _described(inner[0])
        return f"a list of values, each {each}" if each else "a list of values"
    return getattr(hint, "__name__", "")


def _remedy(value: Any, hint: Any) -> str:
    choices = [word for member in _members(hint) if get_origin(member) is Literal for word in get_args(member)]
    if choices:
        return nearest(str(value), map(str, choices))
    if isinstance(value, str) and bool in _members(hint):
        return "write true or false, without quotes"
    if isinstance(value, str) and {int, float} & set(_members(hint)):
        return "write a number, without quotes"
    return "correct it"
