"""Sound events: the attention head against its definition, the times of events, and windows put together."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones import build_model, create_backbone, load_model, load_predictor, save_model
from effbackbones.conformance import check_head, enforce
from effbackbones.contracts import Backbone, FeatureSpec, ImageSizes, ImageSpec
from effbackbones.errors import UserError
from effbackbones.inference.results import Classes
from effbackbones.inference.timelines import Timeline, stitched
from effbackbones.model import Model
from effbackbones.registry import BACKBONES
from heads.sed import SedHead, SedRaw, _log_sum
from tasks.classification.files import PredictionFiles

RATE = 8000
SMALL: dict[str, Any] = {"rate": RATE, "n_fft": 256, "hop": 40, "mels": 32, "seconds": 1.0}
TWO: dict[str, Any] = {"levels": ["C2", "C5"], "multilabel": True}
SPEC = FeatureSpec("mine", ("C2", "C5"), (6, 8), (4, 32))


def several(sizes: ImageSizes, count: int, empty: bool) -> Tensor:
    return torch.randint(0, 2, (len(sizes.valid), count)).float()


def inputs(head: SedHead, width: int = 256, valid: tuple[int, ...] = (256, 100)) -> tuple[list[Tensor], ImageSizes]:
    torch.manual_seed(0)
    maps = [
        torch.randn(len(valid), c, 3, -(-width // s))
        for c, s in zip(head.spec.channels, head.spec.strides, strict=True)
    ]
    return maps, ImageSizes((1, width), torch.tensor([[1, side] for side in valid]))


QUICK = (
    "options_refused",
    "declared",
    "raw_output",
    "mode_independent",
    "batch_independent",
    "loss_scalar",
    "loss_finite",
)
QUICK += (
    "loss_pure",
    "no_sync",
    "select",
    "count",
    "distill",
    "gradient_reach",
    "predict_pure",
    "fixed_shapes",
    "freeze",
)


@pytest.mark.parametrize(
    "options", [{"levels": ("C2", "C5")}, {"levels": ("C2", "C5"), "multilabel": True}, {"channels": 5}]
)
def test_promises_of_a_head(options: dict[str, Any]) -> None:
    spec = SPEC.select(tuple(options.get("levels", ("C5",))))
    targets = several if "multilabel" in options else None
    enforce(check_head(SedHead, options=options, spec=spec, targets=targets, promises=[*QUICK, "valid_extent"]))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"multilabel": True, "ignore_unknown": True}, {"levels": ("C3", "C4", "C5")}])
def test_every_promise_of_a_head(options: dict[str, Any]) -> None:
    enforce(check_head(SedHead, options=options, targets=several if "multilabel" in options else None))


@pytest.mark.parametrize("multilabel", [True, False])
def test_recordings_are_attended_as_published(multilabel: bool) -> None:
    head = SedHead(SPEC, 3, levels=("C2", "C5"), multilabel=multilabel, frame_loss=0.5).eval()
    (fine, coarse), sizes = inputs(head)
    raw = head([fine, coarse], sizes)
    expected = []
    for row, cells in enumerate((8, 4)):  # 256 and 100 columns of 32
        frames = coarse[row, :, :, :cells].mean(1).T
        weights = head.attention(frames).tanh().softmax(0)
        said = head.fc(frames)
        expected.append((weights * said.sigmoid()).sum(0) if multilabel else (weights * said).sum(0).softmax(0))
    torch.testing.assert_close(head.predict(raw, sizes), torch.stack(expected))
    assert raw.frames.shape == (2, 2, 3, 64)
    torch.testing.assert_close(raw.frames[:, 0], head.finer[0](fine.mean(2).transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(raw.frames[:, 1, :, ::8], head.fc(coarse.mean(2).transpose(1, 2)).transpose(1, 2))
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    losses = head.loss(raw, labels if multilabel else labels.argmax(1), sizes)
    probabilities = head.predict(raw, sizes)
    plain = (
        F.binary_cross_entropy(probabilities, labels) if multilabel else -(probabilities.log() * labels).sum(1).mean()
    )
    torch.testing.assert_close(next(iter(losses.values())), plain)
    attended = head.finer_attention[0](fine[0].mean(1).T).tanh().softmax(0)
    said = head.finer[0](fine[0].mean(1).T)
    by_finer = (attended * said.sigmoid()).sum(0) if multilabel else (attended * said).sum(0)
    torch.testing.assert_close(raw.levels[0, 0].sigmoid() if multilabel else raw.levels[0, 0], by_finer)
    assert torch.equal(raw.levels[:, -1], raw.logits)
    finer = F.binary_cross_entropy_with_logits(raw.levels[:, 0], labels)
    torch.testing.assert_close(
        losses["finer"], finer if multilabel else F.cross_entropy(raw.levels[:, 0], labels.argmax(1))
    )
    largest = torch.stack([raw.frames[0].amax(2), raw.frames[1, :, :, :25].amax(2)])  # [B, L, K]
    each = [F.binary_cross_entropy(largest[:, level].sigmoid(), labels) for level in (0, 1)]
    torch.testing.assert_close(losses["frames"], 0.5 * sum(each) / 2)


@pytest.mark.parametrize("multilabel", [True, False])
def test_what_lies_behind_the_content_does_not_count(multilabel: bool) -> None:
    head = SedHead(SPEC, 3, levels=("C2", "C5"), multilabel=multilabel).eval()
    maps, sizes = inputs(head)
    other = [one.clone() for one in maps]
    other[0][1, :, :, 25:], other[1][1, :, :, 4:] = 50.0, -50.0
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]]) if multilabel else torch.tensor([0, 2])
    raws = [head(given, sizes) for given in (maps, other)]
    for one, two in ((raw.logits for raw in raws), (head.timeline(raw, sizes) for raw in raws)):
        torch.testing.assert_close(one, two)
    losses = [sum(head.loss(raw, labels, sizes).values()) for raw in raws]
    torch.testing.assert_close(losses[0], losses[1])
    assert bool((head.timeline(raws[1], sizes)[1, :, 25:] == 0).all())
    # A recording without a sample has one frame.
    nothing = ImageSizes((1, 256), torch.tensor([[1, 0], [1, 256]]))
    assert bool(head(maps, nothing).logits.isfinite().all())


def test_extreme_frames_give_finite_losses_and_gradients() -> None:
    head = SedHead(SPEC, 2, levels=("C2", "C5"), multilabel=True)
    maps, sizes = inputs(head)
    maps = [(one * 1e3).requires_grad_() for one in maps]
    torch.stack(list(head.loss(head(maps, sizes), torch.tensor([[1.0, 0], [0, 1]]), sizes).values())).sum().backward()
    assert all(bool(one.grad is not None and one.grad.isfinite().all()) for one in maps)


def test_sums_of_small_numbers_are_torchs() -> None:
    logs = torch.tensor([[-500.0, -501, -1e4], [0, -1, 2], [-1e4, -1e4, -1e4]], requires_grad=True)
    ours, theirs = _log_sum(logs[:, :, None])[:, 0], logs.logsumexp(1)
    torch.testing.assert_close(ours, theirs)
    one, other = (torch.autograd.grad(made.sum(), logs, retain_graph=True)[0] for made in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_frames_of_a_single_map_are_its_sigmoids() -> None:
    head = SedHead(SPEC.select(("C5",)), 3, multilabel=True).eval()
    maps, sizes = inputs(head, valid=(256, 256))
    raw = head(maps, sizes)
    torch.testing.assert_close(head.timeline(raw, sizes), raw.frames[:, 0].sigmoid())


def test_a_frame_says_no_more_than_its_recording() -> None:
    head = SedHead(SPEC, 1, levels=("C2", "C5"), multilabel=True)
    frames = torch.tensor([[-8.0, 0, 5, 5], [9, 9, 9, 9]]).view(1, 2, 1, 4)
    sizes = ImageSizes((1, 16), torch.tensor([[1, 12]]))
    for said, expected in ((30.0, [0.0003, 0.5, 0.9933, 0]), (0.0, [0.0003, 0.5, 0.5, 0])):
        logits = torch.full((1, 1), said)
        found = head.timeline(SedRaw(logits, logits[:, None].repeat(1, 2, 1), frames), sizes)[0, 0]
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def test_a_loss_of_finer_maps_rests_without_any() -> None:
    one, two = ("C5",), ("C4", "C5")
    for names, resting in ((one, {"finer_loss"}), (two, set())):
        head = SedHead(FeatureSpec("b0", names, (8,) * len(names), (16, 32)[-len(names) :]), 3, levels=names)
        assert set(head.resting()) == resting


def test_options_and_specs_that_do_not_fit() -> None:
    for options, said in (
        ({"levels": ["C9"]}, "head_options.levels: no level 'C9'"),
        ({"levels": []}, "one level at least"),
        ({"frame_loss": -1.0}, "head_options.frame_loss: expected a number of at least 0, got -1.0"),
    ):
        with pytest.raises(UserError, match=said):
            build_model("cls", "sound:lite0", head="sed", num_classes=2, head_options=options)
    with pytest.raises(UserError, match=r"head_options.levels: expected the maps given, C2, C5"):
        SedHead(SPEC, 2, levels=("C3",))


def test_the_published_tail_and_the_backbone_come_with_weights(tmp_path: Path) -> None:
    pictures = build_model("cls", "lite0", num_classes=3, backbone_options={"width": 0.3})
    save_model(pictures, tmp_path / "p.safetensors")
    options = {**SMALL, "width": 0.3}
    model = build_model(
        "cls",
        "sound:lite0",
        head="sed",
        num_classes=2,
        weights=tmp_path / "p.safetensors",
        backbone_options=options,
        head_options=TWO,
    )
    state = model.state_dict()
    assert torch.equal(state["head.conv.conv.weight"], pictures.state_dict()["head.conv.conv.weight"])
    assert model.head.frame_step == 160
    save_model(model.eval(), tmp_path / "s.safetensors")
    again = load_model(tmp_path / "s.safetensors")
    assert list(again.backbone.feature_spec.names) == ["C2", "C5"]


@pytest.mark.parametrize(("numerics", "shift"), [("torch", 0), ("tf", 1)])
def test_centres_are_those_of_the_receptive_fields(numerics: str, shift: int) -> None:
    backbone = create_backbone("lite0", numerics=numerics, levels=["C1", "C2", "C3"]).eval()
    assert backbone.feature_spec.centres == tuple(shift * (stride - 1) for stride in (2, 4, 8))
    for level, centre in enumerate(backbone.feature_spec.centres or ()):
        images = torch.randn(1, 3, 8, 320, requires_grad=True)
        stride = backbone.feature_spec.strides[level]
        cell = 160 // stride
        backbone(images)[level][0, :, 0, cell].sum().backward()
        assert images.grad is not None
        seen = images.grad.abs().sum((0, 1, 2)).nonzero().flatten()
        assert float(seen[0] + seen[-1]) / 2 == cell * stride + centre
        images.grad = None


# Times ------------------------------------------------------------------------------------------------------------------


def test_events_of_a_timeline() -> None:
    scores = np.array([[0, 0, 1, 1, 0, 0], [1, 0.4, 0.4, 0.4, 0.4, 0.9], [0.1] * 6], np.float32)
    found = Timeline(scores, 0.1, 0.6, 0.05).events(["bark", "hum", "none"], [0.5, 0.5, 0.5])
    assert [(event.name, round(event.begin, 3), round(event.end, 3)) for event in found] == [
        ("hum", 0.0, 0.133),
        ("bark", 0.2, 0.4),
        ("hum", 0.47, 0.6),
    ]
    assert found[1].to_dict() == {"class": "bark", "label": 0, "begin": 0.2, "end": 0.4, "score": 1.0}
    assert Timeline(scores, 0.1, 0.6, 0.05).events(["bark", "hum", "none"], [1.1, 0.35, 0.05])[0].end == 0.6


@given(begin=st.floats(0.3, 4), length=st.floats(0.3, 4), step=st.floats(0.01, 0.1), first=st.floats(0, 0.05))
def test_borders_of_a_ramp_are_found_between_frames(begin: float, length: float, step: float, first: float) -> None:
    times = first + np.arange(int(9 / step)) * step
    ramp = np.clip(np.minimum(times - begin + 0.1, begin + length - times + 0.1) / 0.2, 0, 1)
    event = Timeline(ramp[None].astype(np.float32), step, 9.0, first).events(["a"], [0.5])[0]
    assert abs(event.begin - begin) < step / 2 + 1e-6
    assert abs(event.end - begin - length) < step / 2 + 1e-6


@given(
    length=st.integers(1, 4000),
    window=st.integers(100, 900),
    step=st.integers(5, 90),
    centre=st.floats(0, 80),
    seed=st.integers(0, 9),
)
def test_windows_are_put_together(length: int, window: int, step: int, centre: float, seed: int) -> None:
    starts = sorted({*range(0, max(1, length - window), max(1, window * 2 // 3)), max(0, length - window)})
    frames = -(-window // step)

    def value(sample: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.stack([sample / 4000, 1 - sample / 4000]).astype(np.float32)

    parts = [value(start + centre + np.arange(frames) * step) for start in starts]
    made = stitched(parts, starts, step, centre, length)
    count = -(-length // step)
    assert made.shape == (2, count)
    expected = value(centre + np.arange(count) * step)
    # Between the frames of a window a line; before its first and behind its last, these.
    np.testing.assert_allclose(made, expected, atol=step / 4000 + 1e-5)


class Loud(Backbone):
    """How loud it is, in cells of 4 and of 32: a network whose answers are known."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.name, self.image_spec = "loud", ImageSpec((64, 64), (0.5,), (0.5,))
        self.feature_spec = FeatureSpec("loud", ("C2", "C5"), (1, 1), (4, 32))
        self.pools = nn.ModuleList([nn.AvgPool2d((1, side), ceil_mode=True) for side in (4, 32)])

    def forward(self, images: Tensor) -> list[Tensor]:
        louder = images.amax(2, keepdim=True)
        return [pool(louder) for pool in self.pools]


