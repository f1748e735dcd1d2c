"""Strict YAML: text to a tree of plain values with the line of every key, and back.

Stricter than YAML 1.1 where that bites: a key given twice, any tag, a second document, too large or too deep a file is
refused, as is a whole number that begins with 0; ``1e-4`` is a number, ``None`` is null, ``no`` and ``1:30`` are text. Aliases count
as often as they are used.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from effbackbones.errors import UserError
from effbackbones.pointers import LONGEST, refuse_pointer

MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 20_000, 32
_TAG = "tag:yaml.org,2002:"
_SCALARS = (  # YAML 1.2 core schema, plus the spelling None; a plain scalar that fits none is text
    ("null", r"^(~|null|Null|NULL|None|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
)
Plain = int | float | str | bool | None | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True)
class Tree:
    """Content of a file: nested dictionaries, and for each dotted key where it stands (``file:line``)."""

    values: dict[str, Plain]
    places: dict[str, str]


class _Loader(yaml.SafeLoader):
    """Composes nodes under limits, so that nothing large is ever built; never constructs objects."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    nodes = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            what = (
                f"more than {MAX_NODES} values" if self.nodes > MAX_NODES else f"values nested deeper than {MAX_DEPTH}"
            )
            raise _RefusedError(what, self.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that :class:`_Loader` would not read as text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence(_TAG + "seq", data, flow_style=True))
_Dumper.add_representer(
    str, lambda dumper, data: dumper.represent_scalar(_TAG + "str", data, style='"' if "\n" in data else None)
)
for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


class _RefusedError(Exception):
    """What is wrong, and in which line (counted from 1)."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _scalar(node: yaml.ScalarNode) -> int | float | str | bool | None:
    kind, text = node.tag.removeprefix(_TAG), str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind not in ("int", "float"):
        return text
    if len(text) > 30:  # Python refuses to read thousands of digits, with an error of its own
        raise _RefusedError("a number of more than 30 digits", _line(node))
    if kind == "int" and re.fullmatch("[-+]?0[0-9]+", text):  # octal in YAML 1.1, decimal in 1.2, often meant as a name
        raise _RefusedError(f"{text}, a whole number that begins with 0 (in quotes it is text)", _line(node))
    try:
        return int(text) if kind == "int" else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # an explicit tag on something else: `!!int abc`
        raise _RefusedError(f"the tag {node.tag!r} on {text!r}", _line(node)) from None


class _Builder:
    """Nodes to plain values, counting every use of an alias and noting the line of every key."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[str, str] = {}
        self._count = 0
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: str = "") -> Plain:
        self._count += 1
        if self._count > MAX_NODES:
            raise _RefusedError(f"aliases that expand to more than {MAX_NODES} values", _line(node))
        if id(node) in self._open:
            raise _RefusedError("an alias that contains itself", _line(node))
        if not (
            node.tag.removeprefix(_TAG) in ("null", "bool", "int", "float", "str", "seq", "map")
            and node.tag.startswith(_TAG)
        ):
            raise _RefusedError(f"the tag {node.tag!r}", _line(node))
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, path) for item in node.value]
            assert isinstance(node, yaml.ScalarNode)
            return _scalar(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Plain]:
        values: dict[str, Plain] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _RefusedError("a key that is not text", _line(key_node))
            key = str(key_node.value)
            if key in values:
                raise _RefusedError(f"the key {key!r} twice", _line(key_node))
            where = f"{path}.{key}" if path else key
            self.places.setdefault(where, f"{self.source}:{_line(key_node)}")
            values[key] = self.build(value_node, where)
        return values


def read_value(text: str, source: str) -> tuple[Plain, dict[str, str]]:
    """YAML ``text`` as a plain value, and ``source:line`` of each dotted key in it. Bad text raises :class:`UserError`."""
    if len(text) > MAX_BYTES:
        raise UserError(source, f"holds more than {MAX_BYTES} characters", "a config is a short text file")
    builder = _Builder(source)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else builder.build(node)), builder.places
    except _RefusedError as refused:
        raise UserError(f"{source}:{refused.line}", f"holds {refused}, which is refused", "correct the line") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise UserError(
            f"{source}:{mark.line + 1}" if mark else source, f"is not valid YAML: {problem}", "correct the line"
        ) from None


def read_tree(path: Path, source: str) -> Tree:
    """The mapping in a YAML file; an empty file is an empty mapping. ``source`` is its name in messages."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        refuse_pointer(source, raw[:LONGEST])
        text = raw.decode("utf-8")
    except OSError as error:
        raise UserError(source, f"cannot be read: {error.strerror}", "name a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(source, "is not UTF-8 text", "name a YAML file") from None
    values, places = read_value(text, source)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            source, f"expected sections of keys, got {type(values).__name__}", "write `section:` and its keys below"
        )
    return Tree(values, places)


def write_value(values: Plain) -> str:
    """YAML text, a line for each key, that :func:`read_value` reads back to an equal value."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
