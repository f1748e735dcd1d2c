"""A weight file of ours, as the record that every weight file becomes."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from effbackbones.backbones.convolution import Numerics
from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.weights.content import Content
from effbackbones.weights.dialects import clean
from effbackbones.weights.networks import BARE, head_beside
from effbackbones.weights.pretrained import Pretrained
from effbackbones.weights.record import FORMAT, Description, parse_record


def refuse_state(metadata: Mapping[str, str], path: Path) -> None:
    """Raise :class:`UserError` for the state of a run, which is no model: it holds the optimiser and says nothing of the network."""
    if metadata.get("format") == FORMAT or not {"record", "sha256"} <= metadata.keys():
        return
    try:
        step = json.loads(metadata["record"])["step"]
    except (ValueError, KeyError, TypeError):
        return
    what = f"is the training state of a run after step {str(step)[:20]}, not a model file"
    raise UserError(str(path), what, "give the run folder, or best.safetensors in it")


def read_own(
    content: Content,
    part: str | None,
    path: Path,
    backbone: str,
    numerics: Numerics | None,
    spec: ImageSpec | None,
    *,
    alone: bool,
) -> Pretrained | None:
    """What a file of ours holds for ``backbone``: it says everything itself; None where it is of another library. ``numerics`` and
    ``spec`` (image spec), where they are given, win. ``alone``: no other library has weights of that backbone. Raises
    :class:`UserError` for a damaged record, weights of another backbone, and the state of a run."""
    metadata, tensors = content.metadata, content.tables.get("", {})
    refuse_state(metadata, path)
    if metadata.get("format") != FORMAT:
        return _bare(content, path, backbone) if alone else None
    if part is not None:
        what = "is a model file of effbackbones, which holds one network"
        raise UserError(f"{path}#{part}", what, f"leave #{part} out")
    about = Description.of(parse_record(metadata, path), path)
    if about.backbone != backbone:
        raise UserError(
            str(path),
            f"holds weights of {about.backbone}, not {backbone}",
            f"build {about.backbone}, or give another file",
        )
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
    for key, tensor in tensors.items():
        part, _, name = clean(key).partition(".")
        parts.setdefault(part, {})[name] = tensor
    try:
        own = Numerics(**about.numerics) if about.numerics else None
    except TypeError:
        raise UserError(str(path), f"its numerics are {about.numerics}", "save the model again") from None
    differ = numerics is not None and own is not None and numerics != own
    return Pretrained(
        backbone,
        str(path),
        "effbackbones",
        about.licence,
        parts["backbone"],
        head=parts["head"],
        options={"numerics": numerics or own, "image_spec": spec or about.image_spec},
        config=about.config,
        assumed=(f"numerics as given, though these weights were trained with {own}",) if differ else (),
    )


def _bare(content: Content, path: Path, backbone: str) -> Pretrained:
    """The state dict of a :class:`Model` of ours on a ``backbone`` that is no EfficientNet, without anything that says so but its
    keys. Raises :class:`UserError` for any other file."""
    for place, tensors in content.tables.items():
        state = {clean(key): tensor for key, tensor in tensors.items()}
        ends = (key.partition("backbone.")[0] + "backbone." for key in state if "backbone." in key)
        for prefix in dict.fromkeys(ends):
            if head := head_beside(state, prefix):
                own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
                label = f"{path}#{place}" if place else str(path)
                return Pretrained(backbone, label, BARE, "unknown", own, head=head)
    raise UserError(str(path), f"foreign weights do not fit backbone {backbone}", "give a file that save_model wrote")
