"""Sound files of any kind become rows of samples at the rate that is asked for, or one line that names what is wrong."""

import builtins
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from effbackbones.errors import UserError
from effbackbones.images.opening import Encoded
from effbackbones.images.recordings import ZERO, as_pixels, is_sound_name, read_header, read_recording, resampled

soundfile = pytest.importorskip("soundfile")


def tone(hertz: float = 440.0, rate: int = 8000, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def file(
    wave: np.ndarray, rate: int = 8000, kind: str = "WAV", subtype: str | None = None, name: str = "a.wav"
) -> Encoded:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format=kind, subtype=subtype)
    return Encoded(name, stream.getvalue())


def cut(whole: Encoded, size: int) -> Encoded:
    return Encoded(whole.name, whole.content[:size])


def streams(*waves: np.ndarray) -> Encoded:
    """An Ogg file of several streams behind each other."""
    whole = b""
    for number, wave in enumerate(waves):
        pages = file(wave, kind="OGG", subtype="VORBIS").content.split(b"OggS")[1:]
        whole += b"".join(b"OggS" + page[:10] + struct.pack("<I", number) + page[14:] for page in pages)
    return Encoded("a.ogg", whole)


def pitch(pixels: np.ndarray, rate: int) -> float:
    wave = pixels[0, :, 0].astype(np.float64) - ZERO
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**17))
    return float(power.argmax() * rate / 2**17)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_U8"),
        ("WAV", "FLOAT"),
        ("WAV", "ULAW"),
        ("WAV", "GSM610"),
        ("RF64", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
    ],
)
def test_every_kind_is_read_as_soundfile_reads_it_whatever_it_is_called(kind, subtype, tmp_path):
    encoded = file(tone(), kind=kind, subtype=subtype)
    pixels = read_recording(encoded, rate=8000)
    wave, _ = soundfile.read(io.BytesIO(encoded.content), dtype="float64")
    assert (pixels.dtype, pixels.shape) == (np.uint16, (1, len(wave), 1))
    assert np.abs(pixels[0, :, 0].astype(np.float64) - ZERO - wave * ZERO).max() <= 1
    path = tmp_path / "named.as.anything"
    path.write_bytes(encoded.content)
    assert np.array_equal(read_recording(path, rate=8000), pixels)
    assert read_header(path).rate == 8000


@settings(max_examples=8)
@given(
    given=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    rate=st.sampled_from([8000, 16000, 32000]),
    hertz=st.floats(200, 3000),
)
def test_a_tone_keeps_its_pitch_and_its_loudness_at_any_rate(given, rate, hertz):
    pixels = as_pixels(tone(hertz, given, 0.4)[:, None], given, rate=rate, channels=1, name="a")
    assert pixels.shape[1] == -(-round(0.4 * given) * rate // given)
    assert abs(pitch(pixels, rate) - hertz) < 2
    middle = pixels[0, pixels.shape[1] // 4 : -pixels.shape[1] // 4, 0].astype(np.float64) - ZERO
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2) * ZERO, rel=0.02)


def test_what_a_lower_rate_cannot_hold_is_kept_out_and_not_folded_down():
    assert np.abs(resampled(tone(6000, 32000)[:, None], 32000, 8000)[200:-200]).max() < 0.01


def test_channels_are_mixed_by_their_mean_or_kept():
    both = np.stack([tone(), np.zeros_like(tone())], 1)
    mono, kept = (read_recording(file(both), rate=8000, channels=count) for count in (1, 2))
    assert np.abs(mono[0, :, 0].astype(int) - ZERO - both.mean(1) * ZERO).max() <= 1
    assert kept.shape == (1, len(both), 2)
    assert (kept[0, :, 1] == ZERO).all()
    with pytest.raises(UserError, match=r"a\.wav: has 2 channels, asked for are 3; set data\.options\.channels: 1"):
        read_recording(file(both), rate=8000, channels=3)


