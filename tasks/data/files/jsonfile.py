"""A large JSON file as a dictionary: what is no JSON is named with its line, and what nobody needs is let go while parsing."""

import gc
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from effbackbones.errors import UserError
from effbackbones.pointers import LONGEST, refuse_pointer

_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', re.DOTALL)
"""Text in quotes, and whether it is a key; where objects begin and end."""
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
"""Text in quotes, or one of the words that Python reads and JSON does not know."""


class Parsed(NamedTuple):
    """``content`` of a file, and the first NaN or Infinity in it: ``word``, and ``line`` from 1; none is "" and 0."""

    content: dict[str, Any]
    word: str = ""
    line: int = 0


def parse(path: Path, skipped: Collection[str] = (), spared: Callable[[dict[str, Any]], bool] | None = None) -> Parsed:
    """The object in a file, without the keys ``skipped`` at any depth, but for objects that are ``spared``. Raises
    :class:`UserError` for what is no object, or no JSON, or has a key twice in one object, with the line."""
    text = _text(path)
    words: list[str] = []

    def constant(word: str) -> float:
        words.append(word)
        return math.nan

    def lightened(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = once(pairs)
        if spared is None or not spared(record):
            for key in skipped:
                record.pop(key, None)
        return record

    try:
        with collector_off():
            content = json.loads(text, object_pairs_hook=lightened, parse_constant=constant)
    except RepeatedKeyError as error:
        raise refuse_repeated(path, text, error) from None
    except json.JSONDecodeError as error:
        end = ", where the file ends: is it cut off?" if not text[error.pos :].strip() else ""
        what = f"is not JSON: {error.msg} at column {error.colno}{end}" if text.strip() else "is empty"
        raise UserError(f"{path}:{error.lineno}", what, "write or copy it again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(str(path), f"is not JSON: {str(error)[:100]}", "write it again") from None
    if not isinstance(content, dict):
        raise UserError(
            str(path),
            f"expected an object, got {word(content)}",
            "name a file of annotations (one of results is a list)",
        )
    return Parsed(content, words[0], _line_of_literal(text)) if words else Parsed(content)


class RepeatedKeyError(Exception):
    """An object of a JSON text has a key twice; its argument is the key."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some keys and values (for ``object_pairs_hook``); a key that is there twice raises :class:`RepeatedKeyError`."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(next(key for place, key in enumerate(keys) if key in keys[:place]))
    return record


def refuse_repeated(path: Path, text: str, error: RepeatedKeyError) -> UserError:
    """What is said of a key that is there twice, with the line of its second place."""
    key = str(error)
    return UserError(
        f"{path}:{_line_of_repeated(text)}", f"the key {key[:60]!r} is there twice in one object", "remove one"
    )


def word(value: Any) -> str:
    """A value in few letters, as JSON."""
    try:
        text = json.dumps(value)
    except ValueError:  # thousands of digits
        text = "a very large number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        refuse_pointer(path, data[:LONGEST])
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", "name a JSON file") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 text (byte {error.start})", "name a JSON file") from None


@contextmanager
def collector_off() -> Iterator[None]:
    """Millions of new objects, none of them garbage, would make the collector look through all of them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _line_of_literal(text: str) -> int:
    """The line (from 1) of the first NaN or Infinity outside of quotes."""
    start = next(found.start() for found in _LITERAL.finditer(text) if found.group(1))
    return text.count("\n", 0, start) + 1


def _line_of_repeated(text: str) -> int:
    """The line (from 1) of the first key that its object has already."""
    open_objects: list[set[str]] = []
    for found in _TOKEN.finditer(text):
        if found.group() == "{":
            open_objects.append(set())
        elif found.group() == "}":
            open_objects.pop()
        elif found.group(2):
            key = json.loads(found.group(1), strict=False)
            if key in open_objects[-1]:
                return text.count("\n", 0, found.start()) + 1
            open_objects[-1].add(key)
    return 1
