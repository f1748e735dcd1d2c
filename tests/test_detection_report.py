"""Pictures and pages of detection: boxes lie where they should, nothing is lost, overwritten or kept without bound."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scenes import letterboxed, write_picture
from test_report_page import NASTY, Page
from tests_support import COCO_SCORES, results_of

from effbackbones.contracts import Detections, ImageSizes
from effbackbones.drawing.boxes import COLOURS, draw_boxes, grid, rgb
from effbackbones.errors import UserError
from effbackbones.images.reading import read_image
from effbackbones.inference.boxes import restore_boxes
from effbackbones.inference.results import Boxes
from effbackbones.registry import TASKS
from tasks.data.batch import Batch, ImageMeta
from tasks.data.fingerprint import Known
from tasks.data.sample import Sample
from tasks.detection.examples import KEPT, DetectionExamples
from tasks.detection.files import DetectionFiles, DetectionRecorder
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.report import detection_report
from tasks.detection.results import ImageDetections, restore
from tasks.detection.statistics import BoxStatistics
from tasks.report import words
from tasks.report.boxes import sample_sheet
from tasks.report.drawings import box_histogram, coverage_figure, curves, precision_recall
from tasks.report.extremes import Extremes
from tasks.report.records import Summary
from tasks.settings.commandline import parse

GREY = np.full((400, 500, 3), 90, np.uint8)
WIDE = (400, 600)


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (pixels == np.array(colour, np.uint8)).all(-1)


def changed(picture: np.ndarray, ground: int = 90) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (first outside) of what is not the ground."""
    rows, columns = np.nonzero((picture != ground).any(2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# --- boxes on images ---


def test_a_box_lies_where_it_should() -> None:
    picture = draw_boxes(GREY, np.array([[100, 50, 300, 250]]), labels=[2])
    assert picture.shape == (400, 500, 3)
    line = is_colour(picture, COLOURS[2])
    rows, columns = np.nonzero(line)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (100, 50, 300, 250)
    for y, x in ((50, 200), (249, 200), (150, 100), (150, 299)):  # the outermost pixels of each side
        assert line[y, x], (y, x)
    assert not line[60:240, 110:290].any()  # nothing inside
    assert (picture[60:240, 110:290] == 90).all()
    left, top, right, bottom = changed(picture)
    assert (left, top, right, bottom) == (99, 49, 301, 251)  # the dark seam is one pixel


@pytest.mark.parametrize(("side", "factor"), [(40, 8), (320, 1), (319, 2), (321, 1)])
def test_small_images_are_enlarged_by_whole_factors_and_boxes_with_them(side: int, factor: int) -> None:
    image = np.full((side // 2, side, 3), 90, np.uint8)
    image[3, 5] = (1, 2, 3)
    picture = draw_boxes(image, np.array([[10, 8, 20, 16]]))
    assert picture.shape == (side // 2 * factor, side * factor, 3)
    assert (picture[3 * factor : 4 * factor, 5 * factor : 6 * factor] == (1, 2, 3)).all()
    rows, columns = np.nonzero(is_colour(picture, COLOURS[0]))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (
        10 * factor,
        8 * factor,
        20 * factor,
        16 * factor,
    )


def test_large_images_are_reduced_on_demand_and_lines_and_letters_grow() -> None:
    image, box = np.full((1500, 2000, 3), 90, np.uint8), np.array([[500, 450, 1500, 1050]])
    small, whole = draw_boxes(image, box, at_most=500), draw_boxes(image, box)
    assert small.shape == (375, 500, 3)
    assert changed(small)[::2] == (124, 376)

    def width(picture: np.ndarray) -> int:
        return int(is_colour(picture[picture.shape[0] // 2], COLOURS[0]).sum()) // 2

    assert (width(small), width(whole)) == (2, 7)
    tags = [
        changed(draw_boxes(i, box * s, ["word"])[: int(445 * s)]) for i, s in ((image, 1.0), (image[::4, ::4], 0.25))
    ]
    heights = [bottom - top for _, top, _, bottom in tags]
    assert heights[0] > 3 * heights[1] > 0


def test_styles_differ_without_colour() -> None:
    box = np.array([[100, 50, 300, 250]])
    share, inside = {}, {}
    for style in ("solid", "dashed", "hatched"):
        picture = draw_boxes(GREY, box, styles=[style])  # type: ignore[list-item]
        share[style] = float(is_colour(picture[50], COLOURS[0])[100:300].mean())
        inside[style] = bool((picture[60:240, 110:290] != 90).any())
    assert share["solid"] == 1
    assert 0.4 < share["dashed"] < 0.8
    assert inside == {"solid": False, "dashed": False, "hatched": True}


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 30, 20),
        (470, 0, 500, 20),
        (0, 380, 30, 400),
        (470, 380, 500, 400),
        (0, 0, 500, 400),
        (-50, -50, 700, 700),
        (9, 0, 10, 400),
    ],
)
@pytest.mark.parametrize(
    "text", ["cat", "an uncommonly long name of a class that is wider than all of the picture, surely, by a lot"]
)
def test_tags_stay_inside(box: tuple[int, ...], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, tuple[float, ...]]] = []
    write = ImageDraw.ImageDraw.text

    def watched(self: Any, place: Any, text: str, **more: Any) -> None:
        written.append((text, self.textbbox(place, text, font=more["font"])))
        write(self, place, text, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", watched)
    picture = draw_boxes(GREY, np.array([box]), [text], [3])
    ((shown, (left, top, right, bottom)),) = written
    assert shown == text if len(text) < 10 else (shown.endswith("…") and len(shown) > 40)
    assert 2 <= left < right <= 498
    assert 0 <= top < bottom <= 400
    tag = picture[round(top) : round(bottom), round(left) : round(right)]
    assert is_colour(tag, COLOURS[3]).mean() > 0.4  # filled behind the letters
    assert (tag.astype(int).sum(-1) < 250).any()  # which are dark on yellow


def test_tags_do_not_hide_each_other_where_there_is_room() -> None:
    boxes = np.array([[100, 100, 112, 300], [102, 101, 113, 302], [101, 100, 114, 301]])
    picture = draw_boxes(GREY, boxes, ["one", "two", "three"], [0, 1, 2])
    for label in range(3):
        seen = is_colour(picture, COLOURS[label])
        assert (seen.sum(1) > 20).sum() >= 8, label  # rows of a tag, not the two lines alone


def crowd(count: int, side: int) -> np.ndarray:
    """Boxes in rows and columns of a picture of 1000 x 1000."""
    step = 1000 // round(count**0.5)
    corners = np.array([(x, y) for y in range(0, 1000 - side, step) for x in range(0, 1000 - side, step)])[:count]
    return np.concatenate([corners, corners + side], 1).astype(np.float64)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_crowd_can_be_seen_under_its_boxes(labelled: bool) -> None:
    ground = np.full((1000, 1000, 3), 90, np.uint8)
    boxes = crowd(900, 20)
    labels = np.arange(len(boxes)) % 3
    texts = [f"a long name {row}" for row in range(len(boxes))]
    picture = draw_boxes(ground, boxes, texts, labels if labelled else ())
    untouched = (picture == 90).all(2)
    assert untouched.mean() > 0.5
    inside = [
        untouched[int(top) + 6 : int(bottom) - 6, int(left) + 6 : int(right) - 6].all()
        for left, top, right, bottom in boxes
    ]
    assert np.mean(inside) > 0.9  # all but those under the tag of each class
    for label in range(3 if labelled else 1):
        colour = is_colour(picture, COLOURS[label])
        assert (colour.sum(1) > 60).any(), label  # a tag says which class a colour is


def test_words_in_a_crowd_are_smaller_as_long_as_they_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int]] = []
    plain = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, spot, text, **how: (written.append((text, how["font"].size)), plain(self, spot, text, **how)),
    )
    ground = np.full((1000, 1000, 3), 90, np.uint8)
    sizes = {}
    for count, side in ((25, 100), (64, 100), (900, 20)):
        written.clear()
        draw_boxes(ground, crowd(count, side), ["cell 0.50"] * count, [0] * count)
        sizes[count] = (len(written), written[0][1])
    assert sizes[25] == (25, 26)  # as of few boxes
    assert sizes[64][0] == 64
    assert 10 <= sizes[64][1] < 26
    assert sizes[900][0] == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (3, 5)])
