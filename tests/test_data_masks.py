"""Folders of images and masks: the same mask out of every format, formats found out, pairs, sizes, counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from tests_support import one_line

from effbackbones.errors import UserError
from effbackbones.images.geometry import Mask
from tasks.data.check import check_dataset
from tasks.data.door.masks import masks
from tasks.data.masks.count import MaskStatistics, count_masks, median_frequency
from tasks.data.masks.file import MaskReader, Stored, packed
from tasks.data.sample import Sample
from tasks.data.sets.masks import MaskDataset
from tasks.settings.data import DataConfig

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TABLE = np.arange(256)[:, None] * [1, 2, 3] % 256


def small_masks(most: int = 254) -> st.SearchStrategy[tuple[int, Mask]]:
    """A number of classes and a mask of them, some pixels ignored."""

    @st.composite
    def draw(pick: st.DrawFn) -> tuple[int, Mask]:
        count, height, width = pick(st.integers(2, most)), pick(st.integers(1, 9)), pick(st.integers(1, 9))
        values = pick(
            st.lists(st.integers(0, count - 1) | st.just(255), min_size=height * width, max_size=height * width)
        )
        return count, np.array(values, np.uint8).reshape(height, width)

    return draw()


def pal(mask: Mask) -> Image.Image:
    image = Image.fromarray(mask, "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def rgb(mask: Mask) -> Image.Image:
    return Image.fromarray(TABLE.astype(np.uint8)[mask])


def rgb_palette(mask: Mask) -> Image.Image:
    """Colours through a palette whose order is another one: the index says nothing."""
    image = Image.fromarray((255 - mask).astype(np.uint8), "P")
    image.putpalette(TABLE.astype(np.uint8)[::-1].tobytes())
    return image


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(255)
    return image


def npy(path: Path, mask: Mask, dtype: type[np.generic]) -> None:
    np.save(path, mask.astype(dtype))


WRITERS: dict[str, tuple[str, str, Callable[[Path, Mask], object]]] = {
    "grey png": ("index", "png", lambda path, mask: Image.fromarray(mask).save(path)),
    "grey tiff": ("index", "tif", lambda path, mask: Image.fromarray(mask).save(path)),
    "grey bmp": ("index", "bmp", lambda path, mask: Image.fromarray(mask).save(path)),
    "pgm": ("index", "pgm", lambda path, mask: Image.fromarray(mask).save(path)),
    "grey webp": ("index", "webp", lambda path, mask: Image.fromarray(mask).save(path, lossless=True, exact=True)),
    "16 bits": ("index", "png", lambda path, mask: Image.fromarray(mask.astype(np.uint16)).save(path)),
    "16 bits tiff": ("index", "tif", lambda path, mask: Image.fromarray(mask.astype(np.uint16)).save(path)),
    "16 bits pgm": ("index", "pgm", lambda path, mask: Image.fromarray(mask.astype(np.uint16)).save(path)),
    "32 bits tiff": ("index", "tif", lambda path, mask: Image.fromarray(mask.astype(np.int32)).save(path)),
    "opaque alpha": ("index", "png", lambda path, mask: with_alpha(Image.fromarray(mask)).save(path)),
    "three greys": ("index", "png", lambda path, mask: Image.fromarray(np.stack([mask] * 3, 2)).save(path)),
    "npy": ("index", "npy", lambda path, mask: npy(path, mask, np.uint8)),
    "npy 16 bits": ("index", "npy", lambda path, mask: npy(path, mask, np.uint16)),
    "palette as numbers": ("index", "png", lambda path, mask: pal(mask).save(path)),
    "palette png": ("palette", "png", lambda path, mask: pal(mask).save(path)),
    "palette gif": ("palette", "gif", lambda path, mask: pal(mask).save(path, optimize=False)),
    "palette tiff": ("palette", "tif", lambda path, mask: pal(mask).save(path)),
    "colours": ("rgb", "png", lambda path, mask: rgb(mask).save(path)),
    "colours and alpha": ("rgb", "png", lambda path, mask: with_alpha(rgb(mask)).save(path)),
    "colours by palette": ("rgb", "png", lambda path, mask: rgb_palette(mask).save(path)),
}


def lay(
    root: Path, split: str, name: str, write: Callable[[Path], object], size: tuple[int, int], exif: int = 0
) -> None:
    """One pair; ``size`` (H, W) of the image."""
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1], (10, 20, 30))
    tag = Image.Exif()
    if exif:
        tag[274] = exif
    image.save(root / split / "images" / f"{name}.jpg", exif=tag)
    write(root / split / "masks")


def config(root: Path, **options: Any) -> DataConfig:
    return DataConfig(name="masks", root=str(root), options=options)


def grey(root: Path, split: str, *arrays: Any, form: str = "png") -> Path:
    """Pairs ``0``, ``1``, ... of grey masks."""
    for number, array in enumerate(arrays):
        values = np.array(array)
        picture = Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16))
        lay(root, split, str(number), lambda folder, n=number, p=picture: p.save(folder / f"{n}.{form}"), values.shape)  # type: ignore[misc]
    return root


def options_for(form: str, count: int) -> dict[str, Any]:
    if form == "rgb":
        return {
            "format": "rgb",
            "colors": [f"c{k}={','.join(map(str, TABLE[k]))}" for k in range(count)],
            "ignore": [",".join(map(str, TABLE[255]))],
        }
    return {"format": form, "classes": [f"c{k}" for k in range(count)]}


@pytest.mark.parametrize("name", WRITERS)
@given(drawn=small_masks())
@FEW
def test_a_mask_is_the_same_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, name: str, drawn: tuple[int, Mask]
) -> None:
    (count, mask), (form, ending, write) = drawn, WRITERS[name]
    root = tmp_path_factory.mktemp("data")
    lay(root, "train", "a", lambda folder: write(folder / f"a.{ending}", mask), mask.shape)  # type: ignore[arg-type]
    dataset = masks(config(root, **options_for(form, count)), "train", None)
    assert dataset.classes == dataset.mask_classes == tuple(f"c{k}" for k in range(count))
    for found in (dataset[0].mask, dataset.mask(0)):
        assert found is not None
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("bits", [2, 4])
@given(drawn=small_masks(most=4))
@FEW
def test_few_bits_are_not_stretched(
    tmp_path_factory: pytest.TempPathFactory, bits: int, drawn: tuple[int, Mask]
) -> None:
    _, mask = drawn
    mask, root = mask % 4, tmp_path_factory.mktemp("data")  # 255 does not fit
    lay(root, "train", "a", lambda folder: Image.fromarray(mask).save(folder / "a.png", bits=bits), mask.shape)  # type: ignore[arg-type]
    dataset = masks(config(root, **options_for("index", 4)), "train", None)
    np.testing.assert_array_equal(dataset.mask(0), mask)
    pal(mask).save(root / "train" / "masks" / "a.png", bits=bits)
    np.testing.assert_array_equal(masks(config(root, **options_for("palette", 4)), "train", None).mask(0), mask)
    header = f"P5 {mask.shape[1]} {mask.shape[0]} 20\n".encode()
    (root / "train" / "masks" / "a.png").write_bytes(header + (mask * 5).tobytes())
    dataset = masks(config(root, **options_for("index", 4), values=[0, 5, 10, 15]), "train", None)
    np.testing.assert_array_equal(dataset.mask(0), mask)


BINARY: dict[str, Callable[[Path, Mask], object]] = {
    "255": lambda folder, mask: Image.fromarray(mask * 255).save(folder / "a.png"),
    "1 bit": lambda folder, mask: Image.fromarray(mask.astype(bool)).save(folder / "a.png"),
    "16 bits": lambda folder, mask: Image.fromarray(mask.astype(np.uint16) * 65535).save(folder / "a.png"),
    "three channels": lambda folder, mask: Image.fromarray(np.stack([mask * 255] * 3, 2)).save(folder / "a.png"),
    "palette": lambda folder, mask: pal(mask * 255).save(folder / "a.png"),
}


@pytest.mark.parametrize("name", BINARY)
@given(drawn=small_masks(most=2))
@FEW
def test_binary_masks(tmp_path_factory: pytest.TempPathFactory, name: str, drawn: tuple[int, Mask]) -> None:
    mask, root = drawn[1] % 2, tmp_path_factory.mktemp("data")
    lay(root, "train", "a", lambda folder: BINARY[name](folder, mask), mask.shape)  # type: ignore[arg-type]
    dataset = masks(config(root, format="binary"), "train", None)
    assert dataset.classes == ("background", "foreground")
    np.testing.assert_array_equal(dataset.mask(0), mask)


def test_binary_jpeg_is_cut_half_way_and_told(tmp_path: Path) -> None:
    mask = np.zeros((64, 48), np.uint8)
    mask[20:50, 10:40] = 1
    lay(tmp_path, "train", "a", lambda folder: Image.fromarray(mask * 255).save(folder / "a.jpg", quality=70), (64, 48))
    assert len(np.unique(np.asarray(Image.open(tmp_path / "train/masks/a.jpg")))) > 2
    dataset = masks(config(tmp_path, format="binary", classes=["no", "yes"]), "train", None)
    np.testing.assert_array_equal(dataset.mask(0), mask)
    assert "JPEG" in " ".join(dataset.notes)


@given(
    codes=st.lists(st.integers(0, 400), min_size=1, max_size=12, unique=True),
    ignored=st.sets(st.integers(0, 400), max_size=3),
    pixels=st.lists(st.integers(0, 400), min_size=1, max_size=40),
    form=st.sampled_from(["index", "rgb"]),
    others=st.sampled_from(["stop", "ignore", "nearest"]),
)
@settings(max_examples=100, deadline=None)
def test_the_lookup_is_the_naive_one(
    codes: list[int], ignored: set[int], pixels: list[int], form: str, others: str
) -> None:
    ignored -= set(codes)
    numbers = np.array([pixels], np.uint16)
    wide = np.stack([numbers * 0, numbers >> 8, numbers & 255], 2).astype(np.uint8)
    np.testing.assert_array_equal(packed(wide), numbers)
    stored = Stored("colour", wide) if form == "rgb" else Stored("grey", numbers, 65535)
    reader = MaskReader(form, tuple((code, label) for label, code in enumerate(codes)), tuple(ignored), others)
    bad = next((x for x, value in enumerate(pixels) if value not in codes and value not in ignored), None)
    if bad is None or others == "ignore":
        assert reader.decode(stored, "f").tolist() == [
            [codes.index(value) if value in codes else 255 for value in pixels]
        ]
    elif others == "nearest":
        found = reader.decode(stored, "f")[0].tolist()
        known = sorted({*codes, *ignored})
        apart = (
            (lambda a, b: ((a >> 8) - (b >> 8)) ** 2 + ((a & 255) - (b & 255)) ** 2)
            if form == "rgb"
            else (lambda a, b: abs(a - b))
        )
        nearest = [min(known, key=lambda code, value=value: (apart(value, code), code)) for value in pixels]  # type: ignore[misc]
        assert found == [codes.index(code) if code in codes else 255 for code in nearest]
    else:
        with pytest.raises(UserError, match=f"f: .* at x {bad}, y 0 is no class"):
            reader.decode(stored, "f")


@pytest.mark.parametrize(
    ("arrays", "classes", "form"),
    [
        ([[[0, 1, 2]]], 3, "index"),
        ([[[0, 1]]], 2, "index"),
        ([[[0, 1, 255]]], 2, "index"),
        ([[[0, 0]], [[1, 255]]], 2, "index"),
        ([[[0, 255]]], 2, "binary"),
        ([[[0, 0]], [[255, 255]]], 2, "binary"),
        ([[[0, 65535]]], 2, "binary"),
        ([[[0, 0]]], 3, "index"),
    ],
)
def test_the_format_is_found_and_told(tmp_path: Path, arrays: Any, classes: int, form: str) -> None:
    names = [f"c{k}" for k in range(classes)]
    dataset = masks(config(grey(tmp_path, "train", *arrays), classes=names), "train", None)
    assert dataset.read_mask.format == form
    assert f"masks are of format {form}" in dataset.notes[0]
    assert f"{len(arrays)} of {len(arrays)} looked at" in dataset.notes[0]
    for index, array in enumerate(arrays):
        expected = np.array(array)
        if form == "binary":
            expected = (expected > 0).astype(int)
        np.testing.assert_array_equal(dataset.mask(index), expected)


def test_a_declared_value_of_255_pixels_is_no_binary(tmp_path: Path) -> None:
    root = grey(tmp_path, "train", [[7, 9, 255]], [[0, 255, 255]])
    dataset = masks(config(root, classes=["a", "b"], values=[9, 7], ignore=[0]), "train", None)
    assert [dataset.mask(index).tolist() for index in range(2)] == [[[1, 0, 255]], [[255, 255, 255]]]
    dataset = masks(config(root, classes=["b"], values=[7], other="ignore"), "train", None)
    assert dataset.mask(0).tolist() == [[0, 255, 255]]
    assert "no class are ignored" in " ".join(dataset.notes)


@pytest.mark.parametrize(("classes", "told"), [("ab", False), ("abc", True)])
def test_255_that_may_be_meant_as_the_last_class_is_told(tmp_path: Path, classes: str, told: bool) -> None:
    dataset = masks(config(grey(tmp_path, "train", [[0, 1, 255]]), classes=list(classes)), "train", None)
    assert dataset.mask(0).tolist() == [[0, 1, 255]]
    assert ("255 is no class and ignored: else set data.options.values: [0, 1, 255]" in dataset.notes[0]) == told
    assert masks(config(tmp_path, classes=[*"abc"], values=[0, 1, 255]), "train", None).mask(0).tolist() == [[0, 1, 2]]


def test_two_ways_to_write_two_classes_are_not_mixed(tmp_path: Path) -> None:
    root = grey(tmp_path, "train", [[0, 1]], [[0, 255]], [[0, 0]])
    with pytest.raises(UserError, match=r"0.png holds 0 and 1, .*1.png 0 and 255, .*; write all in one way, or set"):
        masks(config(root, classes=["a", "b"]), "train", None)
    dataset = masks(config(root, classes=["a", "b"], format="index"), "train", None)
    assert [dataset.mask(index).tolist() for index in range(2)] == [[[0, 1]], [[0, 255]]]


def test_classes_that_may_be_counted_from_1_are_told(tmp_path: Path) -> None:
    dataset = masks(config(grey(tmp_path, "train", [[1, 2]], [[2, 255]]), classes=[*"abcd"]), "train", None)
    assert (
        "none has 0, which would be a: if classes are counted from 1, set data.options.values: [1, ..., 4]"
        in dataset.notes[0]
    )


def test_names_come_from_a_file_and_must_be_those_of_training(tmp_path: Path) -> None:
    root = grey(tmp_path, "train", [[0, 1]])
    (root / "classes.txt").write_text("sky\nroad\n")
    assert masks(config(root), "train", None).classes == ("sky", "road")
    assert masks(config(root), "train", ("sky", "road")).classes == ("sky", "road")
    with pytest.raises(UserError) as caught:
        masks(config(root), "train", ("road", "sky"))
    one_line(caught, "label 0 is 'sky' here and 'road' in training")
    (root / "classes.txt").unlink()
    assert masks(config(root), "train", ("road", "sky")).classes == ("road", "sky")


def test_several_colours_of_one_class(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], np.uint8)
    lay(tmp_path, "train", "a", lambda folder: Image.fromarray(pixels).save(folder / "a.png"), (1, 3))
    dataset = masks(config(tmp_path, colors=["x=7,8,9", "y=1,2,3", "x= 4, 5, 6"]), "train", None)
    assert dataset.classes == ("x", "y")
    assert dataset.mask(0).tolist() == [[1, 0, 0]]


def test_layouts_suffixes_and_lists(tmp_path: Path) -> None:
    source = grey(tmp_path / "source", "train", [[0, 1]], [[1, 1]])
    for image, mask in (("images/train", "masks/train"), ("x/train/deep", "y/train/deep")):
        for there, here in ((image, "images"), (mask, "masks")):
            (tmp_path / "data" / there).mkdir(parents=True)
            for path in (source / "train" / here).iterdir():
                ending = {"x": "_leftImg8bit", "y": "_labelIds"}.get(there[0], "")
                (tmp_path / "data" / there / f"{path.stem}{ending}{path.suffix}").write_bytes(path.read_bytes())
    (tmp_path / "data/y/train/deep/0_color.png").write_bytes(b"")  # passed over: it has another suffix
    names: dict[str, Any] = {"classes": ["a", "b"]}
    assert [masks(config(tmp_path / "data", **names), "train", None)[k].id for k in range(2)] == ["0", "1"]
    suffixes = names | {
        "images": "x/{split}",
        "masks": "y/{split}",
        "image_suffix": "_leftImg8bit",
        "mask_suffix": "_labelIds",
    }
    dataset = masks(config(tmp_path / "data", **suffixes), "train", None)
    assert [dataset[k].id for k in range(2)] == ["deep/0", "deep/1"]
    assert dataset.mask(0).tolist() == [[0, 1]]
    (tmp_path / "data/lists").mkdir()
    (tmp_path / "data/lists/few.txt").write_text("\n1.jpg\n\n0\n")
    listed = names | {"images": "images/train", "masks": "masks/train", "list": "lists/{split}.txt"}
    data = DataConfig(root=str(tmp_path / "data"), train="few", options=listed)
    dataset = masks(data, "train", None)
    assert [dataset[k].id for k in range(2)] == ["1", "0"]
    assert dataset.mask(1).tolist() == [[0, 1]]


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (2, 1)).save(tmp_path / "train/a.png")
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "train/a_mask.png")
    data = config(tmp_path, images="{split}", masks="{split}", mask_suffix="_mask", classes=["x", "y"])
    dataset = masks(data, "train", None)
    assert len(dataset) == 1
    assert dataset.mask(0).tolist() == [[0, 1]]
    check_dataset(dataset)


@pytest.mark.parametrize(("exif", "stored", "mask"), [(6, (4, 6), (6, 4)), (6, (4, 6), (4, 6)), (1, (4, 6), (4, 6))])
@pytest.mark.parametrize("apply", ["apply", "ignore"])
def test_the_image_is_turned_as_its_mask_is(
    tmp_path: Path, exif: int, stored: tuple[int, int], mask: tuple[int, int], apply: Any
) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(mask) % 2
    lay(tmp_path, "train", "a", lambda folder: Image.fromarray(values).save(folder / "a.png"), stored, exif)
    data = DataConfig(root=str(tmp_path), exif=apply, options={"classes": ["a", "b"]})
    sample = masks(data, "train", None)[0]
    assert sample.image.shape[:2] == mask
    np.testing.assert_array_equal(sample.mask, values)


def test_a_reduced_image_has_a_reduced_mask(tmp_path: Path) -> None:
    values = np.zeros((400, 300), np.uint8)
    values[200:] = 1
    lay(tmp_path, "train", "a", lambda folder: Image.fromarray(values).save(folder / "a.png"), values.shape)  # type: ignore[arg-type]
    data = DataConfig(root=str(tmp_path), image_size=32, options={"classes": ["a", "b"], "reduced": True})
    dataset = masks(data, "train", None)
    sample = dataset[0]
    assert sample.image.shape[:2] == (100, 75)
    np.testing.assert_array_equal(sample.mask, values[2::4, 2::4])
    assert dataset.mask(0).shape == (400, 300)


class Given:
    """A data set of masks and nothing else."""

    classes = ("a", "b", "c")

    def __init__(self, found: list[Mask | None]) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((1, 1, 3), np.uint8), str(index), mask=self.found[index])


@given(st.lists(st.none() | st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=12), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_counts_are_the_naive_ones(rows: list[list[int] | None]) -> None:
    found = count_masks(Given([None if row is None else np.array([row], np.uint8) for row in rows]))
    some = [row for row in rows if row is not None]
    assert (found.looked_at, found.total, found.classes) == (len(some), len(rows), Given.classes)
    assert found.ignored == sum(row.count(255) for row in some)
    for k in range(3):
        having = [row for row in some if k in row]
        assert found.pixels[k] == sum(row.count(k) for row in some)
        assert found.images[k] == len(having)
        assert found.present[k] == sum(len(row) - row.count(255) for row in having)
    assert found.missing == tuple(name for k, name in enumerate("abc") if not any(k in row for row in some))


def test_counting_some_says_so_and_names_what_is_wrong() -> None:
    dataset = Given([np.full((1, 2), k % 3, np.uint8) for k in range(9)])
    seen: list[int] = []
    found = count_masks(dataset, 3, watch=lambda items: [seen.append(item) or item for item in items])  # type: ignore[func-returns-value]
    assert seen == [0, 3, 6]
    assert (found.looked_at, found.total, found.missing) == (3, 9, ("b", "c"))
    with pytest.raises(UserError, match="mask 0: value 3 is no class"):
        count_masks(Given([np.array([[0, 3]], np.uint8)]))


def statistics(pixels: list[int], present: list[int], looked_at: int = 4) -> MaskStatistics:
    counts = np.array(pixels)
    return MaskStatistics(tuple("abc"[: len(pixels)]), counts, counts > 0, np.array(present), 0, looked_at, 4)


def test_weights_of_median_frequency() -> None:
    assert median_frequency(statistics([50, 10, 5], [100, 100, 10])) == pytest.approx([1.0, 5.0, 1.0])
    assert median_frequency(statistics([50, 0, 25], [100, 0, 100])) == pytest.approx([0.75, 0, 1.5])
    # Of four masks three were counted: the class may be in the fourth.
    assert median_frequency(statistics([50, 0, 25], [100, 0, 100], 3)) == pytest.approx([0.75, 1.5, 1.5])
    with pytest.raises(UserError, match="none of 4 masks has a labelled pixel"):
        median_frequency(statistics([0, 0], [0, 0]))


def test_camvid(data_root: Path) -> None:
    data = config(data_root / "camvid", ignore=[11])
    train = masks(data, "train", None)
    splits = {split: masks(data, split, train.classes) for split in ("train", "val", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 367, "val": 101, "test": 233}
    assert train.classes[:2] == ("sky", "building")
    assert len(train.classes) == 11
    assert all("masks are of format index" in dataset.notes[0] for dataset in splits.values())
    for dataset in splits.values():
        found = count_masks(dataset)
        assert found.looked_at == len(dataset)
        assert found.missing == ()
        assert found.ignored > 0
        assert found.pixels.sum() + found.ignored == len(dataset) * 360 * 480
        check_dataset(dataset, 3)


def test_camvid_weights(data_root: Path) -> None:
    """As by hand from the files; SegNet's published ones are of other masks (its signs are 2.5 times as rare)."""
    dataset = masks(config(data_root / "camvid", ignore=[11]), "train", None)
    weights = median_frequency(count_masks(dataset))
    counts = np.array(
        [
            np.bincount(np.asarray(Image.open(path)).ravel(), minlength=12)[:11]
            for path in sorted((data_root / "camvid/train/masks").glob("*.png"))
        ]
    )
    shares = [counts[:, k].sum() / counts[counts[:, k] > 0].sum() for k in range(11)]
    assert weights == pytest.approx([sorted(shares)[5] / share for share in shares])
    published = [0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]
    ratio = np.delete(np.array(weights) / published, 6)
    assert ratio.min() > 1
    assert ratio.max() < 1.2


def test_a_dataset_travels_to_workers(tmp_path: Path) -> None:
    import pickle  # what a loader does with spawned workers

    dataset = masks(config(grey(tmp_path, "train", [[0, 1]]), classes=["a", "b"]), "train", None)
    again: MaskDataset = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    np.testing.assert_array_equal(again.mask(0), dataset.mask(0))
