"""Pictures, pages and files of segmentation: classes keep their colours, nothing is lost, overwritten or kept without bound."""

import io
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scenes import letterboxed, write_picture
from test_report_page import NASTY, Page
from tests_support import PEAK_MEMORY, one_line, printed_by, results_of

from effbackbones.contracts import ImageSizes
from effbackbones.drawing.boxes import COLOURS
from effbackbones.drawing.masks import WRONG, errors, fitted, legend, overlay, palette, palette_of
from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask, ResizePlan
from effbackbones.images.reading import read_image
from effbackbones.inference.results import Mask as Segments
from tasks.data.batch import Batch, ImageMeta
from tasks.data.masks.count import MaskStatistics
from tasks.data.sample import IGNORE, Sample
from tasks.report.drawings import class_shares
from tasks.report.masks import mask_sheet
from tasks.report.outputs import OutputNames, is_free
from tasks.report.records import Summary
from tasks.segmentation.examples import KEPT, SegmentationExamples
from tasks.segmentation.files import SegmentationFiles
from tasks.segmentation.metrics import SegmentationMetrics, image_iou
from tasks.segmentation.report import segmentation_report
from tasks.segmentation.results import Segmented, restore

FEW = settings(max_examples=25, deadline=None)
CLASSES = ["road", "car", "tree"]
GREY = np.full((60, 80, 3), 90, np.uint8)


