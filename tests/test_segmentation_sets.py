"""Segmentation of classes that overlap: scores, predictions, files, and the command from data to answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from tests_support import QUIET, STILL, class_names, error_of, one_line, small_line

from effbackbones import build_model, load_model, load_predictor, save_model
from effbackbones.checkpoint import with_head_options
from effbackbones.errors import UserError
from effbackbones.export import export_model
from effbackbones.images.classsets import UNKNOWN, set_of
from effbackbones.images.geometry import ResizePlan
from effbackbones.inference.masks import restore_mask
from effbackbones.inference.results import Masks
from effbackbones.inference.thresholds import thresholds_of
from tasks.joint import main as joint
from tasks.segment import main
from tasks.segmentation.metrics import SegmentationMetrics, border_of
from tasks.segmentation.results import Segmented
from tasks.segmentation.setanatomy import bands_of
from tasks.segmentation.setfiles import folders_of
from tasks.segmentation.setmetrics import SetMetrics, image_iou_of_sets
from tasks.segmentation.task import TASK
from tasks.settings.commandline import parse

SMALL = small_line("--model.head_options", "{channels: [16, 16, 8, 8, 8]}", backbone=STILL)


def found(labels: Any, confidence: Any = 0.9) -> Segmented:
    sets = torch.as_tensor(labels, dtype=torch.int32)
    return Segmented(sets, torch.as_tensor(confidence, dtype=torch.float32).expand(sets.shape))


def test_scores_by_hand() -> None:
    truth = np.array([[0b01, 0b11, 0b10, 0], [UNKNOWN, 0b11, 0b00, 0b01]], np.int32)
    metric = SetMetrics(["a", "b"])
    metric.update([found([[0b01, 0b01, 0b10, 0b10], [0b11, 0b11, 0b01, 0b00]])], [truth])
    scores = metric.compute()
    a, b = scores["per_class"].values()
    assert (a["iou"], b["iou"]) == (3 / 5, 2 / 4)  # a: 3 hits, 1 too many, 1 missed; b: 2, 1, 1
    assert (a["dice"], b["dice"]) == (6 / 8, 4 / 6)
    assert (a["precision"], a["recall"], a["pixels"], b["pixels"]) == (3 / 4, 3 / 4, 4, 3)
    assert scores["miou"] == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert (scores["pixels"], scores["pixel_accuracy"], scores["images"]) == (7, 3 / 7, 1)
    assert image_iou_of_sets(np.array([[0b01]], np.int32), np.array([[0b10]], np.int32), 2) == 0
    assert image_iou_of_sets(np.array([[0]], np.int32), np.array([[0]], np.int32), 2) is None


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 31))
def test_scores_are_those_of_each_class_by_itself(seed: int, k: int) -> None:
    """A class of a set scores as the foreground of a mask of two classes, whatever the others do; images in any order."""
    rng = np.random.default_rng(seed)
    names, images = class_names(k), []
    for _ in range(3):
        shape = tuple(rng.integers(1, 9, 2))
        planes, guesses = rng.random((2, k, *shape)) < 0.4
        truth, labels = set_of(planes), set_of(guesses)
        truth[rng.random(shape) < 0.2] = UNKNOWN
        lost = rng.random(shape) < 0.1
        images.append((found(labels, np.where(lost, np.nan, 0.8)), truth))
    metric, back = SetMetrics(names), SetMetrics(names)
    for one in images:
        metric.update([one[0]], [one[1]])
    back.update(*zip(*images[::-1], strict=True))
    scores = metric.compute()
    assert scores == back.compute()
    for label, name in enumerate(names):
        alone = SegmentationMetrics(["not", name])
        for guess, truth in images:
            mask = np.where(truth == UNKNOWN, 255, truth >> label & 1).astype(np.uint8)
            alone.update([Segmented((guess.labels >> label & 1).byte(), guess.confidence)], [mask])
        expected = alone.compute()["per_class"][name]
        assert {key: expected[key] for key in scores["per_class"][name]} == scores["per_class"][name]


def test_what_cannot_be_scored_is_refused() -> None:
    sets = np.zeros((2, 2), np.int32)
    numbers = Segmented(torch.zeros(2, 2, dtype=torch.uint8), torch.ones(2, 2))
    with pytest.raises(UserError) as error:
        SetMetrics(["a"]).update([numbers], [sets])
    one_line(error, "data.multilabel", "predictions torch.uint8", "as the model was trained")
    for labels, truth, which in (
        (found([[2]]), np.zeros((1, 1)), "predicted"),
        (found([[0]]), np.full((1, 1), 2), "true"),
    ):
        metric = SetMetrics(["a"])
        metric.update([labels], [truth.astype(np.int32)])
        with pytest.raises(UserError, match=f"1 {which} pixels have classes beyond these 1"):
            metric.compute()
    with pytest.raises(UserError, match="expected 1 to 31 distinct class names, got 32"):
        SetMetrics(class_names(32))


def test_thresholds_are_taken_in_original_pixels() -> None:
    """Between two pixels of 0.2 and 0.6 the middle is 0.4: the set is of what is restored, by each class's own threshold."""
    scores = torch.tensor([[[0.2, 0.6]], [[0.9, 0.1]]])
    plan = ResizePlan.squash((1, 4), (1, 2))
    restored = plan.restore_rows(scores, 0, 1)
    for over in ((0.5, 0.5), (0.25, 0.75)):
        answer = restore_mask(scores, plan, over=over)
        expected = set_of((restored[label] > least).numpy() for label, least in enumerate(over))
        np.testing.assert_array_equal(answer.labels.numpy(), expected)
    scores[0, 0, 1] = torch.nan
    assert restore_mask(scores, plan, over=(0.5, 0.5)).confidence.isnan().any()


