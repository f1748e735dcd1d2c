"""The content of a weight file under our names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from effbackbones.backbones.convolution import Numerics
from effbackbones.contracts import ImageSpec
from effbackbones.weights.efficientdet_names import Detector
from effbackbones.weights.loading import LoadReport
from effbackbones.weights.smp_names import Segmenter
from effbackbones.weights.source import WeightSource


@dataclass
class Pretrained:
    """The content of a weight file under our names.

    ``backbone`` fits :class:`EfficientNet`; ``tail`` the classification head (``conv.*``, ``fc.*``), where the file holds the
    published one; ``head`` is the head of a file of ours, ``detector`` or ``segmenter`` that of a foreign one. ``numerics`` and
    ``image_spec`` go with the weights. ``assumed`` says in sentences what the file could not, and what was done to it.
    ``reports`` collects what was loaded where. ``source`` is known for published weights, ``config`` (arguments of
    ``build_model``) for files of ours. ``untrained``: a head that it was loaded for got nothing of it, or not all.
    """

    backbone: dict[str, Tensor]
    tail: dict[str, Tensor]
    head: dict[str, Tensor]
    numerics: Numerics | None
    image_spec: ImageSpec | None
    origin: str
    dialect: str
    licence: str
    assumed: tuple[str, ...] = ()
    reports: list[LoadReport] = field(default_factory=list)
    detector: Detector | None = None
    segmenter: Segmenter | None = None
    source: WeightSource | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    untrained: bool = False