def test_extreme_shapes_are_drawn(shape: tuple[int, int]) -> None:
    height, width = shape
    picture = draw_boxes(np.zeros((*shape, 3), np.uint8), np.array([[0, 0, width, height]]), ["a name"], [0])
    assert picture.shape[0] % height == 0
    assert is_colour(picture, COLOURS[0]).any()


def test_boxes_that_show_nothing_are_left_out() -> None:
    nan, inf = np.nan, np.inf
    nothing = np.array(
        [[nan, 0, 9, 9], [0, 0, inf, 9], [-20, 10, -5, 30], [600, 0, 700, 9], [0, 500, 9, 600], [90, 0, 40, 50.0]]
    )
    assert (draw_boxes(GREY, nothing, ["x"] * 6) == GREY).all()
    assert (draw_boxes(GREY, np.zeros((0, 4))) == GREY).all()
    assert is_colour(draw_boxes(GREY, np.array([[7, 8, 7, 8]])), COLOURS[0]).sum() >= 1  # an empty one is a dot


def test_counts_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="1 texts for 2 boxes"):
        draw_boxes(GREY, np.zeros((2, 4)), ["a"])


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (np.full((330, 330, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((330, 330), 7, np.uint8), (7, 7, 7)),
        (np.full((330, 330, 3), 7 * 256, np.uint16), (7, 7, 7)),
        (np.full((330, 330, 2), 0.5, np.float32), (128, 128, 128)),
        (np.full((330, 330, 6), (1, 2, 3, 4, 5, 6), np.uint8), (1, 2, 3)),
    ],
)
def test_images_of_any_kind_become_colour(image: np.ndarray, pixel: tuple[int, int, int]) -> None:
    before = image.copy()
    picture = draw_boxes(image, np.array([[0, 0, 100, 100]]), ["x"])
    assert (picture.dtype, picture.shape, tuple(picture[-1, -1])) == (np.uint8, (330, 330, 3), pixel)
    assert (image == before).all()  # the image itself is not drawn on


