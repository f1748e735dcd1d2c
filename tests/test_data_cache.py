"""The cache of resized training images: the samples of before, whoever writes at the same time, and whatever becomes of its files."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests_support import ROOT

from effbackbones.errors import UserError
from effbackbones.images.spec import ImageSpec
from effbackbones.inference.fitting import Fitting
from tasks.classify import main
from tasks.data.batch import KeyedDataset
from tasks.data.door.boxes import coco
from tasks.data.door.caching import image_cache, with_cache
from tasks.data.door.labels import folder, shapes
from tasks.data.door.transforms import class_transform, told_of_listed, view_transform
from tasks.data.files import cache
from tasks.data.files.cache import ImageCache
from tasks.data.files.reading import ImageReader
from tasks.data.knowledge import Knowledge
from tasks.data.sample import Sample, Transform
from tasks.data.sampling import Repeated
from tasks.settings.data import DataConfig

RNG = np.random.default_rng(0)
SPEC = ImageSpec((48, 64))
SIZES = [(90, 120), (120, 90), (30, 40), (200, 61)]
"""Of images of which the third is enlarged, and not kept smaller."""


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images with a box each, as COCO, and in two class folders."""
    images, boxes = [], []
    for number, (height, width) in enumerate(SIZES):
        for place in ("images", f"train/{'ab'[number % 2]}"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
        picture((height, width)).save(tmp_path / f"images/{number}.jpg")
        picture((height, width)).save(tmp_path / f"train/{'ab'[number % 2]}/{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        boxes.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [3, 5, 20, 17], "iscrowd": 0, "area": 340}
        )
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def made(root: Path, *, boxes: bool, **settings: Any) -> tuple[DataConfig, Any, Transform]:
    """A config, its training data without a cache, and their transform."""
    if boxes:
        data = DataConfig(name="coco", root=str(root), train="train.json", options={"images": "images"}, **settings)
        return (
            data,
            coco(data, "train", None),
            view_transform(data, SPEC, train=True, epochs=9, size_divisor=1),
        )
    data = DataConfig(name="folder", root=str(root), **{"crop": "center"} | settings)
    return data, folder(data, "train", None), class_transform(data, SPEC, train=True)


def kept(root: Path, *, boxes: bool, **settings: Any) -> tuple[KeyedDataset, KeyedDataset, ImageCache]:
    """Samples without a cache and with one, and that."""
    data, dataset, transform = made(root, boxes=boxes, cache=str(root / "kept"), **settings)
    found = image_cache(data, transform)
    return KeyedDataset(dataset, transform), KeyedDataset(with_cache(dataset, found), transform), found


def entries(found: ImageCache) -> list[Path]:
    return sorted(path for path in found.place.rglob("*") if path.is_file())


def assert_same(one: Sample, other: Sample) -> None:
    np.testing.assert_array_equal(one.image, other.image)
    assert one.label == other.label
    for name in ("boxes", "box_labels"):
        if getattr(one, name) is not None:
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-4)


SETTINGS: list[dict[str, Any]] = [
    *({"boxes": True, "resize": how, "vertical_flip": 0.5} for how in ("quick", "exact")),
    *(
        {"boxes": False, "resize": how, "crop": crop}
        for how in ("quick", "exact")
        for crop in ("center", "pad", "none")
    ),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_samples_are_those_without_it(root: Path, settings: dict[str, Any]) -> None:
    """Bit for bit, whether they are made or found; with half of them mirrored. (PIL's exact kernels mirror before they resize.)"""
    plain, cached, found = kept(root, **settings)
    if settings["resize"] == "exact" and settings["boxes"]:
        for dataset in (plain, cached):
            dataset.transform = replace_flips(dataset.transform)
    for epoch in range(3):
        for index in range(len(plain)):
            assert_same(cached[epoch, index], plain[epoch, index])
    assert len(entries(found)) == len(SIZES)
    files = {path: path.stat().st_mtime_ns for path in entries(found)}
    assert {path: path.stat().st_mtime_ns for path in entries(found)} == files


def replace_flips(transform: Any) -> Any:
    transform.jitter = transform.jitter._replace(flip=0.0, vertical_flip=0.0)
    return transform


def test_nothing_is_decoded_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cached, _ = kept(root, boxes=True)
    first = [cached[0, index] for index in range(4)]
    monkeypatch.setattr(ImageReader, "_decoded", lambda *_: pytest.fail("decoded again"))
    for index, sample in enumerate(first):
        again = cached[0, index]
        assert_same(again, sample)
        again.image[:] = 0  # a transform that writes into an image changes its own alone
        assert_same(cached[0, index], sample)


def test_the_data_set_itself_and_its_other_views_stay_as_they_are(root: Path) -> None:
    """Splits by shares are views of one data set, and evaluation reads whole images."""
    data, dataset, transform = made(root, boxes=True, cache=str(root / "kept"))
    view: Any = Repeated(dataset, np.array([2, 1]))
    cached = with_cache(view, image_cache(data, transform))
    assert cached[1].image.shape[:2] == (48, 36)
    assert view[1].image.shape[:2] == dataset[1].image.shape[:2] == (120, 90)
    assert Knowledge.of(view).reader.cache is None  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["cut", "zeros", "one byte", "empty", "other form"])