def stripes(height: int, width: int, values: list[int]) -> Mask:
    """Upright stripes of equal width with the given values."""
    return np.tile(np.array(values, np.uint8)[np.arange(width) * len(values) // width], (height, 1))


def segmented(labels: Mask, lost: np.ndarray | None = None) -> Segmented:
    confidence = torch.full(labels.shape, 0.75)
    if lost is not None:
        confidence[torch.from_numpy(lost)] = torch.nan
    return Segmented(torch.from_numpy(labels.copy()), confidence)


# --- colours ---


def test_colours_are_distinct_and_a_class_keeps_its_own() -> None:
    whole = palette()
    assert whole.shape == (256, 3)
    assert len(np.unique(whole, axis=0)) == 256  # with the grey of what is ignored
    assert (whole[: len(COLOURS)] == COLOURS).all()
    for count in (1, 2, 21, 81, 254):
        few = palette(count)
        assert (few[:count] == whole[:count]).all()
        assert not few[count:255].any()
        assert (few[255] == whole[255]).all()
    for count in (0, 256):
        with pytest.raises(ValueError, match="classes"):
            palette(count)


@pytest.mark.parametrize(("count", "least"), [(11, 60), (21, 60), (81, 30)])
def test_colours_differ_visibly(count: int, least: int) -> None:
    table = palette(count)[:count].astype(int)
    apart = np.abs(table[:, None] - table).sum(-1) + 999 * np.eye(count, dtype=int)
    assert apart.min() >= least


@pytest.mark.parametrize("name", ["background", "Background", "_background_"])
def test_a_background_is_black_in_pictures_of_classes_and_bare_in_overlays(name: str) -> None:
    labels = stripes(60, 80, [0, 1])
    assert (palette_of([name, "cat"])[labels][:, :40] == 0).all()
    assert (palette_of([name, "cat"])[labels][:, 40:] == COLOURS[0]).all()
    assert (overlay(GREY, labels, [name, "cat"])[:, :40] == 90).all()
    assert (overlay(GREY, labels, ["road", "cat"])[:, :38] != 90).any(-1).all()


# --- overlays ---


@FEW
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 255), st.integers(0, 2**32 - 1))
def test_overlays_blend_inside_regions_and_leave_the_image_alone(
    height: int, width: int, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.full((height, width), rng.integers(classes), np.uint8)
    before = image.copy(), labels.copy()
    picture = overlay(image, labels, alpha=0.25)
    assert picture.shape == image.shape
    expected = image + (palette()[labels].astype(float) - image) * 0.25
    assert np.abs(picture - expected).max() <= 2
    assert (image == before[0]).all()
    assert (labels == before[1]).all()


def test_borders_lie_inside_both_regions_and_are_thin() -> None:
    picture = overlay(GREY, stripes(60, 80, [0, 1])).astype(int)
    own = np.array(COLOURS)[(np.arange(80) >= 40).astype(int)]
    far = np.abs(picture[30] - own).max(1)
    strength = far < far[[3, 77]].min() / 2
    assert strength.nonzero()[0].tolist() == [39, 40]


def test_borders_do_not_depend_on_the_bands_in_which_a_picture_is_made() -> None:
    labels = np.zeros((1100, 30), np.uint8)
    labels[512:] = 1  # where a band ends
    image = np.full((1100, 30, 3), 90, np.uint8)
    picture = overlay(image, labels)
    assert (picture[510] == picture[0]).all()
    assert (picture[511] != picture[510]).any(-1).all()
    assert (picture[512] != picture[514]).any(-1).all()
    assert (picture[514] == picture[1099]).all()


def test_ignored_pixels_are_hatched_without_colour() -> None:
    labels = np.full((60, 80), 255, np.uint8)
    picture = overlay(GREY, labels)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2
    lighter = picture[..., 0] > picture[..., 0].min()
    assert 0.2 < lighter.mean() < 0.4
    for line in (lighter[30], lighter[:, 30]):  # slanted: every row and column meets it
        assert line.any()
        assert not line.all()


def test_errors_are_red_where_classes_differ_and_nowhere_else() -> None:
    mask, labels = stripes(60, 80, [0, 0, 1, 255]), stripes(60, 80, [0, 1, 1, 1])
    picture = errors(GREY, labels, mask).astype(int)
    right = np.r_[0:20, 40:60]
    assert (picture[:, right] == 90).all()
    assert (np.abs(picture[:, 20:40] - WRONG).max(-1) < np.abs(90 - np.array(WRONG)).max() / 2).all()
    assert np.ptp(picture[:, 60:], axis=-1).max() < 20  # grey
    assert (picture[:, 60:] != 90).any()


@pytest.mark.parametrize(
    "image", [np.zeros((40, 30), np.uint8), np.zeros((40, 30, 1), np.uint16), np.zeros((40, 30, 6), np.float32)]
)
def test_images_of_any_kind_are_overlaid(image: np.ndarray) -> None:
    picture = overlay(image, stripes(40, 30, [0, 1, 2]))
    assert (picture.dtype, picture.shape) == (np.uint8, (40, 30, 3))
    assert picture[20, 3].tolist() == pytest.approx([c * 128 / 255 for c in COLOURS[0]], abs=2)


@FEW
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 90), st.one_of(st.none(), st.integers(1, 60)))
def test_pictures_and_masks_are_fitted_alike(height: int, width: int, at_least: int, at_most: int | None) -> None:
    image, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    new, mask = fitted(image, labels, at_least, at_most)
    assert new.shape[:2] == mask.shape
    assert max(mask.shape) >= (at_least if at_most is None or at_most >= max(height, width) else 1)
    if at_most is not None and max(height, width) > at_most >= at_least:
        assert max(mask.shape) == at_most


def test_masks_of_another_size_follow_the_image() -> None:
    image, labels = fitted(GREY, stripes(30, 40, [0, 1]))
    assert image is GREY
    assert (labels == stripes(60, 80, [0, 1])).all()


@pytest.mark.slow
def test_large_images_are_overlaid_in_little_memory() -> None:
    """Input and output are 170 MB; what lies between them must be less than that."""
    code = """
import numpy as np
from effbackbones.drawing.masks import overlay
used = lambda: peak_memory() / 2**20
overlay(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8))
before = used()
image = np.full((4000, 6000, 3), 90, np.uint8)
labels = np.repeat(np.repeat((np.arange(2400).reshape(40, 60) % 21).astype(np.uint8), 100, 0), 100, 1)
overlay(image, labels)
print(used() - before)
"""
    assert float(printed_by(PEAK_MEMORY + code)) < 400


# --- legends and sheets ---


