"""Weights from anywhere, under our names: published sources, files of six libraries, and our own.

Where the file is (here), what it holds (``content.py``), and whose it is: ours says everything itself (``own.py``), one of another
library is told apart by its keys (``networks.py``, ``foreign.py``). All ways end in one :class:`Pretrained`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from effbackbones.backbones.convolution import Numerics
from effbackbones.backbones.scaling import row_of
from effbackbones.contracts import Backbone, ImageSpec
from effbackbones.errors import UserError
from effbackbones.weights import hub
from effbackbones.weights.classifiers import find_source, recognise, sources_for
from effbackbones.weights.content import read_content
from effbackbones.weights.foreign import read_foreign
from effbackbones.weights.kinds import SUFFIXES, check_file
from effbackbones.weights.networks import find_network
from effbackbones.weights.own import read_own
from effbackbones.weights.pretrained import Pretrained
from effbackbones.weights.repository import fetch_repository, is_repository
from effbackbones.weights.source import WeightSource
from effbackbones.weights.values import check_values


def read_for(family: type[Backbone], weights: str | Path, backbone: str, options: Mapping[str, Any]) -> Pretrained:
    """Read ``weights`` for ``backbone``, which is built with ``options``: as its ``family`` knows how to, else by
    :func:`read_weights`, which serves any backbone with the files that ``save_model`` wrote."""
    if not isinstance(weights, str | Path):
        what = f"expected a name or a file, got {type(weights).__name__}"
        raise UserError("weights", what, 'write "imagenet" for published ones')
    return family.read_weights(weights, backbone, options) or read_weights(weights, backbone)


def read_weights(
    weights: str | Path, backbone: str, *, numerics: Numerics | str | None = None, image_spec: ImageSpec | None = None
) -> Pretrained:
    """Read ``weights`` for ``backbone`` (``"b0"``, ...): ``"imagenet"``, ``"coco"``, a name from :func:`sources_for`, a repository
    (``hf-hub:USER/NAME``), or a file; of one that holds several networks, ``FILE#NAME``.

    ``numerics`` and ``image_spec`` win over what the weights imply. Only a named source may touch the network. Raises
    :class:`UserError`, one line, for an unreadable file, an unknown layout, weights of another variant (both are named), several
    networks of which none is named, numbers that no network can have, and where ``numerics`` are needed and not given.
    """
    given = None if numerics is None else Numerics.named(numerics)
    path, part, source = _locate(weights, backbone)
    content, row = read_content(path), row_of(backbone)
    said: tuple[str, ...] = ()
    found = read_own(content, part, path, backbone, given, image_spec, alone=row is None)
    if found is None and row is not None:
        network, said = find_network(content, part, path, row)
        found = read_foreign(network, path, source, row, given, image_spec)
    assert found is not None  # read_own reads or refuses what is for no EfficientNet
    of_head = found.foreign.head if found.foreign else found.head
    for tensors in (found.backbone, found.tail, {f"head.{name}": tensor for name, tensor in of_head.items()}):
        check_values(tensors, path)
    return replace(found, assumed=(*said, *found.assumed))


def _locate(weights: str | Path, backbone: str) -> tuple[Path, str | None, WeightSource | None]:
    """The file that ``weights`` means; the network of it that stands behind a ``#``; and the file's source: named, or recognised by
    its hash, or by what the cache pinned beside it."""
    if is_repository(weights):
        return fetch_repository(weights), None, None
    path, part = Path(weights).expanduser(), None
    if "#" in path.name and not path.exists():
        name, _, part = path.name.partition("#")
        path = path.with_name(name)
    if not (isinstance(weights, Path) or path.suffix.lower() in SUFFIXES or path.is_file()):
        try:
            source = find_source(str(weights), backbone)
        except UserError:
            if path.is_dir():  # which may have the name of a source, as a folder of ImageNet has
                check_file(path)
            raise
        return hub.fetch(source), None, source
    check_file(path)
    sha256, pin = hub.file_sha256(path), hub.pinned(path)
    known = recognise(sha256)
    if known is None and pin.get("sha256") == sha256:
        known = next((s for s in sources_for(backbone) if s.name == pin.get("source")), None)
    return path, part, known