@pytest.fixture
def loud() -> Any:
    """A model that hears one class: whatever is loud."""
    with BACKBONES.temporary({"loud": Loud}):
        model = build_model(
            "cls", "sound:loud", head="sed", num_classes=1, backbone_options=SMALL, head_options=TWO
        ).eval()
        with torch.no_grad():
            for layer in (model.head.fc, model.head.finer[0]):  # type: ignore[union-attr, index]
                layer.weight.fill_(4.0)  # type: ignore[union-attr]
                layer.bias.fill_(-2.0)  # type: ignore[union-attr]
            model.head.attention.weight.fill_(1.0)  # type: ignore[union-attr]
        model.classes = ("loud",)
        yield model


def bursts(seconds: float, *times: tuple[float, float]) -> NDArray[np.float32]:
    """Tones and noise between those times, in faint noise."""
    drawn = np.random.default_rng(0)
    wave = drawn.normal(size=int(seconds * RATE)) * 1e-3
    for number, (begin, end) in enumerate(times):
        place = slice(int(begin * RATE), int(end * RATE))
        time = np.arange(place.stop - place.start) / RATE
        wave[place] += 0.3 * (np.sin(2 * np.pi * 700 * time) if number % 2 else drawn.normal(size=len(time)))
    return wave.clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.9, 1.0, 2.7])
