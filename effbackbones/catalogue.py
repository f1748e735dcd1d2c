"""What there is, as rows for people and machines: backbones, heads, published weights. Loads no torch for what is built in.

Plug-ins that are registered or installed are in it too; they are asked, which may load what they need.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from effbackbones.backbones.costs import costs, level_channels
from effbackbones.backbones.scaling import default_image_spec, scaling
from effbackbones.errors import UserError, nearest
from effbackbones.registry import BACKBONES, DEFAULT_HEADS, HEADS, ROOM_OF_HEADS
from effbackbones.weights.classifiers import SOURCES, find_source, sources_for
from effbackbones.weights.hub import cache_folder
from effbackbones.weights.source import WeightSource

Row = dict[str, Any]


def backbone_rows(names: Sequence[str] = ()) -> list[Row]:
    """``name``, ``parameters`` and ``multiply_adds`` (of the features for one image of the native ``image_size`` [H, W], without a
    classifier), ``channels`` and ``strides`` of its ``levels``, and whose it is (``owner``, empty: built in). Of all backbones, or of
    ``names``, among them ``b2.5`` and ``timm:NAME``. What a plug-in cannot say is None, with the reason as ``error``; unknown
    names raise :class:`UserError`."""
    return [_backbone(BACKBONES.canonical(name)) for name in names or BACKBONES.names()]


def _backbone(name: str) -> Row:
    if not BACKBONES.is_built_in(name) or name.startswith("timm:"):
        return _asked(name)
    row = scaling(name)
    parameters, work = costs(row)
    spec = default_image_spec(row)
    levels = {
        "levels": ["C1", "C2", "C3", "C4", "C5"],
        "channels": list(level_channels(row)),
        "strides": [2, 4, 8, 16, 32],
    }
    size = {"image_size": list(spec.size)}
    return {"name": name, "parameters": parameters, "multiply_adds": work, **size, **levels, "owner": ""}


def _asked(name: str) -> Row:
    """The row of a backbone that has to be built, without its values, to be known."""
    import torch  # a second to import, and what is built in does without
    from torch.utils.flop_counter import FlopCounterMode

    from effbackbones.build import create_backbone

    keys = ("parameters", "multiply_adds", "image_size", "levels", "channels", "strides")
    row: Row = {"name": name, **dict.fromkeys(keys), "owner": BACKBONES.owner(name)}
    BACKBONES.get(name)  # an unknown name is a mistake of the user's, and raises
    try:
        with torch.device("meta"):
            backbone = create_backbone(name).eval()
        spec, size = backbone.feature_spec, backbone.image_spec.size
        row |= {"parameters": sum(p.numel() for p in backbone.parameters()), "image_size": list(size)}
        row |= {"levels": list(spec.names), "channels": list(spec.channels), "strides": list(spec.strides)}
        images = torch.zeros(1, len(backbone.image_spec.mean), *size, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(images)
        row["multiply_adds"] = int(counter.get_total_flops()) // 2
    except UserError as error:
        if not row["owner"]:  # of timm, whose names are the user's word
            raise
        row["error"] = str(error)
    except Exception as error:  # a plug-in's code may do anything; a list of what there is ends for none of it
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return row


def head_rows(tasks: Sequence[str] = ()) -> list[Row]:
    """``name``, ``task``, whether it is the ``default`` of its task, other names (``aliases``), and whose it is (``owner``, empty: built
    in); of all heads, or of those for ``tasks`` (canonical words)."""
    rows = [_head(name) for name in HEADS.names()]
    return [row for row in rows if not tasks or row["task"] in tasks]


def _head(name: str) -> Row:
    room = HEADS.room(name)
    task = next((task for task, known in ROOM_OF_HEADS.items() if known == room), None) or HEADS.get(name).task
    return {
        "name": name,
        "task": task,
        "default": DEFAULT_HEADS.get(task) == name,
        "aliases": HEADS.aliases(name),
        "owner": HEADS.owner(name),
    }


def weight_rows(backbones: Sequence[str] = ()) -> list[Row]:
    """Published weights, of all backbones or of some: ``name``, ``backbone``, for what they are the ``default`` (``imagenet``, ``coco``),
    ``top1``, ``top5`` and ``ap`` in percent as published at ``image_size``, ``numerics``, ``dialect``, ``licence``, ``url`` or
    ``package``, ``sha256`` (its beginning; None where the hub states it at download, or nobody does), ``file`` in the cache, its
    ``bytes`` there (None: it is not), and whether it is ``here``, in the cache or as an installed package. A backbone without any
    raises :class:`UserError`."""
    chosen = [source for name in backbones for source in _of(BACKBONES.canonical(name))] if backbones else SOURCES
    return [_weights(source) for source in chosen]


def _of(backbone: str) -> Sequence[WeightSource]:
    found = sources_for(backbone)
    if not found:
        known = {source.backbone for source in SOURCES}
        raise UserError(f"backbone {backbone!r}", "has no published weights", nearest(backbone, known))
    return found


def _weights(source: WeightSource) -> Row:
    path = cache_folder() / source.file
    size = path.stat().st_size if not source.package and path.is_file() else None
    names = ("top1", "top5", "ap", "numerics", "dialect", "licence", "url", "package")
    return {
        "name": source.name,
        "backbone": source.backbone,
        "default": next(_defaults(source), None),
        **{name: getattr(source, name) for name in names},
        "image_size": list(source.image_spec.size),
        "sha256": source.hash_prefix,
        "file": source.file,
        "bytes": size,
        "here": size is not None or bool(source.package and find_spec(source.package)),
    }


def _defaults(source: WeightSource) -> Iterator[str]:
    for name in ("imagenet", "coco"):
        try:
            if find_source(name, source.backbone) is source:
                yield name
        except UserError:  # none is the default
            continue
