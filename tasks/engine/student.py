"""The network that a step trains: a model, and what learns with it and is thrown away."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from effbackbones.contracts import Backbone, Head, ImageSizes
from effbackbones.model import Model


class Adapters(nn.ModuleDict):
    """A 1x1 convolution for each of ``levels``, from the maps of ``student`` to as many channels as those of ``teacher`` have (Romero et
    al., "FitNets", 2015, section 2.2, with one cell of the map as their regressor's reach)."""

    def __init__(self, levels: Sequence[str], student: Backbone, teacher: Backbone) -> None:
        widths = [
            dict(zip(one.feature_spec.names, one.feature_spec.channels, strict=True)) for one in (student, teacher)
        ]
        super().__init__({level: nn.Conv2d(widths[0][level], widths[1][level], 1, bias=False) for level in levels})
        self.places = {level: student.feature_spec.names.index(level) for level in levels}

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps of the student's backbone to maps with the teacher's channels, by level."""
        return {level: self[level](features[place]) for level, place in self.places.items()}


class Student(nn.Module):
    """A ``model`` and the adapters of its maps as one module, so that the processes of a run agree on the gradients of both."""

    def __init__(self, model: Model, adapters: Adapters) -> None:
        super().__init__()
        self.model, self.adapters = model, adapters

    @property
    def head(self) -> Head:
        """The model's."""
        return self.model.head

    def forward(self, images: Tensor, sizes: ImageSizes | None = None) -> tuple[Any, dict[str, Tensor]]:
        """As :meth:`Model.forward`, and the adapted maps by level."""
        features, raw = self.model.with_features(images, sizes)
        return raw, self.adapters(features)
