"""The quicker decoder of JPEG files: PIL's pixels and PIL's verdict, whatever is in the file."""

import io
import os
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from effbackbones.errors import UserError
from effbackbones.images.opening import Encoded
from effbackbones.images.reading import read_image
from effbackbones.images.spec import ImageSpec
from tasks.data.batch import KeyedDataset
from tasks.data.door.labels import folder
from tasks.data.door.transforms import class_transform
from tasks.data.files import jpeg
from tasks.data.files.reading import ImageReader
from tasks.data.sampling import Repeated
from tasks.settings.data import DataConfig

ROWS, COLUMNS = np.mgrid[:59, :91]
SCENE = np.stack([ROWS * 4, COLUMNS * 2, (ROWS * COLUMNS) % 256], 2).astype(np.uint8) ^ np.random.default_rng(
    0
).integers(0, 32, (59, 91, 3), dtype=np.uint8)


def encoded(image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(SCENE)).save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PLAIN = {
    "4:4:4": encoded(quality=30, subsampling="4:4:4"),
    "4:2:2": encoded(quality=75, subsampling="4:2:2"),
    "4:2:0": encoded(quality=95, subsampling="4:2:0"),
    "restart markers": encoded(restart_marker_blocks=3),
    "optimised tables": encoded(optimize=True),
    "comment and profile": encoded(comment=b"of a scene", icc_profile=bytes(500)),
    "upright by EXIF": encoded(exif=turned(1)),
    "one pixel": encoded(Image.fromarray(SCENE[:1, :1])),
}
ODD = {
    "progressive": encoded(progressive=True),
    "grey": encoded(Image.fromarray(SCENE[..., 0])),
    "CMYK": encoded(Image.fromarray(SCENE).convert("CMYK")),
    "RGB of Adobe": encoded(keep_rgb=True),
    "arithmetic coding announced": PLAIN["restart markers"].replace(b"\xff\xc0", b"\xff\xc9", 1),
    "no JPEG": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "nothing": b"",
    "header alone": PLAIN["restart markers"][:20],
}
DECODER = pytest.mark.skipif(not jpeg.is_equal_here(), reason="torchvision's JPEG library is another one")


def verdict(content: bytes, **options: object) -> tuple[str, np.ndarray | None]:
    """The line of an error, or the pixels."""
    try:
        return "", read_image(Encoded("a.jpg", content), **options)
    except UserError as error:
        return str(error), None


def assert_same(content: bytes) -> None:
    """With the decoder and without it: the same words, or the same pixels."""
    words, pixels = verdict(content)
    told, quick = verdict(content, jpeg=jpeg.decoded)
    assert told == words
    np.testing.assert_array_equal(quick, pixels)


@DECODER
@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_have_the_pixels_of_pil(name: str) -> None:
    decoded = jpeg.decoded(PLAIN[name])
    assert decoded is not None
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(PLAIN[name]))))
    assert_same(PLAIN[name])


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_left_to_pil(name: str) -> None:
    assert not jpeg.is_plain(ODD[name])
    assert_same(ODD[name])


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_what_is_to_be_turned_or_shrunk_is_left_to_pil(orientation: int) -> None:
    content = encoded(exif=turned(orientation))
    assert_same(content)
    for options in ({"exif": "ignore"}, {"at_least": (16, 16)}, {"channels": 1}, {"channels": 4}):
        expected, found = verdict(content, **options)[1], verdict(content, jpeg=jpeg.decoded, **options)[1]
        assert expected is not None
        np.testing.assert_array_equal(found, expected)


def test_limits_hold_before_anything_is_decoded() -> None:
    def never(content: bytes) -> None:
        raise AssertionError("asked in spite of the limit")

    large = bytearray(PLAIN["restart markers"])
    place = large.find(b"\xff\xc0")
    large[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(UserError, match="allowed are"):
        read_image(Encoded("a.jpg", bytes(large)), jpeg=never)
    with pytest.raises(UserError, match="allowed are"):
        read_image(Encoded("a.jpg", PLAIN["one pixel"]), max_pixels=0, jpeg=never)


def test_pixels_of_another_size_are_not_taken() -> None:
    expected = read_image(Encoded("a.jpg", PLAIN["optimised tables"]))
    found = read_image(Encoded("a.jpg", PLAIN["optimised tables"]), jpeg=lambda _: np.zeros((4, 4, 3), np.uint8))
    np.testing.assert_array_equal(found, expected)


def test_readers_of_data_sets_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(PLAIN["optimised tables"])
    monkeypatch.setattr(jpeg, "decoded", lambda content: np.full((59, 91, 3), 7, np.uint8))
    assert (ImageReader()(str(path)) == 7).all()


@pytest.mark.parametrize("failure", [ImportError, RuntimeError])
def test_without_the_library_pil_decodes(monkeypatch: pytest.MonkeyPatch, failure: type[Exception]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise failure

    jpeg.is_equal_here.cache_clear()
    monkeypatch.setattr("torchvision.io.decode_jpeg", fails)
    try:
        assert not jpeg.is_equal_here()
        assert jpeg.decoded(PLAIN["optimised tables"]) is None
        assert_same(PLAIN["optimised tables"])
    finally:
        jpeg.is_equal_here.cache_clear()


def test_another_library_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose pixels are a level off, as those of IJG's are."""
    honest = jpeg._by_torchvision
    jpeg.is_equal_here.cache_clear()
    monkeypatch.setattr(jpeg, "_by_torchvision", lambda content: honest(content) ^ 1)
    try:
        assert jpeg.decoded(PLAIN["optimised tables"]) is None
    finally:
        jpeg.is_equal_here.cache_clear()


def damaged(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from([*PLAIN.values(), *ODD.values()])))
    for _ in range(draw(st.integers(0, 4))):
        if not content:
            break
        place = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(("bit", "byte", "cut", "zeros", "end", "early end")))
        if kind == "bit":
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            content[place] = draw(st.sampled_from((0, 0xFF, 0xD0, 0xD9, 0xDA)))
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, 300))]
        elif kind == "zeros":
            content[place : place + 40] = bytes(len(content[place : place + 40]))
        elif kind == "end":
            del content[place:]
        else:
            content[place:] = b"\xff\xd9"
    return bytes(content)


