"""The command of segmentation on drawn, made and real data, and what it looks at before a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tests_support import QUIET, STILL, error_of, shapes_line, small_line

from effbackbones import load_model
from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan
from tasks.data.transforms import window
from tasks.engine.assembly import make_model
from tasks.engine.splits import open_splits
from tasks.segment import main
from tasks.segmentation import check
from tasks.segmentation.check import GOAL, quick_checks, truth_score
from tasks.segmentation.task import TASK
from tasks.settings.commandline import parse
from tasks.settings.sections import Config
from tasks.telling import Teller
from tasks.verbs import deep_check
from tasks.verbs.deep_check import learn_eight

SMALL = small_line("--model.head_options", "{channels: [16, 16, 8, 8, 8]}", backbone=STILL)
"""The smallest U-Net."""
TINY = shapes_line(SMALL)
CLASSES = ("ground", "thing", "rim")


def mask_folder(
    root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 56), values: tuple[int, ...] = (0, 1, 2, 255)
) -> Path:
    """Images and masks ``ROOT/SPLIT/{images,masks}/N.png`` of bright squares with a rim, and their ``classes.txt``."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
            mask = np.full(size, values[0], np.uint8)
            top, left = int(rng.integers(2, size[0] - 22)), int(rng.integers(2, size[1] - 22))
            mask[top : top + 20, left : left + 20] = values[min(2, len(values) - 1)]
            mask[top + 3 : top + 17, left + 3 : left + 17] = values[1]
            image[mask == values[1]] += 150
            mask[:2, :2] = values[-1]
            Image.fromarray(image).save(root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def config_of(*argv: str) -> Config:
    """The config of a command line of this task."""
    return parse("segment", list(argv)).config


def test_shapes_train_evaluate_predict_and_score_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, photographs = tmp_path / "run", tmp_path / "photographs"
    assert main([*TINY, "--run.out", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    scores = metrics[metrics["best"]]
    assert 0 <= scores["miou"] <= 1
    assert list(scores["per_class"]) == ["background", "circle", "square", "triangle", "star", "cross", "ring"]
    assert "ring" in (run / "report.html").read_text()
    model = load_model(run / "best.safetensors")
    assert model.classes[0] == "background"
    assert main(["evaluate", "--checkpoint", str(run), *QUIET]) == 0
    assert f"miou {scores['miou']:.6g}" in capsys.readouterr().out
    photographs.mkdir()
    sizes = [(33, 97), (100, 75), (270, 480), (1080, 1920)]
    for height, width in sizes:
        Image.fromarray(np.full((height, width, 3), 120, np.uint8)).save(photographs / f"{height}.png")
    out = tmp_path / "out"
    for tile in ("null", "64"):
        line = [
            "predict",
            "--checkpoint",
            str(run),
            str(photographs),
            "--out",
            str(out / tile),
            "--data.tile",
            tile,
            *QUIET,
        ]
        assert main([*line, "--data.tile_overlap", "16"]) == 0
        for height, width in sizes:
            index = np.asarray(Image.open(out / tile / "index" / f"{height}.png"))
            assert index.shape == (height, width)
            assert index.max() < 7


def test_a_folder_trains_and_its_predicted_files_score_as_the_model_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = mask_folder(tmp_path / "data", {"train": 8, "val": 5}), tmp_path / "run"
    data = ["--data.root", str(root), "--data.image_size", "[40, 56]", *QUIET]
    line = [
        "--config",
        "folder",
        *SMALL,
        *data,
        "--data.crop_size",
        "32",
        "--optim.max_steps",
        "3",
        "--data.color_jitter",
        "0",
    ]
    assert main([*line, "--optim.class_weights", "median_frequency", "--run.out", str(run)]) == 0
    said = capsys.readouterr().err
    assert "masks are of format index" in said
    assert "give mIoU 1.0000" in said  # nothing is lost at the images' own size
    weights = load_model(run / "best.safetensors").config["head_options"]["class_weights"]
    assert len(weights) == 3
    assert weights[0] < weights[2]  # ground is common
    assert main(["evaluate", "--checkpoint", str(run), *QUIET]) == 0
    by_model = capsys.readouterr().out
    assert (
        main(
            ["predict", "--checkpoint", str(run), str(root / "val" / "images"), "--out", str(tmp_path / "out"), *QUIET]
        )
        == 0
    )
    capsys.readouterr()
    for folder in (tmp_path / "out", tmp_path / "out" / "index"):
        line = [
            "evaluate",
            "--config",
            str(run / "config.yaml"),
            "--predictions",
            str(folder),
            "--out",
            str(tmp_path / "e"),
            *QUIET,
        ]
        assert main(line) == 0
        by_files = capsys.readouterr().out
        for name in ("miou", "pixel_accuracy", "dice", "boundary_iou"):
            row = next(row for row in by_model.splitlines() if row.startswith(f"{name} "))
            assert row in by_files
        assert "ece undefined" in by_files
    (tmp_path / "out" / "index" / "3.png").unlink()
    assert main(["evaluate", "--config", str(run / "config.yaml"), "--predictions", str(tmp_path / "out"), *QUIET]) == 2
    assert "3.png: there is no such file" in error_of(capsys)


def test_one_channel_tells_two_classes_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mask_folder(tmp_path / "data", {"train": 4, "val": 4}, values=(0, 255))
    (root / "classes.txt").write_text("ground\nthing")
    line = [
        "--config",
        "folder",
        *SMALL,
        "--data.root",
        str(root),
        "--data.image_size",
        "[40, 56]",
        "--model.num_classes",
        "1",
    ]
    assert main([*line, "--optim.max_steps", "2", "--run.out", str(tmp_path / "run")]) == 0
    model = load_model(tmp_path / "run" / "best.safetensors")
    assert (model.head.num_classes, model.head.mode, model.classes) == (1, "binary", ("ground", "thing"))
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(scores[scores["best"]]["per_class"]) == {"ground", "thing"}
    assert main([*line, "--model.num_classes", "3"]) == 2
    assert "model.num_classes: is 3, and the training data has 2 classes" in error_of(capsys)


def test_a_wrong_value_or_size_is_named_before_training_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mask_folder(tmp_path / "data", {"train": 30, "val": 3})
    line = ["--config", "folder", *SMALL, "--data.root", str(root), "--run.out", str(tmp_path / "run")]
    wrong = root / "train" / "masks" / "27.png"
    mask = np.asarray(Image.open(wrong)).copy()
    mask[5, 9] = 7
    Image.fromarray(mask).save(wrong)
    assert main(line) == 2
    error = error_of(capsys)
    assert "27.png" in error
    assert "7" in error
    Image.fromarray(mask[:30]).save(wrong)
    assert main(line) == 2
    assert "27.png" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_truth_that_leaves_its_place_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("--config", "folder", *SMALL, "--data.root", str(mask_folder(tmp_path, {"train": 4, "val": 4})))
    config = replace(config, data=replace(config.data, image_size=(40, 56)))
    datasets = open_splits(config, TASK)
    model = make_model(config, TASK, datasets["train"])
    assert truth_score(TASK, config, model, datasets["val"]) == 1
    quick_checks(TASK, config, model, datasets, Teller(False, quiet=True))
    assert (
        truth_score(TASK, replace(config, data=replace(config.data, tile=64, tile_overlap=16)), model, datasets["val"])
        == 1
    )
    honest = window.through

    def turned(sample, plan: ResizePlan, spec, **how: bool):  # type: ignore[no-untyped-def]
        sample = honest(sample, plan, spec, **how)
        return replace(sample, mask=sample.mask[::-1, ::-1].copy())

    monkeypatch.setattr(window, "through", turned)
    score = truth_score(TASK, config, model, datasets["val"])
    assert score is not None
    assert score < 0.8
    monkeypatch.setattr(check, "POOR", 0.8)
    with pytest.raises(UserError, match=r"^data: the masks of split val, .* give mIoU 0\.\d+; raise data\.image_size"):
        quick_checks(TASK, config, model, datasets, Teller(False, quiet=True))


@pytest.mark.slow
def test_eight_images_are_learnt_and_shuffled_masks_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mask_folder(tmp_path, {"train": 8, "val": 2})
    config = config_of("--config", "folder", *SMALL, "--data.root", str(root), "--data.image_size", "[40, 56]")
    datasets = open_splits(config, TASK)
    assert "miou" in learn_eight(TASK, config, datasets["train"], Teller(False, quiet=True), GOAL)
    monkeypatch.setattr(deep_check, "MINUTES", 0.1)
    for number in range(8):  # noise has no shape that could be learnt in seconds
        noise = np.random.default_rng(number).integers(0, 3, (40, 56), dtype=np.uint8)
        Image.fromarray(noise).save(root / "train" / "masks" / f"{number}.png")
    with pytest.raises(UserError, match="miou on 8 images is 0"):
        learn_eight(TASK, config, datasets["train"], Teller(False, quiet=True), GOAL)


def test_an_untrained_decoder_predicts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((50, 90, 3), 120, np.uint8)).save(tmp_path / "grey.png")
    line = ["predict", "--model.backbone", "lite0", "--model.weights", "imagenet", str(tmp_path / "grey.png"), *QUIET]
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    assert "model.weights: imagenet holds no whole segment head" in error_of(capsys)


def test_settings_that_masks_cannot_follow_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for setting, value in (("mixup", "0.2"), ("erasing", "0.1"), ("balance", "0.5")):
        assert main([*TINY, f"--data.{setting}", value]) == 2
        assert f"--data.{setting}: is for classification" in error_of(capsys)


def test_camvid_checks_and_trains(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--config", "camvid", "--data.root", str(data_root / "camvid"), *SMALL]
    few = ["--data.limit_train", "8", "--data.limit_val", "4", "--data.test", "null", "--optim.max_steps", "2"]
    few += ["--data.image_size", "[90, 120]"]
    assert main(["check", *line, *few, "--data.crop_size", "60", "--out", str(tmp_path / "check")]) == 0
    assert (tmp_path / "check" / "samples.jpg").stat().st_size > 10_000
    assert "road" in capsys.readouterr().err
    assert main([*line, *few, "--data.crop_size", "60", "--run.out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(record[record["best"]]["per_class"]) == 11


def test_coco_files_serve_segmentation(data_root: Path, tmp_path: Path) -> None:
    line = ["--config", "coco_mini", "--data.root", str(data_root / "coco_mini"), *SMALL, "--data.image_size", "96"]
    few = ["--data.limit_train", "8", "--data.limit_val", "2", "--optim.max_steps", "2"]
    assert main([*line, *few, "--run.out", str(tmp_path / "run")]) == 0
    model = load_model(tmp_path / "run" / "best.safetensors")
    assert (model.classes[0], len(model.classes), model.provenance["data_classes"][0]) == ("background", 81, "person")
    assert main(["evaluate", "--checkpoint", str(tmp_path / "run"), *few[2:4], *QUIET]) == 0
    shutil.copy(tmp_path / "run" / "best.safetensors", tmp_path / "alone.safetensors")
    alone = ["--checkpoint", str(tmp_path / "alone.safetensors"), "--config", "coco_mini", *line[2:4], *few[2:4]]
    assert main(["evaluate", *alone, *QUIET]) == 0


def test_images_of_many_sizes_are_checked_and_scored_by_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mask_folder(tmp_path / "data", {"train": 4, "val": 1}, size=(64, 96))
    for number, size in ((1, (88, 70)), (2, (64, 120))):
        for kind in ("images", "masks"):
            picture = Image.open(root / "val" / kind / "0.png").resize(size[::-1], Image.Resampling.NEAREST)
            picture.save(root / "val" / kind / f"{number}.png")
    line = ["--config", "folder", *SMALL, "--data.root", str(root), "--data.tile", "48", "--data.tile_overlap", "16"]
    assert main([*line, "--optim.max_steps", "1", "--data.image_size", "64", "--run.out", str(tmp_path / "run")]) == 0
    assert "give mIoU 1.0000" in capsys.readouterr().err  # at their own size nothing is lost
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores[scores["best"]]["images"] == 3


def test_tiles_smaller_than_a_head_takes_are_refused_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    line = [*TINY, "--model.head", "pan", "--data.tile", "48", "--data.tile_overlap", "0"]
    assert main([word for word in line if "channels" not in word and word != "--model.head_options"]) == 2
    assert "data.tile: PANHead needs 128 pixels, got [48, 48]; raise it" in error_of(capsys)


def test_images_of_one_name_are_told_apart_by_what_predict_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mask_folder(tmp_path / "data", {"train": 2, "val": 2})
    for kind in ("images", "masks"):
        for number, folder in enumerate("ab"):
            (root / "val" / kind / folder).mkdir()
            (root / "val" / kind / f"{number}.png").rename(root / "val" / kind / folder / "0.png")
    out = tmp_path / "out"
    (out / "index").mkdir(parents=True)
    for name, folder in (("0", "a"), ("0-2", "b")):
        shutil.copy(root / "val" / "masks" / folder / "0.png", out / "index" / f"{name}.png")
    line = ["evaluate", "--config", "folder", "--data.root", str(root), "--predictions", str(out), *QUIET]
    assert main(line) == 2
    assert "0.png: would be the mask of " in error_of(capsys)
    images = {name: str(root / "val" / "images" / folder / "0.png") for name, folder in (("0", "a"), ("0-2", "b"))}
    writer = TASK.writer(
        config_of("--config", "folder"), out, SimpleNamespace(provenance={}, head=None), CLASSES, print
    )  # type: ignore[arg-type]
    for name, file in images.items():
        writer._images.add([name, file, None])  # type: ignore[attr-defined]
    writer.close()
    assert main(line) == 0
    assert "pixel_accuracy 1" in capsys.readouterr().out.splitlines()
    assert main([*line, "--run.monitor", "dice"]) == 0
    assert "run.monitor are for models" in capsys.readouterr().err
    assert main([*line[: -len(QUIET) - 1], str(out / "index"), *QUIET]) == 0


def test_a_predicted_pixel_without_a_class_counts_as_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mask_folder(tmp_path / "data", {"train": 2, "val": 1}, values=(0, 1, 2))
    mask = np.asarray(Image.open(root / "val" / "masks" / "0.png")).copy()
    assert set(np.unique(mask)) == {0, 1, 2}
    mask[30:] = 255
    (tmp_path / "out").mkdir()
    Image.fromarray(mask).save(tmp_path / "out" / "0.png")
    line = ["evaluate", "--config", "folder", "--data.root", str(root), "--predictions", str(tmp_path / "out"), *QUIET]
    assert main(line) == 0
    rows = dict(row.split(" ", 1) for row in capsys.readouterr().out.splitlines())
    assert float(rows["pixel_accuracy"]) == pytest.approx(30 / 40)
    assert float(rows["non_finite"]) == 10 * 56


def test_class_weights_reach_a_head_of_one_channel(tmp_path: Path) -> None:
    root = mask_folder(tmp_path, {"train": 4, "val": 1}, values=(0, 255))
    (root / "classes.txt").write_text("ground\nthing")
    line = ["--config", "folder", *SMALL, "--data.root", str(root), "--optim.class_weights", "median_frequency"]
    options = []
    for more in ([], ["--model.num_classes", "1"]):
        config = config_of(*line, *more)
        options.append(TASK.heads(config, open_splits(config, TASK)["train"]))
    assert options[0]["head_options"] == options[1]["head_options"]
    assert [found["num_classes"] for found in options] == [2, 1]


def test_one_class_and_another_ignored_value_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mask_folder(tmp_path, {"train": 2, "val": 1})
    line = ["--config", "folder", *SMALL, "--data.root", str(root)]
    assert main([*line, "--data.options", "{classes: [thing], values: [1], other: ignore}"]) == 2
    assert "segmentation tells classes apart, there is only 'thing'" in error_of(capsys)
    assert main([*line, "--model.head_options.ignore_index", "0"]) == 2
    assert "model.head_options.ignore_index: masks hold 255" in error_of(capsys)


@pytest.mark.parametrize(
    ("command", "name", "words"),
    [
        ("segment", "folder", "has label; wanted is mask"),
        ("detect", "masks", "has mask; wanted is boxes"),
        ("classify", "masks", "has mask; wanted is label"),
    ],
)
def test_a_data_set_without_the_labels_of_the_task_is_named(
    command: str, name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "masks":
        mask_folder(tmp_path, {"train": 2, "val": 1})
    for split in ("train", "val") if name == "folder" else ():
        for kind in "ab":
            (tmp_path / split / kind).mkdir(parents=True)
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / split / kind / f"{kind}.png")
    own_main = __import__(f"tasks.{command}", fromlist=["main"]).main
    (tmp_path / "own.yaml").write_text(f"data: {{name: {name}, root: '{tmp_path}'}}")
    assert own_main(["check", "--config", str(tmp_path / "own.yaml"), *QUIET]) == 2
    assert words in error_of(capsys)
