"""Comparing runs: what is equal, what differs and what cannot be told, on the same images, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from test_scoring_intervals import about, boxes, labels, regions
from tests_support import class_names

from tasks.run import main
from tasks.scoring.labelled import ClassOutcomes
from tasks.scoring.outcomefile import outcomes_file, write_outcomes
from tasks.scoring.outcomes import Outcomes
from tasks.scoring.pairing import holm, in_words, paired, scored

RNG = np.random.default_rng


def hits(seed: int, n: int, share: float, hard: NDArray[np.float64]) -> ClassOutcomes:
    """A network that is right about a share of images, more often about those that are not hard."""
    rng = RNG(seed)
    true = RNG(1).integers(0, 3, n).astype(np.int32)
    right = rng.random(n) < np.clip(share + 0.3 * (0.5 - hard), 0, 1)
    predicted = np.where(right, true, (true + 1) % 3).astype(np.int32)
    return ClassOutcomes(*about(n, 3), true, predicted, np.ones(n, np.float32), (~right).astype(np.int32))


def run(
    folder: Path, outcomes: Outcomes, *, split: str = "val", seed: int = 0, lr: float = 0.01, task: str = ""
) -> str:
    write_outcomes(folder / outcomes_file(split, task), outcomes, {})
    config = {"model": {"task": "cls"}, "data": {"name": "shapes"}, "optim": {"lr": lr}, "run": {"seed": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.json").write_text(json.dumps({"parameters": 4_000_000, "minutes": 12.5}))
    return str(folder)


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    """What the command prints on its two streams."""
    assert main(["compare", *words]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_run_with_itself_is_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run(tmp_path / "a", boxes(RNG(0), 40))
    out, err = told(capsys, a, a, "--out", str(tmp_path / "out"))
    assert "a (again) equals a: every image came out the same" in out
    assert "is a itself" in err
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    pair = record["tasks"][0]["pairs"][0]
    assert pair["equal"] is True
    assert pair["scores"]["AP"]["difference"] == 0
    assert pair["scores"]["AP"]["p"] == 1
    assert record["seeds"] == []


def test_two_seeds_of_one_recipe_are_not_called_different(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 95 of 100, on the same images, some of which are hard for both."""
    monkeypatch.setattr("tasks.scoring.pairing.REPLICATES", 400)
    hard = RNG(5).random(150)
    called = 0
    for seed in range(100):
        both = scored([hits(1000 + 2 * seed + i, 150, 0.7, hard) for i in range(2)])
        called += paired(both[0], both[1:])[0].scores["top1"].real
    assert called <= 5


@pytest.mark.slow
@pytest.mark.parametrize("make", [labels, regions, boxes])
def test_two_seeds_are_not_called_different_whatever_is_scored(make: Any) -> None:
    called, sets = 0, 100
    for seed in range(sets):
        one, other = (make(RNG(1000 + 2 * seed + i), 200) for i in range(2))
        if isinstance(one, ClassOutcomes):
            other = replace(other, label=one.label, predicted=np.where(other.rank == 0, one.label, (one.label + 1) % 5))
        both = scored([one, other])
        called += paired(both[0], both[1:])[0].scores[one.lead[0]].real
    print(f"{make.__name__}: {called} of {sets} called different")
    assert called <= 10


def test_a_real_gap_is_found_with_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hard = RNG(5).random(600)
    a = run(tmp_path / "a", hits(1, 600, 0.7, hard))
    b = run(tmp_path / "b", hits(2, 600, 0.85, hard), lr=0.02)
    out, _ = told(capsys, a, b, "--out", str(tmp_path / "out"))
    assert "b is better than a: top-1 +" in out
    assert "the difference is real" in out
    assert "not whether the recipes do" in out
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    found = record["tasks"][0]["pairs"][0]["scores"]["top1"]
    low, high = found["interval"]
    assert low <= 0.15 <= high
    assert low <= found["difference"] <= high
    assert found["p"] < 0.01
    assert record["config"] == {"optim.lr": {"a": 0.01, "b": 0.02}}
    assert record["parameters"] == {"a": 4_000_000, "b": 4_000_000}
    page = (tmp_path / "out" / "compare.html").read_text()
    for word in ("b is better than a", "sort by", "optim.lr", "4.00 M", "12.5", "<svg", 'aria-sort="descending"'):
        assert word in page
    worse, _ = told(capsys, b, a)
    assert "a is worse than b: top-1 -" in worse


