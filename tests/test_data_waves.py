"""Windows of recordings in training and evaluation, what may be done to them, and how two of them are mixed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from effbackbones import ImageSpec, UserError
from effbackbones.drawing.boxes import rgb
from effbackbones.images.spec import SILENCE
from effbackbones.inference.fitting import Fitting
from tasks.classification.examples import label_sheet
from tasks.data.door.transforms import class_transform, told_of_listed
from tasks.data.sample import Sample
from tasks.data.transforms.listed import Listed
from tasks.data.transforms.mixing import FAINTEST, mix_waves
from tasks.data.transforms.sounds import BackgroundNoise, Equalizer, Gain, Polarity, Speed, TimeShift, WhiteNoise
from tasks.data.transforms.waves import WaveTransform
from tasks.settings.data import DataConfig

ZERO = 32768
SPEC = ImageSpec.of_sound(8000, 800)
LOOP = replace(SPEC, crop_mode="loop")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def recording(length: int, channels: int = 1) -> np.ndarray:
    """Each sample another, none of them silent."""
    return (np.arange(length * channels, dtype=np.uint16) + 1).reshape(1, length, channels)


def sample(image: np.ndarray) -> Sample:
    return Sample(image, "a")


@given(length=st.integers(1, 5000), room=st.integers(1, 900), mode=st.sampled_from(["window", "loop"]))
@settings(max_examples=40)
def test_the_windows_of_an_evaluation_show_all_of_a_recording_once_or_twice(length: int, room: int, mode: str) -> None:
    fitting = Fitting((1, room), (SILENCE,), mode=mode)
    image = recording(length)
    looked = fitting.looked(image)
    assert len(looked) == max(1, -(-length // room))
    starts = [plan.offset[1] for _, plan in looked]
    for (pixels, plan), start in zip(looked, starts, strict=True):
        assert pixels.shape == (1, room, 1)
        if length >= room:
            assert np.array_equal(pixels, image[:, start : start + room])
            assert plan.valid == (1, room)
        else:
            seen = (
                np.resize(image[0, :, 0], room)
                if mode == "loop"
                else np.pad(image[0, :, 0], (0, room - length), constant_values=ZERO)
            )
            assert np.array_equal(pixels[0, :, 0], seen)
            assert plan.valid == (1, room if mode == "loop" else length)
    shown = {place for start in starts for place in range(start, min(start + room, length))}
    assert shown == set(range(length))


@given(length=st.integers(1, 3000), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_training_takes_a_window_at_random_and_places_short_ones_at_random(length: int, seed: int) -> None:
    image = recording(length)
    window = WaveTransform(SPEC, True)(sample(image), rng(seed)).image[0, :, 0]
    assert (window.dtype, window.shape) == (np.uint16, (800,))
    heard = window[window != ZERO] if length < 800 else window
    assert np.array_equal(heard, np.arange(heard[0], heard[0] + min(length, 800)))  # in one piece
    looped = WaveTransform(LOOP, True)(sample(image), rng(seed)).image[0, :, 0].astype(int)
    assert set(np.diff(looped)) <= {1, 1 - length}


def test_windows_of_training_differ_and_may_be_of_another_length() -> None:
    transform = WaveTransform(SPEC, True, samples=400)
    starts = {int(transform(sample(recording(2000)), rng(seed)).image[0, 0, 0]) for seed in range(40)}
    assert len(starts) > 20
    assert transform.size == (1, 400)
    assert WaveTransform(SPEC, False, samples=400).size == (1, 800)
    middle = WaveTransform(SPEC, True, centred=True)(sample(recording(2000)), rng()).image
    assert np.array_equal(middle, recording(2000)[:, 600:1400])


def test_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="a: is a picture, uint8 8 x 8 x 3, and the model hears recordings"):
        WaveTransform(SPEC, True)(sample(np.zeros((8, 8, 3), np.uint8)), rng())
    with pytest.raises(UserError, match=r"data\.augment: Gain is for recordings, and a is a picture"):
        Gain()(sample(np.zeros((8, 8, 3), np.uint8)), rng())


def tone(level: float = 0.25, length: int = 800) -> np.ndarray:
    wave = level * np.sin(np.arange(length) / 3)
    return (np.rint(wave * ZERO) + ZERO).astype(np.uint16).reshape(1, -1, 1)


def wave_of(image: np.ndarray) -> np.ndarray:
    return (image[0, :, 0].astype(np.float64) - ZERO) / ZERO


def loudness(wave: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt((wave**2).mean())))


def test_gain_polarity_and_shift_do_what_they_say() -> None:
    before = wave_of(tone())
    louder = wave_of(Gain(6.0206, p=1)(sample(tone()), rng()).image)
    assert np.abs(louder - 2 * before).max() < 1e-4
    assert np.abs(wave_of(Gain(40, p=1)(sample(tone()), rng()).image)).max() == 1  # clipped
    assert np.array_equal(wave_of(Polarity(p=1)(sample(tone()), rng()).image), -before)
    moved = [wave_of(TimeShift(0.1, p=1)(sample(tone()), rng(seed)).image) for seed in range(20)]
    shifts = {next(by for by in range(-80, 81) if np.array_equal(one, shifted(before, by))) for one in moved}
    assert len(shifts) > 10
    for factor, heard in ((2.0, 400), (0.5, 800)):
        quick = wave_of(Speed(factor, p=1)(sample(tone()), rng(2)).image)
        spectrum = np.abs(np.fft.rfft(quick, 2**14))
        assert spectrum.argmax() / 2**14 * 2 * np.pi == pytest.approx(factor / 3, rel=0.02)
        assert int((np.abs(quick) > 0.01).sum()) == pytest.approx(heard, rel=0.1)
    around = wave_of(TimeShift(0.5, around=True, p=1)(sample(tone()), rng(1)).image)
    assert sorted(around.tolist()) == sorted(before.tolist())


def test_an_equaliser_makes_each_octave_as_loud_as_drawn_and_moves_nothing() -> None:
    for seed in range(5):
        gains = rng(seed)
        assert gains.random() < 1  # the draw for p comes first
        drawn = gains.uniform(-12, 12, 4)[::-1]
        for index, octave in ((1, 0.5), (2, 0.25), (3, 0.125)):  # of half the rate
            before = 0.1 * np.sin(np.arange(8000) * np.pi * octave) * np.hanning(8000)
            image = (np.rint(before * ZERO) + ZERO).astype(np.uint16).reshape(1, -1, 1)
            after = wave_of(Equalizer((-12, 12), bands=4, p=1)(sample(image), rng(seed)).image)
            assert loudness(after) - loudness(before) == pytest.approx(drawn[index], abs=0.1)
            assert after @ before == pytest.approx(np.linalg.norm(after) * np.linalg.norm(before), rel=1e-3)
    click = np.full((1, 800, 1), ZERO, np.uint16)
    click[0, 400] = ZERO + 20000
    rung = wave_of(Equalizer((-12, 12), p=1)(sample(click), rng()).image)
    assert np.abs(rung).argmax() == 400


def shifted(wave: np.ndarray, by: int) -> np.ndarray:
    moved = np.zeros_like(wave)
    moved[max(0, by) : len(wave) + by] = wave[max(0, -by) : len(wave) - by]
    return moved


def test_noise_is_as_loud_as_it_says(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "hum.wav", 0.9 * np.sin(np.arange(16000) / 7), 16000)
    for noise in (WhiteNoise(10, p=1), BackgroundNoise(str(tmp_path), 10, p=1, rate=8000)):
        added = wave_of(noise(sample(tone()), rng()).image) - wave_of(tone())
        assert loudness(wave_of(tone())) - loudness(added) == pytest.approx(10, abs=0.5)
        silent = np.full((1, 800, 1), ZERO, np.uint16)
        assert np.array_equal(noise(sample(silent), rng()).image, silent)
    listed = Listed([{"BackgroundNoise": {"folder": str(tmp_path), "p": 1}}], rate=8000)
    assert not np.array_equal(listed(sample(tone()), rng()).image, tone())
    assert listed._made is not None
    assert listed._made[0].rate == 8000  # type: ignore[attr-defined]


def test_all_draw_from_their_generator_alone_and_half_of_the_time() -> None:
    listed = Listed([{"Gain": {}}, {"WhiteNoise": {}}, {"TimeShift": {}}, "Polarity"])
    once, again = (listed(sample(tone()), rng(3)).image for _ in range(2))
    assert np.array_equal(once, again)
    changed = sum(not np.array_equal(Gain()(sample(tone()), rng(seed)).image, tone()) for seed in range(200))
    assert 70 < changed < 130


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ({"Gain": {"decibels": [6, -6]}}, r"data\.augment\[0\]: Gain: decibels: expected \[low, high\]"),
        ({"Gain": {"p": 2}}, r"data\.augment\[0\]: Gain: p: expected a number in \[0, 1\]"),
        ({"Gain": {"db": 2}}, r"data\.augment\[0\]\.db: Gain has no such argument"),
        (
            {"BackgroundNoise": {"folder": "nowhere"}},
            r"data\.augment\[0\]: BackgroundNoise: there is no folder nowhere",
        ),
        ("BackgroundNoise", r"data\.augment\[0\]: BackgroundNoise needs folder"),
        ({"Speed": {"factor": 9}}, r"data\.augment\[0\]: Speed: factor: expected 0.25 to 4"),
        ({"Equalizer": {"bands": 1}}, r"data\.augment\[0\]: Equalizer: bands: expected a whole number from 2 to 16"),
        ({"TimeShift": {"share": 0}}, r"data\.augment\[0\]: TimeShift: share: expected"),
        (
            {"TimeShift": {"share": "x"}},
            r"data\.augment\[0\]: TimeShift: share: expected a number in \(0, 1\], got 'x'",
        ),
        ({"TimeShift": {"around": 3}}, r"data\.augment\[0\]: TimeShift: around: expected true or false, got 3"),
        ("HorizontalFlip", r"data\.augment\[0\]: HorizontalFlip is for pictures, and the model hears recordings"),
    ],
)
def test_wrong_steps_are_one_line(step: Any, line: str) -> None:
    data = DataConfig(name="sound", augment=(step,))
    with pytest.raises(UserError, match=line):
        told_of_listed(data, ("label",))


def test_what_is_done_is_told() -> None:
    data = DataConfig(name="sound", augment=("Gain", {"WhiteNoise": {"p": 0.3}}))
    assert told_of_listed(data, ("label",)) == ["data.augment: Gain, WhiteNoise, on each window of training"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"color_jitter": 0.2}, r"data\.color_jitter: is for pictures"),
        ({"erasing": 0.2}, r"data\.erasing: is for pictures"),
        ({"cutmix": 0.2}, r"data\.cutmix: is for pictures"),
        ({"scale": (0.5, 1.0)}, r"data\.scale: is for pictures"),
        ({"crop": "pad"}, r"data\.crop: is pad, and recordings are heard through windows"),
        ({"flip_mode": "alternating"}, r"data\.flip_mode: is for pictures"),
        ({"augment": ("VerticalFlip",)}, r"data\.augment\[0\]: VerticalFlip is for pictures"),
        ({"options": {"rate": 16000}}, r"data\.options\.rate: recordings are brought to 16,000 .* hears 8,000"),
        ({}, r"data\.options\.rate: recordings are brought to 32,000 .* hears 8,000"),
    ],
)
def test_what_pictures_alone_have_is_refused_for_recordings(changes: dict[str, Any], line: str) -> None:
    options = {} if not changes else {"rate": 8000}
    with pytest.raises(UserError, match=line):
        class_transform(DataConfig(**{"name": "sound", "options": options, **changes}), SPEC, train=True)


def test_the_door_makes_windows_and_never_mirrors() -> None:
    data = DataConfig(name="sound", options={"rate": 8000}, window=0.25)
    transform = class_transform(data, SPEC, train=True)
    assert isinstance(transform, WaveTransform)
    assert transform.size == (1, 2000)
    for seed in range(8):
        window = transform(sample(recording(4000)), rng(seed)).image[0, :, 0].astype(int)
        assert (np.diff(window) == 1).all()
    with pytest.raises(UserError, match=r"data\.window: is for recordings, and the model sees pictures"):
        class_transform(DataConfig(window=1.0), ImageSpec(), train=True)


@given(seed=st.integers(0, 50), alpha=st.floats(0.1, 2))
@settings(max_examples=15)
def test_mixed_waves_add_up_with_their_labels(seed: int, alpha: float) -> None:
    waves = torch.rand(4, 1, 1, 32) * 0.4 - 0.2
    labels = torch.tensor([0, 1, 2, 0])
    images, targets = mix_waves(waves + SILENCE, labels, 3, mixup=alpha, seed=seed)
    share = float(np.random.default_rng((seed, 0)).beta(alpha, alpha))
    other = waves.roll(1, 0)
    expected = (share * waves + (1 - share) * other) / max(share, 1 - share)
    assert torch.allclose(images - SILENCE, expected, atol=1e-5)
    hard = torch.nn.functional.one_hot(labels, 3).float()
    assert torch.allclose(targets, share * hard + (1 - share) * hard.roll(1, 0), atol=1e-5)
    several = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, -1]])
    images, targets = mix_waves(waves + SILENCE, several, 3, mixup=alpha, multilabel=True, seed=seed)
    unknown = float("nan")  # with whatever it is mixed
    expected = torch.tensor([[1, 0, unknown], [1, 1, 1], [0, 1, 1], [1, 0, unknown]])
    assert torch.allclose(targets, expected, equal_nan=True)
    added = (images - SILENCE - waves).abs().amax(3) / other.abs().amax(3)
    assert added.min() > FAINTEST * 0.5


def test_a_recording_is_drawn_as_its_spectrogram() -> None:
    low, high = (
        rgb((np.rint(8000 * np.sin(np.arange(8000) * pace)) + ZERO).astype(np.uint16).reshape(1, -1, 1))
        for pace in (0.3, 2.0)
    )
    assert low.shape == high.shape == (128, 400, 3)
    rows = [int(picture.sum((1, 2)).argmax()) for picture in (low, high)]
    assert rows[0] > rows[1] + 20  # low tones are below
    assert rgb(np.full((1, 3, 1), ZERO, np.uint16)).shape == (128, 1, 3)
    sheet = label_sheet([replace(sample(tone()), label=0), replace(sample(tone()), label=1)], ("low", "high"))
    assert sheet.shape[0] > 50
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 50