DAMAGED = st.composite(damaged)()


@settings(max_examples=200, deadline=None)
@given(DAMAGED)
def test_damaged_files_have_the_verdict_of_pil(content: bytes) -> None:
    assert_same(content)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(DAMAGED)
def test_many_damaged_files_have_the_verdict_of_pil(content: bytes) -> None:
    assert_same(content)


@pytest.mark.skipif("EFFBACKBONES_DATA" not in os.environ, reason="needs the real data")
def test_photographs_have_the_pixels_of_pil() -> None:
    folder = Path(os.environ["EFFBACKBONES_DATA"]) / "coco_mini" / "val2017"
    files = sorted(folder.glob("*.jpg"))[:40]
    for path in files:
        assert_same(path.read_bytes())
    if jpeg.is_equal_here():
        assert sum(jpeg.is_plain(path.read_bytes()) for path in files) > len(files) / 2  # else it would help nobody


FAST = pytest.mark.skipif(not jpeg._has_simplejpeg(), reason="needs the extra fast")


def assert_same_above(content: bytes, row: int) -> None:
    """Decoded down to ``row``: the same words, or the same pixels so far."""
    words, pixels = verdict(content, jpeg=jpeg.decoded)
    with jpeg.rows_needed(lambda size: min(row, size[0])):
        told, upper = verdict(content, jpeg=jpeg.decoded)
    assert told == words
    if pixels is not None and upper is not None:
        assert upper.shape == pixels.shape
        np.testing.assert_array_equal(upper[:row], pixels[:row])


@FAST
@pytest.mark.parametrize("name", PLAIN)
def test_rows_that_are_needed_are_those_of_the_whole(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    for row in range(1, 60):
        assert_same_above(PLAIN[name], row)
    assert capfd.readouterr().err == ""


@FAST
def test_rows_below_are_not_decoded_and_whole_images_are_read_afterwards() -> None:
    with jpeg.rows_needed(lambda size: size[0] // 4):
        upper = verdict(PLAIN["4:2:0"], jpeg=jpeg.decoded)[1]
    assert upper is not None
    assert upper[:14].any()
    assert not upper[48:].any()
    assert_same(PLAIN["4:2:0"])


@FAST
@settings(max_examples=200, deadline=None)
@given(DAMAGED, st.integers(1, 59))
def test_damage_below_what_is_needed_is_found_all_the_same(content: bytes, row: int) -> None:
    assert_same_above(content, row)


@FAST
@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(DAMAGED, st.integers(1, 59))
def test_much_damage_below_what_is_needed_is_found_all_the_same(content: bytes, row: int) -> None:
    assert_same_above(content, row)


@FAST
def test_random_crops_ask_for_what_they_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples are those of whole images; where something else looks at the image, all of it is decoded."""
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.jpg").write_bytes(encoded(Image.fromarray(SCENE.repeat(4, 0))))
    data = DataConfig(name="folder", root=str(tmp_path), scale=(0.1, 0.3))
    transform = class_transform(data, ImageSpec((16, 16)), train=True)
    whole = folder(data, "train", None)
    parted = Repeated(whole, np.array([1, 0, 1]))
    honest, kept = jpeg._upper_rows, []
    monkeypatch.setattr(jpeg, "_upper_rows", lambda *given: kept.append(found := honest(*given)) or found)

    def images(dataset: object, transform: object = transform) -> list[np.ndarray]:
        keyed = KeyedDataset(dataset, transform, seed=3)
        return [keyed[epoch, index].image for epoch in range(6) for index in range(len(keyed))]

    fast = [images(whole), images(parted)]
    assert sum(found is not None for found in kept) > len(kept) / 2
    monkeypatch.setattr(jpeg, "_has_simplejpeg", lambda: False)
    np.testing.assert_array_equal(fast[0], images(whole))
    np.testing.assert_array_equal(fast[1], images(parted))
    kept.clear()

    class Own(type(whole)):
        """It may look at the image it has read."""

    own = copy(whole)
    own.__class__ = Own
    listed = class_transform(replace(data, augment=["HorizontalFlip"]), ImageSpec((16, 16)), train=True)
    images(own), images(whole, listed), images(whole, class_transform(data, ImageSpec((16, 16)), train=False))
    assert not kept
