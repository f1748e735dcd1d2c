"""What lies in a file of tensors, whatever its name ends in: state dicts, by the place in the file where each was found.

Training scripts put wrappers around a state dict (``state_dict``, ``model``, ``ema``, ...), and much beside it. None of their words
is known here: every table of tensors counts, and what else there is can be named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.weights.kerasfile import read_keras
from effbackbones.weights.keraslayers import Preparation
from effbackbones.weights.pickled import StandIn, module_state, read_objects
from effbackbones.weights.tensorfile import file_kind, parse_safetensors, read_bytes

_DEPTH = 6
"""How deep wrappers are looked into."""


@dataclass(frozen=True)
class Content:
    """``tables``: tensors by name, by dotted place (``""``: at the top). ``others``: top entries that are no tensors, and of what
    class where that is not plain. ``metadata`` of a safetensors file. ``prepared``: how images are prepared, by the prefix of a
    network, where a file says so (Keras)."""

    tables: dict[str, dict[str, Tensor]]
    others: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    prepared: Mapping[str, Preparation] = field(default_factory=dict)

    def beside(self, place: str) -> tuple[str, ...]:
        """What there is in the file beside the table at ``place``, by its top entries."""
        return tuple(name for name in self.others if not place or name.partition(" ")[0] != place.partition(".")[0])


def read_content(path: Path) -> Content:
    """The content of a safetensors file, one that ``torch.save`` wrote, or one of Keras. Raises :class:`UserError` for
    anything else, and for a file without tensors."""
    kind = file_kind(path)
    if kind == "keras":
        tensors, prepared, beside = read_keras(path)
        return Content({"": tensors}, beside, prepared=prepared)
    if kind == "safetensors":
        tensors, metadata = parse_safetensors(read_bytes(path), path)
        return Content({"": tensors}, metadata=metadata)
    whole, dropped = read_objects(path)
    tables = dict(_tables(whole, ""))
    if not tables:
        held = f"; it holds {', '.join(dropped[:3])}" if dropped else ""
        remedy = "expected tensors by name, at the top or under a name such as `state_dict` or `model`"
        raise UserError(str(path), f"holds no state dict{held}", remedy)
    return Content(tables, tuple(_others(whole)))


def _tables(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    value = module_state(value) or value
    if not isinstance(value, dict) or depth > _DEPTH:
        return
    # By the methods of dict: a file may have set attributes of the same names.
    tensors = {str(key): item for key, item in dict.items(value) if isinstance(item, Tensor)}
    if tensors:
        yield place, tensors
    for key, item in dict.items(value):
        if not isinstance(item, Tensor):
            yield from _tables(item, f"{place}.{key}" if place else str(key), depth + 1)


def _others(whole: Any) -> Iterator[str]:
    for key, item in dict.items(whole) if isinstance(whole, dict) else ():
        if isinstance(item, StandIn) and module_state(item) is None:
            yield f"{key} ({item.named})"
        elif not isinstance(item, Tensor):
            yield str(key)
