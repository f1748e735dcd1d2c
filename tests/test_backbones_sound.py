"""Recordings: the spectrogram against its definition and other libraries, and the backbone around it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effbackbones import build_model, create_backbone, load_model, save_model
from effbackbones.backbones.mel import MelSpec, mel_filters
from effbackbones.backbones.sound import SoundBackbone, masked
from effbackbones.backbones.spectrogram import LEVEL, PCEN, SPREAD, Spectrogram, basis, decibels, pcen
from effbackbones.catalogue import backbone_rows
from effbackbones.conformance import check_backbone, enforce
from effbackbones.contracts import Backbone, FeatureSpec, ImageSpec
from effbackbones.errors import UserError
from effbackbones.registry import BACKBONES

SMALL: dict[str, Any] = {"rate": 8000, "n_fft": 256, "hop": 80, "mels": 32, "seconds": 1.0}


class Tiny(Backbone):
    """Two convolutions: a backbone of somebody's own."""

    def __init__(self, in_channels: int = 3, channels: int = 8) -> None:
        super().__init__()
        self.name, self.feature_spec = "tiny", FeatureSpec("tiny", ("C4", "C5"), (4, channels), (2, 4))
        self.image_spec = ImageSpec((64, 64), (0.5,) * in_channels, (0.5,) * in_channels)
        self.first = nn.Sequential(nn.Conv2d(in_channels, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Conv2d(4, channels, 3, 2, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [first, self.second(first)]


@pytest.fixture(autouse=True)
def _tiny() -> Any:
    with BACKBONES.temporary({"tiny": Tiny}):
        yield


def small(**options: Any) -> SoundBackbone:
    model = build_model("cls", "sound:tiny", num_classes=3, backbone_options={**SMALL, **options})
    assert isinstance(model.backbone, SoundBackbone)
    return model.backbone


def waves(count: int = 2, length: int = 4000) -> Tensor:
    drawn = torch.randn(count, length, generator=torch.Generator().manual_seed(0))
    return drawn * torch.linspace(0, 0.3, length)


def recordings(count: int = 2, length: int = 8000) -> Tensor:
    return (waves(count, length).clamp(-0.9, 0.9) * 32768 + 32768).round().to(torch.uint16)[:, None, None]


SPECS = [
    MelSpec(rate=8000, n_fft=256, hop=80, mels=32),
    MelSpec(rate=8000, n_fft=512, hop=125, win=400, mels=40, mel_norm="slaney", f_min=50, f_max=3600),
    MelSpec(rate=16000, n_fft=1024, hop=300, mels=48, mel_scale="htk", f_min=40),
    MelSpec(rate=16000, n_fft=1024, hop=256, win=800, mels=48, mel_scale="htk", mel_norm="slaney", f_min=40),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("length", [1, 80, 4000, 4001])
def test_power_is_that_of_the_definition(spec: MelSpec, length: int) -> None:
    given = waves(2, length)
    frames, left = math.ceil(length / spec.hop), spec.n_fft // 2
    padded = np.pad(given.double().numpy(), ((0, 0), (left, left + spec.n_fft)))
    edge = (spec.n_fft - spec.window) // 2
    window = np.zeros(spec.n_fft)
    window[edge : edge + spec.window] = np.sin(np.pi * np.arange(spec.window) / spec.window) ** 2
    cut = np.stack([padded[:, i * spec.hop :][:, : spec.n_fft] for i in range(frames)], 2)
    power = np.abs(np.fft.rfft(cut * window[:, None], axis=1)) ** 2
    expected = np.einsum("mk,bkt->bmt", mel_filters(spec), power)
    got = Spectrogram(spec).power(given)
    assert got.shape == (2, spec.mels, frames)
    np.testing.assert_allclose(decibels(got), 10 * np.log10(np.maximum(expected, 1e-10)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_a_product_with_a_matrix_is_the_transform(spec: MelSpec) -> None:
    front, given = Spectrogram(spec), waves()
    left = spec.n_fft // 2
    real, imaginary = front._transformed(torch.nn.functional.pad(given, (left, spec.n_fft - left - 1)), 4000)
    levels = decibels(front.filters @ (real.square() + imaginary.square()))
    expected = decibels(front.power(given))
    assert float((levels - expected).abs().max()) <= 1e-4 * float(expected.max() - expected.min())
    assert basis(spec)[0].shape == (spec.n_fft, spec.n_fft // 2 + 1)


@pytest.mark.peer
@pytest.mark.parametrize("spec", SPECS)
def test_log_mel_is_torchaudios(spec: MelSpec) -> None:
    transforms = pytest.importorskip("torchaudio.transforms")
    norm = None if spec.mel_norm == "none" else "slaney"
    ends, given = (spec.f_min, spec.top), waves()
    mel = transforms.MelSpectrogram(
        spec.rate,
        spec.n_fft,
        spec.window,
        spec.hop,
        *ends,
        n_mels=spec.mels,
        mel_scale=spec.mel_scale,
        norm=norm,
        pad_mode="constant",
    )
    _same(decibels(Spectrogram(spec).power(given)), transforms.AmplitudeToDB(top_db=None)(mel(given)))


@pytest.mark.peer
@pytest.mark.parametrize("spec", SPECS)
def test_log_mel_is_librosas(spec: MelSpec) -> None:
    librosa = pytest.importorskip("librosa")
    given = waves()
    power = librosa.feature.melspectrogram(
        y=given.numpy(),
        sr=spec.rate,
        n_fft=spec.n_fft,
        hop_length=spec.hop,
        win_length=spec.window,
        fmin=spec.f_min,
        fmax=spec.top,
        n_mels=spec.mels,
        htk=spec.mel_scale == "htk",
        norm=None if spec.mel_norm == "none" else "slaney",
    )
    _same(decibels(Spectrogram(spec).power(given)), torch.from_numpy(librosa.power_to_db(power, top_db=None)))


def _same(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the range; the others have a frame more where the hop divides the length."""
    theirs = theirs[..., : ours.shape[-1]]
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.max() - theirs.min())


@pytest.mark.peer
def test_pcen_is_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    energy = Spectrogram(SPECS[0]).power(waves()).sqrt() * 2**31
    first = (1 - PCEN["smoothing"]) * energy[..., :1].numpy()
    words = {"gain": PCEN["gain"], "bias": PCEN["bias"], "power": PCEN["root"], "eps": PCEN["eps"]}
    expected = librosa.pcen(energy.numpy(), b=PCEN["smoothing"], zi=first, **words)
    np.testing.assert_allclose(pcen(energy), expected, atol=1e-4)


def test_pcen_is_the_recursion() -> None:
    energy = torch.rand(1, 2, 50, generator=torch.Generator().manual_seed(1)) * 1e5
    smooth, rows = energy[..., 0], []
    for time in range(50):
        smooth = (1 - PCEN["smoothing"]) * smooth + PCEN["smoothing"] * energy[..., time]
        rows.append((energy[..., time] / (PCEN["eps"] + smooth) ** PCEN["gain"] + PCEN["bias"]) ** PCEN["root"])
    torch.testing.assert_close(pcen(energy), torch.stack(rows, 2) - PCEN["bias"] ** PCEN["root"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_white_noise_of_full_scale_lies_at_the_reference(spec: MelSpec) -> None:
    noise = torch.randn(1, 400 * spec.hop, generator=torch.Generator().manual_seed(2))
    inner = Spectrogram(spec).power(noise)[..., 10:-10].mean(2)
    levels = (decibels(inner) - Spectrogram(spec).reference.T).squeeze()
    assert float(levels.abs().max()) < 1.5
    assert float(levels.mean().abs()) < 0.2
    fixed = Spectrogram(spec)(noise)[..., 10:-10]
    assert float(fixed.mean()) == pytest.approx(
        -LEVEL / SPREAD, abs=0.15
    )  # the mean of dB lies below the dB of the mean


def test_per_clip_normalisation() -> None:
    spec = MelSpec(**{**SMALL, "normalize": "clip"})
    made = Spectrogram(spec)(torch.stack([waves(1)[0], 0.01 * waves(1)[0]]))
    torch.testing.assert_close(made.mean((1, 2)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.std((1, 2)), torch.ones(2), atol=1e-3, rtol=0)
    assert bool((Spectrogram(spec)(torch.zeros(1, 400)) == 0).all())  # silence: no deviation to divide by


@pytest.mark.parametrize("normalize", ["fixed", "clip", "pcen"])
def test_float32_under_autocast_and_in_bf16_weights(normalize: str) -> None:
    model = build_model("cls", "sound:tiny", num_classes=3, backbone_options={**SMALL, "normalize": normalize}).eval()
    backbone, given = model.backbone, recordings()
    assert isinstance(backbone, SoundBackbone)
    expected = backbone.spectrogram(model.normalize(given).flatten(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(backbone.spectrogram(model.normalize(given).flatten(1)), expected)
    model.bfloat16()
    assert torch.equal(backbone.spectrogram(model.normalize(given).flatten(1)), expected)
    assert model(given).dtype == torch.bfloat16


def test_waves_are_samples() -> None:
    model = build_model("cls", "sound:tiny", num_classes=3, backbone_options=SMALL)
    given = torch.tensor([0, 32768, 65535, 40000], dtype=torch.uint16).view(1, 1, 1, 4)
    assert model.normalize(given).flatten().tolist() == [-1.0, 0.0, 32767 / 32768, 7232 / 32768]
    padded = model._pad(model.normalize(given))
    assert padded.shape == (1, 1, 1, 32)
    assert bool((padded[..., 4:] == 0).all())  # silence, and one row


def test_a_recording_is_predicted_alone_as_with_others() -> None:
    model = build_model("cls", "sound:lite0", num_classes=3, backbone_options={**SMALL, "width": 0.3}).eval()
    given = recordings(3)
    torch.testing.assert_close(model.predict(given[1:2])[0], model.predict(given)[1], atol=1e-5, rtol=0)
    assert model.predict(given[..., :1]).shape == (3, 3)
    assert model.image_spec == ImageSpec.of_sound(8000, 8000)
    assert model.backbone.feature_spec.strides == (80 * 32,)


def test_every_promise_of_a_backbone() -> None:
    promises = ["spec", "shapes", "repeatable", "channels_last", "gradient_reach", "amp", "level_modules", "freeze"]
    enforce(check_backbone(lambda: small(time_masks=1, freq_masks=1), promises=[*promises, "state_dict"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sound:tiny", "sound:lite0", "sound:timm:resnet18"])
def test_every_promise_of_larger_backbones(name: str) -> None:
    made = build_model("cls", name, num_classes=3, backbone_options=SMALL).backbone
    enforce(check_backbone(made))


def test_saved_and_built_again(tmp_path: Any) -> None:
    options = {**SMALL, "normalize": "pcen", "drop_path": 0.1, "time_masks": 2}
    model = build_model("cls", "sound:lite0", num_classes=3, backbone_options={**options, "width": 0.3}).eval()
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert torch.equal(again.predict(recordings()), model.predict(recordings()))
    assert isinstance(again.backbone, SoundBackbone)
    assert again.backbone.mel == MelSpec(**{**SMALL, "normalize": "pcen"})
    assert not [name for name in model.state_dict() if "spectrogram" in name]
    # Weights for other classes: the spectrogram comes with them, unless the config says otherwise.
    other = build_model(
        "cls",
        "sound:lite0",
        num_classes=5,
        weights=tmp_path / "m.safetensors",
        backbone_options={"seconds": 2.0, "width": 0.3},
    )
    assert isinstance(other.backbone, SoundBackbone)
    assert other.backbone.mel == MelSpec(**{**SMALL, "normalize": "pcen", "seconds": 2.0})
    assert torch.equal(
        other.backbone.net.state_dict()["stem.conv.weight"], again.state_dict()["backbone.net.stem.conv.weight"]
    )
    with pytest.raises(UserError, match="holds weights of sound:lite0, not lite0"):
        build_model("cls", "lite0", weights=tmp_path / "m.safetensors", num_classes=3)


def test_weights_of_pictures_reach_the_backbone_inside(tmp_path: Any) -> None:
    pictures = build_model("cls", "lite0", num_classes=3, backbone_options={"width": 0.3})
    save_model(pictures, tmp_path / "p.safetensors")
    model = build_model(
        "cls",
        "sound:lite0",
        num_classes=3,
        weights=tmp_path / "p.safetensors",
        backbone_options={**SMALL, "width": 0.3},
    )
    stem = model.state_dict()["backbone.net.stem.conv.weight"]
    torch.testing.assert_close(stem, pictures.state_dict()["backbone.stem.conv.weight"].sum(1, keepdim=True))
    # The published tail of the classifier too.
    assert torch.equal(model.state_dict()["head.conv.conv.weight"], pictures.state_dict()["head.conv.conv.weight"])
    assert model.image_spec.rate == 8000


def test_inference_copies_and_pruning() -> None:
    from effbackbones.pruning import blocks_of

    model = build_model("cls", "sound:lite0", num_classes=3, backbone_options={**SMALL, "width": 0.3}).eval()
    torch.testing.assert_close(
        model.folded_copy().predict(recordings()), model.predict(recordings()), atol=1e-5, rtol=0
    )
    assert len(blocks_of(model)) == 16
    names = [group["name"] for group in model.param_groups(1e-3)]
    assert names[0] == "backbone.stem/decay"
    model.backbone.freeze("C2")
    assert model.backbone.frozen_levels == ("stem", "C1", "C2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hop": 0}, r"backbone_options.hop: expected 1 to 65536, got 0"),
        ({"mels": 300}, r"backbone_options.mels: \d+ of 300 filters lie between two frequencies of n_fft 256 at 8000"),
        ({"f_max": 5000.0}, r"backbone_options.f_max: .* half the rate, got 20.0 and 5000.0 at 8000"),
        ({"win": 300}, r"backbone_options.win: expected 1 to 256, got 300"),
        ({"rate": 10}, r"backbone_options.rate: expected 1000 to 768000, got 10"),
        ({"seconds": math.inf}, r"backbone_options.seconds: expected a window of 1 to"),
        (
            {"normalize": "clips"},
            r"backbone_options.normalize: expected one of fixed, clip, pcen, got 'clips'; did you mean clip",
        ),
        ({"time_masks": -1}, r"backbone_options.time_masks: expected 0 or more, got -1"),
        ({"freq_width": 99}, r"backbone_options.freq_width: expected 0 to 32 filters, got 99"),
        ({"in_channels": 3}, r"backbone_options.in_channels: backbone 'sound:tiny' has no such option"),
        ({"channel": 3}, r"backbone_options.channel: backbone 'sound:tiny' has no such option; did you mean channels"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        small(**options)


def test_what_cannot_be_behind_a_spectrogram() -> None:
    for name, said in (("sound:", "behind sound:"), ("sound:sound:b0", "behind sound:"), ("sound:b9", "no such name")):
        with pytest.raises(UserError, match=said):
            create_backbone(name)
    for task in ("det", "seg"):
        with pytest.raises(UserError, match="backbone 'sound:lite0': is for recordings, and"):
            build_model(task, "sound:lite0", num_classes=2, backbone_options=SMALL)
    backbone = small()
    with pytest.raises(UserError, match="expected waves"):
        backbone(torch.zeros(1, 1, 2, 400))


def test_spec_augment_is_drawn_in_training_alone_and_from_the_seed() -> None:
    backbone, given = small(time_masks=2, time_width=0.2, freq_masks=1, freq_width=8), waves()[:, None, None]
    seen: list[Tensor] = []
    backbone.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    backbone.eval()(given)
    backbone.train()
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        backbone(given)
    plain, one, again, other = seen
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    hidden = one != plain
    assert bool((one[hidden] == 0).all())
    assert not torch.equal(hidden[0], hidden[1])  # each recording has its own
    assert backbone.freeze().training  # what is frozen is augmented all the same
    backbone(given)
    assert not torch.equal(seen[-1], plain)


@pytest.mark.parametrize("widest", [1, 7, 40])
def test_stripes_are_uniform(widest: int) -> None:
    torch.manual_seed(0)
    made = masked(torch.ones(4000, 3, 30), ((2, 1, widest),))
    assert bool((made[:, :1] == made).all())  # across all filters
    widths = (made[:, 0] == 0).sum(1)
    most = min(widest, 30)
    assert set(widths.tolist()) == set(range(most + 1))
    assert float(widths.float().mean()) == pytest.approx(most / 2, rel=0.1)
    edges = (made[:, 0] == 0).float().mean(0)
    torch.testing.assert_close(edges, edges.flip(0), atol=0.05, rtol=0)


def test_known_without_values() -> None:
    row = backbone_rows(["sound:lite0"])[0]
    assert "error" not in row
    assert row["image_size"] == [1, 160000]
    pictures = backbone_rows(["lite0"])[0]
    assert row["parameters"] == pictures["parameters"] - 2 * 9 * 32  # a stem of one channel
    assert row["multiply_adds"] > pictures["multiply_adds"]  # 128 x 500 cells