def test_several_runs_are_adjusted_for_and_seeds_grouped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hard = RNG(5).random(80)
    names = [run(tmp_path / f"s{i}", hits(i, 80, 0.7, hard), seed=i) for i in range(3)]
    out, _ = told(capsys, *names, run(tmp_path / "other", hits(9, 80, 0.7, hard), lr=0.1), "--out", str(tmp_path / "o"))
    assert "p values are adjusted for 3 comparisons (Holm)" in out
    assert "s0, s1, s2 differ in the seed alone: top-1" in out
    record = json.loads((tmp_path / "o" / "compare.json").read_text())
    values = [record["tasks"][0]["runs"][f"s{i}"]["top1"]["value"] for i in range(3)]
    assert record["seeds"][0]["mean"] == pytest.approx(np.mean(values))
    assert record["seeds"][0]["spread"] == pytest.approx(np.std(values, ddof=1))
    pairs = record["tasks"][0]["pairs"]
    for pair in pairs:
        assert pair["scores"]["top1"]["p_holm"] >= pair["scores"]["top1"]["p"]
    assert list(record["config"]) == ["optim.lr", "run.seed"]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_images_are_found_by_their_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = labels(RNG(0), 60)
    part = whole.take(RNG(1).permutation(50))
    out, err = told(capsys, run(tmp_path / "a", whole), run(tmp_path / "b", part))
    assert "b equals a" in out
    assert "a: 10 of its 60 images are not in all runs and are left out" in err
    assert "50 images that all runs share" in out


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = labels(RNG(0), 30)
    a = run(tmp_path / "a", base)
    wrong = {
        "other images": (replace(base, ids=tuple(f"x{i}" for i in range(30))), "were scored on other images"),
        "other truth": (
            replace(base, truth=base.truth + np.uint32(1)),
            "30 of 30 samples have other labels than for a",
        ),
        "other classes": (
            replace(base, classes=("class 0", *"abcd")),
            "lacks class 1, class 2, class 3 and has a, b, c more",
        ),
        "other order": (replace(base, classes=tuple(class_names(5)[::-1])), "has them in another order"),
        "other kind": (regions(RNG(0), 30), "has outcomes of kind 'pixels', a of 'class'"),
    }
    for name, (outcomes, said) in wrong.items():
        _, err = told(capsys, a, run(tmp_path / name, outcomes), code=2)
        assert said in err.splitlines()[-1], name
    for words, said in (
        ((a,), "expected two runs or more, got 1"),
        ((a, str(tmp_path / "none")), "no such run"),
        ((a, run(tmp_path / "t", base, split="test")), "no split was scored by all"),
        ((a, a, "--split", "test"), "has no outcomes on test; evaluate --checkpoint"),
        ((a, run(tmp_path / "j", base, task="det")), "have no task in common"),
    ):
        _, err = told(capsys, *words, code=2)
        assert said in err.splitlines()[-1]


def test_a_run_from_before_says_how_its_outcomes_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run(tmp_path / "a", labels(RNG(0), 30))
    old = tmp_path / "old"
    old.mkdir()
    (old / "metrics.json").write_text('{"finished": true}')
    (old / "config.yaml").touch()
    _, err = told(capsys, a, str(old), code=2)
    assert f"make them: evaluate --checkpoint {old}" in err
    run(old / "evaluate-val", labels(RNG(0), 30))  # as that would leave it
    out, _ = told(capsys, a, str(old))
    assert "old equals a" in out


