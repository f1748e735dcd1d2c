"""The words between a weight file and the networks that take from it: the record of the file, and what a network took.

Nothing here changes on its way. Backbones and heads read the record and answer with a result (:class:`Adopted`).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from effbackbones.weights.loading import LoadReport, load_table

_LOG = logging.getLogger("effbackbones")


class Remainder(NamedTuple):
    """What a foreign file holds besides its backbone, an EfficientNet ``backbone`` (``"b0"``) found at ``prefix`` in the names
    of ``dialect``. ``tensors`` have the file's names; ``path`` is for messages."""

    tensors: Mapping[str, Tensor]
    dialect: str
    prefix: str
    backbone: str
    path: Path


class ForeignHead:
    """The head of a foreign file, as the layout that recognised it (``registry.LAYOUTS``) describes it to the core. A subclass
    knows more, which only our head of that kind reads.

    ``layout`` is the library's name, ``task`` what the head is for. ``head`` has our names, ``unused`` the file's names of what
    nobody knows. Of the backbone: ``numerics``, by name, that such files go with (None: they do not say), and ``maps``, options
    under which it gives the maps that this head was trained on.
    """

    layout: str
    task: str
    head: Mapping[str, Tensor]
    unused: tuple[str, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """In what our head differs from theirs, in sentences."""
        return ()

    @property
    def numerics(self) -> str | None:
        return None

    @property
    def numerics_remark(self) -> str:
        """What ``numerics`` assumes, in a sentence."""
        return ""

    @property
    def maps(self) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True)
class Pretrained:
    """The content of a weight file under our names, read for the backbone called ``name``.

    ``backbone`` fits that backbone; ``tail`` the classification head (``conv.*``, ``fc.*``), where the file holds the published
    one; ``head`` is the head of a file of ours, ``foreign`` that of a foreign one. ``unread`` tells of entries that
    nobody knows.

    ``options`` of the backbone go with the weights (``numerics``, ``image_spec``) and hold where none are given. ``config`` are
    the arguments of ``build_model`` in a file of ours. ``published`` is the name of a published source, ``head_options`` those
    of the head that its weights belong to. ``assumed`` says in sentences what the file could not.
    """

    name: str
    origin: str
    dialect: str
    licence: str
    backbone: Mapping[str, Tensor] = field(default_factory=dict)
    tail: Mapping[str, Tensor] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    foreign: ForeignHead | None = None
    unread: LoadReport | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""
    head_options: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    @property
    def numerics(self) -> Any:
        """The backbone's :class:`Numerics`, None where the file has none."""
        return self.options.get("numerics")

    @property
    def image_spec(self) -> Any:
        """The :class:`ImageSpec` that the weights were trained with, None where nobody knows it."""
        return self.options.get("image_spec")

    @property
    def for_heads(self) -> dict[str, Tensor]:
        """Everything that a head may take, by our names."""
        return {**self.tail, **self.head, **(self.foreign.head if self.foreign else {})}

    def provenance(
        self, backbone: "Adopted | None", remarks: Sequence[str] = (), head: "Adopted | None" = None
    ) -> dict[str, Any]:
        """Where these weights came from, and what became of them by what ``backbone`` and ``head`` took and the ``remarks`` on the
        head, for people and for checkpoints; logged as well, for nobody should have to ask for what is only half loaded."""
        reports = [self.unread, backbone and backbone.report, head and head.report]
        told = (self.assumed, backbone.remarks if backbone else (), remarks, head.remarks if head else ())
        known = [report for report in reports if report]
        assumed, table = [sentence for sentences in told for sentence in sentences], load_table(known)
        _LOG.info("%s", table)
        for sentence in (*assumed, *(report.remark for report in known if report.remark)):
            _LOG.warning("%s", sentence)
        return {
            "weights": self.origin,
            "dialect": self.dialect,
            "licence": self.licence,
            "assumed": assumed,
            "loaded": table,
        }


@dataclass(frozen=True)
class Adopted:
    """What a network took of a weight file, and what there is to say of it in sentences. ``classes``: the names of the classes
    that its head predicts with these weights, where they are known."""

    report: LoadReport
    remarks: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None


class Decided(NamedTuple):
    """Options of a head after a look at the weights, those given among them, and what there is to say of it in sentences."""

    options: dict[str, Any]
    remarks: tuple[str, ...] = ()
