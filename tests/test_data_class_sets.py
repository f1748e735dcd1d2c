"""Masks whose classes overlap: from files, outlines and drawings to sets, and unchanged through everything that moves pixels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_data_coco import content
from test_data_coco_masks import opened, outline, rectangle
from tests_support import one_line

from effbackbones.contracts import ImageSpec
from effbackbones.drawing.masks import occurring, overlay, palette
from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN, are_sets, members, set_of
from effbackbones.images.geometry import ResizePlan
from tasks.data.check import check_dataset
from tasks.data.collating import collate, mask_targets, set_targets
from tasks.data.door.labels import shapes
from tasks.data.door.masks import masks
from tasks.data.door.transforms import told_of_listed
from tasks.data.fingerprint import Known
from tasks.data.masks.count import Overlap, count_masks
from tasks.data.sample import Sample
from tasks.data.sets.painting import PaintedDataset
from tasks.data.transforms.listed import Listed
from tasks.data.transforms.mosaic import mosaic
from tasks.data.transforms.views import JitterRange
from tasks.report.masks import mask_sheet
from tasks.settings.data import DataConfig

CLASSES = ["hair", "hat", "skin"]


def laid(root: Path, split: str, rows: dict[str, dict[str, list[int]]]) -> None:
    """``ROOT/SPLIT/images/NAME.png`` and ``ROOT/SPLIT/masks/CLASS/NAME.png``, of one row of pixels each."""
    for name, planes in rows.items():
        (root / split / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((1, 4, 3), 90, np.uint8)).save(root / split / "images" / f"{name}.png")
        for text, values in planes.items():
            (root / split / "masks" / text).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array([values], np.uint8)).save(root / split / "masks" / text / f"{name}.png")


def of_folder(root: Path, split: str = "train", training: tuple[str, ...] | None = None, **options: Any) -> Any:
    chosen = {"mask_names": "{class}/{name}", "classes": CLASSES, "format": "index", **options}
    config = DataConfig(name="masks", root=str(root), labels=("mask",), multilabel=True, options=chosen)
    return masks(config, split, training)


ROWS = {
    "a": {"hair": [1, 1, 0, 0], "hat": [0, 1, 1, 0], "skin": [0, 1, 0, 0]},
    "b": {"hair": [1, 255, 0, 0], "skin": [1, 1, 255, 0]},
}


def test_folders_of_classes_keep_every_class_of_a_pixel(tmp_path: Path) -> None:
    laid(tmp_path, "train", ROWS)
    dataset = of_folder(tmp_path)
    assert dataset.mask(0).tolist() == [[0b001, 0b111, 0b010, 0]]
    # Whether b's second pixel has hair too nobody knows, so nobody knows its set.
    assert dataset[1].mask.tolist() == [[0b101, UNKNOWN, UNKNOWN, 0]]
    assert dataset[1].mask.dtype == np.int32
    assert dataset.notes == (
        "one mask for each class, which may overlap: a pixel has any number of classes",
        "1 of 6 masks are not there: no pixel of the class in the image",
    )
    check_dataset(dataset, labels=("mask",))
    found = count_masks(dataset)
    assert (found.pixels.tolist(), found.images.tolist()) == ([3, 2, 2], [2, 1, 2])
    assert (found.labelled, found.ignored, found.overlap) == (6, 2, Overlap(6, 2, 2))


def test_a_run_knows_masks_of_sets_from_others(tmp_path: Path) -> None:
    """The digest of a data set differs, so that a run does not go on with the other kind."""
    laid(tmp_path, "train", {"a": {"hair": [1, 0, 0, 0], "hat": [0, 1, 0, 0], "skin": [0, 0, 1, 0]}})
    config = {"mask_names": "{class}/{name}", "classes": CLASSES, "format": "index"}
    plain = masks(DataConfig(name="masks", root=str(tmp_path), labels=("mask",), options=config), "train", None)
    assert plain.known(0).label != of_folder(tmp_path).known(0).label
    both = [shapes(DataConfig(name="shapes", labels=("mask",), multilabel=on), "val", None).known(0) for on in (0, 1)]
    assert both[0] == Known("val-0", both[0].label)
    assert both[0].label != both[1].label


def test_what_folders_of_classes_cannot_say_is_refused(tmp_path: Path) -> None:
    laid(tmp_path, "train", ROWS)
    laid(tmp_path, "val", {"c": {"hair": [1, 1, 0, 0]}})
    for options, words in (
        ({"overlap": "last"}, ("data.options.overlap", "keeps them all", "remove one")),
        ({"classes": ["none", *CLASSES]}, ("has no mask of none", "has no class", "leave it out")),
        (
            {"mask_names": None, "masks": "{split}/masks/hair"},
            ("data.multilabel", "a pixel has one class", "mask_names"),
        ),
    ):
        chosen = {key: value for key, value in {"mask_names": "{class}/{name}", **options}.items() if value}
        with pytest.raises(UserError) as error:
            of_folder(tmp_path, **{"mask_names": chosen.pop("mask_names", None), **chosen})
        one_line(error, *words)
    val = of_folder(tmp_path, "val", tuple(CLASSES))  # a small split may lack a class
    assert val.mask(0).tolist() == [[1, 1, 0, 0]]
    assert "no mask of hat, skin" in val.notes
    (tmp_path / "train/images/d.png").write_bytes((tmp_path / "train/images/a.png").read_bytes())
    with pytest.raises(UserError, match="has no mask of any class"):
        of_folder(tmp_path)
    assert of_folder(tmp_path, without_masks="background").mask(2).tolist() == [[0, 0, 0, 0]]


def test_the_refusal_of_an_overlap_names_the_way_to_keep_it(tmp_path: Path) -> None:
    laid(tmp_path, "train", ROWS)
    config = {"mask_names": "{class}/{name}", "classes": CLASSES, "format": "index"}
    plain = masks(DataConfig(name="masks", root=str(tmp_path), labels=("mask",), options=config), "train", None)
    with pytest.raises(UserError, match=r"data\.multilabel: true"):
        plain.mask(0)


def painted(root: Path, *annotations: dict[str, Any], **data: Any) -> PaintedDataset:
    what = {**content(1, (3, 7, 90)), "annotations": list(annotations)}
    dataset = opened(root, what, multilabel=True, **data)
    assert isinstance(dataset, PaintedDataset)
    return dataset


def test_outlines_that_overlap_and_crowds(tmp_path: Path) -> None:
    large, small = rectangle(0, 0, 60, 60), rectangle(40, 40, 90, 70)
    crowd = {"size": [80, 100], "counts": [0, 80 * 10, 80 * 90]}  # the ten columns at the left
    dataset = painted(
        tmp_path,
        outline(1, 3, [large], 3600),
        outline(2, 90, [small], 1500),
        outline(3, 90, [rectangle(50, 50, 55, 55)], 25),  # twice of one class is once
        outline(4, 7, crowd, 800, iscrowd=1),
    )
    assert len(dataset.mask_classes) == 3
    assert "background" not in dataset.mask_classes
    mask = dataset.mask(0)
    assert (mask[5, 20], mask[50, 50], mask[65, 80], mask[75, 95]) == (0b001, 0b101, 0b100, 0)
    assert (mask[:, :10] == UNKNOWN).all()  # how much of a crowd is in a pixel nobody says
    assert count_masks(dataset).pixels.tolist() == [50 * 60, 0, 50 * 30]
    ignoring = painted(tmp_path, outline(1, 3, [large], 3600), options={"unlabelled": "ignore"}).mask(0)
    assert sorted(np.unique(ignoring)) == [UNKNOWN, 1]
    boxes = painted(tmp_path, {**outline(1, 7, None, 8), "bbox": [10, 10, 20, 20]}, options={"no_segmentation": "box"})
    assert (boxes.mask(0) == 0b010).sum() == 400
    assert (painted(tmp_path, {**outline(1, 7, None, 8), "bbox": [10, 10, 20, 20]}).mask(0) == UNKNOWN).sum() == 400


def test_shapes_behind_others_are_there_too() -> None:
    data = {"name": "shapes", "labels": ("mask",), "image_size": 64, "options": {"train": 12}}
    plain, sets = (shapes(DataConfig(**data, multilabel=on), "train", None) for on in (False, True))
    assert sets.mask_classes == plain.classes
    several = 0
    for index in range(len(plain)):
        one, whole = plain[index].mask, sets[index].mask
        assert one is not None
        assert whole is not None
        planes = members(whole, 6)
        for label in range(6):  # what is seen is there, and nothing is where nothing is seen
            assert planes[label][one == label + 1].all()
        assert not whole[one == 0].any()
        several += int((planes.sum(0) > 1).sum())
        np.testing.assert_array_equal(plain[index].image, sets[index].image)
    assert several > 50


def random_sets(seed: int, height: int = 24, width: int = 31, count: int = 12) -> NDArray[np.int32]:
    """Blocks of sets of twelve classes, some unknown, on ground of none."""
    rng = np.random.default_rng(seed)
    coarse = (rng.integers(0, 2**count, (5, 6)) * (rng.random((5, 6)) < 0.7)).astype(np.int32)
    coarse[rng.random((5, 6)) < 0.1] = UNKNOWN
    return np.ascontiguousarray(np.repeat(np.repeat(coarse, 6, 0), 6, 1)[:height, :width])


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scaled=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    offset=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    mirrored=st.tuples(st.booleans(), st.booleans()),
)
def test_geometry_moves_sets_as_it_moves_each_class(seed: int, scaled: Any, offset: Any, mirrored: Any) -> None:
    sets = random_sets(seed)
    plan = ResizePlan((24, 31), scaled, offset, (20, 20), mirrored)
    moved = plan.apply_mask(sets)
    assert are_sets(moved)
    unknown = plan.apply_mask((sets == UNKNOWN).astype(np.uint8), fill=1)
    np.testing.assert_array_equal(moved == UNKNOWN, unknown == 1)
    for plane, found in zip(members(sets, 12), members(moved, 12), strict=True):
        np.testing.assert_array_equal(plan.apply_mask(plane.astype(np.uint8), fill=0) == 1, found)
    np.testing.assert_array_equal(set_of(members(sets, 12)), np.where(sets == UNKNOWN, 0, sets))


def lists(*steps: Any) -> DataConfig:
    return DataConfig(name="masks", multilabel=True, augment=steps)


@pytest.mark.parametrize(
    "step",
    [
        {"HorizontalFlip": {"p": 1}},
        {"Affine": {"rotate": [30, 30], "translate_px": {"x": 4, "y": 2}, "p": 1}},
        {"ElasticTransform": {"alpha": 20, "sigma": 4, "p": 1}},
        {"RandomResizedCrop": {"size": [20, 26], "p": 1}},
        {"PadIfNeeded": {"min_height": 30, "min_width": 40, "p": 1}},
        {"CoarseDropout": {"p": 1, "fill_mask": 0}},
    ],
    ids=lambda step: next(iter(step)),
)
def test_the_library_moves_sets_as_it_moves_each_class(step: Any) -> None:
    sets, image = random_sets(3), np.full((24, 31, 3), 90, np.uint8)
    moves = Listed([step])

    def moved(mask: Any) -> Any:
        return moves(Sample(image, "a", mask=mask), np.random.default_rng(5)).mask

    found, unknown = moved(sets), moved(np.where(sets == UNKNOWN, 255, 0).astype(np.uint8))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found == UNKNOWN, unknown == 255)
    for plane, after in zip(members(sets, 12), members(found, 12), strict=True):
        np.testing.assert_array_equal(moved(plane.astype(np.uint8)) == 1, after)
    assert told_of_listed(lists(step), ("mask",))


def test_more_sets_than_the_library_has_bytes_for_are_refused() -> None:
    sets = np.arange(300, dtype=np.int32).reshape(15, 20)
    with pytest.raises(UserError) as error:
        Listed(["HorizontalFlip"])(Sample(np.zeros((15, 20, 3), np.uint8), "a", mask=sets), np.random.default_rng(0))
    one_line(error, "a: has 299 different sets", "moves 254", "leave data.augment out")


def test_a_fill_that_would_be_a_number_of_a_class_is_refused() -> None:
    step = {"CoarseDropout": {"p": 1, "fill_mask": 3}}
    with pytest.raises(UserError) as error:
        told_of_listed(lists(step), ("mask",))
    one_line(error, "data.augment[0].fill_mask", "is 3", "0 (no class), or 255")
    assert told_of_listed(DataConfig(name="masks", augment=(step,)), ("mask",))


def test_batches_and_mosaics_keep_the_kind_of_mask() -> None:
    samples = [
        Sample(np.full((24, width, 3), 90, np.uint8), str(seed), mask=random_sets(seed, 24, width))
        for seed, width in enumerate((31, 20, 28, 31))
    ]
    batch = collate(samples, targets=set_targets, size_divisor=8, fill=(0.5, 0.5, 0.5))
    assert tuple(batch.targets.shape) == (4, 24, 32)
    assert (batch.targets[1, :, 20:] == UNKNOWN).all()
    np.testing.assert_array_equal(batch.targets[1, :, :20], samples[1].mask)
    whole = mosaic(samples, (32, 32), JitterRange((1.0, 1.0), 0, 0), ImageSpec(), np.random.default_rng(0))
    assert are_sets(whole.mask)
    known = set(np.concatenate([np.unique(sample.mask) for sample in samples]).tolist())
    assert set(np.unique(whole.mask).tolist()) <= known | {UNKNOWN}
    with pytest.raises(UserError, match=re.escape("its mask is int32, and data.multilabel false wants uint8")):
        mask_targets(samples)
    with pytest.raises(UserError, match=re.escape("data.multilabel true wants int32")):
        set_targets([Sample(samples[0].image, "a", mask=np.zeros((24, 31), np.uint8))])


class Odd:
    """Two classes, and a mask that says three."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((2, 2, 3), np.uint8), "a", mask=np.full((2, 2), 0b100, np.int32))


def test_sets_of_other_classes_are_refused() -> None:
    with pytest.raises(UserError, match="expected sets of 2 classes or -1"):
        check_dataset(Odd())
    with pytest.raises(UserError, match="value 4 is no set of 2 classes"):
        count_masks(Odd())


def test_every_class_of_a_pixel_is_drawn() -> None:
    sets = np.zeros((60, 90), np.int32)
    sets[:, :30], sets[:, 20:60], sets[:5] = 0b01, 0b10, UNKNOWN
    sets[10:, 20:30] = 0b11
    ground = np.full((60, 90, 3), 128, np.uint8)
    drawn = overlay(ground, sets, ["a", "b"], alpha=1.0)
    first, second = (tuple(colour) for colour in palette(2)[:2].tolist())
    inside = {tuple(colour) for colour in drawn[14:, 23:28].reshape(-1, 3).tolist()}
    assert {first, second} <= inside  # stripes of both
    assert tuple(drawn[30, 5]) == first
    assert tuple(drawn[30, 80]) == (128, 128, 128)  # no class: the image
    assert occurring(sets) == [0, 1, 255]
    sheet = mask_sheet([Sample(ground, "a", mask=sets)], ["a", "b"])
    assert sheet.shape[1] > 300
