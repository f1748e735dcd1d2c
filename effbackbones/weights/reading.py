"""Weights from anywhere, under our names: published sources, files of six libraries, and our own.

Where the file is (here), what it holds (``tensorfile.py``), and whose it is: ours says everything itself (``own.py``), one of
another library is told apart by its keys (``foreign.py``). All ways end in one :class:`Pretrained`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effbackbones.backbones.convolution import Numerics
from effbackbones.contracts import Backbone, ImageSpec
from effbackbones.weights import hub
from effbackbones.weights.classifiers import find_source, recognise, sources_for
from effbackbones.weights.foreign import read_foreign
from effbackbones.weights.own import is_own, read_own
from effbackbones.weights.pretrained import Pretrained
from effbackbones.weights.source import WeightSource
from effbackbones.weights.tensorfile import PICKLED, check_file, read_tensors


def read_for(family: type[Backbone], weights: str | Path, backbone: str, options: Mapping[str, Any]) -> Pretrained:
    """Read ``weights`` for ``backbone``, which is built with ``options``: as its ``family`` knows how to, else by
    :func:`read_weights`, which serves any backbone with the files that ``save_model`` wrote."""
    return family.read_weights(weights, backbone, options) or read_weights(weights, backbone)


def read_weights(
    weights: str | Path, backbone: str, *, numerics: Numerics | str | None = None, image_spec: ImageSpec | None = None
) -> Pretrained:
    """Read ``weights`` for ``backbone`` (``"b0"``, ...): ``"imagenet"``, ``"coco"``, a name from :func:`sources_for`, or a file.

    ``numerics`` and ``image_spec`` win over what the weights imply. Only a named source may touch the network. Raises
    :class:`UserError`, one line, for an unreadable file, an unknown layout, weights of another variant (both are named), and
    where ``numerics`` are needed and not given.
    """
    given = None if numerics is None else Numerics.named(numerics)
    path, source = _locate(weights, backbone)
    tensors, metadata = read_tensors(path)
    if is_own(metadata):
        return read_own(tensors, metadata, path, backbone, given, image_spec)
    return read_foreign(tensors, path, source, backbone, given, image_spec)


def _locate(weights: str | Path, backbone: str) -> tuple[Path, WeightSource | None]:
    """The file that ``weights`` means, and its source: named, or recognised by the file's hash, or by what the cache pinned
    beside it."""
    path = Path(weights).expanduser()
    if not (isinstance(weights, Path) or path.suffix in (".safetensors", *PICKLED) or path.is_file()):
        source = find_source(weights, backbone)
        return hub.fetch(source), source
    check_file(path)
    sha256, pin = hub.file_sha256(path), hub.pinned(path)
    known = recognise(sha256)
    if known is None and pin.get("sha256") == sha256:
        known = next((s for s in sources_for(backbone) if s.name == pin.get("source")), None)
    return path, known
