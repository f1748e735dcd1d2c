"""Files of Keras as tables of tensors in PyTorch's order: ``.weights.h5`` and ``.keras`` of Keras 3, and the older ``.h5``.

Read as arrays and JSON alone: nothing that a file names is imported or run, and links out of it are refused. h5py (extra ``keras``)
is needed, Keras is not.

The checkpoints of the original release (``model.ckpt``) become such a file by ``efficientnet_weight_update_util.py``, which Keras had in
``keras/applications`` and which runs under TensorFlow with ``tf_keras`` (``TF_USE_LEGACY_KERAS=1``).
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.weights.keraslayers import Layer, Preparation, name_by_order, preparation, tensors_of

if TYPE_CHECKING:
    from h5py import Group

_WEIGHTS = "model.weights.h5"
"""In a ``.keras`` file, which is a zip."""
_OTHER = ("optimizer", "optimizer_weights")
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
"""Where models keep their layers; the second in Keras 2.12 to 2.15."""
_FIELDS = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("depthwise_kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "normalization": ("mean", "variance", "count"),
}
"""What the numbered variables of Keras 3 are, by the class of the layer (its ``save_own_variables``)."""


def read_keras(path: Path) -> tuple[dict[str, Tensor], dict[str, Preparation], tuple[str, ...]]:
    """Tensors by the names of the layers (``"block1a_dwconv.weight"``; a model inside a model is in front: ``"efficientnetb0."``); how
    each model prepares its images, by what is in front; and what lies beside the weights. Raises :class:`UserError` for a damaged
    file, and where h5py is missing."""
    try:
        import h5py  # an extra
    except ImportError:
        raise UserError(
            str(path), "is a file of Keras, and h5py is not installed", 'install "effbackbones[keras]"'
        ) from None
    try:
        source, config = _opened(path)
        with h5py.File(source, "r") as file:
            config = config or _config(file.attrs.get("model_config"))
            legacy = "layer_names" in file.attrs or "model_weights" in file
            root = file.get("model_weights", file)
            layers = list(_legacy_layers(root, path) if legacy else _layers(root, path))
            beside = tuple(name for name in _OTHER if name in file)
        layers = layers if legacy else name_by_order(layers)
    except UserError:
        raise
    except Exception as error:  # damaged bytes fail in the zip reader or in HDF5, with any exception
        what = f"is damaged or no file of Keras ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        raise UserError(str(path), what, "copy or download it again") from None
    tensors = tensors_of(layers)
    if not tensors:
        raise UserError(str(path), "is a file of Keras without weights", "save the model, or its weights, again")
    return tensors, preparation(layers, config), beside


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """What h5py opens, and the model's config where the file has one."""
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return path, {}
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read(_WEIGHTS)), _config(archive.read("config.json"))


def _config(text: Any) -> dict[str, Any]:
    found = json.loads(text) if isinstance(text, str | bytes) else None
    return found if isinstance(found, dict) else {}


def _inside(group: "Group", name: str, path: Path) -> Any:
    """A member of a group. What lies outside of the file raises :class:`UserError`: a link to it would read what it likes."""
    import h5py  # as above

    item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
        raise UserError(str(path), f"{group.name}/{name} lies outside of it", "do not trust this file")
    return item


def _layers(group: "Group", path: Path, prefix: str = "") -> Iterator[Layer]:
    """Layers of Keras 3: ``layers/conv2d_3/vars/0``. The group ``vars`` tells the layer's own name, but not in files of early
    releases. Models are layers with layers inside."""
    for name in group:
        item = _inside(group, name, path)
        if not hasattr(item, "keys") or name in ("vars", *_OTHER):
            continue
        if name in _CONTAINERS:
            yield from _layers(item, path, prefix)
            continue
        numbered: Any = _inside(item, "vars", path) if "vars" in item else {}
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]  # fits any name
        arrays = (_array(_inside(numbered, key, path)) for key in sorted(numbered))
        fields = dict(zip(_FIELDS.get(kind, ()), arrays, strict=False))
        label = str(numbered.attrs.get("name", "")) if numbered else ""
        yield Layer(prefix, label, kind, int(number or 0), fields)
        yield from _layers(item, path, f"{prefix}{label or name}.")


def _legacy_layers(group: "Group", path: Path, place: tuple[str, ...] = ()) -> Iterator[Layer]:
    """Layers of the older format: ``block1a_bn/block1a_bn/gamma:0``, of a model in a model ``efficientnetb0/block1a_bn/gamma:0``."""
    members = {name: _inside(group, name, path) for name in group}
    groups = {name: item for name, item in members.items() if hasattr(item, "keys")}
    fields = {name.removesuffix(":0"): _array(item) for name, item in members.items() if name not in groups}
    if fields or (not groups and place):
        name = place[-1]
        prefix = "".join(f"{part}." for part in place[:-1] if part != name)
        yield Layer(prefix, name, _kind(name, fields), 0, fields)
    for name, item in groups.items():
        if name not in _OTHER:
            yield from _legacy_layers(item, path, (*place, name))


def _kind(name: str, fields: Mapping[str, np.ndarray]) -> str:
    """The class of a layer of the older format, which does not say it."""
    if "kernel" in fields:
        return (
            {4: "conv2d", 2: "dense"}.get(fields["kernel"].ndim, "")
            if not name.endswith("dwconv")
            else "depthwise_conv2d"
        )
    known = {"depthwise_kernel": "depthwise_conv2d", "moving_mean": "batch_normalization", "variance": "normalization"}
    found = next((kind for field, kind in known.items() if field in fields), "")
    return found or ("rescaling" if name.startswith("rescaling") else "")


def _array(item: Any) -> np.ndarray:
    stored = np.asarray(item[()])
    if item.attrs.get("dtype") == "bfloat16":  # stored as bytes: the upper half of a float32
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return stored
