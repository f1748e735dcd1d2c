"""The key ``recipe``: a named bundle of values for a task, over those of bundled configs and below what the user says."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from effbackbones.errors import UserError, nearest
from effbackbones.registry import TASKS
from tasks.settings.lent import BUNDLED
from tasks.settings.tree import merge
from tasks.strictyaml import Plain, Tree, read_tree

_TOGETHER = (
    ("optim.name", "optim.lr", "optim.base_batch", "optim.lr_scaling"),
    ("optim.epochs", "optim.max_steps"),
    ("optim.warmup_epochs", "optim.warmup_steps"),
)
"""Keys that mean something together alone: where the user says one of them, a recipe says none."""
_MEASURED = ("detect-quick",)
"""Recipes with figures in docs/recipes.md; of the others a run says that they have none."""


def recipes(task: str) -> dict[str, Path]:
    """The recipes of a task by name, shortest run first. ``task``: any word for it."""
    command = {"cls": "classify", "det": "detect", "seg": "segment"}.get(TASKS.canonical(task), task)
    folder = Path(__file__).parent.parent / "configs" / "recipes"
    found = {path.stem.rpartition("-")[2]: path for path in folder.glob(f"{command}-*.yaml")}
    return {name: found[name] for name in sorted(found, reverse=True)}


def with_recipe(task: str, tree: Tree) -> tuple[Tree, tuple[str, ...]]:
    """``tree`` (a config, overrides included) with what its key ``recipe`` sets, and a line that says what that is. A name that the
    task has no recipe for raises :class:`UserError`."""
    name = tree.values.get("recipe")
    if not isinstance(name, str):  # none, or what no recipe can be called: the config is refused for it
        return tree, ()
    known, where = recipes(task), tree.places.get("recipe", "--recipe")
    where = where if where == "--recipe" else f"{where}: recipe"
    if not known:
        raise UserError(where, f"there is none for {task}", "remove it; classify, detect and segment have some")
    if name not in known:
        raise UserError(where, f"unknown recipe {name[:60]!r}", nearest(name, known))
    recipe = read_tree(known[name], f"{BUNDLED}{known[name].name}")
    said = {key for key, _ in _leaves(tree.values) if not tree.places.get(key, "").startswith(BUNDLED)}
    said |= {key for together in _TOGETHER if said & set(together) for key in together}
    values = {key: value for key, value in _leaves(recipe.values) if key not in said and _at(tree, key) != value}
    left = [key for key, _ in _leaves(recipe.values) if key in said]
    above = Tree({}, {key: recipe.places[key] for key in values})
    for key, value in values.items():
        *parents, last = key.split(".")
        branch: dict[str, Plain] = {last: value}
        for parent in reversed(parents):
            branch = {parent: branch}
        above = merge(above, Tree(branch, {}))
    told = f"recipe {name}: sets {', '.join(f'{key} {_shown(value)}' for key, value in values.items()) or 'nothing'}"
    kept = f"; as you say: {', '.join(left)}" if left else ""
    unknown = "" if known[name].stem in _MEASURED else "; not measured yet: compare it with a run without it"
    return merge(tree, above), (told + kept + unknown,)


def _leaves(values: Mapping[str, Plain], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _at(tree: Tree, key: str) -> object:
    value: object = tree.values
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return ...
        value = value[part]
    return value


def _shown(value: Plain) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