def test_times_of_bursts_are_within_50_ms(loud: Model, seconds: float) -> None:
    times = [(0.2, 0.45), (0.6, 0.75), (1.4, 1.9), (2.2, 2.5)]
    told = [pair for pair in times if pair[1] < seconds]
    result = load_predictor(loud)(bursts(seconds, *told))
    assert isinstance(result, Classes)
    assert [event.name for event in result.events] == ["loud"] * len(told)
    gaps = [
        abs(got - true)
        for event, pair in zip(result.events, told, strict=True)
        for got, true in zip((event.begin, event.end), pair, strict=True)
    ]
    assert max(gaps) < 0.05
    assert result.to_dict()["events"] == [event.to_dict() for event in result.events]


def test_events_in_files(loud: Model, tmp_path: Path) -> None:
    result = load_predictor(loud)(bursts(1.7, (0.2, 0.45)))
    writer = PredictionFiles(tmp_path, ("loud",), True, lambda line: None, every=True)
    writer.update([result])
    writer.close()
    rows = list(csv.reader((tmp_path / "events.csv").open()))
    assert rows[0] == ["file", "class", "begin", "end", "score"]
    assert rows[1][:2] == ["recording 0", "loud"]
    assert abs(float(rows[1][2]) - 0.2) < 0.05
    told = json.loads((tmp_path / "predictions.json").read_text())["images"][0]
    assert len(told["events"]) == 1
    assert len(told["frames"]["scores"]["loud"]) == 85  # 1.7 s in steps of 4 * 40 samples
    assert told["frames"]["step"] == 0.02