@pytest.mark.parametrize(
    "names", [CLASSES, [f"a class with number {k}" for k in range(81)], [NASTY, "x" * 500, "caf\udce9", "", "日本"]]
)
@pytest.mark.parametrize("width", [60, 400])
def test_legends_have_a_swatch_for_each_class(names: list[str], width: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = legend(names, [*range(len(names)), 255], width)
    assert picture.shape[1] == width
    table = palette(len(names))
    for value in (*range(len(names)), 255):
        assert (picture == table[value]).all(-1).sum() >= 13 * 13 - 60, value


def test_sheets_show_images_beside_their_masks_and_name_the_classes_that_occur() -> None:
    sample = Sample(image=np.full((640, 640, 3), 90, np.uint8), id="a", mask=stripes(640, 640, [1, 2]))
    bare = Sample(image=np.full((640, 320, 3), 90, np.uint8), id="b")
    sheet = mask_sheet([sample, bare], CLASSES)
    assert sheet.shape[1] == 4 * 480 + 3 * 6
    assert (sheet[:480, :480] == 90).all()
    assert (sheet[:480, 486:966] != 90).any(-1).all()
    assert len(np.unique(sheet[100:380, 972 + 486 + 130 : 972 + 486 + 350].reshape(-1, 3), axis=0)) == 2  # all ignored
    below = sheet[480:].reshape(-1, 3)
    shown = [bool((below == palette()[value]).all(-1).sum() > 100) for value in (0, 1, 2, 255)]
    assert shown == [False, True, True, True]
    assert mask_sheet([sample], CLASSES, columns=1).shape[1] == 966


# --- names of files ---


@FEW
@given(st.lists(st.sampled_from(["a", "A", "a-2", "b", "ä" * 150]), max_size=8))
def test_names_are_never_given_twice(stems: list[str]) -> None:
    names = OutputNames(lambda name: [], "mark")
    given_names = [names.take(stem) for stem in stems]
    assert len({name.casefold() for name in given_names}) == len(stems)
    assert all(len(name.encode()) < 210 for name in given_names)


def test_a_name_is_free_where_all_its_places_are(tmp_path: Path) -> None:
    places = [tmp_path / "x", tmp_path / "y"]
    for place in places:
        place.mkdir()
    (tmp_path / "y" / "a.png").write_text("not ours")
    names = OutputNames(lambda name: [place / f"{name}.png" for place in places], "mark")
    assert names.take("a") == "a-2"


@pytest.mark.parametrize("key", ["Comment", "comment", "other"])
@pytest.mark.parametrize("text", ["mark", "another mark"])
def test_pictures_of_ours_are_known_by_their_comment(tmp_path: Path, key: str, text: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(key, text)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    assert is_free(tmp_path / "a.png", "mark") is (key != "other" and text == "mark")


# --- what predict writes ---


def predict_into(
    out: Path, files: list[Path], labels: list[Mask], classes: list[str] = CLASSES, lost: Any = None, **more: Any
) -> list[str]:
    told: list[str] = []
    writer = SegmentationFiles(out, classes, told.append, **more)
    for file, values in zip(files, labels, strict=True):
        known = values if lost is None else np.where(lost, IGNORE, values)
        confidence = np.full(values.shape, 0.75, np.float32)
        writer.update([Segments(str(file), values.shape, tuple(classes), partial(read_image, file), known, confidence)])
    writer.close()
    return told


def stored(path: Path) -> tuple[str, np.ndarray]:
    with Image.open(path) as picture:
        return picture.mode, np.array(picture)


@pytest.mark.parametrize("classes", [["background", "cat"], CLASSES, [f"class {k}" for k in range(254)]])
def test_predict_writes_classes_as_numbers_colours_and_overlay(tmp_path: Path, classes: list[str]) -> None:
    file, last = write_picture(tmp_path / "a.png"), len(classes) - 1
    labels = stripes(60, 80, [0, 0, 0, last])
    told = predict_into(tmp_path / "out", [file], [labels], classes)
    assert told == [f"{file}: {classes[0]} 75 %, {classes[-1]} 25 %"]
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")) == [
        "classes.json",
        "color/a.png",
        "index/a.png",
        "overlay/a.jpg",
    ]
    mode, index = stored(tmp_path / "out/index/a.png")
    assert mode == "L"
    assert (index == labels).all()
    mode, index = stored(tmp_path / "out/color/a.png")
    assert mode == "P"
    assert (index == labels).all()
    with Image.open(tmp_path / "out/color/a.png") as picture:
        assert (np.array(picture.convert("RGB")) == palette_of(classes)[labels]).all()
    _, seen = stored(tmp_path / "out/overlay/a.jpg")
    assert np.abs(seen.astype(int) - overlay(np.full((60, 80, 3), 90, np.uint8), labels, classes))[:, 30:50].mean() < 8
    record = json.loads((tmp_path / "out/classes.json").read_text())
    assert [(row["value"], row["name"]) for row in record["classes"]] == list(enumerate(classes))
    colours = [tuple(bytes.fromhex(row["color"][1:])) for row in record["classes"]]
    assert colours == [tuple(colour) for colour in palette_of(classes)[: len(classes)].tolist()]
    assert record["undefined"]["value"] == 255


def test_predict_tells_the_largest_classes_and_how_many_more_there_are(tmp_path: Path) -> None:
    file, labels = write_picture(tmp_path / "a.png"), np.zeros((60, 80), np.uint8)
    labels.flat[:21] = np.repeat(np.arange(1, 7), [6, 5, 4, 3, 2, 1])
    names = [f"c{k}" for k in range(7)]
    assert predict_into(tmp_path / "out", [file], [labels], names) == [
        f"{file}: c0 100 %, c1 < 1 %, c2 < 1 %, c3 < 1 %, c4 < 1 %, and 2 more"
    ]


def test_predictions_that_are_not_finite_are_no_class(tmp_path: Path) -> None:
    file, lost = write_picture(tmp_path / "a.png"), np.zeros((60, 80), np.bool_)
    lost[:, :20] = True
    told = predict_into(tmp_path / "out", [file], [stripes(60, 80, [2])], lost=lost)
    assert told == [f"{file}: tree 75 %, no class 25 %"]
    assert (stored(tmp_path / "out/index/a.png")[1] == np.where(lost, 255, 2)).all()


def test_names_that_collide_get_numbers_and_all_are_kept(tmp_path: Path) -> None:
    files = [write_picture(tmp_path / name) for name in ("a/x.png", "b/X.png", "c/x-2.jpg")]
    predict_into(tmp_path / "out", files, [stripes(60, 80, [k]) for k in range(3)])
    for kind, suffix in (("index", "png"), ("color", "png"), ("overlay", "jpg")):
        assert len({path.name.casefold() for path in (tmp_path / "out" / kind).glob(f"*.{suffix}")}) == 3
    assert sorted(int(stored(path)[1][0, 0]) for path in (tmp_path / "out/index").iterdir()) == [0, 1, 2]


def test_predict_overwrites_its_own_files_and_no_others(tmp_path: Path) -> None:
    """OUT may be a folder that holds masks of the user's in ``index/``."""
    own = write_picture(tmp_path / "index" / "a.png", level=7)
    before = own.read_bytes()
    for value in (0, 1):
        predict_into(tmp_path, [own], [stripes(60, 80, [value])])
        assert own.read_bytes() == before
        assert sorted(path.name for path in (tmp_path / "color").iterdir()) == ["a-2.png"]
        assert (stored(tmp_path / "index/a-2.png")[1] == value).all()


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"x" * 500 + b"segmentation by effbackbones"])
def test_a_record_of_others_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        SegmentationFiles(tmp_path, CLASSES, print)
    one_line(error, "classes.json", "--out")
    assert (tmp_path / "classes.json").read_bytes() == content


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError) as error:
        SegmentationFiles(tmp_path / "out", CLASSES, print)
    one_line(error, "cannot be made a folder", "--out")


