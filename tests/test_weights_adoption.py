"""A head and a backbone family from outside that know weights of others: rows in the registries, and nothing else."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from effbackbones import Backbone, BackboneNeeds, FeatureSpec, Head, ImageSizes, ImageSpec, build_model, create_backbone
from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.errors import UserError
from effbackbones.registry import BACKBONES, HEADS, LAYOUTS
from effbackbones.weights.loading import load_state
from effbackbones.weights.pretrained import Adopted, Decided, ForeignHead, Pretrained, Remainder
from effbackbones.weights.reading import read_weights
from effbackbones.weights.tensorfile import read_tensors

SMALL = {"width": 0.25, "depth": 0.3}


@dataclass(frozen=True)
class TheirCounter(ForeignHead):
    """The head of a made-up library, which calls its only layer ``counter`` and likes the stem."""

    head: Mapping[str, Tensor]
    unused: tuple[str, ...]
    layout: str = "counters"
    task: str = "count"

    @property
    def numerics(self) -> str:
        return "tf"

    @property
    def numerics_remark(self) -> str:
        return "counters were trained in TensorFlow"

    @property
    def remarks(self) -> tuple[str, ...]:
        return ("counters count from 1",)

    @property
    def maps(self) -> Mapping[str, Any]:
        return {"tap": "stem"}


def read_counter(rest: Remainder) -> TheirCounter | None:
    theirs = {key: tensor for key, tensor in rest.tensors.items() if key.startswith("counter.")}
    ours = {key.replace("counter.", "fc."): tensor for key, tensor in theirs.items()}
    return TheirCounter(ours, tuple(rest.tensors.keys() - theirs.keys())) if theirs else None


class Counter(Head):
    task: ClassVar[str] = "count"

    def __init__(self, spec: FeatureSpec, num_classes: int, *, bias: bool = True, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.fc = nn.Linear(spec.channels[0], num_classes, bias=bias)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(levels=("C1",))

    @classmethod
    def named_weights(cls, weights: Any, options: Mapping[str, Any]) -> Any:
        return options["home"] if weights == "counted" else weights

    @classmethod
    def options_with(
        cls, weights: Pretrained, options: Mapping[str, Any], spec: FeatureSpec, num_classes: int
    ) -> Decided:
        if not isinstance(weights.foreign, TheirCounter) or "bias" in options:
            return super().options_with(weights, options, spec, num_classes)
        return Decided({**options, "bias": "fc.bias" in weights.foreign.head}, ("the file decides about the bias",))

    def adopt(self, weights: Pretrained) -> Adopted:
        report = load_state(self, weights.for_heads, what="counter", allow_missing=True)
        return Adopted(report, ("taken",), ("one", "two"))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        counts: Tensor = self.fc(features[0].mean((2, 3)))
        return counts

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {"l1": (raw - targets).abs().mean()}

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        return raw


@pytest.fixture
def counted(tmp_path: Path, lend: Any) -> Path:
    lend(HEADS, {"counter": Counter})
    lend(LAYOUTS, {"counters": read_counter})
    torch.manual_seed(0)
    net = EfficientNet("b0", tap="stem")
    state = {f"net.{key}": tensor for key, tensor in net.state_dict().items()}
    save_file(state | {"counter.weight": torch.ones(2, 32), "other": torch.ones(1)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_a_head_from_outside_reads_the_files_of_its_library(counted: Path) -> None:
    model = build_model("count", "b0", head="counter", num_classes=2, weights=counted)
    assert torch.equal(model.head.fc.weight, torch.ones(2, 32))
    assert model.config["head_options"] == {"bias": False}
    assert model.config["backbone_options"]["tap"] == "stem"
    assert model.config["backbone_options"]["numerics"]["padding"] == "same"
    assert model.classes == ("one", "two")
    told = model.provenance["assumed"]
    assert told[0] == "counters were trained in TensorFlow"
    assert "mean and std" in told[1]
    assert told[2:] == ["counters count from 1", "the file decides about the bias", "taken"]
    assert model.provenance["dialect"] == "counters"
    assert [row.split()[-1] for row in model.provenance["loaded"].splitlines()[1:2]] == ["other"]
    assert "untrained_head" not in model.provenance


def test_without_that_head_the_file_still_says_what_it_knows_of_the_backbone(counted: Path) -> None:
    backbone = create_backbone("b0", weights=counted)
    assert backbone.feature_spec.channels[0] == 16
    assert "was trained with tap stem, here it is stage" in backbone.provenance["assumed"][-1]
    model = build_model("cls", "b0", num_classes=2, weights=counted)
    assert model.provenance["untrained_head"]


class Strokes(Backbone):
    """A family from outside: one convolution, whose weights a library calls ``strokes``."""

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.name, self.image_spec, self.scale = "strokes", ImageSpec(), scale
        self.feature_spec = FeatureSpec("strokes", ("C1",), (4,), (2,))
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    @classmethod
    def read_weights(cls, weights: str | Path, name: str, options: Mapping[str, Any]) -> Pretrained | None:
        tensors, metadata = read_tensors(Path(weights))
        if metadata:
            return None
        ours = {key.replace("strokes", "conv"): tensor for key, tensor in tensors.items()}
        return Pretrained(name, str(weights), "strokes", "MIT", ours, options={"scale": 2.0}, assumed=("a guess",))

    def settled(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.scale * self.conv(images)]


def test_a_family_from_outside_reads_the_files_of_its_library(tmp_path: Path, lend: Any) -> None:
    lend(BACKBONES, {"strokes": Strokes})
    lend(HEADS, {"counter": Counter})
    save_file({"strokes.weight": torch.ones(4, 3, 3, 3), "strokes.bias": torch.ones(4)}, tmp_path / "s.safetensors")
    model = build_model("count", "strokes", head="counter", num_classes=2, weights=tmp_path / "s.safetensors")
    assert torch.equal(model.backbone.conv.bias, torch.ones(4))
    assert (model.backbone.scale, model.config["backbone_options"]) == (2.0, {"scale": 2.0})
    assert (model.provenance["licence"], model.provenance["assumed"]) == ("MIT", ["a guess"])
    options = {"scale": 3.0}
    assert create_backbone("strokes", weights=tmp_path / "s.safetensors").scale == 2.0
    model = build_model(
        "count", "strokes", head="counter", num_classes=2, weights=tmp_path / "s.safetensors", backbone_options=options
    )
    assert model.backbone.scale == 3.0


def test_a_family_that_knows_no_weights_of_others_says_so(tmp_path: Path, lend: Any) -> None:
    lend(BACKBONES, {"plain": lambda: Strokes()})
    save_file({"strokes.weight": torch.ones(4, 3, 3, 3)}, tmp_path / "s.safetensors")
    with pytest.raises(UserError, match="foreign weights do not fit backbone plain"):
        create_backbone("plain", weights=tmp_path / "s.safetensors")


def test_the_record_of_a_file_does_not_change_on_its_way(counted: Path) -> None:
    record = read_weights(counted, "b0")
    with pytest.raises(FrozenInstanceError):
        record.origin = "elsewhere"
    before = (record.assumed, record.options, set(record.backbone), set(record.for_heads))
    build_model("count", "b0", head="counter", num_classes=2, weights=counted)
    EfficientNet("b0", in_channels=1).adopt(record)
    assert (record.assumed, record.options, set(record.backbone), set(record.for_heads)) == before
    assert record.backbone["stem.conv.weight"].shape[1] == 3
