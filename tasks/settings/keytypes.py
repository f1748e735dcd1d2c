"""The types of the keys, and what jsonargparse does for us: values to types, and the help page.

It is given one key at a time, each of a plain type, and only numbers, truth values and lists of them: of a dataclass or a
whole section it would open files and import modules on a config's word, and any text it would read as YAML once more.
"""

import ast
import difflib
import inspect
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from tasks.settings.sections import Config
from tasks.strictyaml import Plain

ANY = "TASK"
"""Stands in keys for the name of one section of several."""


def leaves(section: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Every key that takes a value: dotted name, type, field; the sections inside are walked through."""
    hints = get_type_hints(section)
    for item in fields(section):
        inner, family = section_of(hints[item.name]), family_of(hints[item.name])
        if inner is not None:
            yield from leaves(inner, f"{prefix}{item.name}.")
        elif family is not None:
            yield from leaves(family, f"{prefix}{item.name}.{ANY}.")
        else:
            yield f"{prefix}{item.name}", hints[item.name], item


def nearest_key(key: str) -> str:
    """Remedy for an unknown dotted ``key``; never the list of all hundred."""
    known = [known for known, _, _ in leaves()]
    if "." not in key:  # a misspelt section, or a key without its section
        close = difflib.get_close_matches(key, sections := [item.name for item in fields(Config)], n=1)
        if key in sections:
            return f"name one of its keys, such as {next(name for name in known if name.startswith(key))}"
        close = close or [name for name in known if name.rpartition(".")[2] == key]
    else:
        close = difflib.get_close_matches(key, known, n=2)
    return f"did you mean {' or '.join(close)}?" if close else "--help lists all keys"


def members_of(hint: Any) -> set[Any]:
    """The types of a union, or the one type."""
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def hint_of(key: str) -> Any:
    """Type of a dotted key (also of a whole nested section, or of one option in a dictionary); None: no such key."""
    names = key.split(".")
    return _hint(Config, names) if len(names) > 1 or key == "plugins" else None


def _hint(section: type, names: list[str]) -> Any:
    hint, rest = get_type_hints(section).get(names[0]), names[1:]
    if hint is None or not rest:
        return hint
    inner = section_of(hint)
    if inner is not None:
        return _hint(inner, rest)
    if get_origin(hint) is not dict or not rest[0]:
        return None
    value = get_args(hint)[1]
    return value if len(rest) == 1 else _hint(value, rest[1:]) if family_of(hint) else None


@cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for key, hint, _ in leaves():
        parser.add_argument(f"--{key}", type=hint)
    return parser


def convert(key: str, hint: Any, value: Plain) -> object:
    """``value`` of the leaf ``key`` as its type; ValueError if it does not fit."""
    members = members_of(hint)
    if value is None:  # the library lets null pass everywhere
        if NoneType not in members:
            raise ValueError("null")
        return None
    if isinstance(value, str):
        return _chosen(value, str in members or any(value in get_args(m) for m in members if get_origin(m) is Literal))
    if isinstance(value, dict):
        return _chosen(value, get_origin(hint) is dict and all(is_option(item) for item in value.values()))
    if isinstance(value, list) and not all(isinstance(item, (int, float)) for item in value):
        return tuple(_chosen(value, tuple[str, ...] in members and all(isinstance(item, str) for item in value)))
    try:
        key = _general(key)
        result = _parser().parse_object({key: value}, defaults=False)[key]
    except (ArgumentError, OverflowError) as error:
        raise ValueError(str(error)) from None
    return result


def _general(key: str) -> str:
    """The key with :data:`ANY` in place of the name of one section of several."""
    top, _, rest = key.partition(".")
    return f"{top}.{ANY}.{rest.partition('.')[2]}" if family_of(get_type_hints(Config)[top]) else key


def _chosen(value: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError("another type")
    return value


def is_option(value: Plain, depth: int = 0) -> bool:
    """Whether a value can be an option: a number, text, truth value, null, or lists of them."""
    if isinstance(value, list):
        return depth < 4 and all(is_option(item, depth + 1) for item in value)
    return not isinstance(value, dict)


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    list: "a list",
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def describe(hint: Any) -> str:
    """A type in words: ``a whole number, a list of 2 whole numbers or null``."""
    members = get_args(hint) if len(members_of(hint)) > 1 else (hint,)
    words = [_describe_one(member) for member in members]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _describe_one(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(arguments)}"
    if get_origin(hint) is tuple:
        return f"a list of {'' if arguments[-1] is Ellipsis else f'{len(arguments)} '}{_PLURALS[arguments[0]]}"
    if get_origin(hint) is dict:
        return "a mapping of options to numbers, texts, truth values or lists"
    return _WORDS.get(hint, str(hint))


def field_docs(section: type) -> dict[str, str]:
    """The string below each field of a dataclass, as written in its source."""
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[ast.unparse(statement.target)] = str(following.value.value)
    return docs


def section_of(hint: Any) -> type | None:
    """The dataclass in a type, if it has one."""
    return next((member for member in members_of(hint) if isinstance(member, type) and is_dataclass(member)), None)


def family_of(hint: Any) -> type | None:
    """The dataclass in a mapping of names to sections of one kind."""
    value = get_args(hint)[1] if get_origin(hint) is dict else None
    return value if isinstance(value, type) and is_dataclass(value) else None


def help_page(usage: str, options: dict[str, str], epilog: str) -> str:
    """The help text: the command's own ``options`` (name to help), then every key of every section with type, range and default."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, usage=usage, epilog=epilog)
    for name, text in options.items():
        parser.add_argument(f"--{name}", metavar=name.upper(), help=text)
    for top in fields(Config):
        hint = get_type_hints(Config)[top.name]
        section, family = section_of(hint), family_of(hint)
        owners = (
            _owners(section, f"{top.name}.")
            if section
            else [(family, f"{top.name}.{ANY}.") if family else (Config, "")]
        )
        for owner, prefix in owners:
            docs, limits = field_docs(owner), getattr(owner, "LIMITS", {})
            group = parser.add_argument_group(prefix.rstrip("."), (owner.__doc__ or "").strip())
            for key, hint, item in leaves(owner, prefix):
                if key == prefix + item.name and (prefix or key == top.name):
                    shown = f"{docs[item.name]} Range {limits[item.name]}." if item.name in limits else docs[item.name]
                    group.add_argument(f"--{key}", type=hint, default=_default(item), help=shown.replace("%", "%%"))
    return str(parser.format_help())


def _owners(section: type, prefix: str) -> Iterator[tuple[type, str]]:
    """A section and the sections inside of it, with their prefixes."""
    yield section, prefix
    for name, hint in get_type_hints(section).items():
        inner = section_of(hint)
        if inner is not None:
            yield from _owners(inner, f"{prefix}{name}.")


def _default(item: Field[Any]) -> object:
    return item.default_factory() if callable(item.default_factory) else item.default
