"""Recordings all the way: trained on, evaluated, predicted and asked in Python, with the same answers everywhere."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import QUIET, error_of

from effbackbones import ImageSizes, UserError, load_model, load_predictor
from effbackbones.images.recordings import read_recording
from tasks.classify import main

soundfile = pytest.importorskip("soundfile")
NETWORK = "{rate: 8000, seconds: 0.5, n_fft: 256, hop: 80, mels: 32, width: 0.1, depth: 0.1}"


def tone(path: Path, hertz: float, seconds: float, rate: int = 8000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.stack([wave] * channels, 1), rate)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Low and high tones, shorter than a window, longer than several, of other rates, in stereo."""
    root = tmp_path_factory.mktemp("tones")
    for label, hertz in (("low", 300), ("high", 1500)):
        for split, count in (("train", 6), ("val", 4)):
            for number in range(count):
                seconds, rate = (0.2, 0.5, 1.3, 2.0)[number % 4], (8000, 16000)[number % 2]
                tone(root / split / label / f"{number}.wav", hertz * (1 + 0.02 * number), seconds, rate, 1 + number % 2)
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    line = [
        "--config",
        "sounds",
        "--data.root",
        str(root),
        "--model.backbone",
        "sound:lite0",
        "--model.weights",
        "null",
    ]
    line += ["--model.backbone_options", NETWORK, "--data.options", "{rate: 8000}", "--data.batch_size", "4"]
    assert main([*line, *QUIET, "--optim.max_steps", "4", "--run.out", str(out)]) == 0
    return out


def test_a_run_on_recordings_speaks_of_no_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawings = re.compile(r"<(style|svg).*?</\1>|<[^>]*>", re.DOTALL)
    page = drawings.sub(" ", (run / "report.html").read_text(encoding="utf-8"))
    assert "8 validation recordings" in page
    assert "bootstrap over 8 recordings" in page
    assert re.findall(r"(?<![._])images?\b", page) == []
    assert main(["compare", str(run), str(run)]) == 0
    said = capsys.readouterr().out
    assert "every recording came out the same" in said
    assert "paired bootstrap over the 8 recordings" in said
    assert "image" not in said


def probabilities(run: Path, path: Path) -> np.ndarray:
    """By hand: the mean over windows side by side, the last one at the end."""
    model = load_model(run / "best.safetensors")
    wave = torch.from_numpy(read_recording(path, rate=8000)).permute(0, 2, 1)[None]
    length, starts = wave.shape[-1], [0]
    if length > 4000:
        starts = [*range(0, length - 4000, 4000), length - 4000]
    seen = []
    for start in starts:
        window = torch.full((1, 1, 1, 4000), 32768, dtype=torch.uint16)
        part = wave[..., start : start + 4000]
        window[..., : part.shape[-1]] = part
        sizes = ImageSizes((1, 4000), torch.tensor([[1, part.shape[-1]]]))
        seen.append(model.predict(window, sizes)[0])
    return torch.stack(seen).mean(0).numpy()


def test_evaluation_prediction_and_python_agree(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((root / "val").rglob("*.wav"))
    assert main(["evaluate", "--checkpoint", str(run), "--out", str(tmp_path / "scores"), *QUIET]) == 0
    assert main(["predict", str(root / "val"), "--checkpoint", str(run), "--out", str(tmp_path / "found"), *QUIET]) == 0
    assert f"predictions of {len(files)} recordings in" in capsys.readouterr().err
    predictor = load_predictor(run)
    assert predictor.classes == ("high", "low")
    right = 0
    rows = csv.DictReader((tmp_path / "found" / "predictions.csv").open(encoding="utf-8"))
    written = {row["file"]: row for row in rows if row["rank"] == "1"}
    for path, found in zip(files, predictor(files), strict=True):
        expected = probabilities(run, path)
        assert np.allclose(found.probabilities, expected, atol=1e-5)
        row = written[str(path)]
        assert row["class"] == predictor.classes[int(expected.argmax())]
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=1e-5)
        right += row["class"] == path.parent.name
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text(encoding="utf-8"))
    assert scores["model"]["top1"] == pytest.approx(right / len(files))
    array = (read_recording(files[2], rate=8000)[0, :, 0].astype(np.float32) - 32768) / 32768
    assert np.allclose(predictor(array).probabilities, probabilities(run, files[2]), atol=1e-5)
    assert np.allclose(predictor(torch.from_numpy(array)).probabilities, probabilities(run, files[2]), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((2, 8000), np.float32), "has 8,000 channels of 2 samples; put the channels last"),
        (np.full(8000, 1000.0), r"expected samples in -1\.\.1, got up to 1,000"),
        (np.zeros(8000, np.int32), "expected int16 or floating point"),
        (np.full(8000, np.nan, np.float32), "8,000 of 8,000 samples are not finite"),
        (np.zeros(0, np.float32), "cannot be a recording"),
        (3, "."),
    ],
)
def test_what_is_no_recording_is_one_line_for_the_predictor_too(run: Path, given: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_predictor(run)(given)


def test_what_goes_wrong_is_told(run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--checkpoint", str(run), *QUIET]
    assert main(["evaluate", *asked, "--tta", "flip", "--out", str(tmp_path / "a")]) == 2
    assert "tta: is for pictures: the model hears recordings" in error_of(capsys)
    assert main(["evaluate", *asked, "--data.options", "{rate: 16000}", "--out", str(tmp_path / "a")]) == 2
    assert "data.options.rate: recordings are brought to 16,000" in error_of(capsys)
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), *asked, "--out", str(tmp_path / "b")]) == 2
    assert "no recording found" in error_of(capsys)
    assert main(["predict", str(tmp_path / "none*"), *asked, "--out", str(tmp_path / "b")]) == 2
    assert "none*: no recording found; recordings end in .aif" in error_of(capsys)
    line = [
        "check",
        "--config",
        "sounds",
        "--data.root",
        str(root),
        "--model.backbone",
        "lite0",
        "--model.weights",
        "null",
        *QUIET,
    ]
    assert main(line) == 2
    assert "model.backbone: sees pictures, and the data set sound has recordings; write sound:" in error_of(capsys)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert main(["predict", str(tmp_path / "a.wav"), *asked, "--out", str(tmp_path / "b")]) == 2
    assert "a.wav: cannot be read as a recording" in error_of(capsys)