@pytest.mark.parametrize("text", ["caf\udce9", "two\nlines", "", "   ", "日本", "Größe Ж"])
def test_any_text_can_be_drawn(text: str) -> None:
    picture = draw_boxes(GREY, np.array([[100, 100, 200, 200]]), [text])
    assert (changed(picture)[1] < 90) is bool(text.strip())


def test_grids_centre_images_in_equal_cells() -> None:
    images = [np.full((10, 20, 3), 1, np.uint8), np.full((30, 10), 2, np.uint8), np.full((30, 20, 1), 3, np.uint8)]
    sheet = grid(images, 2, gap=4)
    assert sheet.shape == (64, 44, 3)
    assert (sheet[10:20, :20] == 1).all()
    assert (sheet[:30, 29:39] == 2).all()
    assert (sheet[34:, :20] == 3).all()
    assert (sheet[30:34] == sheet[31, 0]).all()
    assert (grid(images[:1], 5) == rgb(images[0])).all()
    with pytest.raises(ValueError, match="expected images"):
        grid([], 3)


def test_sample_sheets_show_boxes_classes_and_crowds() -> None:
    sample = Sample(
        image=np.full((640, 640, 3), 90, np.uint8),
        id="a",
        boxes=np.array([[64, 64, 320, 320], [400, 64, 600, 500]], np.float32),
        box_labels=np.array([1, 0]),
        crowd=np.array([False, True]),
    )
    empty = Sample(image=np.full((640, 320, 3), 90, np.uint8), id="b")
    sheet = sample_sheet([sample, empty], ["cat", "dog"], side=480)
    assert sheet.shape == (480, 966, 3)
    assert is_colour(sheet, COLOURS[1])[150, 47:51].any()
    assert (sheet[150, 60:230] == 90).all()
    assert (sheet[60:350, 310:440] != 90).any()  # hatched
    assert (sheet[:, 486 + 120 : 486 + 360] == 90).all()


# --- drawings ---


def test_box_histogram_counts_every_box_once_and_marks_the_borders() -> None:
    sides = np.array([[4, 4], [10, 40], [200, 50], [0, 0], [33, 33], [900.0, 1600]])
    left, right = (figure.axes[0] for figure in box_histogram(sides, sides / 2))
    assert sum(bar.get_height() for bar in left.patches) == len(sides)
    assert sum(bar.get_height() for bar in right.patches) == len(sides)
    assert [line.get_xdata()[0] for line in left.lines] == [32, 96]
    assert [left.get_xscale(), right.get_xscale()] == ["log", "log"]
    # 100 x 200 at half size is the square root of 2500.
    holding = [bar for bar in box_histogram(sides[2:3], sides[2:3] / 2)[1].axes[0].patches if bar.get_height()]
    assert [bar.get_x() <= 50 <= bar.get_x() + bar.get_width() for bar in holding] == [True]
    box_histogram(np.zeros((0, 2)), np.zeros((0, 2)))


def test_coverage_tells_how_many_boxes_have_an_anchor_and_at_which_sizes() -> None:
    iou = np.array([0.1, 0.49, 0.5, 0.9, 1.0])
    sides = np.array([[5, 5], [6, 6], [100, 100], [100, 90], [5, 6.0]])
    left, right = (figure.axes[0] for figure in coverage_figure(iou, sides))
    heights = {
        name: sum(bar.get_height() for bar in bars)
        for name, bars in zip(("over", "under"), left.containers, strict=True)
    }
    assert heights == {"over": 3, "under": 2}
    assert [(bar.get_x(), bar.get_height()) for bar in right.patches] == [(4, pytest.approx(1 / 3)), (64, 1)]
    coverage_figure(np.array([0.3]), np.array([[8, 8.0]]))


def test_precision_over_recall_leaves_gaps_where_it_is_undefined() -> None:
    lines = {"IoU 0.50": [1.0, 0.5, None], "IoU 0.75": [None, 0.25, 0.0]}
    by_class = {f"class {k}": [1.0, 0.5, 0.1 * k] for k in range(8)}
    left, right = (figure.axes[0] for figure in precision_recall([0, 0.5, 1], lines, by_class))
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn["IoU 0.75"][1:] == [[0.5, 0.25], [1.0, 0.0]]
    assert np.isnan(drawn["IoU 0.75"][0][1])
    assert len({line.get_linestyle() for line in left.lines}) == 2  # told apart without colour
    assert len({(line.get_linestyle(), line.get_color()) for line in right.lines}) == 8
    assert len(precision_recall([0, 0.5, 1], lines, {})) == 1


def test_curves_draw_chosen_scores_alone() -> None:
    rows = [{"epoch": e, "train_loss": 1.0, "val_AP": 0.1 * e, "val_AP_small": 0.0, "val_AR_100": 0.5} for e in (1, 2)]
    drawn = curves(rows, ["val_AP", "val_AP_raw"])
    assert [line.get_label() for figure in drawn for line in figure.axes[0].lines] == ["train loss", "AP"]


# --- what predict writes ---


