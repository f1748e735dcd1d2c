"""What a training step will take, from trials of smaller ones; and the trials: drawn batches, and their sizes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from effbackbones.registry import TASKS
from tasks.engine import assembly
from tasks.engine.drawn import DrawnBatches
from tasks.engine.foresight import Foresight, Step, better, enough, read_off
from tasks.engine.rehearsal import Facts, Limits, Trial, growing, rehearse, scaled_config, steps_up
from tasks.engine.surroundings import put_back
from tasks.settings.commandline import parse

FACTS = Facts((200, 100), (200, 100), (200, 100), 3, 2**20, 10**6)
NARROW = "{width: 0.25, depth: 0.3}"


def trial(images: int, megabytes: float, seconds: float, side: tuple[int, int] = (200, 100)) -> Trial:
    return Trial("train", images, *side, seconds, megabytes, 0.5)


@given(
    st.lists(st.integers(1, 100), min_size=2, max_size=5, unique=True),
    st.floats(0, 1e4),
    st.floats(0, 100),
    st.floats(0.01, 1000),
)
@hypothesis_settings(max_examples=50)
def test_what_lies_on_a_line_is_foreseen_exactly(xs: list[int], fixed: float, slope: float, x: float) -> None:
    points = [(float(at), fixed + slope * at) for at in sorted(xs)]
    assert read_off(points, x) == pytest.approx(fixed + slope * x, rel=1e-6, abs=1e-6)


def test_memory_does_not_fall_beyond_what_was_tried() -> None:
    assert read_off([(1, 100), (2, 90)], 4) == 90
    assert read_off([(1, 100), (2, 90)], 1.5) == 95
    assert read_off([(2, 10)], 4) == 20


def test_a_batch_is_split_into_the_fewest_pieces_that_fit() -> None:
    foresight = Foresight(FACTS, [trial(1, 110, 1.5), trial(2, 120, 2.5)])
    whole = foresight.step(12, 1)
    assert (whole.images, whole.megabytes, whole.seconds) == (12, pytest.approx(220), pytest.approx(12.5))
    assert foresight.fitting(12, 220.1) == whole
    split = foresight.fitting(12, 180)
    assert split is not None
    assert (split.pieces, split.images) == (2, 6)
    waiting = 6 * 3 * 200 * 100 / 2**20  # MB of the images of the other piece; gradients take 4 for 2 ** 20 weights
    assert split.megabytes == pytest.approx(160 + 4 + waiting)
    assert split.seconds == pytest.approx(2 * 6 + 0.5)  # the weights are updated once
    assert foresight.fitting(12, 100) is None


def test_activations_are_recomputed_for_more_images_at_a_time_alone() -> None:
    few, some, many = Step(2, 8, 1, 1), Step(4, 4, 1, 1), Step(8, 2, 1, 1)
    assert better(few, some, 16)
    assert not better(many, Step(16, 1, 1, 1), 16)
    assert not better(some, some, 16)
    assert better(None, few, 16)
    assert not better(few, None, 16)
    assert enough(Step(2, 1, 1, 1), 2)  # all that there are


def test_trials_grow_to_the_size_asked_for_and_not_beyond_the_time() -> None:
    sizes = growing((512, 512), 128, 32)
    assert sizes == [(128, 128), (256, 256), (384, 384), (512, 512)]
    assert growing((600, 300), 1, 32)[-1] == (600, 300)
    assert growing((64, 64), 1, 32) == [(64, 64)]
    pixels = [1.0, 2.0, 4.0, 8.0]
    assert steps_up(pixels, 0, 0.1, 1.0) == 2  # four times as large at most
    assert steps_up(pixels, 0, 0.4, 1.0) == 1
    assert steps_up(pixels, 0, 5.0, 1.0) == 1  # one trial tells no trend
    assert steps_up(pixels, 1, 5.0, 1.0) is None
    assert steps_up(pixels, 3, 0.1, 1.0) is None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("classify", ["--model.num_classes", "1"]),
        ("classify", ["--data.multilabel", "true", "--model.num_classes", "3"]),
        ("classify", ["--model.num_classes", "4", "--data.options", "{channels: 4}", "--data.mixup", "0.2"]),
        ("detect", ["--model.num_classes", "1", "--data.mosaic", "1.0"]),
        ("segment", ["--model.num_classes", "2"]),
        ("segment", ["--data.multilabel", "true", "--model.num_classes", "2", "--data.crop_size", "32"]),
        ("joint", []),
    ],
)
def test_drawn_batches_are_what_a_model_is_trained_on(command: str, words: list[str]) -> None:
    narrow = ["--config", "shapes", "--model.backbone", "b0", "--model.weights", "null"]
    narrow += ["--model.backbone_options", NARROW, "--data.image_size", "64", "--model.freeze", "null"]
    config = parse(command, ["train", *narrow, *words]).config
    task = TASKS.get(command)
    model = assembly.make_model(config, task, None).train()
    batch = DrawnBatches(task, config, model)(3, 128, 128)
    assert batch.images.shape == (3, len(model.image_spec.mean), 128, 128)
    assert batch.images.dtype == torch.uint8
    images, targets = task.augment(config, batch, model.head.num_classes, 0)
    losses = model.head.loss(model(images, batch.sizes), targets, batch.sizes)
    assert torch.isfinite(torch.stack(list(losses.values()))).all()


def test_sizes_follow_the_backbone_and_fit_its_head() -> None:
    config = parse(
        "detect", ["train", "--config", "coco", "--data.image_size", "256", "--model.weights", "null"]
    ).config
    larger = replace(config, model=replace(config.model, backbone="b1"))
    assert (
        scaled_config(TASKS.get("detect"), larger, "b0").data.image_size == 384
    )  # 640 / 512 of it, in multiples of 128
    assert scaled_config(TASKS.get("detect"), config, "b0") == config


def test_trials_are_real_steps_and_predictions() -> None:
    words = [
        "--config",
        "shapes",
        "--model.backbone",
        "b0",
        "--model.backbone_options",
        NARROW,
        "--model.weights",
        "null",
    ]
    words += ["--data.image_size", "64", "--data.batch_size", "4", "--run.device", "cpu"]
    config = parse("classify", ["train", *words]).config
    with put_back():
        rows = list(rehearse(TASKS.get("classify"), config, Limits(0.05, 8000.0, ("predict", "train"))))
    assert [row["of"] for row in rows][:2] == ["facts", "predict"]
    trained = [row for row in rows if row["of"] == "train"]
    assert [row["images"] for row in trained] == sorted({row["images"] for row in trained})
    assert all(0 < row["update"] < row["seconds"] for row in trained)
    split = replace(config, optim=replace(config.optim, accumulate=2))
    with put_back():
        _, whole = rehearse(TASKS.get("classify"), split, Limits(0.01, 8000.0, ("train",), whole=True))
    assert (whole["images"], whole["height"]) == (4, 64)
