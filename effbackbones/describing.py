"""What a file of weights is: whose, of which network, for which images, and what it would load into. Nothing of it is run."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effbackbones.backbones.convolution import NUMERICS
from effbackbones.checkpoint import load_model
from effbackbones.errors import UserError, nearest
from effbackbones.export.record import ExportRecord, format_of
from effbackbones.images.spec import ImageSpec
from effbackbones.inference.predictor import BEST
from effbackbones.inference.runtimes import open_runtime
from effbackbones.weights.content import Content, read_content
from effbackbones.weights.dialects import shape_of, variants
from effbackbones.weights.hub import file_sha256
from effbackbones.weights.kinds import check_file, file_kind
from effbackbones.weights.networks import Network, networks_in
from effbackbones.weights.own import refuse_state
from effbackbones.weights.pretrained import Pretrained
from effbackbones.weights.reading import read_weights
from effbackbones.weights.record import FORMAT, Description, parse_record
from effbackbones.weights.repository import fetch_repository, is_repository

_OF_NETWORKS = ("published", "licence", "numerics", "assumed", "remark")
_SHOWN = 3
"""So many names of tensors that no network claims."""


def describe_file(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The facts of a model file, run folder, exported graph, foreign file of weights (``FILE#NAME``: one network of it), or repository
    (``hf-hub:USER/NAME``), JSON-like: ``file``, ``bytes``, ``sha256``, ``what`` it is, what it says of its model, and ``loads``: calls,
    with ``ok`` and the ``error`` of those that would be refused. Raises :class:`UserError` for what is no file of weights, or
    damaged."""
    path, part = fetch_repository(name) if is_repository(name) else Path(name), ""
    if "#" in path.name and not path.exists():
        path, part = path.with_name(path.name.partition("#")[0]), path.name.partition("#")[2]
    if path.is_dir():
        if not (path / BEST).is_file():
            raise UserError(str(path), f"is a folder without {BEST}", "name a run folder, or a file of weights")
        path = path / BEST
    check_file(path)
    facts = {"file": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    if format_of(path):
        return facts | _exported(open_runtime(path).record, path)
    kind, content = file_kind(path), read_content(path)
    refuse_state(content.metadata, path)
    if content.metadata.get("format") == FORMAT:
        return facts | _own(content, path)
    return facts | _foreign(content, path, kind, part)


def _own(content: Content, path: Path) -> dict[str, Any]:
    record = parse_record(content.metadata, path)
    about = Description.of(record, path)
    parameters = sum(math.prod(tensor.shape) for tensor in content.tables[""].values())
    return {
        "what": f"a model file of effbackbones, format {record['version']}",
        "values": parameters,
        **_said(about),
        "loads": [_tried(f'load_model("{path}")', lambda: load_model(path))],
    }


def _said(about: Description) -> dict[str, Any]:
    return {
        "model": about.config,
        "classes": about.classes,
        "image_spec": about.image_spec.record(),
        "reading": None if about.reading is None else asdict(about.reading),
        "numerics": about.numerics,
        "metrics": about.metrics,
        "provenance": about.provenance,
        "licence": about.licence,
    }


def _exported(record: ExportRecord, path: Path) -> dict[str, Any]:
    names = ("format", "precision", "preprocessing", "postprocessing", "dynamic_size", "source", "certificate")
    graph = {name: getattr(record, name) for name in names}
    ports = {name: [asdict(port) for port in getattr(record, name)] for name in ("inputs", "outputs")}
    return {
        "what": f"an exported graph ({record.format}, {record.precision})",
        **_said(record.about(path)),
        "graph": {**graph, **ports},
        "loads": [{"call": f'load_predictor("{path}")', "ok": True, "error": None}],  # its runtime has opened it
    }


def _foreign(content: Content, path: Path, kind: str, part: str) -> dict[str, Any]:
    networks = networks_in(content)
    labels = [network.label for network in networks]
    if part and part not in labels:
        raise UserError(f"{path}#{part}", "no such network in it", nearest(part, labels))
    tensors = [tensor for table in content.tables.values() for tensor in table.values()]
    values = sum(math.prod(tensor.shape) for tensor in tensors)
    facts = {"what": f"a file of {len(tensors):,} tensors ({kind})", "values": values, "beside": _beside(content)}
    if not networks:
        keys = [key for table in content.tables.values() for key in table]
        no = "its keys are those of no network that is known here: as weights nothing takes it"
        return {**facts, "networks": [], "keys": keys[:_SHOWN], "remark": no, "loads": []}
    chosen = [network for network in networks if part in ("", network.label)]
    found = [_network(network, path, alone=len(networks) == 1) for network in chosen]
    return {**facts, "networks": found, "loads": [call for one in found for call in one.pop("loads")]}


def _beside(content: Content) -> list[str]:
    """Top entries that are no tensors, nor tables of them."""
    tables = {place.partition(".")[0] for place in content.tables}
    return [name for name in content.others if name.partition(" ")[0] not in tables]


def _network(network: Network, path: Path, *, alone: bool) -> dict[str, Any]:
    """The facts of one of the networks in a foreign file."""
    shape = shape_of(network.translated)
    names = variants(shape)
    facts: dict[str, Any] = {"name": network.label, "dialect": network.dialect.name, "backbones": names, "loads": []}
    where = str(path) if alone or not network.label else f"{path}#{network.label}"
    if not names:
        facts["remark"] = "no member of the family has its widths and depths: say backbone_options width and depth"
    for name in names:
        call = f'create_backbone("{name}", weights="{where}")'
        try:
            read = read_weights(where, name)
        except UserError as error:
            facts["loads"].append({"call": call, "ok": False, "error": str(error)})
            continue
        facts["loads"] += [{"call": call, "ok": True, "error": None}, *_heads(read, name, where)]
        facts |= {"published": read.published, "licence": read.licence, "numerics": _named(read.numerics)}
        facts |= {"image_spec": read.image_spec.record(), "assumed": list(read.assumed)}
    return facts


def _heads(read: Pretrained, name: str, where: str) -> list[dict[str, Any]]:
    """What the rest of a foreign file is for."""
    if read.foreign is not None:
        task, count = read.foreign.task, ""
    elif "fc.weight" in read.tail:
        task, count = "cls", f", num_classes={len(read.tail['fc.weight'])}"
    else:
        return []
    return [{"call": f'build_model("{task}", "{name}"{count}, weights="{where}")', "ok": True, "error": None}]


def _named(numerics: Any) -> Any:
    """The name of numerics, or all of them where they have none."""
    known = (name for name, values in NUMERICS.items() if values == numerics)
    return next(known, None if numerics is None else asdict(numerics))


def _tried(call: str, work: Any) -> dict[str, Any]:
    try:
        work()
    except UserError as error:
        return {"call": call, "ok": False, "error": str(error)}
    return {"call": call, "ok": True, "error": None}


def lines_of(facts: Mapping[str, Any]) -> list[str]:
    """What :func:`describe_file` found, for the eye."""
    lines = [f"{facts['file']}: {facts['bytes'] / 2**20:.1f} MB, sha256 {facts['sha256'][:16]}...", facts["what"]]
    lines += [f"{facts['values']:,} values"] if "values" in facts else []
    if model := facts.get("model"):
        lines += [
            f"{key.replace('_', ' ')}: {_words(_own_words(value))}"
            for key, value in model.items()
            if value not in (None, {})
        ]
        lines += [f"classes: {_classes(facts['classes'])}"]
    lines += _of_images(facts)
    for key in ("metrics", "graph"):
        lines += [f"{name}: {_words(value)}" for name, value in (facts.get(key) or {}).items() if _plain(value)]
    provenance = facts.get("provenance") or {}
    lines += [
        f"{name}: {_words(provenance[name])}" for name in ("weights", "licence", "assumed") if provenance.get(name)
    ]
    for network in facts.get("networks", ()):
        label = f" {network['name']}" if network["name"] else ""
        lines += [
            f"network{label}: names of {network['dialect']}, backbone {' or '.join(network['backbones']) or 'unknown'}"
        ]
        lines += [
            f"  {key}: {_words(network[key])}"
            for key in ("published", "licence", "numerics", "assumed", "remark")
            if network.get(key)
        ]
        lines += [f"  {line}" for line in _of_images(network)]
    lines += [f"beside its tensors: {', '.join(facts['beside'])}"] if facts.get("beside") else []
    lines += [f"keys: {', '.join(facts['keys'])}, ..."] if facts.get("keys") else []
    lines += [facts["remark"]] if "remark" in facts else []
    for one in facts["loads"]:
        lines.append(f"loads: {one['call']}" if one["ok"] else f"does not load: {one['call']}: {one['error']}")
    return lines


def _of_images(facts: Mapping[str, Any]) -> list[str]:
    spec, reading = facts.get("image_spec"), facts.get("reading")
    if not spec:
        return []
    lines = [f"images: {ImageSpec(**spec).told()}"]
    return [*lines, f"read: {_words(reading)}"] if reading else lines


def _own_words(value: Any) -> Any:
    """Options without those that have lines of their own."""
    if not isinstance(value, Mapping):
        return value
    return {key: inner for key, inner in value.items() if key not in ("image_spec", "numerics")}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _classes(classes: Any) -> str:
    if isinstance(classes, Mapping):
        return "; ".join(f"{task}: {_classes(names)}" for task, names in classes.items())
    if not classes:
        return "not named"
    more = ", ..." if len(classes) > 20 else ""
    return f"{len(classes)} ({', '.join(map(str, classes[:20]))}{more})"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