def test_a_model_of_sets_has_thresholds_that_may_be_asked_for_anew() -> None:
    options = {"mode": "multilabel", "channels": [8] * 5, "threshold": [0.5, 0.2]}
    model = build_model(
        "seg", "b0", num_classes=2, backbone_options={"width": 0.25, "depth": 0.3}, head_options=options
    )
    assert thresholds_of(model)["seg"].values == (0.5, 0.2)
    assert thresholds_of(model, 0.7)["seg"].values == (0.7, 0.7)
    assert thresholds_of(with_head_options(model, {**options, "threshold": 0.4}))["seg"].values == (0.4, 0.4)


@pytest.mark.slow
def test_an_exported_file_has_the_sets_and_thresholds_of_its_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"mode": "multilabel", "channels": [8] * 5, "threshold": [0.5, 0.45]}
    model = build_model(
        "seg", "b0", num_classes=2, backbone_options={"width": 0.25, "depth": 0.3}, head_options=options
    )
    model.use_image_spec(replace(model.eval().image_spec, size=(64, 64)))
    model.classes = ("a", "b")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save_model(model, tmp_path / "model.safetensors")
    record = export_model(tmp_path / "model.safetensors", tmp_path / "model.onnx", images=[image])
    assert record.heads[0].multilabel
    here, there = (load_predictor(source, device="cpu")(image) for source in (model, tmp_path / "model.onnx"))
    assert isinstance(there, Masks)
    assert there.thresholds == here.thresholds == (0.5, 0.45)
    assert (there.masks == here.masks).mean() > 0.99
    other = load_predictor(tmp_path / "model.onnx", device="cpu", threshold=0.9)(image)
    assert other.thresholds == (0.9, 0.9)


def test_runs_and_shares_of_masks() -> None:
    planes = np.array([[[0, 0, 1], [1, 0, 1]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]], bool)
    ground = np.full((2, 3, 3), 80, np.uint8)
    result = Masks("a.png", (2, 3), ("a", "b", "c"), lambda: ground, planes, (0.5,) * 3)
    told = json.loads(result.to_json())
    assert told["shares"] == {"b": 1.0, "a": 0.5}
    assert told["masks"] == [
        {"class": "a", "label": 0, "runs": [2, 2, 1, 1]},
        {"class": "b", "label": 1, "runs": [0, 6]},
    ]
    for row in told["masks"]:
        flat = np.repeat(np.arange(len(row["runs"])) % 2, row["runs"])
        np.testing.assert_array_equal(flat.reshape(2, 3) == 1, planes[row["label"]])
    assert result.draw().size == (3, 2)


def test_folders_of_classes_are_legal_and_distinct() -> None:
    assert folders_of(["road/lane", "road_lane", "Road_Lane", "..", "a b"]) == [
        "road_lane",
        "road_lane-2",
        "Road_Lane-3",
        "_",
        "a b",
    ]


# ---- the command ---------------------------------------------------------------------------------------------------


