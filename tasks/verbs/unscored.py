"""What a place is that holds no outcomes of images, and what to name in its place: for whoever wants to compare runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from tasks.engine.rundir import CONFIG, METRICS, STATES, finished, trained


def record_of(folder: Path) -> dict[str, Any]:
    """What the file of scores in ``folder`` says; nothing where there is none that can be read."""
    try:
        record = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def refused(path: Path) -> UserError:
    """The error for a ``path`` that holds no outcomes: what it is, as far as that can be seen, and what to compare instead."""
    name, home = str(path), path.parent
    evaluate = f"make them: evaluate --checkpoint {name}"
    if not path.exists():
        return UserError(name, "no such run", "name run folders, folders of evaluations, or their per-image-SPLIT.npz")
    run = next((folder for folder in (home, home.parent) if (folder / CONFIG).is_file()), None)
    if path.is_file():
        if run or any(home.glob("per-image-*.npz")):
            return UserError(name, "is one file of a run or evaluation", f"name the whole: {run or home}")
        if path.suffix in (".safetensors", ".onnx", ".pt2", ".xml"):
            what = "is a model, and what is compared is how it did on each image"
            return UserError(name, what, f"{evaluate} --out FOLDER, then name the FOLDER")
        return UserError(name, "is no run", "name run folders, folders of evaluations, or their per-image-SPLIT.npz")
    record = record_of(path)
    if (path / CONFIG).is_file():
        if not trained(path):
            what = "is a run that has learnt nothing yet"
            return UserError(name, what, f"train it: --config {path / CONFIG} --run.out {name}")
        if not finished(path):
            return UserError(name, "is a run that is not finished", f"continue it (--run.resume {name}), or {evaluate}")
        what = "has no per-image-SPLIT.npz: it was scored before there were such files"
        return UserError(name, what, evaluate)
    if "predictions" in record:
        what = f"holds the scores of a file of predictions ({record['predictions']}), and nothing of each image"
        remedy = "name the folder of an evaluation of the model: evaluate --checkpoint RUN --out FOLDER"
        return UserError(name, what, remedy)
    if record:
        what = "has no per-image-SPLIT.npz: it was scored before there were such files"
        return UserError(name, what, f"evaluate --checkpoint {record.get('checkpoint') or 'RUN'} --out {name}")
    if (path / "compare.json").is_file() and not (path / "sweep.csv").is_file():
        return UserError(name, "is a comparison that was made", "name the runs that it compares")
    if path.name == STATES and run:
        return UserError(name, "holds the states of a run", f"name the run: {run}")
    if runs := sorted(file.parent for file in path.glob(f"*/{CONFIG}")):
        what = (
            f"is a sweep of {len(runs)} runs" if (path / "sweep.csv").is_file() else f"is no run: it holds {len(runs)}"
        )
        return UserError(name, what, f"name those: compare {_some(runs)}")
    if any(path.glob("predictions.*")) or (path / "masks").is_dir():
        remedy = "name the folder of an evaluation of the model: evaluate --checkpoint RUN --out FOLDER"
        return UserError(name, "holds predictions that were not scored", remedy)
    return UserError(name, "is no run and no evaluation", "name run folders, or what evaluate --out made")


def _some(runs: Sequence[Path]) -> str:
    return " ".join(map(str, runs[:3])) + (" ..." if len(runs) > 3 else "")
