"""The settings of learning from a teacher."""

from dataclasses import dataclass
from typing import ClassVar

from effbackbones.errors import UserError
from tasks.settings.checks import Section


@dataclass(frozen=True)
class DistillConfig(Section):
    """A trained model that the network learns from, beside the labels."""

    SECTION: ClassVar = "optim.distill"
    LIMITS: ClassVar = {"weight": "[0, 1000]", "temperature": "(0, 100]", "features_weight": "(0, 1000]"}

    teacher: str | None = None
    """Checkpoint of the teacher: a file or a run folder; null: no teacher. It sees the same images, and stays as it is."""
    weight: float = 1.0
    """Factor on the losses against the teacher's output; 0: its features alone are learned from."""
    temperature: float | None = None
    """By what the logits of both are divided; null: 4 for classes of images, 1 for boxes and masks."""
    features: tuple[str, ...] = ()
    """Levels (C1, ...) whose maps are to become like the teacher's, through 1x1 convolutions that no model file keeps."""
    features_weight: float = 1.0
    """Factor on the loss of these maps: the squared distance as a share of the teacher's own square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and self.weight == 0 and not self.features:
            what = "is 0 and optim.distill.features is empty: nothing is learned from the teacher"
            raise UserError("optim.distill.weight", what, "give one of them, or remove optim.distill.teacher")
        twice = [name for name in self.features if self.features.count(name) > 1]
        if twice:
            raise UserError("optim.distill.features", f"{twice[0]} stands there twice", "name each level once")
