"""The key ``recipe``: a named bundle of values for a task, over those of bundled configs and below what the user says."""

from collections.abc import Mapping
from dataclasses import MISSING
from itertools import accumulate
from pathlib import Path

from effbackbones.errors import UserError, nearest
from effbackbones.registry import TASKS
from tasks.settings.lent import BUNDLED
from tasks.settings.tree import branch, flat, merge, place_of
from tasks.strictyaml import Plain, Tree, read_tree

_TOGETHER = (
    ("optim.name", "optim.lr", "optim.base_batch", "optim.lr_scaling"),
    ("optim.epochs", "optim.max_steps"),
    ("optim.warmup_epochs", "optim.warmup_steps"),
)
"""Keys that mean something together alone: where the user says one of them, a recipe says none."""
_OF_PICTURES = ("data.flip_mode", "data.progressive", "data.scale_jitter")
"""What recipes do to images: left out, and told, for models that hear recordings."""


def recipes(task: str) -> dict[str, Path]:
    """The recipes of a task by name, shortest run first. ``task``: any word for it."""
    command = {"cls": "classify", "det": "detect", "seg": "segment"}.get(TASKS.canonical(task), task)
    folder = Path(__file__).parent.parent / "configs" / "recipes"
    found = {path.stem.rpartition("-")[2]: path for path in folder.glob(f"{command}-*.yaml") if "." not in path.stem}
    return {name: found[name] for name in sorted(found, reverse=True)}


def with_recipe(task: str, tree: Tree) -> tuple[Tree, tuple[str, ...]]:
    """``tree`` (a config, overrides included) with what its key ``recipe`` sets, and a line that says what that is. A name that the
    task has no recipe for raises :class:`UserError`."""
    name = tree.values.get("recipe")
    if not isinstance(name, str):  # none, or what no recipe can be called: the config is refused for it
        return tree, ()
    known, where = recipes(task), place_of(tree, "recipe", "")
    if not known:
        raise UserError(where, f"there is none for {task}", "remove it; classify, detect and segment have some")
    if name not in known:
        raise UserError(where, f"unknown recipe {name[:60]!r}", nearest(name, known))
    there = dict(flat(tree.values))
    file, of = _file(known[name], there)
    recipe = read_tree(file, f"{BUNDLED}{file.name}")
    wanted = dict(flat(recipe.values))
    unheard = [key for key in wanted if key in _OF_PICTURES and str(there.get("model.backbone")).startswith("sound:")]
    wanted = {key: value for key, value in wanted.items() if key not in unheard}
    mine = {key: value for key, value in there.items() if not tree.places.get(key, "").startswith(BUNDLED)}
    left = [key for key in wanted if _is_said(key, mine)]
    values = {key: value for key, value in wanted.items() if key not in left and there.get(key, MISSING) != value}
    told = (
        f"recipe {name}{of}: sets {', '.join(f'{key} {_shown(value)}' for key, value in values.items()) or 'nothing'}"
    )
    kept = f"; as you say: {', '.join(left)}" if left else ""
    kept += f"; without {', '.join(unheard)}, for the model hears recordings" if unheard else ""
    for key, value in values.items():
        tree = merge(tree, Tree(branch(key, value), {key: recipe.places[key]}))
    return tree, (told + kept,)


def _file(path: Path, there: Mapping[str, Plain]) -> tuple[Path, str]:
    """The file of a recipe, that for pretrained weights where the config names such and it has one, and what to say of that."""
    own = path.with_suffix(".pretrained.yaml")
    pretrained = any(there.get(key) is not None for key in ("model.weights", "model.init_from"))
    return (own, " of pretrained weights") if pretrained and own.is_file() else (path, "")


def _is_said(key: str, mine: Mapping[str, Plain]) -> bool:
    """Whether the user says a key, or one that goes with it: also by what is no value of it, for which the config is refused."""
    for one in next((together for together in _TOGETHER if key in together), (key,)):
        around = any(mine.get(part) is not None for part in accumulate(one.split(".")[:-1], "{}.{}".format))
        if one in mine or around or any(said.startswith(f"{one}.") for said in mine):
            return True
    return False


def _shown(value: Plain) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