@pytest.mark.slow
def test_frames_of_an_exported_graph(loud: Model, tmp_path: Path) -> None:
    from effbackbones.export import export_model

    given = bursts(1.7, (0.2, 0.45), (1.0, 1.3))
    expected = load_predictor(loud)(given)
    export_model(loud, tmp_path / "m.onnx", images=[given, bursts(0.8, (0.3, 0.5))])
    found = load_predictor(tmp_path / "m.onnx")(given)
    np.testing.assert_allclose(found.timeline.scores, expected.timeline.scores, atol=1e-4)
    assert [event.to_dict()["begin"] for event in found.events] == [
        event.to_dict()["begin"] for event in expected.events
    ]


@pytest.mark.slow
def test_sure_answers_are_finite_in_onnxruntime(loud: Model) -> None:
    pytest.importorskip("onnxruntime")
    with torch.no_grad():
        for layer in (loud.head.fc, loud.head.finer[0]):  # type: ignore[union-attr, index]
            layer.weight.mul_(100)  # type: ignore[union-attr]
            layer.bias.mul_(100)  # type: ignore[union-attr]
    given = [bursts(1.0, (0.0, 1.0)), bursts(0.6)]
    fast = load_predictor(loud, device="cpu", backend="onnxruntime")
    found = fast(given)
    assert fast.model.runner is not None
    assert [round(one.score, 3) for one in found] == [1.0, 0.0]
    assert [len(one.events) for one in found] == [1, 0]