def detections(batch: Batch, rows: list[list[tuple[list[float], float, int]]]) -> Detections:
    """(box xyxy in original pixels, score, label) for each image, brought into the pixels of the batch."""
    most = max(1, *(len(row) for row in rows))
    boxes, scores, labels = (
        torch.zeros(len(rows), most, 4),
        torch.zeros(len(rows), most),
        torch.zeros(len(rows), most, dtype=torch.int64),
    )
    for i, (row, meta) in enumerate(zip(rows, batch.meta, strict=True)):
        for j, (box, score, label) in enumerate(row):
            assert meta.plan is not None
            boxes[i, j] = meta.plan.apply_boxes(torch.tensor(box, dtype=torch.float32))
            scores[i, j], labels[i, j] = score, label
    return Detections(boxes, scores, labels, torch.tensor([len(row) for row in rows]))


def predict_into(
    out: Path,
    files: list[Path],
    rows: list[list[tuple[list[float], float, int]]],
    *,
    channels: int = 3,
    depth: str = "8",
    exif: str = "apply",
    dataset: Any = None,
    **more: float,
) -> list[str]:
    told: list[str] = []
    writer = DetectionFiles(out, ["cat", "dog"], [3, 90], told.append)
    if dataset is not None:
        writer.number_as(dataset)
    for file, row in zip(files, rows, strict=True):
        image = read_image(file, channels=channels, depth=depth, exif=exif)
        batch = letterboxed([Sample(image=image, id=str(file), path=str(file))])
        (found,) = restore_boxes(detections(batch, [row]), batch.plans())
        writer.update([Boxes(str(file), image.shape[:2], ("cat", "dog"), partial(np.array, image), *found, **more)])
    writer.close()
    return told


def test_predict_draws_confident_boxes_and_writes_all_in_original_pixels(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "000000000139.png", WIDE)
    found = [([150.0, 75.0, 450.0, 300.0], 0.9, 1), ([0.0, 0.0, 60.0, 60.0], 0.2, 0)]
    told = predict_into(tmp_path / "out", [file], [found])
    assert told == [f"{file}: 1 dog"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000000000139.jpg",
        "predictions.categories.json",
        "predictions.json",
    ]
    picture = np.asarray(Image.open(tmp_path / "out" / "000000000139.jpg"))
    assert picture.shape == (400, 600, 3)
    left, _, right, bottom = changed(np.where(np.abs(picture.astype(int) - 90) < 24, 90, picture))
    assert np.abs(np.array([left, right, bottom]) - (149, 451, 301)).max() <= 4  # JPEG blurs the edge
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(r["image_id"], r["category_id"], round(r["score"], 3)) for r in records] == [(139, 90, 0.9), (139, 3, 0.2)]
    np.testing.assert_allclose(records[0]["bbox"], [150, 75, 300, 225], atol=1e-3)


def test_predict_says_when_nothing_is_found_and_the_threshold_is_an_option(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "a.png", WIDE)
    rows = [
        [
            ([10.0, 10.0, 50.0, 50.0], 0.2, 1),
            ([10.0, 90.0, 50.0, 150.0], 0.15, 0),
            ([90.0, 90.0, 150.0, 150.0], 0.15, 0),
        ]
    ]
    assert predict_into(tmp_path / "x", [file], rows) == [f"{file}: nothing above 0.3"]
    assert predict_into(tmp_path / "y", [file], rows, threshold=0.1) == [f"{file}: 2 cat, 1 dog"]
    assert predict_into(tmp_path / "z", [file], [[]]) == [f"{file}: nothing above 0.3"]
    assert json.loads((tmp_path / "z" / "predictions.json").read_text()) == []


def test_names_that_collide_get_numbers_and_all_pictures_are_kept(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/x.png", "x-2.png", "b/x.png", "c/X.png", "d/x.jpg", "e/x-2.png")]
    for level, file in enumerate(files):
        write_picture(file, WIDE, level=20 + 40 * level)
    predict_into(tmp_path / "out", files, [[]] * 6)
    pictures = {path.name: np.asarray(Image.open(path)).mean() for path in (tmp_path / "out").glob("*.jpg")}
    assert len({name.casefold() for name in pictures}) == 6
    assert sorted(round(value) for value in pictures.values()) == [20 + 40 * level for level in range(6)]


def test_predict_overwrites_its_own_pictures_but_never_a_photograph(tmp_path: Path) -> None:
    """OUT may be the folder of the images themselves."""
    photo, file = write_picture(tmp_path / "a.jpg", WIDE, level=200), write_picture(tmp_path / "a.png", WIDE, level=50)
    before = photo.read_bytes()
    for _ in range(2):
        predict_into(tmp_path, [file, photo], [[([10.0, 10.0, 200.0, 200.0], 0.9, 0)]] * 2)
        assert photo.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "a-2.jpg",
            "a-3.jpg",
            "a.jpg",
            "a.png",
            "predictions.categories.json",
            "predictions.json",
        ]
    assert round(np.asarray(Image.open(tmp_path / "a-2.jpg"))[-9:, -9:].mean()) == 50


