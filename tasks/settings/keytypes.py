"""The types of the keys: values to types, and types in words.

Nothing here opens a file or imports a module on a config's word, and no text is read twice.
"""

import ast
import difflib
import inspect
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tasks.settings.checks import Option
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


SYNONYMS = {
    "optim.lr": ("learning_rate", "base_lr", "lr0"),
    "optim.epochs": ("max_epochs", "num_epochs", "n_epochs"),
    "optim.name": ("optimizer", "optimiser", "opt"),
    "optim.schedule": ("scheduler", "lr_scheduler", "lr_schedule"),
    "optim.weight_decay": ("wd",),
    "optim.accumulate": ("accumulate_grad_batches", "grad_accum", "gradient_accumulation_steps"),
    "optim.clip_norm": ("grad_clip", "clip_grad", "gradient_clip_val", "max_grad_norm"),
    "data.batch_size": ("batch", "bs"),
    "data.image_size": ("imgsz", "img_size", "input_size", "resolution"),
    "data.workers": ("num_workers", "n_workers"),
    "data.augment": ("augmentation", "augmentations", "transforms"),
    "model.weights": ("pretrained",),
    "model.backbone": ("arch", "architecture", "encoder"),
    "model.num_classes": ("nc", "n_classes"),
    "run.devices": ("gpus", "num_gpus", "n_gpus"),
    "run.precision": ("amp", "fp16", "bf16", "mixed_precision"),
    "run.patience": ("early_stopping",),
    "run.out": ("output", "output_dir", "out_dir", "save_dir"),
    "run.loggers": ("logger",),
}
"""What other tools call a key."""


def nearest_key(key: str) -> str:
    """Remedy for an unknown dotted ``key``; never the list of all hundred."""
    known = [known for known, _, _ in leaves()]
    for ours, others in SYNONYMS.items():
        if key.rpartition(".")[2].replace("-", "_") in others:
            return f"it is called {ours} here"
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
    return _hint(Config, names) if len(names) > 1 or key in ("plugins", "recipe") else None


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


def convert(hint: Any, value: Plain) -> object:
    """``value`` as the type ``hint``; ValueError if it does not fit. A whole number is a number too, a truth value is none."""
    members = members_of(hint)
    for kind in (NoneType, bool, str, int):
        if kind in members and type(value) is kind:
            return value
    for member in members:
        origin, inner = get_origin(member), get_args(member)
        if member is float and type(value) in (int, float):
            return _float(value)
        if origin is Literal and value in inner:
            return value
        options = origin is dict and isinstance(value, dict)
        if options and (inner[1] != Option or all(is_option(item) for item in value.values())):  # type: ignore[union-attr]  # a dict
            return value
        if origin is tuple and isinstance(value, list) and (inner[-1] is Ellipsis or len(inner) == len(value)):
            return tuple(convert(inner[0], item) for item in value)
    raise ValueError("another type")


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError as error:  # a whole number of hundreds of digits
        raise ValueError(str(error)) from None


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
_STEPS = "transforms, each its name or {name: {argument: value}}"
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def describe(hint: Any) -> str:
    """A type in words: ``a whole number, a list of 2 whole numbers or null``."""
    members = get_args(hint) if len(members_of(hint)) > 1 else (hint,)
    words = [_describe_one(member) for member in members]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _describe_one(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(arguments)}"
    if get_origin(hint) is tuple:
        return (
            f"a list of {'' if arguments[-1] is Ellipsis else f'{len(arguments)} '}{_PLURALS.get(arguments[0], _STEPS)}"
        )
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