def test_overlays_too_large_for_their_format_are_reduced_and_that_is_told(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "long.png", (2, 65_600))
    told = predict_into(tmp_path / "out", [file], [stripes(2, 65_600, [0, 1])])
    assert told == [f"{file}: road 50 %, car 50 %; overlay reduced to 65500 x 2"]
    assert stored(tmp_path / "out/index/long.png")[1].shape == (2, 65_600)


def test_pictures_lie_upright_as_they_were_predicted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    predict_into(tmp_path / "out", [tmp_path / "turned.jpg"], [stripes(80, 60, [0, 1])])
    assert stored(tmp_path / "out/overlay/turned.jpg")[1].shape == (80, 60, 3)


def test_probabilities_are_restored_before_they_are_written(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "a.png", (50, 97))
    batch = letterboxed([Sample(image=read_image(file), id="a", path=str(file))])
    scores = torch.zeros(1, 3, 64, 64)
    scores[:, 1, :, :32], scores[:, 2, :, 32:] = 1, 1
    (found,) = restore(batch, scores)
    assert found.labels.shape == (50, 97)
    writer = SegmentationFiles(tmp_path / "out", CLASSES, lambda text: None)
    arrays = found.labels.numpy(), found.confidence.numpy()
    writer.update([Segments(str(file), (50, 97), tuple(CLASSES), partial(read_image, file), *arrays)])
    index = stored(tmp_path / "out/index/a.png")[1]
    assert index.shape == (50, 97)
    assert (index[:, :47] == 1).all()
    assert (index[:, 50:] == 2).all()


