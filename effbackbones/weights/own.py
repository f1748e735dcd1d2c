"""A weight file of ours, as the record that every weight file becomes."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from effbackbones.backbones.convolution import Numerics
from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.weights.dialects import clean
from effbackbones.weights.pretrained import Pretrained
from effbackbones.weights.record import FORMAT, Description, parse_record


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a file say that :func:`effbackbones.save_model` wrote it."""
    return metadata.get("format") == FORMAT


def read_own(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    path: Path,
    backbone: str,
    numerics: Numerics | None,
    spec: ImageSpec | None,
) -> Pretrained:
    """What such a file holds for ``backbone``: it says everything itself. ``numerics`` and ``spec`` (image spec), where they are
    given, win. Raises :class:`UserError` for a damaged record and for weights of another backbone."""
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
