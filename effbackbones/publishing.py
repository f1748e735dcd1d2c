"""A trained model in a repository of the Hugging Face Hub: its file, its config as JSON, and a card of what was measured."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effbackbones.checkpoint import load_model
from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.weights.repository import FILE, PREFIX, endpoint, explained, is_repository

_PIPELINES = {"cls": "image-classification", "det": "object-detection", "seg": "image-segmentation"}
_BEST, _METRICS = "best.safetensors", "metrics.json"
"""In a run folder."""


def push_to_hub(
    source: str | os.PathLike[str],
    repository: str,
    *,
    licence: str | None = None,
    private: bool = False,
    message: str = "Upload model",
    token: str | None = None,
) -> str:
    """Push a run folder, or a model file, as ``model.safetensors``, ``config.json`` and ``README.md`` to ``repository`` (``USER/NAME``),
    which is made where it does not exist; gives its address. ``load_predictor("hf-hub:USER/NAME")`` has it back.

    The card has the figures of the run's ``metrics.json``, and none that was not measured: a file without that beside it has none.
    ``licence`` of the model, as the Hub abbreviates it (``apache-2.0``); left out, the card says that of the weights it began with.
    ``token``: that of ``hf auth login``, or ``HF_TOKEN``, where none is given. Raises :class:`UserError` for what is no model file or
    name, and where the Hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # a second to import, and seldom wanted

    if is_repository(source):
        raise UserError(str(source), "is on the Hub already", "name a run folder or a model file")
    named = repository.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", named):
        what = "names a revision, and a push is one of its own" if "@" in named else "is no USER/NAME"
        raise UserError(repository, what, "name a repository alone: USER/NAME")
    repository, path = named, Path(source)
    file = path / _BEST if path.is_dir() else path
    model = load_model(file)
    measured = _measured(file)
    card = model_card(model, repository, measured, licence=licence)
    config = json.dumps(_config(model), indent=2, ensure_ascii=False) + "\n"
    api = HfApi(endpoint=endpoint(), token=token, library_name="effbackbones")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        address = api.create_commit(
            repository,
            [
                CommitOperationAdd(FILE, str(file)),
                CommitOperationAdd("config.json", config.encode()),
                CommitOperationAdd("README.md", card.encode()),
            ],
            commit_message=message,
        )
    except Exception as error:  # of many kinds, as in fetching
        raise explained(f"{PREFIX}{repository}", error, pushing=True) from None
    return str(address.repo_url)


def _measured(file: Path) -> dict[str, Any]:
    """What ``metrics.json`` beside a model file says of it; empty where there is none, or none of this file."""
    path = file.parent / _METRICS
    if file.name != _BEST or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        scores = found[found["best"]]
        return {"split": found["split"], "weights": found["best"], "scores": dict(scores)} if found["finished"] else {}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            str(path), "is not what a finished run writes", "push another run, or the model file alone"
        ) from None


def _config(model: Model) -> dict[str, Any]:
    """What other tools may want to know; the model file itself says all of it."""
    spec = model.image_spec
    return {
        "library": "effbackbones",
        **{key: value for key, value in model.config.items() if value is not None},
        "classes": model.classes,
        "image_spec": {name: getattr(spec, name) for name in spec.__dataclass_fields__},
    }


def model_card(model: Model, repository: str, measured: Mapping[str, Any], *, licence: str | None = None) -> str:
    """The card: what the model is, the figures that were ``measured`` (``split``, ``weights``, ``scores``), and how it is used."""
    tasks = model.config.get("task")
    tasks = [tasks] if isinstance(tasks, str) else list(tasks or ())
    figures = [
        (name, value)
        for name, value in measured.get("scores", {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    front: dict[str, Any] = {"library_name": "effbackbones", "tags": ["effbackbones", *tasks]}
    if licence:
        front["license"] = licence
    if tasks and tasks[0] in _PIPELINES:
        front["pipeline_tag"] = _PIPELINES[tasks[0]]
    spec, began = model.image_spec, model.provenance
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {repository.rpartition('/')[2]}", ""]
    parts = f"{model.config.get('backbone')} with head {_said(model.config.get('head'))}"
    height, width = spec.size
    lines += [f"{parts}, for images of {height} x {width} pixels ({spec.crop_mode}).", ""]
    lines += [f"Task: {', '.join(tasks)}. Classes: {_classes(model.classes)}.", ""]
    if began.get("weights"):
        lines += [f"Training began with {began['weights']} (licence: {began.get('licence', 'unknown')}).", ""]
    lines += ["## Measured", ""]
    if figures:
        lines += [
            f"On the split {measured['split']} of its data, with the {measured['weights']} weights that are in the file:",
            "",
        ]
        lines += ["| figure | value |", "|---|---|", *(f"| {name} | {value!r} |" for name, value in figures), ""]
    else:
        lines += ["Nothing was measured of this file.", ""]
    lines += ["## Use", "", "```python", "from effbackbones import load_predictor", ""]
    lines += [f'ask = load_predictor("{PREFIX}{repository}")', 'print(ask("image.jpg").to_dict())', "```", ""]
    return "\n".join(lines)


def _said(value: Any) -> str:
    return ", ".join(f"{key}: {one}" for key, one in value.items()) if isinstance(value, Mapping) else str(value)


def _classes(classes: Any) -> str:
    if isinstance(classes, Mapping):
        return "; ".join(f"{task}: {_classes(names)}" for task, names in classes.items())
    if not classes:
        return "not named"
    more = f", and {len(classes) - 20} more" if len(classes) > 20 else ""
    return ", ".join(map(str, classes[:20])) + more
