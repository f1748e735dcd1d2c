"""Runs on recordings: exact resumption with what SpecAugment draws, two processes, a teacher; and what is learnt of when."""

import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_engine_training import After, PowerFailsError, digest
from tests_support import ONE_THREAD, QUIET, ROOT, two_processes

from effbackbones import build_model, load_model, load_predictor
from tasks.classify import main
from tasks.engine.state import RunState
from tasks.engine.watching import watching

RATE = 8000
SMALL = "{rate: 8000, seconds: 0.25, n_fft: 256, hop: 80, mels: 32, width: 0.25, depth: 0.3, drop_path: 0.2"


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("soundfile")
    root = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    for number in range(24):
        name = ("tone", "noise")[number % 2]
        time = np.arange(RATE // 4) / RATE
        sound = np.sin(2 * np.pi * rng.uniform(400, 900) * time) if number % 2 == 0 else rng.normal(size=len(time)) / 3
        split = "val" if number >= 16 else "train"
        path = root / split / name / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((sound.clip(-1, 1) * 20000).astype(np.int16).tobytes())
    return root


def line(root: Path, out: Path, *more: str, head: str = "sed") -> list[str]:
    masks = "time_masks: 2, time_width: 0.05, freq_masks: 2, freq_width: 8}"
    model = ["--model.backbone", "sound:lite0", "--model.weights", "null", "--model.head", head]
    model += ["--model.backbone_options", f"{SMALL}, {masks}"]
    model += ["--model.head_options", "{levels: [C2, C5]}"] if head == "sed" else []
    data = ["--data.name", "sound", "--data.root", str(root), "--data.options", "{rate: 8000}", "--data.augment", "[]"]
    data += ["--data.batch_size", "4", "--data.eval_batch_size", "4", "--data.mixup", "0"]
    return ["--config", "sounds", *QUIET, *model, *data, "--optim.epochs", "2", "--run.out", str(out), *more]


@pytest.mark.slow
def test_stopped_and_continued_equals_never_stopped(tones: Path, tmp_path: Path) -> None:
    def fail(state: RunState) -> None:
        if state.step == 3:
            raise PowerFailsError

    assert main(line(tones, tmp_path / "whole")) == 0
    with watching(After(fail)):
        assert main(line(tones, tmp_path / "stopped", "--run.save_minutes", "1e-9")) == 1
    assert main(line(tones, tmp_path / "stopped")) == 0
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")
    model = load_model(tmp_path / "whole" / "best.safetensors")
    assert model.image_spec.rate == RATE


@pytest.mark.slow
def test_two_processes_train_one_model(tones: Path, tmp_path: Path) -> None:
    command = [*two_processes(), "-m", "tasks.classify", *line(tones, tmp_path / "run", "--run.devices", "2")]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    single = [sys.executable, "-m", "tasks.classify", "evaluate", "--checkpoint", str(tmp_path / "run")]
    done = subprocess.run(single, capture_output=True, text=True, env=ONE_THREAD, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_plain_classifier_learns_from_one_of_events(tones: Path, tmp_path: Path) -> None:
    assert main(line(tones, tmp_path / "teacher")) == 0
    more = ["--optim.epochs", "1", "--optim.distill.teacher", str(tmp_path / "teacher")]
    assert main(line(tones, tmp_path / "student", *more, head="classification")) == 0
    assert load_model(tmp_path / "student" / "best.safetensors").config["head"] == "classification"


def clip(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32], list[tuple[int, float, float]]]:
    """A second of faint noise with a tone (class 0) and a burst of noise (1), each there or not, one in each half; what, and when."""
    sound, labels, told = rng.normal(size=RATE) * 1e-3, np.zeros(2, np.float32), []
    for half, label in enumerate(rng.permutation(2).tolist()):
        begin = half * 0.5 + rng.uniform(0.05, 0.15)
        end = begin + rng.uniform(0.15, 0.3)
        if rng.random() < 0.5:
            place = slice(int(begin * RATE), int(end * RATE))
            time = np.arange(place.stop - place.start) / RATE
            tone = np.sin(2 * np.pi * rng.uniform(500, 900) * time)
            sound[place] += 0.3 * (rng.normal(size=len(time)) / 2 if label else tone)
            labels[label] = 1
            told.append((label, begin, end))
    return sound.clip(-1, 1).astype(np.float32), labels, told


@pytest.mark.slow
def test_times_learnt_from_labels_of_clips_are_within_50_ms() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    options = {"rate": RATE, "seconds": 1.0, "n_fft": 256, "hop": 40, "mels": 32, "drop_path": 0.0, "width": 0.5}
    head = {"levels": ["C2"], "multilabel": True, "dropout": 0.0}
    model = build_model(
        "cls",
        "sound:lite0",
        head="sed",
        num_classes=2,
        backbone_options={**options, "depth": 0.5},
        head_options=head,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=150)
    for _ in range(150):
        sounds, labels, _ = zip(*(clip(rng) for _ in range(16)), strict=True)
        samples = (np.rint(np.stack(sounds) * 32767) + 32768).astype(np.uint16)
        losses = model.loss(torch.from_numpy(samples)[:, None, None], torch.from_numpy(np.stack(labels)))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        schedule.step()
    unseen = np.random.default_rng(1)
    clips = [clip(unseen) for _ in range(60)]
    results: list[Any] = load_predictor(model.eval(), device="cpu")([sound for sound, _, _ in clips])
    gaps, right = [], 0
    for result, (_, _, told) in zip(results, clips, strict=True):
        found = result.events
        if [event.label for event in found] == [label for label, _, _ in told]:
            right += 1
            for event, (_, begin, end) in zip(found, told, strict=True):
                gaps += [abs(event.begin - begin), abs(event.end - end)]
    assert right >= 54
    assert max(gaps) < 0.05