@pytest.mark.parametrize("kind", ["grey", "rgba", "deep", "npy", "five"])
def test_predict_draws_images_of_any_channels_and_depth(tmp_path: Path, kind: str) -> None:
    shades = np.tile(np.arange(400) // 2, (400, 1)).astype(np.uint8)
    file, channels, depth = tmp_path / f"{kind}.png", 1, "8"
    if kind == "grey":
        Image.fromarray(shades).save(file)
    elif kind == "rgba":
        channels = 4
        Image.fromarray(np.stack([shades, shades, shades, shades * 0 + 255], 2)).save(file)
    elif kind == "deep":
        depth = "native"
        Image.fromarray(shades.astype(np.uint16) * 256).save(file)
    else:
        file, channels, depth = file.with_suffix(".npy"), 1 if kind == "npy" else 5, "native"
        np.save(file, np.repeat(shades[..., None], channels, 2).astype(np.uint16) * 256)
    predict_into(tmp_path / "out", [file], [[([100.0, 100.0, 300.0, 300.0], 0.8, 0)]], channels=channels, depth=depth)
    picture = np.asarray(Image.open(tmp_path / "out" / f"{kind}.jpg")).astype(int)
    assert picture.shape == (400, 400, 3)
    assert np.abs(picture[350, 20:380] - shades[350, 20:380, None]).max() < 12
    assert np.abs(picture[200, 100:102] - COLOURS[0]).max() < 90
    assert np.abs(picture[200, 110:290] - shades[200, 110:290, None]).max() < 12


class OneImage:
    """A data set whose only image has an id that its file does not tell."""

    classes, category_ids = ("cat", "dog"), (4, 91)

    def __init__(self, file: Path) -> None:
        self.file = file

    def __len__(self) -> int:
        return 1

    def known(self, index: int) -> Known:
        return Known("77", b"", (str(self.file),))


def test_predict_takes_image_ids_of_a_data_set_and_leaves_out_what_is_not_finite(tmp_path: Path) -> None:
    file, nan = write_picture(tmp_path / "a.png", WIDE), float("nan")
    rows = [[([0.0, 0.0, 60.0, 60.0], 0.9, 0), ([0.0, nan, 60.0, 60.0], 0.9, 0), ([0.0, 0.0, 60.0, 60.0], nan, 0)]]
    told = predict_into(tmp_path / "out", [file], rows, dataset=OneImage(file))
    assert told == [f"{file}: 1 cat", "2 detections are not finite and were left out of predictions.json"]
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(record["image_id"], record["category_id"]) for record in records] == [(77, 4)]