def lights(root: Path, counts: dict[str, int], side: int = 48) -> Path:
    """A red and a blue disc of light, which shine through each other, and a mask of each; a corner of red is unknown."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    for split, count in counts.items():
        for folder in ("images", "masks/red", "masks/blue"):
            (root / split / folder).mkdir(parents=True)
        for number in range(count):
            image, centre = rng.integers(0, 50, (side, side, 3)), rng.uniform(14, side - 14, 2)
            for name, channel in (("red", 0), ("blue", 2)):
                middle = centre + rng.uniform(-8, 8, 2)
                inside = ((places - middle[:, None, None]) ** 2).sum(0) < rng.uniform(8, 13) ** 2
                image[..., channel] += 180 * inside
                mask = np.where(inside, 255, 0).astype(np.uint8)
                Image.fromarray(mask).save(root / split / "masks" / name / f"{number}.png")
            Image.fromarray(image.astype(np.uint8)).save(root / split / "images" / f"{number}.png")
    return root


def line_of(root: Path) -> list[str]:
    options = '{mask_names: "{class}/{name}", classes: [red, blue]}'
    data = ["--data.multilabel", "true", "--data.options", options, "--data.image_size", "48"]
    return ["--config", "folder", *SMALL, "--data.root", str(root), *data]


def test_overlapping_lights_are_learnt_and_every_way_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run, out = lights(tmp_path / "data", {"train": 24, "val": 6}), tmp_path / "run", tmp_path / "out"
    optim = ["--optim.epochs", "10", "--optim.lr", "0.01", "--optim.warmup_steps", "1", "--optim.ema", "null"]
    loss = ["--model.head_options.loss", "[cross_entropy, dice]", "--run.eval_every", "10"]
    assert main([*line_of(root), *optim, *loss, "--run.out", str(run)]) == 0
    said = capsys.readouterr().err
    assert "have several classes" in said
    assert "give mIoU 1.0000" in said  # the truth itself, through the whole path
    metrics = json.loads((run / "metrics.json").read_text())
    scores = metrics[metrics["best"]]
    assert min(row["iou"] for row in scores["per_class"].values()) > 0.5  # all pixels red: 0.15
    assert "whole set of classes" in (run / "report.html").read_text()

    assert main(["evaluate", "--checkpoint", str(run), *QUIET]) == 0
    by_model = [
        row for row in capsys.readouterr().out.splitlines() if row.split()[0] in ("miou", "dice", "pixel_accuracy")
    ]
    assert f"miou {scores['miou']:.6g}" in by_model
    images = root / "val" / "images"
    assert main(["predict", "--checkpoint", str(run), str(images), "--out", str(out), *QUIET]) == 0
    told = capsys.readouterr().out
    assert "red" in told
    again = ["evaluate", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "e"), *QUIET]
    assert main([*again, "--predictions", str(out)]) == 0
    assert set(by_model) <= set(capsys.readouterr().out.splitlines())
    files = sorted(images.iterdir())
    results = load_predictor(run, device="cpu")(files)
    record = json.loads((out / "classes.json").read_text())
    assert [row["name"] for row in record["classes"]] == ["red", "blue"]
    for path, result in zip(files, results, strict=True):
        assert isinstance(result, Masks)
        for label, name in enumerate(("red", "blue")):
            written = np.asarray(Image.open(out / "masks" / name / path.name))
            np.testing.assert_array_equal(written == 255, result.masks[label])
        assert result.masks.all(0).any()  # both in one pixel
        assert record["shares"][path.stem]["red"] == pytest.approx(result.shares["red"])
    kept = load_model(run / "best.safetensors").provenance["operating_point"][""]["thresholds"]
    assert results[0].thresholds == tuple(kept.values())
    few = load_predictor(run, device="cpu", threshold=0.9)(files[0]).masks
    assert few.sum() < results[0].masks.sum()
    line = ["predict", "--checkpoint", str(run), str(files[0]), "--out", str(tmp_path / "few"), *QUIET]
    assert main([*line, "--threshold", "0.9", "--run.probabilities", "true"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "few/masks/red" / files[0].name)) == 255, few[0])
    stored = np.load(tmp_path / "few/probabilities" / f"{files[0].stem}.npy")
    np.testing.assert_array_equal((stored > 0.9) | (np.abs(stored - 0.9) < 1e-3), few | (np.abs(stored - 0.9) < 1e-3))
    # In tiles as large as the image nothing changes.
    assert main(["evaluate", "--checkpoint", str(run), "--data.tile", "48", "--data.tile_overlap", "8", *QUIET]) == 0
    assert set(by_model) <= set(capsys.readouterr().out.splitlines())
    (out / "masks" / "blue" / files[0].name).unlink()
    assert main([*again, "--predictions", str(out)]) == 2
    assert f"blue/{files[0].name}: there is no such file" in error_of(capsys)
    # The model says sets, and data that give a pixel one class do not fit it.
    assert main([*again[:3], *QUIET, "--data.multilabel", "false", "--checkpoint", str(run)]) == 2
    assert "set data.multilabel: true" in error_of(capsys)
    assert load_model(run / "best.safetensors").config["head_options"]["mode"] == "multilabel"


class Many:
    """A data set of too many classes."""

    classes = tuple(class_names(32))

    def __len__(self) -> int:
        return 1


def test_what_does_not_go_with_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parse("segment", ["--config", "shapes", "--data.multilabel", "true"]).config
    with pytest.raises(UserError) as error:
        TASK.heads(config, Many())  # type: ignore[arg-type]  # it is asked for its classes alone
    one_line(error, "at most 31, these are 32", "data.multilabel: false")
    for several, mode, remedy in (
        ("false", "multilabel", "set data.multilabel: true"),
        ("true", "binary", "remove one"),
    ):
        line = ["--config", "shapes", "--model.head_options", f"{{mode: {mode}}}", "--data.multilabel", several]
        with pytest.raises(UserError) as error:
            TASK.labels(parse("segment", line).config)
        one_line(error, "model.head_options.mode", mode, remedy)
    shapes = [
        "--config",
        "shapes",
        "--heads.seg.options",
        "{mode: multilabel}",
        *QUIET,
        "--run.out",
        str(tmp_path / "r"),
    ]
    assert joint(shapes) == 2
    assert "with the command segment" in error_of(capsys)


def test_errors_of_overlapping_classes_lie_where_they_were_made() -> None:
    """Class 0 covers the left half and is taken for class 1 in a piece far from its border; class 2 ends three pixels too early."""
    truth = np.zeros((100, 200), np.int32)
    truth[:, :100] |= 1
    truth[40:60] |= 4
    truth[90:, 150:] = UNKNOWN
    labels = np.where(truth == UNKNOWN, 0, truth).astype(np.int32)
    labels[20:30, 40:60] = 2  # 200 pixels, 40 or more from the border of class 0
    labels[57:60] &= ~4  # 600 pixels, at the border of class 2
    metric = SetMetrics(["left", "other", "stripe"])
    metric.update([found(labels)], [truth])
    told = metric.anatomy()
    left, other, stripe = told["by_class"].values()
    assert (left["missed"], left["missed_boundary"], left["missed_as"]) == (200, 0, {"other": 200})
    assert (other["extra"], other["extra_of"]) == (200, {"left": 200})
    assert (stripe["missed"], stripe["missed_boundary"], stripe["missed_as"]) == (600, 600, {})
    assert told["boundary"]["wrong"] + told["interior"]["wrong"] == 1000
    assert told["boundary"]["pixels"] + told["interior"]["pixels"] == 3 * (truth != UNKNOWN).sum()
    # What is not finite is wrong for every class, and scores say the same number of errors.
    metric.reset()
    confidence = np.full(truth.shape, 0.9, np.float32)
    confidence[:10, :10] = np.nan
    metric.update([found(labels, confidence)], [truth])
    wrong = sum(row["missed"] + row["extra"] for row in metric.anatomy()["by_class"].values())
    assert wrong == 1000 + 3 * 100
    assert wrong == int(metric.counts[1:].sum())


def test_borders_of_all_classes_at_once_are_those_of_each() -> None:
    """Of sets with the highest bit that a class may have, and of pixels that nobody knows, looked at one window at a time."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.choice([0, 1, 3, 1 << 30], (4, 5)), np.ones((9, 8), np.int32)).astype(np.int32)
    truth[:9, :8] = UNKNOWN
    reach = border_of(*truth.shape)
    around = np.lib.stride_tricks.sliding_window_view(
        np.pad(truth, reach, constant_values=UNKNOWN), (2 * reach + 1,) * 2
    )
    found = bands_of(torch.from_numpy(truth)).numpy()
    for bit in (0, 1, 30):
        there = around >> bit & 1
        near = (around == UNKNOWN).any((2, 3)) | (there.min((2, 3)) != there.max((2, 3)))
        np.testing.assert_array_equal(found >> bit & 1, near)
        assert 0 < near.mean() < 1