# --- worst and best images ---


def scene(name: str, wrong: int, height: int = 60, width: int = 100, value: int = 1) -> tuple[Sample, Segmented]:
    """A mask of two classes, of which ``wrong`` columns are predicted as the third."""
    mask = stripes(height, width, [0, value])
    labels = mask.copy()
    labels[:, :wrong] = 2
    return Sample(image=np.full((height, width, 3), 90, np.uint8), id=name, mask=mask), segmented(labels)


def examples_of(scenes: list[tuple[Sample, Segmented]], size: tuple[int, int] = (64, 64)) -> SegmentationExamples:
    examples = SegmentationExamples(CLASSES)
    for start in range(0, len(scenes), 3):
        samples, found = zip(*scenes[start : start + 3], strict=True)
        examples.update(letterboxed(list(samples), size), list(found))
    return examples


def test_the_worst_and_the_best_are_kept_in_order() -> None:
    wrong = np.random.default_rng(0).permutation(40)
    examples = examples_of([scene(str(k), int(k)) for k in wrong])
    assert [example.id for example in examples.worst()] == [str(k) for k in range(39, 39 - KEPT, -1)]
    assert [example.id for example in examples.best()] == [str(k) for k in range(KEPT)]
    best = examples.best()[0]
    assert (best.iou, best.right) == (1, 1)
    sample, found = scene("x", 39)
    assert sample.mask is not None
    assert examples.worst()[0].iou == pytest.approx(image_iou(found.labels.numpy(), sample.mask, 3))
    assert examples.worst()[0].right == pytest.approx(0.61)


def test_an_image_is_told_once_and_perfect_ones_are_no_mistakes() -> None:
    examples = examples_of([scene("perfect", 0), scene("good", 2), scene("bad", 45)])
    assert [example.id for example in examples.worst()] == ["bad"]
    assert [example.id for example in examples.best()] == ["perfect", "good"]


def test_images_without_truth_or_labelled_pixels_are_passed_over() -> None:
    bare, found = scene("bare", 5)
    bare.mask = None
    ignored, other = scene("ignored", 5)
    ignored.mask = np.full((60, 100), 255, np.uint8)
    examples = examples_of([(bare, found), (ignored, other)])
    assert examples.worst() == examples.best() == []


def test_what_is_not_finite_is_wrong() -> None:
    sample, _ = scene("a", 0)
    assert sample.mask is not None
    lost = np.zeros((60, 100), np.bool_)
    lost[:, :10] = True
    (example,) = examples_of([(sample, segmented(sample.mask, lost))]).best()
    assert example.right == pytest.approx(0.9)
    assert example.iou < 1
    assert set(np.unique(example.labels)) == {0, 1, 255}