def test_pictures_lie_upright_as_they_were_predicted(tmp_path: Path) -> None:
    pixels = np.full((100, 200, 3), 60, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    predict_into(tmp_path / "out", [tmp_path / "turned.jpg"], [[]])
    with Image.open(tmp_path / "out" / "turned.jpg") as picture:
        assert picture.size == (200, 400)  # upright, and enlarged twice
        assert not picture.getexif()
    predict_into(tmp_path / "stored", [tmp_path / "turned.jpg"], [[]], exif="ignore")
    with Image.open(tmp_path / "stored" / "turned.jpg") as picture:
        assert picture.size == (400, 200)


def test_a_batch_of_which_nothing_could_be_read_leaves_nothing(tmp_path: Path) -> None:
    none = Detections(
        torch.zeros(0, 5, 4), torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    empty = Batch(
        torch.zeros(0, 3, 64, 64, dtype=torch.uint8), ImageSizes((64, 64), torch.zeros(0, 2, dtype=torch.int64))
    )
    writer, examples = DetectionFiles(tmp_path / "out", ["cat"], [1], print), DetectionExamples(["cat"])
    writer.update([])
    writer.close()
    examples.update(empty, restore(empty, none))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predictions.categories.json",
        "predictions.json",
    ]
    assert examples.worst() == examples.best() == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out: cannot be made a folder .*--out"):
        DetectionFiles(tmp_path / "out", ["a"], [1], print)


def test_long_names_are_shortened(tmp_path: Path) -> None:
    files = [write_picture(tmp_path / folder / ("ä" * 120 + ".png"), (40, 40)) for folder in ("a", "b")]
    predict_into(tmp_path / "out", files, [[], []])
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 2


# --- worst and best images ---


def scene(
    name: str, right: int, wrong: int, missed: int, *, crowd: bool = False
) -> tuple[Sample, list[tuple[list[float], float, int]]]:
    """A wide image with so many objects found, objects missed and detections of nothing, and some that are not confident."""
    place = [[10.0 + 50 * k, 10.0, 50.0 + 50 * k, 60.0] for k in range(right + wrong + missed)]
    objects = np.array(
        place[:right] + place[right + wrong :] + ([[0, 100, 900, 200]] if crowd else []), np.float32
    ).reshape(-1, 4)
    crowds = np.array([False] * (right + missed) + [True] * crowd, np.bool_)
    sample = Sample(
        image=np.full((200, 900, 3), 90, np.uint8),
        id=name,
        boxes=objects,
        box_labels=np.zeros(len(objects), np.int64),
        crowd=crowds,
    )
    found = [(box, 0.9 - 0.01 * k, 0) for k, box in enumerate(place[: right + wrong])]
    return sample, [*found, ([600.0, 10, 640, 60], 0.25, 0), ([5.0, 10, 50, 60], 0.29, 1)]


def examples_of(
    scenes: list[tuple[Sample, list[tuple[list[float], float, int]]]],
    batch_size: int = 3,
    size: tuple[int, int] = (96, 128),
    examples: DetectionExamples | None = None,
) -> DetectionExamples:
    examples = examples or DetectionExamples(["cat", "dog"])
    for start in range(0, len(scenes), batch_size):
        samples, rows = zip(*scenes[start : start + batch_size], strict=True)
        batch = letterboxed(list(samples), size)
        examples.update(batch, restore(batch, detections(batch, list(rows))))
    return examples


def test_images_are_ranked_by_f1_then_by_how_much_there_is() -> None:
    counts = {
        "none": (0, 0, 0),
        "all 2": (2, 0, 0),
        "all 5": (5, 0, 0),
        "half": (1, 1, 1),
        "a third": (1, 2, 2),
        "alarm": (0, 1, 0),
        "lost 3": (0, 0, 3),
        "both 4": (0, 2, 2),
    }
    examples = examples_of([scene(name, *numbers) for name, numbers in counts.items()])
    assert [(e.id, round(e.f1, 3), e.counts) for e in examples.worst()] == [
        ("both 4", 0, (0, 2, 2)),
        ("lost 3", 0, (0, 0, 3)),
        ("alarm", 0, (0, 1, 0)),
        ("a third", round(1 / 3, 3), (1, 2, 2)),
    ]
    assert [(e.id, e.f1) for e in examples.best()] == [("all 5", 1), ("all 2", 1), ("half", 0.5)]


def test_no_more_images_are_kept_than_shown_and_they_are_the_right_ones() -> None:
    rng = np.random.default_rng(0)
    counts = [tuple(int(n) for n in rng.integers(0, 4, 3)) for _ in range(60)]
    scenes = [scene(f"{number}", *numbers) for number, numbers in enumerate(counts)]
    examples = examples_of(scenes, 7)
    assert len(examples._kept._worst) == len(examples._kept._best) == KEPT
    images = [example.image for _, example in (*examples._kept._worst, *examples._kept._best)]
    assert all(max(image.shape) <= 512 and image.base is None for image in images)  # copies: no batch is kept alive
    f1 = {str(i): 2 * r / (2 * r + w + m) for i, (r, w, m) in enumerate(counts) if r + w + m}
    assert [e.f1 for e in examples.worst()] == sorted(v for v in f1.values() if v < 1)[:KEPT]
    assert [e.f1 for e in examples.best()] == sorted(f1.values(), reverse=True)[:KEPT]
    assert [e.id for e in examples.worst()] == [e.id for e in examples_of(scenes, 1).worst()]  # batches do not matter


def test_of_equal_images_the_first_are_kept() -> None:
    examples = examples_of([scene(f"{number}", 1, 1, 1) for number in range(KEPT + 3)])
    assert [example.id for example in examples.best()] == [f"{number}" for number in range(KEPT)]
    examples = examples_of([scene(f"{number}", 1, 2, 2) for number in range(KEPT + 3)])
    assert [example.id for example in examples.worst()] == [f"{number}" for number in range(KEPT)]


def test_examples_lie_in_the_pixels_of_their_picture() -> None:
    sample, row = scene("a", 2, 1, 1, crowd=True)
    (example,) = examples_of([(sample, [*row, ([100.0, 110, 300, 190], 0.5, 0)])]).best()
    assert example.image.shape == (28, 128, 3)  # 200 x 900 in 96 x 128, the letterbox cut off
    assert sample.boxes is not None
    scale = np.array([128 / 900, 28 / 200] * 2)
    np.testing.assert_allclose(example.truth, sample.boxes * scale, rtol=1e-6)
    np.testing.assert_allclose(example.boxes[0], np.array([10, 10, 50, 60]) * scale, rtol=1e-5)
    assert example.scores.min() >= 0.3
    assert example.matches.ignored.tolist() == [False, False, False, True]  # in the crowd
    assert example.counts == (2, 1, 1)
    for picture in (example.truth_picture(), example.prediction_picture()):
        assert picture.shape == (84, 384, 3)


def test_large_images_are_kept_reduced_and_boxes_with_them() -> None:
    sample, row = scene("a", 2, 1, 1)
    assert sample.boxes is not None
    left, top, right, bottom = sample.boxes[1].astype(int)
    sample.image[top:bottom, left:right] = (200, 10, 10)
    (example,) = examples_of([(sample, row)], size=(800, 1200)).best()
    assert example.image.shape == (113, 512, 3)  # 200 x 900, by way of 266 x 1200
    rows, columns = np.nonzero(example.image[..., 0] > 145)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(example.truth[1], seen, atol=1)
    np.testing.assert_allclose(example.boxes[1], seen, atol=1)


def test_pictures_say_right_wrong_and_missed_in_words_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "tasks.detection.examples.draw_boxes",
        lambda image, boxes, texts, labels, styles: said.extend(zip(texts, styles, strict=True)),
    )
    sample, row = scene("a", 1, 1, 1, crowd=True)
    (example,) = examples_of([(sample, [*row, ([100.0, 110, 300, 190], 0.5, 0)])]).best()
    example.truth_picture()
    assert said == [("cat", "solid"), ("cat missed", "dashed"), ("cat (crowd)", "hatched")]
    said.clear()
    example.prediction_picture()
    assert said == [("cat 0.90", "solid"), ("cat 0.89 wrong", "dashed"), ("cat 0.50 (in a crowd)", "hatched")]