def test_a_part_is_read_alone():
    whole = read_recording(file(tone()), rate=8000)
    assert np.array_equal(read_recording(file(tone()), rate=8000, part=(0.1, 0.25)), whole[:, 800:2000])
    assert np.array_equal(read_recording(file(tone()), rate=8000, part=(0.1, None)), whole[:, 800:])
    for part, words in (((0.3, 0.2), "is none"), ((0.1, 0.7), r"lasts 0\.500 s, and a part is to end at 0\.7 s")):
        with pytest.raises(UserError, match=words):
            read_recording(file(tone()), rate=8000, part=part)


@pytest.mark.parametrize(
    ("kind", "left", "words"),
    [
        ("WAV", 0.5, "is truncated: the header announces 8,000 bytes of sound, 3,978 are there"),
        ("AIFF", 0.5, "is truncated: the header announces"),
        ("FLAC", 0.5, "cannot be read as a recording"),
        ("OGG", 0.9, "is truncated: its last page is cut off"),
        ("MP3", 0.4, "is truncated: .* samples can be read"),
        ("WAV", 0.003, "cannot be read as a recording: Error in WAV file. No 'data' chunk"),
        ("WAV", 0.0, "cannot be read as a recording: it is empty"),
    ],
)
def test_files_that_are_cut_off_are_told_and_not_shortened(kind, left, words, tmp_path):
    whole = file(tone(), kind=kind) if kind != "MP3" else file(tone(seconds=3), kind=kind)
    part = cut(whole, round(len(whole.content) * left))
    path = tmp_path / "a.wav"
    path.write_bytes(part.content)
    for place in (part, path):
        with pytest.raises(UserError, match=f"{words}.*; replace the file, or take it out of the data"):
            read_recording(place, rate=8000)


def test_a_header_that_could_not_know_the_length_is_no_fault():
    whole = bytearray(file(tone()).content)
    place = whole.index(b"data") + 4
    whole[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert read_recording(Encoded("a.wav", bytes(whole)), rate=8000).shape == (1, 4000, 1)


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (Encoded("a.wav", b"GIF89a" + bytes(50)), "not in one of the formats WAV, FLAC, OGG, MP3, AIFF"),
        (Encoded("a.wav", b"RIFF" + bytes(4) + b"WAVE"), "cannot be read as a recording"),
        (file(np.array([0.1, np.nan, np.inf], np.float32), subtype="FLOAT"), "2 of 3 samples are not finite"),
        (file(np.zeros(0, np.float32)), "holds no sound: 0 samples"),
        (file(tone() * 32768, subtype="FLOAT"), "expected samples in -1..1, got up to 16,384; divide by full scale"),
        (streams(tone(), tone(880.0)), "holds several streams, of which one alone would be read; replace the file"),
        (file(tone(), rate=50), "says 50 samples a second; expected 1,000 to 768,000"),
    ],
)
def test_what_is_no_recording_is_one_line(encoded, words):
    with pytest.raises(UserError, match=words) as caught:
        read_recording(encoded, rate=8000)
    assert "\n" not in str(caught.value)


def test_longer_ones_than_allowed_are_refused_before_they_are_decoded():
    with pytest.raises(UserError, match="1 x 4,000 samples at 8,000 a second; allowed are 3,999"):
        read_recording(file(tone()), rate=8000, max_samples=3999)
    with pytest.raises(UserError, match="allowed are 15,000"):  # at the rate that is asked for
        read_recording(file(tone()), rate=32000, max_samples=15000)


def test_loud_floats_are_clipped_and_silence_is_exact():
    pixels = read_recording(file(np.array([0, 1.5, -1.5, 0.5], np.float32), subtype="FLOAT"), rate=8000)
    assert pixels[0, :, 0].tolist() == [ZERO, 65535, 0, ZERO + 16384]


def test_without_the_library_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def importing(name, *arguments, **options):
        if name == "soundfile":
            raise ImportError("No module named 'soundfile'")
        return real(name, *arguments, **options)

    encoded = file(tone())
    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(UserError, match=r"a\.wav: .* not installed .*; pip install 'effbackbones\[sound\]'"):
        read_recording(encoded, rate=8000)


def test_names_of_recordings():
    assert [is_sound_name(name) for name in ("a.WAV", "b.flac", "c.jpg", "d", "wav")] == [
        True,
        True,
        False,
        False,
        False,
    ]
