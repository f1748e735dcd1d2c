"""What there is, as rows for people and machines: backbones, heads, published weights. Loads no torch for what is built in.

Plug-ins that are registered or installed are in it too; they are asked, which may load what they need.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from effbackbones.backbones.costs import costs, level_channels
from effbackbones.backbones.scaling import default_image_spec, scaling
from effbackbones.errors import UserError, nearest
from effbackbones.registry import BACKBONES, DEFAULT_HEADS, HEADS, ROOMS_OF_HEADS
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
    if not BACKBONES.is_built_in(name) or name.startswith(("timm:", "sound:")):
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
    from effbackbones.build import create_backbone  # torch takes a second to import, and what is built in does without

    keys = ("parameters", "multiply_adds", "image_size", "levels", "channels", "strides")
    row: Row = {"name": name, **dict.fromkeys(keys), "owner": BACKBONES.owner(name)}
    BACKBONES.get(name)  # an unknown name is a mistake of the user's, and raises
    with _told_in(row, plug_in=bool(row["owner"])):
        backbone = create_backbone(name).eval()
        spec, size = backbone.feature_spec, backbone.image_spec.size
        row |= {"parameters": sum(p.numel() for p in backbone.parameters()), "image_size": list(size)}
        row |= {"levels": list(spec.names), "channels": list(spec.channels), "strides": list(spec.strides)}
        row["multiply_adds"] = _work(backbone, (len(backbone.image_spec.mean), *size))
    return row


@contextmanager
def _told_in(row: Row, *, plug_in: bool) -> Iterator[None]:
    """Inside, what is built has no values. What fails is the ``error`` of the row; of what is no ``plug_in`` a mistake of the user's goes
    on."""
    import torch

    try:
        with torch.device("meta"):
            yield
    except UserError as error:
        if not plug_in:
            raise
        row["error"] = str(error)
    except Exception as error:  # a plug-in's code may do anything; a list of what there is ends for none of it
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _work(network: Any, shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of a shape [C, H, W]."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2


def head_rows(tasks: Sequence[str] = (), on: str | None = None) -> list[Row]:
    """``name``, ``task``, whether it is the ``default`` of its task, other names (``aliases``), and whose it is (``owner``, empty: built
    in); of all heads, or of those for ``tasks`` (canonical words). With ``on``, a backbone, also ``parameters`` of the head, and
    ``multiply_adds`` of backbone and head for one image of ``image_size`` [H, W], both for the default number of classes
    (``num_classes``): None with an ``error`` where that fails. Each is built for it, without values: seconds."""
    rows = [row for row in map(_head, HEADS.names()) if not tasks or row["task"] in tasks]
    return [_head_on(row, BACKBONES.canonical(on)) for row in rows] if on else rows


def _head(name: str) -> Row:
    room = HEADS.room(name)
    task = next((task for task, rooms in ROOMS_OF_HEADS.items() if room in rooms), None) or HEADS.get(name).task
    return {
        "name": name,
        "task": task,
        "default": DEFAULT_HEADS.get(task) == name,
        "aliases": HEADS.aliases(name),
        "owner": HEADS.owner(name),
    }


def _head_on(row: Row, backbone: str) -> Row:
    from effbackbones.build import build_model  # as above

    BACKBONES.get(backbone)
    row = {**row, **dict.fromkeys(("parameters", "multiply_adds", "image_size", "num_classes"))}
    with _told_in(row, plug_in=bool(row["owner"])):
        model = build_model(row["task"], backbone, head=row["name"]).eval()
        size = model.image_spec.size
        row |= {"parameters": sum(p.numel() for p in model.head.parameters()), "image_size": list(size)}
        row["num_classes"] = model.config["num_classes"]
        row["multiply_adds"] = _work(model, (len(model.image_spec.mean), *size))
    return row


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