@pytest.mark.parametrize(("kept", "counts"), [(None, (1, 1, 0)), (0.895, (1, 0, 0)), (0.27, (1, 2, 0))])
def test_images_are_ranked_by_what_the_model_shows(
    kept: float | None, counts: tuple[int, int, int], tmp_path: Path
) -> None:
    """Detections have scores 0.9, 0.89, 0.29 and 0.25; a model's threshold is that of the best F1 on its validation split."""
    config = parse("detect", ["--config", "shapes"]).config
    model: Any = SimpleNamespace(head=SimpleNamespace(task="det", num_classes=2), config={}, classes=("cat", "dog"))
    model.provenance = {} if kept is None else {"operating_point": {"": {"threshold": kept, "f1": 1.0}}}
    reporter: Any = TASKS.get("det").observer_of(config, ("cat", "dog"), model)
    examples_of([scene("a", 1, 1, 0)], examples=reporter)
    assert [one.counts for one in (*reporter.worst(), *reporter.best())] == [counts]
    summary = Summary("detect", {}, [], results_of(results()), {}, [])
    text = detection_report(tmp_path, summary, examples=reporter).read_text(encoding="utf-8")
    assert f"A box counts from score {kept or 0.3:.3g} on" in text


def test_images_without_truth_or_content_are_passed_over() -> None:
    sample, row = scene("a", 1, 0, 0)
    batch = letterboxed([sample], (96, 128))
    batch.meta[0].truth = None
    examples = DetectionExamples(["cat", "dog"])
    examples.update(batch, restore(batch, detections(batch, [row])))
    assert examples.best() == examples.worst() == []


# --- the page ---


def results(examples: int = 3) -> dict[str, Any]:
    """What the real metric gives."""
    metric = DetectionMetrics(["cat", NASTY])
    scenes = [scene(f"{k}", 2, k % 2, 1) for k in range(examples)]
    for sample, row in scenes:
        batch = letterboxed([sample], (96, 128))
        metric.update(restore(batch, detections(batch, [row])), [meta.truth for meta in batch.meta])
    return metric.compute() | {"errors": metric.anatomy()}


REPAIRS = [{"boxes": 3, "what": "reach out of their image: clipped", "such as": f"a.jpg {NASTY}, b.jpg"}]


