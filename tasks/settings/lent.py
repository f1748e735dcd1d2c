"""Options that a bundled config wrote for its own backbone and heads, when the user names others in their place."""

from collections.abc import Collection, Sequence
from typing import Any

from effbackbones.registry import HEADS, TASKS
from tasks.settings.sections import Config
from tasks.settings.tree import from_mapping, to_mapping
from tasks.strictyaml import Tree

BUNDLED = "bundled "
"""How the places of keys in bundled files begin."""


def lent_options(tree: Tree) -> tuple[str, ...]:
    """Dotted keys of such options in a merged ``tree``: they stand in a bundled file, the name that they go to does not."""
    found: list[str] = []
    heads = tuple((f"heads.{word}.name", f"heads.{word}.options") for word in _at(tree, "heads"))
    for name, options in (("model.backbone", "model.backbone_options"), ("model.head", "model.head_options"), *heads):
        if tree.places.get(name, BUNDLED).startswith(BUNDLED) or not _at(tree, name):
            continue
        keys = [f"{options}.{key}" for key in _at(tree, options)]
        keys += ["model.numerics"] if name == "model.backbone" else []
        found += [key for key in keys if tree.places.get(key, "").startswith(BUNDLED)]
    return tuple(found)


def _at(tree: Tree, key: str) -> Any:
    """What stands at a dotted key; an empty mapping where nothing does."""
    value: Any = tree.values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return {} if value is None else value


def without_unknown(config: Config, lent: Sequence[str]) -> tuple[Config, tuple[str, ...]]:
    """The config without those of the ``lent`` options that its backbone or head does not know, and a line for each that lost
    some. Names that nobody knows raise :class:`UserError`."""
    mapping: Any = to_mapping(config)
    lost: dict[str, list[str]] = {}
    for key in lent:
        owner, known = _owner(config, key)
        *path, option = key.split(".")
        if option in known:
            continue
        branch = mapping
        for part in path:
            branch = branch[TASKS.canonical(part) if path[0] == "heads" and part not in branch else part]
        del branch[option]
        lost.setdefault(owner, []).append(key)
    told = (
        f"{', '.join(keys)} of the bundled config left out: {owner} has no such option" for owner, keys in lost.items()
    )
    return (from_mapping(mapping), tuple(told)) if lost else (config, ())


def _owner(config: Config, key: str) -> tuple[str, Collection[str]]:
    """The backbone or head that an option goes to, in words, and the options that it has."""
    from effbackbones.build import (
        known_backbone_options,
    )  # both import torch, which a line without such options need not
    from effbackbones.contracts import head_options

    section, second = key.split(".")[:2]
    if section == "model" and second != "head_options":
        return f"backbone {config.model.backbone!r}", known_backbone_options(config.model.backbone)
    name = config.model.head if section == "model" else config.heads[TASKS.canonical(second)].name
    return f"head {name!r}", head_options(HEADS.get(str(name)))