def test_a_file_that_is_not_whole_is_made_anew(root: Path, damage: str) -> None:
    plain, cached, found = kept(root, boxes=False)
    for index in range(4):
        _ = cached[0, index]
    for path in entries(found):
        content = path.read_bytes()
        broken = {
            "cut": content[:-8],
            "zeros": content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
            "one byte": content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
            "empty": b"",
            "other form": b"EBimage9" + content[8:],
        }[damage]
        path.write_bytes(broken)
    for index in range(4):
        assert_same(cached[1, index], plain[1, index])
    assert all(cache._taken(path) is not None for path in entries(found))


def test_a_file_that_changes_is_read_anew(root: Path) -> None:
    plain, cached, found = kept(root, boxes=False)
    path = Path(cached[0, 0].path)
    before = path.stat()
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    with path.open("ab") as file:
        file.write(bytes(max(0, before.st_size - path.stat().st_size)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps the times
    assert_same(cached[0, 0], plain[0, 0])
    assert len(entries(found)) == 2


def test_what_is_done_to_images_decides_where_they_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ImageCache(root, Fitting((48, 64), SPEC.mean), True)
    places = {found.place}
    for other in (
        replace(found, quick=False),
        replace(found, fitting=replace(found.fitting, size=(64, 48))),
        replace(found, fitting=replace(found.fitting, interpolation="bilinear")),
        replace(found, fitting=replace(found.fitting, mode="squash")),
    ):
        places.add(other.place)
    monkeypatch.setattr(cache, "_releases", lambda: "another release of the decoder")
    places.add(replace(found).place)
    assert len(places) == 6
    reader = ImageReader(cache=found)
    path = next((root / "train/a").iterdir())
    for other_reader in (reader, replace(reader, channels=1), replace(reader, exif="ignore")):
        assert other_reader(str(path)).shape[2] == other_reader.channels
    assert len(entries(found)) == 3


def test_annotations_of_another_size_are_still_refused(root: Path) -> None:
    """Also such as shrink to the same."""
    _, cached, _ = kept(root, boxes=True)
    _ = cached[0, 0]
    table = cached.dataset.table
    sizes = table.sizes.copy()
    sizes[0] *= 2
    cached.dataset.table = replace(table, sizes=sizes)
    with pytest.raises(UserError, match=r"the annotations say 240 x 180 pixels .* the file has 120 x 90"):
        cached[0, 0]


def test_a_disk_without_room_is_told_once(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    plain, cached, found = kept(root, boxes=True)
    monkeypatch.setattr(cache, "_refused", set())

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for index in range(4):
        assert_same(cached[0, index], plain[0, index])
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert entries(found) == []


def test_opening(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, found = kept(root, boxes=True)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 10, 10, 10, 10, 10, 10, 0, 255)))
    with pytest.raises(UserError, match=r"^data\.cache: up to 9\.3 GB are needed, .* 0\.0 GB of room"):
        found.open(1_000_000, 3, 1)
    monkeypatch.undo()
    assert "4 training images are kept at up to 64 x 48 pixels in" in found.open(4, 3, 1)
    (found.place / "ab").mkdir()
    old, new = (found.place / "ab" / f"{name}.part" for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    found.open(4, 3, 1)
    assert (old.exists(), new.exists()) == (False, True)  # another process may be writing the newer one
    (root / "file").write_text("")
    with pytest.raises(UserError, match="name a folder that can be written"):
        replace(found, folder=root / "file").open(4, 3, 1)


def test_refused_where_parts_are_cut_from_whole_images(root: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.cache: data\.crop resized cuts"):
        kept(root, boxes=False, crop="resized")
    data = DataConfig(cache=str(root), augment=({"OneOf": ["RandomSizedBBoxSafeCrop"]},))
    with pytest.raises(UserError, match=r"^data\.cache: .*cuts from whole images \(RandomSizedBBoxSafeCrop\)"):
        told_of_listed(data, ("boxes",))


def test_refused_where_nothing_is_decoded_or_nobody_knows_the_size(root: Path) -> None:
    data, _, transform = made(root, boxes=True, cache=str(root))
    drawn: Any = shapes(DataConfig(name="shapes"), "train", None)
    with pytest.raises(UserError, match="ShapesDataset makes its own"):
        with_cache(drawn, image_cache(data, transform))
    with pytest.raises(UserError, match="which function does not tell"):
        image_cache(data, lambda sample, rng: sample)


READS = """
import sys
from pathlib import Path
from effbackbones.inference.fitting import Fitting
from tasks.data.files.cache import ImageCache
from tasks.data.files.reading import ImageReader
reader = ImageReader(cache=ImageCache(Path(sys.argv[1]), Fitting((300, 400), (0.5, 0.5, 0.5)), True))
print("ready", flush=True)
while True:
    for path in sys.argv[2:]:
        reader(path)
        for entry in [entry for entry in reader.cache.place.glob("*/*") if entry.suffix != ".part"][:1]:
            entry.unlink(missing_ok=True)
"""


@pytest.mark.slow
def test_processes_that_share_a_folder_may_be_killed(root: Path) -> None:
    """Two write, read and remove the same entries all the time, one after another is killed: no entry is ever seen half."""
    paths = [str(root / f"large-{number}.jpg") for number in range(4)]
    for path in paths:
        picture((600, 800)).save(path)
    found = ImageCache(root / "kept", Fitting((300, 400), (0.5, 0.5, 0.5)), True)
    expected = {path: found.kept((600, 800)).apply_image(ImageReader()(path), "bicubic", quick=True) for path in paths}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(6):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", READS, str(root / "kept"), *paths],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        until = time.monotonic() + 1 + RNG.random()
        while time.monotonic() < until:
            for path in paths:
                np.testing.assert_array_equal(ImageReader(cache=found)(path), expected[path])
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for entry in entries(found):
            assert entry.name.endswith(".part") or cache._taken(entry) is not None


@pytest.mark.slow
def test_a_run_with_it_ends_with_the_same_weights(root: Path, capsys: Any) -> None:
    """Made by two loader processes, found by one, and without."""
    common = [
        "--config",
        "folder",
        "--data.root",
        str(root),
        "--data.val",
        "0.5",
        "--data.crop",
        "pad",
        "--data.image_size",
        "32",
    ]
    common += [
        "--data.batch_size",
        "2",
        "--optim.epochs",
        "2",
        "--model.weights",
        "null",
        "--run.device",
        "cpu",
        "--run.progress",
        "false",
    ]
    weights = []
    for name, more in {
        "without": ["--data.workers", "0"],
        "made": ["--data.workers", "2", "--data.cache", str(root / "kept")],
        "found": ["--data.workers", "1", "--data.cache", str(root / "kept")],
    }.items():
        assert main([*common, *more, "--run.out", str(root / name)]) == 0
        weights.append(load_file(root / name / "best.safetensors"))
        assert ("training images are kept at up to 32 x 32 pixels in" in capsys.readouterr().err) == (name != "without")
    assert len(list((root / "kept").rglob("*/*/*"))) == 2  # of the training half
    for other in weights[1:]:
        for key, value in weights[0].items():
            assert torch.equal(value, other[key]), key