def test_an_evaluation_elsewhere_knows_the_run_of_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``evaluate --out`` has its own file of scores, which names the checkpoint: a run folder or a file in it, as it was given."""
    a = run(tmp_path / "runs/a", labels(RNG(0), 30), lr=0.02)
    monkeypatch.chdir(tmp_path)
    for number, checkpoint in enumerate(("runs/a", "runs/a/best.safetensors", "gone/model.safetensors", None)):
        folder = tmp_path / f"flip{number}"
        write_outcomes(folder / outcomes_file("val"), labels(RNG(0), 30), {})
        (folder / "metrics.json").write_text(json.dumps({"parameters": 4_000_000, "checkpoint": checkpoint}))
        out, err = told(capsys, a, str(folder), "--out", "compared")
        assert "has no metrics.json" not in err
        row = next(line for line in out.splitlines() if line.startswith(folder.name))
        assert "4.00 M" in row
        record = json.loads(Path("compared/compare.json").read_text())
        assert ("12.5" in row) == (number < 2), row
        assert ("no run of its model" in err) == (number >= 2)
        assert record["config"] == {}


def test_one_task_of_several_is_compared_with_a_run_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = run(tmp_path / "alone", boxes(RNG(0), 20))
    joint = run(tmp_path / "joint", boxes(RNG(0), 20), task="det")
    run(tmp_path / "joint", regions(RNG(0), 20), task="seg")
    for part in ("detect", "segment"):
        (tmp_path / "joint" / part).mkdir()
    out, err = told(capsys, alone, f"{joint}/detect")
    assert "detect equals alone" in out
    assert "12.5" in out
    assert not [line for line in err.splitlines() if "known" in line]
    _, err = told(capsys, alone, joint, code=2)
    assert "RUN/detect" in err
    _, err = told(capsys, alone, f"{joint}/segment", code=2)
    assert "has outcomes of kind 'pixels'" in err


def test_other_places_are_refused_by_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a verb writes: what it is, and what to name in its place."""
    a = run(tmp_path / "sweep/seed-0", labels(RNG(0), 30))
    run(tmp_path / "sweep/seed-1", labels(RNG(0), 30))
    (tmp_path / "sweep/sweep.csv").touch()
    run(tmp_path / "many/one", labels(RNG(0), 30))
    whole = {
        "predictions/predictions.json": "{}",
        "scored/metrics.json": json.dumps({"split": "val", "predictions": "p.json"}),
        "before/metrics.json": json.dumps({"split": "val", "checkpoint": "runs/x"}),
        "compared/compare.json": "{}",
        "unfinished/config.yaml": "",
        "unfinished/best.safetensors": "",
        "begun/config.yaml": "",
        "ended/config.yaml": "",
        "ended/metrics.json": json.dumps({"finished": True}),
        "exported/model.onnx": "",
        "checked/samples.jpg": "",
    }
    (tmp_path / "sweep/seed-0/checkpoints").mkdir()
    for name, text in whole.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, what, remedy in (
        ("sweep", "is a sweep of 2 runs", f"name those: compare {tmp_path}/sweep/seed-0 {tmp_path}/sweep/seed-1"),
        ("many", "is no run: it holds 1", f"{tmp_path}/many/one"),
        ("sweep/seed-0/checkpoints", "states of a run", f"name the run: {a}"),
        ("sweep/seed-0/config.yaml", "is one file of a run", f"name the whole: {a}"),
        ("predictions", "predictions that were not scored", "evaluate --checkpoint RUN --out FOLDER"),
        ("predictions/predictions.json", "is no run", "name run folders"),
        ("scored", "scores of a file of predictions (p.json)", "evaluate --checkpoint RUN --out FOLDER"),
        ("before", "has no per-image-SPLIT.npz", f"evaluate --checkpoint runs/x --out {tmp_path}/before"),
        ("compared", "is a comparison", "name the runs"),
        ("unfinished", "is a run that is not finished", f"--run.resume {tmp_path}/unfinished"),
        ("begun", "has learnt nothing yet", f"--config {tmp_path}/begun/config.yaml"),
        ("ended", "has no per-image-SPLIT.npz", f"evaluate --checkpoint {tmp_path}/ended"),
        ("exported/model.onnx", "is a model", f"evaluate --checkpoint {tmp_path}/exported/model.onnx --out FOLDER"),
        ("checked", "is no run and no evaluation", "name run folders"),
    ):
        _, err = told(capsys, a, str(tmp_path / name), code=2)
        line = err.splitlines()[-1]
        assert what in line, name
        assert remedy in line, name


def test_words_for_what_cannot_be_told() -> None:
    hard = RNG(5).random(40)
    both = scored([hits(i, 40, 0.7, hard) for i in range(2)])
    sentence = in_words(paired(both[0], both[1:])[0], "top1", ("a", "b"), "top-1")
    assert sentence.startswith("no difference between b and a can be told: top-1 ")
    assert "they may be equal, or b is better by up to" in sentence
