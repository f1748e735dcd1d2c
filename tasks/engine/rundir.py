"""Run folders: which one a run gets, and whether it can continue there."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import write_atomically
from tasks.engine.resume import state_files
from tasks.settings.sections import Config
from tasks.settings.tree import changed_keys, differences, dump, from_mapping, is_free
from tasks.strictyaml import read_tree

METRICS, CONFIG, BEST, STATES = "metrics.json", "config.yaml", "best.safetensors", "checkpoints"
_LONGER = ("optim.epochs", "optim.max_steps")
"""Keys that say how long a run is: one that is continued by name may become longer."""
_UNTOLD = ("run.out", "run.resume", "run.progress", "run.log_every", "run.tensorboard")
"""Keys that say where and how a run shows itself."""
Tell = Callable[[str], None]


def choose(config: Config, command: str, config_name: str, tell: Tell) -> Path:
    """The folder of a training run: ``run.out``, a folder to resume, or ``runs/COMMAND/CONFIG`` with a number if taken.

    An unfinished run of the same config is continued there, unless ``run.resume`` is never; one of another config is told. A
    named folder that holds another config or a finished run raises :class:`UserError`.
    """
    resume = config.run.resume
    if resume not in ("auto", "never"):
        path = Path(resume)
        if not (path / CONFIG).is_file():
            raise UserError(f"run.resume: {path}", f"holds no run ({CONFIG} is missing)", "name a run folder")
        return fitting(config, path)
    if config.run.out:
        return fitting(config, Path(config.run.out))
    found: Path | None = None
    other: str | None = ""
    for number in itertools.count(1):
        folder = Path("runs") / command / (config_name if number == 1 else f"{config_name}-{number}")
        if not folder.exists():
            break
        other = _other(config, folder)
        if other is None:
            found = folder
    if found is None and other and resume == "auto":
        tell(f"{other}: it stays, and this one starts anew in {folder}")
    return found if found and resume == "auto" else folder


def _other(config: Config, folder: Path) -> str | None:
    """What keeps a run of ``config`` out of ``folder``, in words; "" if no unfinished run is there, None if nothing does. Another
    ``data.root`` most often means other data, so that it counts here."""
    if not (folder / CONFIG).is_file() or finished(folder):
        return ""
    try:
        changed = [key for key in differences(config_of(folder), config) if not is_free(key) or key == "data.root"]
    except UserError as error:  # of another version, or not a config at all
        return f"{folder} holds an unfinished run whose config cannot be read ({error})"
    if not changed:
        return None
    text = f"{folder} holds an unfinished run of another config ({', '.join(changed[:5])} differ)"
    if changed == ["data.root"]:
        text += f" (the same data in another place: --run.resume {folder} continues it)"
    return text


def finished(folder: Path) -> bool:
    """Whether the run in ``folder`` came to its end."""
    try:
        return bool(json.loads((folder / METRICS).read_text(encoding="utf-8")).get("finished"))
    except (OSError, ValueError, AttributeError):
        return False


def trained(folder: Path) -> bool:
    """Whether there is anything in ``folder`` that a run has learnt."""
    return bool(state_files(folder / STATES)) or any((folder / name).exists() for name in (BEST, METRICS))


def config_of(folder: Path) -> Config:
    """The config that a run folder holds."""
    path = folder / CONFIG
    return from_mapping(read_tree(path, str(path)).values, str(path))


def fitting(config: Config, folder: Path) -> Path:
    """``folder``, if the run can be there: it holds none, one that has learnt nothing yet, or an unfinished one of the same
    config; by ``run.resume`` also one that is to become longer."""
    if not (folder / CONFIG).is_file() or not trained(folder):
        return folder
    ended, by_name, old = finished(folder), config.run.resume not in ("auto", "never"), config_of(folder)
    changed = changed_keys(old, config)
    longer = bool(changed) and all(key in _LONGER for key in changed) and _is_longer(old, config)
    extend = f"--run.resume {folder} with more optim.epochs trains on, --model.init_from {folder} starts anew from its weights"
    if longer and by_name:
        if not state_files(folder / STATES):
            raise UserError(
                str(folder), "holds no state to train on from", f"set model.init_from {folder} and another run.out"
            )
        return folder
    if changed:
        shown = "; ".join(f"{key} {text}" for key, text in differences(old, config).items() if key in changed[:5])
        remedy = extend if longer else "choose another run.out, or undo the change"
        raise UserError(str(folder), f"holds a run of another config ({shown} differ)", remedy)
    if ended:
        raise UserError(str(folder), "holds a finished run", f"choose another run.out; {extend}")
    if config.run.resume == "never":
        raise UserError(
            str(folder), "holds an unfinished run, and run.resume is never", "choose another run.out, or remove it"
        )
    return folder


def _is_longer(old: Config, new: Config) -> bool:
    before, after = old.optim, new.optim
    if before.max_steps is not None and after.max_steps is not None:
        return after.max_steps > before.max_steps
    return before.max_steps is None and after.max_steps is None and after.epochs > before.epochs


def keep_config(folder: Path, config: Config, tell: Tell) -> None:
    """Note in a folder whose run continues that it does so under ``config``; tell what changed, and that it is not finished."""
    changed = differences(config_of(folder), config)
    shown = "; ".join(f"{key} {text}" for key, text in changed.items() if key not in _UNTOLD)
    if shown:
        tell(f"changed since it stopped: {shown}")
    if finished(folder):  # first, so that nothing between the two takes it for a finished run of the new config
        known = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        write_atomically(folder / METRICS, json.dumps(known | {"finished": False}, indent=2).encode())
    write_atomically(folder / CONFIG, dump(config).encode())