def test_ignored_pixels_count_for_nothing() -> None:
    sample, found = scene("a", 10)
    assert sample.mask is not None
    sample.mask[:, :10] = 255
    (example,) = examples_of([(sample, found)]).best()
    assert (example.iou, example.right) == (1, 1)


def test_examples_are_small_and_show_the_image_without_its_padding() -> None:
    sample, found = scene("a", 300, 1000, 2000)
    (example,) = examples_of([(sample, found)], (1024, 1024)).best()
    assert example.image.shape == (256, 512, 3)
    assert (example.image == 90).all()
    assert example.truth.shape == example.labels.shape == (256, 512)
    panels = example.panels()
    assert list(panels) == ["image", "truth", "prediction", "errors"]
    assert (panels["errors"][:, 90:] == 90).all()
    assert (panels["errors"][:, :70] != 90).any(-1).all()
    small = examples_of([scene("b", 4, 12, 20)], (24, 24)).best()[0]
    assert small.image.shape[1] >= 320


@FEW
@given(st.booleans(), st.booleans(), st.integers(20, 90), st.integers(20, 90))
def test_masks_of_examples_lie_on_their_image_however_it_was_turned(
    upside: bool, leftright: bool, height: int, width: int
) -> None:
    """Class 1 is where the image is bright."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, : width // 3] = 1
    image = np.repeat(mask[..., None] * np.uint8(200), 3, 2)
    plan = ResizePlan.letterbox((height, width), (64, 64))
    plan = ResizePlan(plan.original, plan.scaled, plan.offset, plan.size, (upside, leftright))
    pixels = torch.from_numpy(plan.apply_image(image, "nearest", 0).copy()).permute(2, 0, 1)[None]
    meta = ImageMeta("a", "", (height, width), plan, mask=mask)
    batch = Batch(pixels, ImageSizes((64, 64), torch.tensor([plan.valid])), None, [meta])
    examples = SegmentationExamples(CLASSES)
    examples.update(batch, [segmented(mask)])
    (example,) = examples.best()
    inside = example.image[..., 0] > 100
    assert (inside == (example.truth == 1)).mean() > 0.9
    assert (example.truth == example.labels).all()


# --- the page ---


def scores_of(classes: list[str], pairs: list[tuple[Mask, Mask]]) -> dict[str, Any]:
    metric = SegmentationMetrics(classes)
    metric.update([segmented(labels) for labels, _ in pairs], [mask for _, mask in pairs])
    return dict(metric.compute())


def statistics(classes: list[str], pixels: list[int]) -> MaskStatistics:
    counts = np.array(pixels, np.int64)
    return MaskStatistics(tuple(classes), counts, (counts > 0) * 5, (counts > 0) * counts.sum(), 100, 5, 7)


def history(epochs: int) -> list[dict[str, Any]]:
    keys = ("epoch", "lr", "train_loss", "val_miou", "val_pixel_accuracy", "val_boundary_iou")
    return [dict(zip(keys, (e, 0.1 / e, 2 / e, 1 - 1 / e, None, None), strict=True)) for e in range(1, epochs + 1)]


def segmentation_page(folder: Path, results: dict[str, Any], epochs: int = 3, **more: Any) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = Summary(
            "CamVid",
            config={"model": {"backbone": "b0"}},
            history=history(epochs),
            results=results_of(results),
            facts={"assumed": ["mean/std of ImageNet"]},
        )
        path = segmentation_report(folder, summary, **more)
    assert path == folder / "report.html"
    return Page(path)


@pytest.mark.parametrize("count", [2, 3, 81])
def test_the_page_shows_scores_classes_examples_and_frequencies(tmp_path: Path, count: int) -> None:
    classes = [NASTY, "$x$ <b>", *(f"class {k}" for k in range(2, count))]
    mask = stripes(60, 80, [k % count for k in range(4)])
    labels = mask.copy()
    labels[:, :10] = 1
    scores = scores_of(classes, [(labels, mask)])
    examples = SegmentationExamples(classes)
    examples.update(letterboxed([Sample(image=GREY, id="val/<i>.png", mask=mask)]), [segmented(labels)])
    masks = statistics(classes, [10 * k for k in range(count)])
    page = segmentation_page(tmp_path, {"best": "ema", "raw": scores, "ema": scores}, examples=examples, masks=masks)
    assert {tag for tag, _ in page.tags} & {"script", "b", "link", "iframe"} == set()
    for word in (
        f"mIoU\n{100 * scores['miou']:.1f} %",
        "1 image, ema weights",
        "Best images",
        "val/<i>.png",
        "mean/std of ImageNet",
        "Calibration",
        "Frequencies",
        "5 of 7 images looked at",
        "wrong",
        "how exact outlines are",
    ):
        assert word in page.seen, word
    assert page.seen.count(NASTY) >= 3
    assert len(page.all("img")) == 4
    assert page.all("i")  # swatches of the legend
    assert ("Confusion matrix" in page.seen) is (count <= 50)
    assert ("Classes of the training data" in page.seen) is (count <= 50)
    assert ("Most confused" in page.seen) is (count > 2)


def test_classes_are_told_weakest_first_and_confusion_as_shares(tmp_path: Path) -> None:
    mask, labels = stripes(90, 90, [0, 0, 0, 1, 1, 2]), stripes(90, 90, [0, 0, 0, 1, 0, 0])
    scores = scores_of([*CLASSES, "absent"], [(labels, mask)])
    page = segmentation_page(tmp_path, scores)
    text = page.seen.partition("Weakest first")[0].rpartition("Classes")[2]
    places = [text.index(f"{name}\n") for name in ("tree", "car", "road", "absent")]
    assert places == sorted(places)
    notes = [cell["title"] for cell in page.all("td") if cell.get("title")]
    assert notes[:2] == ["road as road: 100.0 %", "road as car: 0.0 %"]
    assert "car as road: 50.0 %" in notes
    assert "in percent of the row" in page.seen


@pytest.mark.parametrize("empty", [True, False])
def test_undefined_scores_and_missing_parts_are_survived(tmp_path: Path, empty: bool) -> None:
    void = np.full((10, 10), 255, np.uint8)
    scores = scores_of(CLASSES, [] if empty else [(np.zeros((10, 10), np.uint8), void)])
    assert scores["miou"] is None
    page = segmentation_page(
        tmp_path, scores, epochs=1, examples=SegmentationExamples(CLASSES), masks=statistics(CLASSES, [0, 0, 0])
    )
    assert "mIoU" in page.seen
    assert "Training" not in page.seen
    assert not page.all("img")


def test_bars_show_the_shares_that_were_given() -> None:
    figures = class_shares(CLASSES, {"one": np.array([0.5, 0.3, 0.2]), "two": np.array([1.0, 0.0, 0.5])})
    left, right = (figure.axes[0] for figure in figures)
    assert [bar.get_width() for bar in left.patches] == pytest.approx([50, 30, 20])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([100, 0, 50])
    assert [label.get_text() for label in left.get_yticklabels()] == CLASSES
    assert left.get_ylim()[0] > left.get_ylim()[1]  # downwards


@pytest.mark.parametrize("name", ["$x$", "a$b", "_hidden", "x\ny", "caf\udce9", "z" * 99])
def test_names_beside_bars_stay_names(name: str) -> None:
    (figure,) = class_shares([name], {"one": np.array([1.0])})
    (label,) = figure.axes[0].get_yticklabels()
    assert not label.get_parse_math()
    assert label.get_text().startswith(name[:1])
    assert len(label.get_text()) <= 28
    figure.savefig(io.BytesIO(), format="svg")


def test_real_masks_are_drawn(data_root: Path) -> None:
    folder = data_root / "camvid" / "val"
    name = sorted(path.stem for path in (folder / "masks").iterdir())[0]
    image, mask = read_image(folder / "images" / f"{name}.jpg"), stored(folder / "masks" / f"{name}.png")[1]
    mask = np.where(mask == 11, 255, mask).astype(np.uint8)
    picture = overlay(image, mask)
    assert picture.shape == image.shape
    assert (errors(image, mask, mask)[mask != 255] == image[mask != 255]).all()
