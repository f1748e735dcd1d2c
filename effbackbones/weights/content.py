"""What lies in a file of tensors, whatever its name ends in: state dicts, by the place in the file where each was found.

Training scripts put wrappers around a state dict (``state_dict``, ``model``, ``ema``, ...), and much beside it. None of their words
is known here: every table of tensors counts, and what else there is can be named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from effbackbones.weights.kerasfile import read_keras
from effbackbones.weights.keraslayers import Preparation
from effbackbones.weights.kinds import file_kind
from effbackbones.weights.pickled import read_tables
from effbackbones.weights.tensorfile import parse_safetensors


@dataclass(frozen=True)
class Content:
    """``tables``: tensors by name, by dotted place (``""``: at the top). ``others``: top entries that are no tensors, and of what
    class where that is not plain. ``metadata`` of a safetensors file. ``prepared``: how images are prepared, by the prefix of a
    network, where a file says so (Keras)."""

    tables: dict[str, dict[str, Tensor]]
    others: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    prepared: Mapping[str, Preparation] = field(default_factory=dict)


def read_content(path: Path) -> Content:
    """The content of a safetensors file, one that ``torch.save`` wrote, or one of Keras. Raises :class:`UserError` for
    anything else, and for a file without tensors."""
    kind = file_kind(path)
    if kind == "keras":
        tensors, prepared, beside = read_keras(path)
        return Content({"": tensors}, beside, prepared=prepared)
    if kind == "safetensors":
        tensors, metadata = parse_safetensors(path.read_bytes(), path)
        return Content({"": tensors}, metadata=metadata)
    return Content(*read_tables(path))