def report(folder: Path, **given: Any) -> Page:
    told = {"title": "Detection", "config": {}, "history": [], "facts": {}} | given
    more = {key: told.pop(key) for key in ("examples", "boxes") if key in told}
    path = detection_report(folder, Summary(**told | {"results": results_of(told["results"])}), **more)
    assert path == folder / "report.html"
    return Page(path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page with everything on it; one class, one image, a repair and more have a name that is code."""
    rng = np.random.default_rng(0)
    return report(
        tmp_path_factory.mktemp("report"),
        config={"model": {"backbone": "b0"}, "data": {"root": NASTY}},
        history=[
            {"epoch": e, "train_loss": 2.0 / e, "val_AP": 0.1 * e, "val_AP_small": 0.2, "lr": 0.1} for e in (1, 2, 3)
        ],
        results={"best": "ema", "ema": results(), "raw": results(2)},
        title=NASTY,
        facts={"weights": "imagenet"},
        examples=examples_of([scene(NASTY, 2, 1, 1), scene("b", 0, 1, 0)]),
        boxes=BoxStatistics(
            rng.uniform(5, 300, (50, 2)), rng.uniform(3, 200, (50, 2)), rng.uniform(0.2, 1, 50), REPAIRS
        ),
    )


def test_the_page_needs_nothing_from_outside_and_no_name_becomes_code(page: Page) -> None:
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"} == set()
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name.split(":")[-1] in ("src", "href", "data", "action", "poster"):
                assert (value or "").startswith(("data:", "#")), (tag, name, value)
    # Title, table of classes, worst or best image, repairs, configuration.
    assert page.seen.count(NASTY) >= 5


def test_the_page_shows_the_figures_that_were_given(page: Page) -> None:
    scores = results()
    wanted = [
        "Scores",
        "Training",
        "Precision and recall",
        "Errors",
        "Kinds of errors",
        "Objects not found, by size",
        "Errors by class",
        "Classes",
        "Worst images",
        "Best images",
        "Box sizes",
        "Anchors",
        "Repairs of the data",
        "Configuration",
    ]
    assert [line for line in page.seen.splitlines() if line in wanted] == wanted
    assert f"AP\n{100 * scores['AP']:.1f} %\nAP50\n{100 * scores['AP50']:.1f} %\n" in page.seen  # in large letters
    assert "3 images, ema weights" in page.seen
    table = [line for line in page.seen.split("Scores\n")[1].split("Training\n")[0].splitlines() if line.strip()]
    # All twelve, in order, also the undefined ones.
    names = [words.label(name) for name in COCO_SCORES]
    assert [line for line in table if line in names] == names
    assert scores["AP_large"] is None
    assert table[table.index("AP, large objects") + 2 :][:2] == ["—", "—"]  # the line between says what it is
    assert "F1 0.67: 2 right, 1 wrong, 1 missed" in page.seen
    assert "reach out of their image: clipped" in page.seen
    assert len(page.all("img")) == 4  # two images, truth and prediction
    assert len(page.all("svg")) == 9
    kinds = page.seen.split("Kinds of errors\n")[1].split("Objects not found, by size\n")[0]
    told = [line for line in kinds.splitlines() if line.strip()]
    assert told[told.index("missed") + 2] == "3"  # one of each scene


def test_pictures_are_named_by_their_files() -> None:
    names = [
        ("139", "/data/val2017/000000000139.jpg", "000000000139.jpg \u00b7 139"),
        ("val2017/a.jpg", "/data/val2017/a.jpg", "val2017/a.jpg"),
        ("a", "/data/a.jpg", "a.jpg"),
        ("/data/a.jpg", "/data/a.jpg", "a.jpg"),
        ("made 7", "", "made 7"),
    ]
    for id_, path, name in names:
        assert ImageMeta(id_, path, (1, 1)).name == name
    sample, row = scene("139", 1, 1, 0)
    examples = examples_of([(replace(sample, path="/data/000000000139.jpg"), row)])
    assert [example.name for example in examples.best()] == ["000000000139.jpg \u00b7 139"]


def test_the_weakest_class_comes_first(tmp_path: Path) -> None:
    per_class = {
        name: {"ap": ap, "ap50": ap, "ar": ap, "ground_truth": 3, "detections": 5}
        for name, ap in (("strong", 0.9), ("none", None), ("weak", 0.1))
    }
    page = report(tmp_path, results={"AP": 0.5, "per_class": per_class})
    assert re.findall(r"^(strong|none|weak)$", page.seen.split("Classes\n")[1], re.M) == ["weak", "strong", "none"]


def test_rates_are_not_told_in_percent(tmp_path: Path) -> None:
    page = report(tmp_path, results={"AP": 0.25, "false_positives_on_empty": 1.5})
    assert "25.0 %" in page.seen
    assert "1.5" in page.seen
    assert "150.0 %" not in page.seen


def test_a_page_of_next_to_nothing(tmp_path: Path) -> None:
    metric = DetectionMetrics(["cat"])
    batch = letterboxed([scene("a", 0, 0, 0)[0]], (96, 128))
    metric.update(restore(batch, detections(batch, [[]])), [meta.truth for meta in batch.meta])
    none = BoxStatistics(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    for more in ({}, {"boxes": none, "examples": DetectionExamples(["cat"])}):
        page = report(tmp_path, results=metric.compute() | {"errors": metric.anatomy()}, **more)
        assert "Scores" in page.seen
        for heading in (
            "Training",
            "Precision and recall",
            "Errors",
            "Worst images",
            "Box sizes",
            "Anchors",
            "Repairs",
        ):
            assert heading not in page.seen


def test_a_head_without_anchors_has_box_sizes_alone(tmp_path: Path) -> None:
    page = report(
        tmp_path, results={"AP": 0.5}, boxes=BoxStatistics(np.full((2, 2), 9.0), np.full((2, 2), 5.0), np.zeros(0))
    )
    assert "Box sizes" in page.seen
    assert "Anchors" not in page.seen


def test_the_perfect_are_not_among_the_worst_nor_the_useless_among_the_best() -> None:
    for quality in (0.0, 1.0):
        kept = Extremes[int](2)
        for number in range(9):
            kept.consider(quality, lambda number=number: number, good=number, bad=-number)  # type: ignore[misc]
        assert (kept.worst(), kept.best()) == (([0, 1], []) if quality == 0 else ([], [8, 7]))
    made: list[int] = []
    kept = Extremes[int](1)
    for number, quality in enumerate((0.5, 0.6, 0.55, 0.4)):
        kept.consider(quality, lambda number=number: made.append(number) or number)  # type: ignore[misc, func-returns-value]
    assert (kept.worst(), kept.best(), made) == ([3], [1], [0, 1, 3])  # what does not belong is never made


def test_an_evaluation_counts_what_its_results_file_leaves_out(tmp_path: Path) -> None:
    told: list[str] = []
    recorder = DetectionRecorder(["cat", "dog"], [4, 91])
    boxes = np.array([[0.0, 0.0, 9.0, 9.0], [0.0, np.nan, 9.0, 9.0]])
    found = ImageDetections("7", (20, 20), boxes, np.array([0.9, 0.8]), np.array([0, 1]))
    recorder.update(None, [found])  # type: ignore[arg-type]  # the batch is not looked at
    records = json.loads(recorder.write(tmp_path, told.append).read_text())
    assert [(record["image_id"], record["category_id"]) for record in records] == [(7, 4)]
    assert told == ["1 detections are not finite and were left out of predictions.json"]
