"""What a run is, beyond its config: stored with every state, and compared before one is continued.

The data by content (:mod:`tasks.data.fingerprint`), the arithmetic, the network and how it sees images must be the same, or what
goes on is another run under the old one's name. What changes the result in its last digits only, or may be meant, is told.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.data.fingerprint import difference, fingerprint
from tasks.engine.hardware import Hardware

_LONGER = ("optim.epochs", "optim.max_steps")
"""Keys by which a run becomes longer, which the schedule looks at."""
_WORDS = {"train": "training", "val": "validation", "test": "test"}


def identity(
    model: Model,
    classes: Any,
    datasets: Mapping[str, Dataset],
    plugins: Sequence[str],
    hardware: Hardware,
    *,
    seen: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What must be the same when a run continues, and what is told; JSON-like. ``datasets`` by split; ``seen``: how many images batch
    norm sees at a time; ``settings``: the keys of the config that make a run what it is."""
    return {
        "classes": classes,
        "data": {split: fingerprint(dataset) for split, dataset in datasets.items()},
        "precision": hardware.precision,
        "model": str(model.config),
        "images": str(model.image_spec),
        "device": hardware.device.type,
        "seen": seen,
        "plugins": {plugin: _digest(plugin) for plugin in plugins},
        "settings": dict(settings),
    }


def compare(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path, tell: Callable[[str], None]) -> None:
    """Refuse to continue the run in ``folder``, which was ``before``, as what it is ``now``; tell what may differ."""
    if before.get("classes") != now["classes"]:
        text = f"its classes were {str(before.get('classes'))[:80]} and are now {str(now['classes'])[:80]}"
        raise UserError(str(folder), text, "restore the data, or start anew with another run.out")
    known = before.get("data", {})
    for split, data in now["data"].items():
        what = difference(known.get(split, {}), data)
        if what:
            remedy = "restore the data, or start anew with another run.out"
            raise UserError(str(folder), f"its {_WORDS.get(split, split)} {what}", remedy)
    for name, key in (("precision", "run.precision"), ("model", "model"), ("images", "images as the model takes them")):
        if before.get(name) != now[name]:
            what = f"{key} was {str(before.get(name))[:160]} and is now {str(now[name])[:160]}"
            raise UserError(str(folder), what, "restore it, or start anew with another run.out and model.init_from")
    settings = before.get("settings", {})  # keys that one release has and another not are no change
    changed = [
        key for key, value in now["settings"].items() if key not in _LONGER and settings.get(key, value) != value
    ]
    if changed:
        shown = "; ".join(f"{key} {str(settings[key])[:60]} -> {str(now['settings'][key])[:60]}" for key in changed)
        what = (
            f"its state was saved under another config ({shown[:300]}), of another run or before config.yaml was edited"
        )
        raise UserError(str(folder), what, "restore it, or start anew with another run.out and model.init_from")
    if before.get("teacher") != now.get("teacher"):
        what = "the file of its teacher (optim.distill.teacher) is not the one that it learned from so far"
        raise UserError(str(folder), what, "restore it, or start anew with another run.out and model.init_from")
    if before.get("seen") != now["seen"]:
        text = "each step sees the same images, but batch norm takes its statistics from"
        tell(
            f"{text} {now['seen']} at a time, before from {before.get('seen')}: not bit for bit the run that never stopped"
        )
    if before.get("device") != now["device"]:
        tell(
            f"it goes on on {now['device']}, before on {before.get('device')}: not bit for bit the run that never stopped"
        )
    for plugin, digest in now["plugins"].items():
        if before.get("plugins", {}).get(plugin, digest) != digest:
            tell(f"warning: the code of plug-in {plugin} has changed since the run stopped")


def told_of_other_data(before: Mapping[str, Any], split: str, dataset: Dataset, tell: Callable[[str], None]) -> None:
    """Tell, where a model is evaluated, that ``split`` is not what the run that trained it had; ``before``: its splits."""
    what = difference(before[split], fingerprint(dataset)) if split in before else None
    if what:
        tell(f"warning: data.{split} is not as it was when the model was trained: its {what}")


def _digest(plugin: str) -> str:
    """sha256 of a plug-in's source: the file, or all Python files of a package; "" for what has none."""
    found = hashlib.sha256()
    for path in _files(plugin):
        found.update(path.read_bytes() + b"\0")
    return found.hexdigest()


def _files(plugin: str) -> list[Path]:
    if plugin.endswith(".py"):
        return [Path(plugin)]
    spec = importlib.util.find_spec(plugin)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return []
    path = Path(spec.origin)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
