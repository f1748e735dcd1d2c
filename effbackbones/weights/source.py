"""The record of one published file of weights."""

from dataclasses import dataclass
from typing import Any

from effbackbones.images.spec import ImageSpec

HALF = (0.5, 0.5, 0.5)
"""Mean and std of weights that were trained on inputs in -1..1."""


@dataclass(frozen=True)
class WeightSource:
    """One published file of weights.

    ``name`` is unique among the sources of one ``backbone``. ``url`` is empty for the file of an installed ``package``
    (extra ``lite``). ``file`` is the name in the cache. ``hash_prefix`` is the start of the file's sha256, in hexadecimal; None:
    the hub tells the whole hash at download, or (zylo117) nobody does. ``also`` are such prefixes of other files with the same
    weights, recognised when one of them is given. ``numerics`` is a name of :class:`Numerics`. ``top1`` and ``top5`` are percent on
    ImageNet's validation set, ``ap`` percent on COCO val2017, as its publisher states them at ``image_spec``; None where none is
    stated.     ``head_options`` are those of the head that a detector's weights belong to, as pairs.
    """

    name: str
    backbone: str
    url: str
    file: str
    hash_prefix: str | None
    dialect: str
    numerics: str
    image_spec: ImageSpec
    licence: str
    top1: float | None = None
    top5: float | None = None
    ap: float | None = None
    head_options: tuple[tuple[str, Any], ...] = ()
    package: str = ""
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.backbone})"

    def has_hash(self, sha256: str) -> bool:
        """Whether a file of this sha256 (hexadecimal) holds these weights."""
        return any(sha256.startswith(prefix) for prefix in (self.hash_prefix, *self.also) if prefix)

    @property
    def verifiable(self) -> bool:
        """Whether a download can be told from a wrong file: its hash is known, or the hub states it."""
        return bool(self.hash_prefix) or "huggingface.co" in self.url
