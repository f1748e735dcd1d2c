"""Which network of a file is meant: found by the keys of its stem, wherever they are, and chosen by one rule that is told.

Averaged weights win over the raw ones beside them, as timm has it; of several networks one must be named.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from effbackbones.backbones.scaling import Scaling
from effbackbones.errors import UserError, nearest
from effbackbones.weights.content import Content
from effbackbones.weights.dialects import DIALECTS, OURS, Dialect, clean, shape_of
from effbackbones.weights.keraslayers import Preparation

BARE = "state dict of effbackbones"
"""What the state dict of a model of ours is called that comes without the record of a model file."""
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|avg|polyak)(?:[._]|$)|emamodel|modelema")
_RAW = re.compile(r"(?:^|[._])current[._]")
"""Where Lightning keeps the raw weights when averages took their place."""


@dataclass(frozen=True)
class Network:
    """A network in a file: the ``place`` of its state dict, the ``prefix`` of its keys there (without the marks of wrappers), and in
    whose names it is. ``state`` is that whole state dict, ``beside`` what else the file has at its top, ``prepared`` how its images are
    prepared, where the file says so."""

    place: str
    prefix: str
    dialect: Dialect
    state: Mapping[str, Tensor]
    beside: tuple[str, ...] = ()
    prepared: Preparation | None = None

    @property
    def head(self) -> dict[str, Tensor]:
        """The head of a :class:`Model` of ours whose backbone it is."""
        return head_beside(self.state, self.prefix) if self.dialect is OURS else {}

    @property
    def label(self) -> str:
        """What names it: place and prefix, such as ``state_dict.encoder_q``."""
        return ".".join(filter(None, (self.place, self.prefix.removesuffix("."))))

    @property
    def translated(self) -> dict[str, Tensor]:
        """Its entries under our names."""
        pairs = (
            (self.dialect.translate(key.removeprefix(self.prefix)), tensor)
            for key, tensor in self.state.items()
            if key.startswith(self.prefix)
        )
        return {ours: tensor for ours, tensor in pairs if ours}


def find_network(content: Content, part: str | None, path: Path, row: Scaling) -> tuple[Network, tuple[str, ...]]:
    """The network of ``row`` in the file ``path``, and what there is to say of the choice; ``part`` names one where there are several.
    Raises :class:`UserError` where there is none, or none is named of several."""
    found = networks_in(content)
    if not found:
        known = ", ".join(dialect.name for dialect in DIALECTS)
        key = next((name for table in content.tables.values() for name in table), "none")
        raise UserError(str(path), f"its keys (such as {key}) are no EfficientNet's", f"known layouts: {known}")
    return choose(found, part, path, lambda network: shape_of(network.translated).fits(row))


def head_beside(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The head beside the backbone that lies at ``prefix`` (``"model.backbone."``) of the state dict of a :class:`Model` of ours."""
    if not prefix.endswith("backbone."):
        return {}
    root = prefix.removesuffix("backbone.") + "head."
    return {key.removeprefix(root): tensor for key, tensor in state.items() if key.startswith(root)}


def _detect(keys: Iterable[str]) -> list[tuple[Dialect, str]]:
    """The networks in a state dict: the dialect of each, and the prefix in front of it (``"encoder."``), in the order of the keys."""
    return [
        (dialect, key.removesuffix(dialect.stem))
        for key in keys
        for dialect in DIALECTS
        if key == dialect.stem or key.endswith(f".{dialect.stem}")
    ]


def networks_in(content: Content) -> list[Network]:
    """All networks of the families that are known, in the order of the file."""
    return [
        Network(place, prefix, dialect, state, _beside(content.others, place), content.prepared.get(prefix))
        for place, tensors in content.tables.items()
        for state in [{clean(key): tensor for key, tensor in tensors.items()}]
        for dialect, prefix in _detect(state)
    ]


def _beside(others: Sequence[str], place: str) -> tuple[str, ...]:
    """What there is in a file beside the table at ``place``, of its top entries ``others``."""
    return tuple(name for name in others if not place or name.partition(" ")[0] != place.partition(".")[0])


def choose(
    networks: Sequence[Network], wanted: str | None, path: Path, fits: Callable[[Network], bool]
) -> tuple[Network, tuple[str, ...]]:
    """The network to read, and what there is to say of the choice in sentences.

    ``wanted``: the label of one. Those that ``fits`` refuses count only where none is left. Several that are neither the same nor
    one and its average raise :class:`UserError` naming them.
    """
    if wanted is not None:
        return _named(networks, wanted, path), ()
    found = [network for network in networks if fits(network)] or list(networks)
    others = tuple(network.label or "the top" for network in networks if network not in found)
    said = (f"{path} holds other networks too, not read: {', '.join(others)}",) if others else ()
    found = _different(found)
    if len(found) == 1:
        return found[0], said
    averaged = [network for network in found if _AVERAGED.search(network.label.lower())]
    if not averaged:
        averaged = [network for network in found if not _RAW.search(f"{network.label.lower()}.")]
    if len(averaged) == 1 and len(found) == 2:
        raw = next(network for network in found if network is not averaged[0])
        names = f"{averaged[0].label or 'the top'}, not {raw.label or 'the top'}"
        return averaged[0], (f"{path} holds raw and averaged weights: the averaged are taken ({names})", *said)
    labels = [network.label or "the top" for network in found]
    example = next(label for label in (network.label for network in found) if label)
    raise UserError(
        str(path), f"holds {len(found)} networks: {', '.join(labels[:8])}", f"name one, such as {path.name}#{example}"
    )


def _named(networks: Sequence[Network], wanted: str, path: Path) -> Network:
    wanted = wanted.removesuffix(".")
    found = [network for network in networks if network.label == wanted]
    found = found or [network for network in networks if wanted in (network.place, network.prefix.removesuffix("."))]
    if not found:
        raise UserError(f"{path}#{wanted}", "no such network in it", nearest(wanted, [n.label for n in networks]))
    return found[0]


def _different(networks: Sequence[Network]) -> list[Network]:
    """Those that differ in a tensor: scripts save the same weights under several names."""
    kept: list[Network] = []
    for network in networks:
        if not any(_same(network.translated, other.translated) for other in kept):
            kept.append(network)
    return kept


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
