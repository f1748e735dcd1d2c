"""Boxes that are too small at the size that the network sees are counted before a run; if those are all, there is none."""

from pathlib import Path

import numpy as np
import pytest
from tests_support import one_line

from effbackbones import build_model
from effbackbones.errors import UserError
from tasks.detect import main
from tasks.detection.check import check_sides


def test_boxes_that_vanish_are_counted_and_all_of_them_stop_the_run(tmp_path: Path) -> None:
    model = build_model("det", "b0", num_classes=2, head_options={"channels": 16, "cells": 1, "repeats": 1})
    told: list[str] = []
    sides = np.array([[0.3, 8.0], [0.0, 9.0], [2.0, 2.0], [5.0, 1.0]])
    check_sides(sides[2:], 1.0, model, told.append)
    check_sides(np.zeros((0, 2)), 1.0, model, told.append)
    assert told == []
    check_sides(sides, 1.0, model, told.append)
    assert told[0].startswith("boxes: 2 of 4 boxes have a side of less than 1 pixels at image size 512 x 512")
    with pytest.raises(UserError) as error:
        check_sides(sides[:2], 1.0, model, told.append)
    one_line(error, "data.image_size", "too small", "2 of 2 boxes", "raise it")


PLUGIN = """
import numpy as np
from tasks.data.batch import Sample
from tasks.spec import register_dataset


class Specks:
    classes = ("speck",)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        boxes, labels = np.array([[9, 9, 12, 12]], np.float32), np.zeros(1, np.int64)
        return Sample(np.zeros((900, 900, 3), np.uint8), id=str(index), boxes=boxes, box_labels=labels)


@register_dataset("specks")
def specks(data, split, classes):
    return Specks()
"""


def test_a_run_without_a_single_box_to_learn_from_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specks.py").write_text(PLUGIN)
    line = [
        "train",
        "--config",
        "shapes",
        "--data.name",
        "specks",
        "--plugins",
        "[specks.py]",
        "--model.weights",
        "null",
    ]
    small = ["--data.image_size", "64", "--data.workers", "0", "--run.progress", "false", "--run.device", "cpu"]
    assert main([*line, *small]) == 2
    said = capsys.readouterr().err
    assert "the objects are too small at image_size: 8 of 8 boxes" in said
    assert "anchors that fit better" not in said
