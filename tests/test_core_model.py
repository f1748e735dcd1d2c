"""Model and MultiHead: images in, one path for every dtype and size, groups, folding, compiled checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from effbackbones import (
    Backbone,
    BackboneNeeds,
    FeatureSpec,
    Head,
    ImageSizes,
    ImageSpec,
    Model,
    MultiHead,
    UserError,
    build_model,
    load_model,
    register_backbone,
    register_head,
    save_model,
)
from effbackbones.registry import BACKBONES, HEADS

SMALL = {"width": 0.25, "depth": 0.3}


class ToyRaw(NamedTuple):
    mean: Tensor
    grid: Tensor


class ToyHead(Head):
    """Reads C3 and C4, needs multiples of 16, and returns a NamedTuple."""

    task: ClassVar[str] = "toy"
    size_divisor = 16

    def __init__(self, spec: Any, num_classes: int, *, scale: float = 1.0, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.scale = scale
        self.layers = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for channels in spec.channels)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(levels=("C3", "C4"))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> ToyRaw:
        maps = [layer(feature) for layer, feature in zip(self.layers, features, strict=True)]
        return ToyRaw(maps[0].mean((2, 3)) + maps[1].mean((2, 3)), maps[0])

    def loss(self, raw: ToyRaw, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {"mse": self.scale * (raw.mean.float() - targets).square().mean()}

    def predict(self, raw: ToyRaw, sizes: ImageSizes) -> Tensor:
        return raw.mean.float()


class OtherHead(ToyHead):
    task: ClassVar[str] = "other"

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(levels=("C3", "C5"))


class StrideHead(ToyHead):
    task: ClassVar[str] = "stride"

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(levels=("C3", "C4"), output_stride=16)


@pytest.fixture(autouse=True)
def toys(lend: Any) -> None:
    lend(HEADS, {"toy": ToyHead, "other": OtherHead, "stride": StrideHead})


def toy(**more: Any) -> Model:
    torch.manual_seed(0)
    return build_model("toy", "b0", head="toy", num_classes=3, backbone_options=SMALL, **more).eval()


def test_every_image_dtype_means_the_same() -> None:
    model = toy()
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    raw = model(images).mean
    assert torch.allclose(model(images.float() / 255).mean, raw, atol=1e-5)
    assert torch.allclose(model((images.to(torch.int32) * 257).to(torch.uint16)).mean, raw, atol=1e-5)
    assert torch.allclose(model(model.normalize(images), normalized=True).mean, raw, atol=1e-6)


def test_normalisation_is_that_of_the_image_spec() -> None:
    model = toy()
    images = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.image_spec.mean, model.image_spec.std))
    assert torch.allclose(model.normalize(images), (images - mean) / std, atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_padding_by_hand_equals_padding_inside(height: int, width: int) -> None:
    model = toy()
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    tall, wide = (max(32, -(-side // 16) * 16) for side in (height, width))
    fill = torch.tensor([round(255 * value) for value in model.image_spec.mean], dtype=torch.uint8)
    padded = fill.view(1, 3, 1, 1).expand(1, 3, tall, wide).clone()
    padded[..., :height, :width] = images
    inside = model(images)
    by_hand = model(padded, ImageSizes((height, width), torch.tensor([[height, width]])))
    assert torch.allclose(inside.mean, by_hand.mean, atol=1e-5)
    assert inside.grid.shape[-2:] == (tall // 8, wide // 8)


def test_integers_that_say_no_range_are_refused() -> None:
    with pytest.raises(UserError, match="expected uint8, uint16 or floating point"):
        toy()(torch.zeros(1, 3, 32, 32, dtype=torch.int64))


def test_wrong_channels_are_named() -> None:
    with pytest.raises(UserError, match=r"\[B, 3, H, W\], got \[1, 4, 32, 32\]; build the model"):
        toy()(torch.zeros(1, 4, 32, 32))


def test_predict_in_training_mode_says_eval() -> None:
    model = toy().train()
    with pytest.raises(RuntimeError, match="eval"):
        model.predict(torch.zeros(1, 3, 32, 32))
    assert model.training


def test_losses_are_scalars_by_name_and_a_head_has_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3)
    for wrong, says in (
        (torch.zeros(()), "Tensor"),
        ({"a": torch.zeros(2)}, r"'a' of shape \[2\]"),
        (None, "NoneType"),
    ):
        monkeypatch.setattr(ToyHead, "loss", lambda *_, wrong=wrong: wrong)
        with pytest.raises(UserError, match=f"ToyHead.loss: expected a dict of scalars by name, got .*{says}"):
            toy().loss(images, targets)
    monkeypatch.delattr(ToyHead, "task")
    with pytest.raises(UserError, match="head 'toy': ToyHead does not say its task"):
        toy()


def test_predict_changes_nothing_and_needs_no_gradient() -> None:
    model = toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not model.predict(torch.rand(2, 3, 40, 40)).requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("frozen", [None, "C2"])
def test_param_groups_cover_every_parameter_once(layer_decay: float | None, frozen: str | None) -> None:
    model = toy()
    if frozen:
        model.backbone.freeze(frozen)
    groups = model.param_groups(0.2, 0.1, layer_decay=layer_decay)
    covered = [id(p) for group in groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    by_name = {group["name"]: group for group in groups}
    levels = ["stem", "C1", "C2", "C3", "C4"]
    for distance, level in enumerate(reversed(levels), 1):
        assert by_name[f"backbone.{level}/decay"]["lr"] == pytest.approx(0.2 * (layer_decay or 1) ** distance)
    assert by_name["head/decay"]["lr"] == 0.2
    assert all(p.ndim > 1 for name, group in by_name.items() if name.endswith("/decay") for p in group["params"])
    assert all(group["weight_decay"] == (0.1 if name.endswith("/decay") else 0.0) for name, group in by_name.items())


@pytest.mark.parametrize("backbone", ["b0", "lite0"])
def test_for_inference_gives_the_same_and_leaves_the_original(backbone: str) -> None:
    torch.manual_seed(0)
    model = build_model("cls", backbone, num_classes=5, backbone_options=SMALL)
    model.train()
    for _ in range(2):
        model(torch.rand(4, 3, 48, 48))  # statistics that are not 0 and 1
    model.eval()
    images = torch.rand(2, 3, 50, 44)
    before = model(images)
    fast = model.for_inference(backend="eager")
    assert torch.allclose(fast(images), before, atol=1e-4)
    assert torch.equal(model(images), before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())


def two(**more: Any) -> Model:
    return build_model(
        ("toy", "other"),
        "b0",
        head={"toy": "toy", "other": "other"},
        num_classes={"toy": 3, "other": 2},
        backbone_options=SMALL,
        **more,
    )


def test_two_heads_share_one_pass_and_equal_the_single_models() -> None:
    both = two().eval()
    assert isinstance(both.head, MultiHead)
    assert both.backbone.feature_spec.names == ("C3", "C4", "C5")
    calls: list[int] = []
    both.backbone.register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(2, 3, 64, 64)
    raw = both(images)
    assert calls == [1]
    single = toy()
    state = both.state_dict()
    single.backbone.load_state_dict({k: state[f"backbone.{k}"] for k in single.backbone.state_dict()})
    single.head.load_state_dict({k: state[f"head.heads.toy.{k}"] for k in single.head.state_dict()})
    assert torch.allclose(single(images).mean, raw["toy"].mean, atol=1e-6)
    assert set(both.predict(images)) == {"toy", "other"}


def test_a_task_without_targets_gets_zero_gradients_not_none() -> None:
    model = two(head_options={"toy": {"scale": 2.0}}).train()
    images = torch.rand(2, 3, 64, 64)
    losses = model.loss(images, {"toy": torch.zeros(2, 3)})
    assert set(losses) == {"toy/mse", "other/unlabelled"}
    torch.stack(list(losses.values())).sum().backward()
    other = model.head.heads["other"]
    assert all(p.grad is not None and not p.grad.any() for p in other.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.head.heads["toy"].parameters())
    weighted = MultiHead(model.backbone.feature_spec, {"toy": model.head.heads["toy"]}, {"toy": 3.0})
    raw = model(images)
    sizes = ImageSizes.of(images)
    plain = model.head.heads["toy"].loss(raw["toy"], torch.zeros(2, 3), sizes)["mse"]
    assert torch.allclose(weighted.loss({"toy": raw["toy"]}, {"toy": torch.zeros(2, 3)}, sizes)["toy/mse"], 3 * plain)


def test_contradicting_needs_name_both_heads() -> None:
    with pytest.raises(UserError, match=r"'toy' and 'stride'.*output_stride 32 and 16"):
        build_model(
            ("toy", "stride"), "b0", head={"toy": "toy", "stride": "stride"}, num_classes={"toy": 3, "stride": 3}
        )


def test_a_head_that_gets_no_map_it_needs_says_which(lend: Any) -> None:
    class Shallow(Backbone):
        def __init__(self, levels: Any = None) -> None:
            super().__init__()
            self.feature_spec = FeatureSpec("shallow", ("C1",), (3,), (1,))
            self.image_spec = ImageSpec((32, 32), (0.5,) * 3, (0.5,) * 3)

        def forward(self, images: Tensor) -> list[Tensor]:
            return [images]

        def level_modules(self) -> dict[str, tuple[nn.Module, ...]]:
            return {"C1": ()}

    lend(BACKBONES, {"shallow": Shallow})
    with pytest.raises(UserError, match="backbone 'shallow': ToyHead needs C3, C4, got C1"):
        build_model("toy", "shallow", head="toy", num_classes=2)


def test_a_decorator_without_brackets_says_so() -> None:
    with pytest.raises(UserError, match="register a head: expected a name, got ToyHead"):
        register_head(ToyHead)  # type: ignore[arg-type]


def test_explicit_options_settle_what_heads_disagree_on() -> None:
    options = {**SMALL, "output_stride": 16}
    model = build_model(
        ("toy", "stride"),
        "b0",
        head={"toy": "toy", "stride": "stride"},
        num_classes={"toy": 3, "stride": 3},
        backbone_options=options,
    )
    assert model.backbone.feature_spec.strides == (8, 16)


def test_keys_by_task_may_be_aliases_and_not_be_mistyped() -> None:
    counts = {"classify": 5, "other": 2}
    model = build_model(
        ("classify", "other"), "b0", head={"other": "other"}, num_classes=counts, backbone_options=SMALL
    )
    assert model.config["num_classes"] == {"cls": 5, "other": 2}
    with pytest.raises(UserError, match=r"num_classes\['clss'\].*did you mean cls"):
        build_model(
            ("cls", "other"), "b0", head={"other": "other"}, num_classes={"clss": 5, "other": 2}, backbone_options=SMALL
        )


def test_two_heads_survive_a_checkpoint(tmp_path: Path) -> None:
    model = two().eval()
    save_model(model, tmp_path / "two.safetensors")
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_model(tmp_path / "two.safetensors")(images)["other"].grid, model(images)["other"].grid)


@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_a_compiled_model_is_saved_under_plain_names(how: str, tmp_path: Path) -> None:
    model = toy()
    images = torch.rand(1, 3, 32, 32)
    expected = model(images).mean
    compiled: Any = model
    if how == "in place":
        model.compile(backend="eager", fullgraph=True)
    else:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images).mean, expected, atol=1e-6)
    save_model(compiled, tmp_path / "compiled.safetensors")
    assert torch.equal(load_model(tmp_path / "compiled.safetensors")(images).mean, expected)


@pytest.mark.parametrize(("stem_stride", "sides"), [(2, {24: 1, 40: 2}), (1, {8: 1, 16: 1, 24: 2, 32: 2})])
def test_classification_pads_to_one_cell_of_its_map_and_no_further(stem_stride: int, sides: dict[int, int]) -> None:
    """Padded to 32 pixels always, images of 16 took as long on a backbone of stride 16 as those of 32."""
    model = build_model("cls", "b0", num_classes=2, backbone_options={**SMALL, "stem_stride": stem_stride}).eval()
    for side, cells in sides.items():
        assert model.maps(torch.zeros(1, 3, side, side, dtype=torch.uint8))[-1].shape[-2:] == (cells, cells)


def test_a_forward_pass_reads_the_constants_of_logarithms_and_a_graph_has_none_of_it() -> None:
    model, images = toy().eval(), torch.rand(1, 3, 32, 32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        model(images)
    assert "aten::log1p_" in {event.key for event in seen.key_averages()}
    program = torch.export.export(model, (images,))
    assert not any("log1p" in str(node.target) for node in program.graph.nodes)


# A last map of one cell is special to the compiler, so a graph that serves it serves no larger one: cls starts above 32.
@pytest.mark.parametrize(("task", "least"), [("cls", 33), ("toy", 8)])
def test_export_with_dynamic_batch_height_and_width(task: str, least: int) -> None:
    head = "toy" if task == "toy" else None
    model = build_model(task, "b0", head=head, num_classes=3, backbone_options={**SMALL, "numerics": "tf"}).eval()
    sides = {2: torch.export.Dim("h", min=least, max=512), 3: torch.export.Dim("w", min=least, max=512)}
    dynamic = ({0: torch.export.Dim("b", min=1, max=8), **sides},)
    program = torch.export.export(model, (torch.rand(2, 3, 80, 96),), dynamic_shapes=dynamic)
    for shape in (
        (1, 3, 64, 64),
        (3, 3, 33, 97),
        (2, 3, max(17, least), 40),
    ):  # padding needed, not needed, smaller than min_size
        images = torch.rand(*shape)
        ours, theirs = model(images), program.module()(images)
        for a, b in zip(
            (ours,) if isinstance(ours, Tensor) else ours,
            (theirs,) if isinstance(theirs, Tensor) else theirs,
            strict=True,
        ):
            assert torch.allclose(a, b, atol=1e-5)


@dataclass
class Case:
    arguments: dict[str, Any]
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Case(
            {"task": "cls", "backbone": "b0", "head_options": {"drop": 0.1}},
            "head_options.drop: .*did you mean dropout",
        ),
        Case(
            {"task": "cls", "backbone": "b0", "head_options": {"dropout": 2.0}},
            r"head_options.dropout: expected .* at least 0 and below 1, got 2.0",
        ),
        Case(
            {"task": "cls", "backbone": "b0", "backbone_options": {"dropp_path": 0.1}},
            "options.dropp_path: .*did you mean drop_path",
        ),
        Case({"task": "cls", "backbone": "bb3"}, "backbone 'bb3': no such name; did you mean b3"),
        Case(
            {"task": "cls", "backbone": "b0", "head": "clasification"},
            "head 'clasification': .*did you mean classification",
        ),
        Case({"task": "clss", "backbone": "b0"}, "task 'clss'"),
        Case({"task": "cls", "backbone": "b0", "num_classes": 0}, "num_classes: expected at least 1"),
        Case({"task": "cls", "backbone": "b0", "num_classes": "3"}, "num_classes: expected a whole number, got '3'"),
        Case({"task": "cls", "backbone": "b0", "weights": True}, "weights: expected a name or a file, got bool"),
        Case({"task": "cls", "backbone": "b0", "weights": "."}, ".: expected a file, found a folder"),
        Case({"task": "cls", "backbone": "b0", "head": "toy"}, "head 'toy': is for task 'toy', not 'cls'"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_remedy(case: Case) -> None:
    with pytest.raises(UserError, match=case.message) as caught:
        build_model(**case.arguments)
    assert "\n" not in str(caught.value)


def test_a_place_between_the_rows_is_a_name_too(tmp_path: Path) -> None:
    model = build_model("cls", "lite0.5", num_classes=2).eval()
    assert model.backbone.feature_spec.backbone == "lite0.5"
    save_model(model, tmp_path / "between.safetensors")
    images = torch.rand(1, 3, 33, 33)
    assert torch.equal(load_model(tmp_path / "between.safetensors")(images), model(images))


def test_a_registered_backbone_builds_saves_and_loads(tmp_path: Path, lend: Any) -> None:
    from effbackbones.backbones.efficientnet import EfficientNet
    from effbackbones.registry import BACKBONES

    lend(BACKBONES, {}, alone=True)

    @register_backbone("fine")
    def fine() -> EfficientNet:  # takes no options: always the same maps
        return EfficientNet("b0", stem_stride=1, width=0.25, depth=0.3)

    model = build_model("toy", "fine", head="toy", num_classes=3).eval()
    assert model.backbone.feature_spec.strides == (1, 2, 4, 8, 16)
    assert model.head.spec.names == ("C3", "C4")
    save_model(model, tmp_path / "fine.safetensors")
    images = torch.rand(1, 3, 32, 32)
    again = load_model(tmp_path / "fine.safetensors")
    assert again.backbone.feature_spec == model.backbone.feature_spec
    assert torch.equal(again(images).mean, model(images).mean)
    with pytest.raises(UserError, match=r"backbone_options\.drop_path"):
        build_model("toy", "fine", head="toy", num_classes=3, backbone_options={"drop_path": 0.1})
    warm = build_model("toy", "fine", head="toy", num_classes=3, weights=tmp_path / "fine.safetensors").eval()
    assert torch.equal(warm(images).mean, model(images).mean)


def test_a_copy_for_inference_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save the model it was made from"):
        save_model(toy().for_inference(backend="eager"), tmp_path / "folded.safetensors")


def test_a_taken_name_names_both_owners() -> None:
    with pytest.raises(
        UserError, match=r"head 'toy': belongs to .*test_core_model.py:ToyHead, and .*OtherHead asks for it"
    ):
        register_head("toy")(OtherHead)
    with pytest.raises(UserError, match=r"'classification': belongs to heads\.classification"):
        register_head("classification")(OtherHead)
    register_head("toy")(ToyHead)  # the same again: a notebook cell


def test_classification_head_losses_are_their_definitions() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5), torch.randint(0, 5, (4,))
    sizes = ImageSizes.of(torch.zeros(4, 3, 8, 8))
    head = build_model("cls", "b0", num_classes=5, backbone_options=SMALL, head_options={"label_smoothing": 0.2}).head
    soft = torch.nn.functional.one_hot(labels, 5) * 0.8 + 0.2 / 5
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(head.loss(logits, labels, sizes)["cross_entropy"], expected)
    plain = build_model("cls", "b0", num_classes=5, backbone_options=SMALL).head
    assert torch.allclose(plain.loss(logits, soft, sizes)["cross_entropy"], expected)
    assert torch.allclose(plain.predict(logits, sizes).sum(1), torch.ones(4))
    many = build_model("cls", "b0", num_classes=5, backbone_options=SMALL, head_options={"multilabel": True}).head
    marks = (torch.rand(4, 5) > 0.5).float()
    binary = -(marks * logits.sigmoid().log() + (1 - marks) * (-logits).sigmoid().log()).mean()
    assert torch.allclose(many.loss(logits, marks, sizes)["binary_cross_entropy"], binary, atol=1e-6)
    assert torch.equal(many.predict(logits, sizes), logits.sigmoid())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_a_backbone_normalises_as_its_model_does(dtype: torch.dtype) -> None:
    model = build_model("cls", "b0", num_classes=2)
    values = torch.rand(2, 3, 5, 7)
    images = values if dtype == torch.float32 else (values * torch.iinfo(dtype).max).to(dtype)
    for spec in (model.image_spec, replace(model.image_spec, mean=(0.5, 0.4, 0.1), std=(0.1, 0.2, 0.3))):
        model.use_image_spec(spec)
        model.backbone.image_spec = spec
        assert torch.allclose(model.backbone.normalize(images), model.normalize(images), atol=1e-5)


def test_a_single_image_is_told_to_be_a_batch() -> None:
    model = build_model("cls", "b0", num_classes=2).eval()
    with pytest.raises(UserError, match=r"expected a batch \[B, C, H, W\].*image\[None\]"):
        model.predict(torch.zeros(3, 32, 32))


def test_bytes_in_floating_point_are_refused() -> None:
    model = build_model("cls", "b0", num_classes=2).eval()
    with pytest.raises(UserError, match=r"expected floating point in 0\.\.1, found 255.*divide by 255"):
        model.predict(torch.full((1, 3, 32, 32), 255.0))
    for images in (
        torch.ones(1, 3, 32, 32),
        torch.full((1, 3, 32, 32), 255, dtype=torch.uint8),
        torch.full((1, 3, 32, 32), 1.5),
    ):
        assert model.predict(images).shape == (1, 2)
