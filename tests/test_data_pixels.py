"""What is looked at in pixels before a run: the range in use, mean and deviation, what a crop never shows, shared images."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import write_picture

from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from tasks.classification.check import in_all_samples, quick_checks, unseen
from tasks.classification.task import TASK
from tasks.data.door.reading import image_spec
from tasks.data.door.transforms import class_transform
from tasks.data.files.reading import ImageReader
from tasks.data.knowledge import Knowledge
from tasks.data.pixels import deep_range, mean_and_std, told_of_files, told_of_range
from tasks.data.sets.folders import FolderDataset
from tasks.data.suspicions import told_of_shared_images
from tasks.engine import assembly, splits
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config, ModelConfig
from tasks.telling import Teller
from tasks.verbs.predict import _may_be_deep

RNG = np.random.default_rng(0)


def folders(root: Path, arrays: dict[str, np.ndarray], ending: str = "png") -> Path:
    for name, array in arrays.items():
        for split in ("train", "val"):
            path = root / split / name / f"0.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array) if ending == "npy" else Image.fromarray(array).save(path)
    return root


def opened(root: Path, **options: Any) -> dict[str, Any]:
    config = Config(data=DataConfig(root=str(root), options={"channels": 1} | options))
    return splits.open_splits(config, TASK)


@pytest.mark.parametrize("ending", ["png", "npy", "tif"])
def test_a_small_range_of_sixteen_bits_is_told_with_its_remedy(tmp_path: Path, ending: str) -> None:
    values = RNG.integers(1000, 1200, (8, 9)).astype(np.uint16)
    values[0, 0] = 1234
    root = folders(tmp_path, {"a": values, "b": values}, ending)
    found = deep_range(opened(root)["train"])
    assert found is not None
    assert (found.highest, found.bits, found.levels, found.looked_at) == (1234, 11, 5, 2)
    line = told_of_range(opened(root)["train"], False)
    assert line == (
        "warning: 16-bit images use values up to 1,234 (11 bits) of 65,535: in 8 bits 5 levels are left of them; "
        "set data.options.depth: native and model.normalization: data"
    )
    native = opened(root, depth="native")["train"]
    assert "set model.normalization: data" in (told_of_range(native, False) or "")
    assert told_of_range(native, True) is None
    sample = native[0].image
    assert sample.dtype == np.uint16
    assert len(np.unique(sample)) > 30


def test_files_that_a_trained_model_is_asked_about_are_told(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{bits}.png") for bits in (8, 12)]
    for path, kind, most in zip(paths, (np.uint8, np.uint16), (255, 4095), strict=True):
        Image.fromarray(np.linspace(0, most, 64).reshape(8, 8).astype(kind)).save(path)
    assert [_may_be_deep(path) for path in (*paths, "a.TIF", "b.jpg", "gone.png")] == [False, True, True, False, False]
    told = told_of_files(paths[1:], ImageReader(), False, trained=True) or ""
    assert told.endswith("levels are left of them; bring them to the range of those that the model was trained on")


def test_a_whole_range_is_not_told(tmp_path: Path) -> None:
    wide = RNG.integers(0, 65536, (8, 9)).astype(np.uint16)
    assert told_of_range(opened(folders(tmp_path / "w", {"a": wide, "b": wide}))["train"], False) is None
    bytes_ = (wide >> 8).astype(np.uint8)
    plain = opened(folders(tmp_path / "b", {"a": bytes_, "b": bytes_}))["train"]
    assert (deep_range(plain), told_of_range(plain, False)) == (None, None)


def test_images_that_are_nearly_black_are_told(tmp_path: Path) -> None:
    faint = RNG.integers(0, 2, (8, 9)).astype(np.uint8)  # written as 0 and 1
    dataset = opened(folders(tmp_path, {"a": faint, "b": faint}))["train"]
    assert "images use values up to 1 of 255, and are nearly black" in (told_of_range(dataset, False) or "")
    assert told_of_range(dataset, True) is None


def test_mean_and_deviation_of_the_data_reach_the_model(tmp_path: Path) -> None:
    arrays = {name: RNG.integers(1000, 1200, (8, 9)).astype(np.uint16) for name in "ab"}
    root = folders(tmp_path, arrays)
    pixels = np.stack(list(arrays.values())) / 65535
    datasets = opened(root, depth="native")
    mean, std = mean_and_std(datasets["train"])
    assert mean == pytest.approx([pixels.mean()], abs=1e-6)
    assert std == pytest.approx([pixels.std()], abs=2e-6)
    data = DataConfig(root=str(root), image_size=32, options={"channels": 1, "depth": "native"})
    config = Config(model=ModelConfig(normalization="data"), data=data)
    spec = assembly.make_model(config, TASK, datasets["train"]).image_spec
    assert (spec.mean, spec.std) == (mean, std)
    with pytest.raises(UserError, match=r"model\.normalization: is data, and model\.mean"):
        ModelConfig(normalization="data", mean=(0.5,))


def test_unreadable_images_do_not_count_in_mean_and_deviation_and_are_told(tmp_path: Path) -> None:
    array, said = RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8), list[str]()
    root = folders(tmp_path, {"a": array, "b": array})
    expected = mean_and_std(opened(root)["train"], said.append)
    assert not said
    (root / "train/a/9.png").write_bytes(b"no image")
    assert mean_and_std(opened(root)["train"], said.append) == expected
    assert len(said) == 1
    assert (
        "warning: model.normalization: 1 of 3 images cannot be read and do not count in mean and std; the first: "
        in said[0]
    )
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"model\.normalization: no image can be read .*; the first: .*\.png"):
        mean_and_std(opened(root)["train"], said.append)


def test_channels_of_the_data_are_those_of_the_network(tmp_path: Path) -> None:
    """One key is enough: the stem follows from the images."""
    array = RNG.integers(0, 256, (32, 32, 5), np.uint8)
    datasets = opened(folders(tmp_path, {"a": array, "b": array}, "npy"), channels=5)
    data = DataConfig(root=str(tmp_path), image_size=32, options={"channels": 5})
    model = assembly.make_model(Config(data=data), TASK, datasets["train"])
    assert model.config["backbone_options"]["in_channels"] == 5
    assert len(model.image_spec.mean) == 5
    wrong = Config(model=ModelConfig(backbone_options={"in_channels": 4}), data=data)
    with pytest.raises(UserError, match=r"model\.backbone_options\.in_channels: is 4, and data\.options\.channels 5"):
        assembly.make_model(wrong, TASK, datasets["train"])


def test_what_evaluation_never_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for name in "ab":
            write_picture(tmp_path / split / name / "0.png", (64, 200))
    datasets = splits.open_splits(Config(data=DataConfig(root=str(tmp_path))), TASK)
    spec = ImageSpec((64, 64), crop_fraction=1.0)
    assert unseen(datasets["val"], spec) == pytest.approx(1 - 64 / 200)
    assert unseen(datasets["val"], dataclasses.replace(spec, crop_mode="squash")) == 0
    quick_checks(spec, datasets, Teller(False), DataConfig(crop="resized"), measured=False)
    said = capsys.readouterr()
    line = (
        "evaluation takes the centre of each image and never sees 68% of it, training does; data.crop: whole shows all"
    )
    assert line in said.out + said.err
    quick_checks(
        dataclasses.replace(spec, crop_mode="squash"), datasets, Teller(False), DataConfig(crop="whole"), measured=False
    )
    assert "never sees" not in capsys.readouterr().err


def test_classes_that_training_never_sees_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_picture(tmp_path / f"{name}.png")
    (tmp_path / "train.csv").write_text("file,labels\na.png,x\nb.png,y\n")
    (tmp_path / "val.csv").write_text("file,labels\na.png,x\n")
    data = DataConfig(name="table", root=str(tmp_path), options={"classes": ["x", "y", "z"]})
    datasets = splits.open_splits(Config(data=data), TASK)
    quick_checks(ImageSpec((64, 64)), datasets, Teller(False), data, measured=False)
    said = capsys.readouterr()
    assert "train: warning: 1 of 3 classes have no sample (z), and are not learnt" in said.out + said.err
    assert "val: 2 of 3 classes have no sample (y, z): no score tells of them" in said.out + said.err


def test_classes_that_every_sample_has_are_told() -> None:
    class Labelled:
        """Three samples of two classes, the first of which all have, one of them twice, as objects."""

        classes = ("a", "b")
        occurrences = staticmethod(lambda: (np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 0, 1])))
        __len__ = staticmethod(lambda: 3)

    assert in_all_samples(Labelled()) == "1 of 2 classes are in every sample (a)"  # type: ignore[arg-type]


def test_one_setting_shows_all_in_both(tmp_path: Path) -> None:
    config = Config(data=DataConfig(root=str(tmp_path), crop="whole", image_size=(8, 16)))
    spec = image_spec(config, ImageSpec())
    assert (spec.crop_mode, spec.crop_fraction) == ("squash", 1.0)
    image = np.zeros((20, 200, 3), np.uint8)
    image[:, :20] = 255
    dataset = FolderDataset(write_picture(tmp_path / "s/a/0.png", (20, 200)).parent.parent)
    for train in (True, False):
        sample = dataclasses.replace(dataset[0], image=image)
        transform = class_transform(dataclasses.replace(config.data, flip=0.0), spec, train=train)
        shown = transform(sample, np.random.default_rng(0)).image
        assert shown.shape == (8, 16, 3)
        assert shown[:, 0].min() > 200  # the left edge is there
        assert shown[:, 3:].max() < 60


def test_images_of_two_splits(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        write_picture(tmp_path / "train" / name)
    (tmp_path / "val").symlink_to(tmp_path / "train")
    assert told_of_shared_images({split: Knowledge.of(one) for split, one in opened(tmp_path).items()}) == [
        "warning: 3 of 3 images of val are training images too (0.png, 1.png, 0.png): its scores do not tell how the model "
        "does on others"
    ]
    (tmp_path / "val").unlink()
    write_picture(tmp_path / "val/a/0.png")
    assert told_of_shared_images({split: Knowledge.of(one) for split, one in opened(tmp_path).items()}) == []


def test_one_label_in_a_table_is_no_task(tmp_path: Path) -> None:
    write_picture(tmp_path / "0.png")
    (tmp_path / "train.csv").write_text("file,labels\n0.png,a\n")
    config = Config(data=DataConfig(name="table", root=str(tmp_path)))
    train = splits.open_dataset(config, TASK, "train")
    with pytest.raises(UserError, match="there is only 'a'"):
        TASK.heads(config, train)
    several = Config(data=DataConfig(name="table", root=str(tmp_path), multilabel=True))
    assert TASK.heads(several, splits.open_dataset(several, TASK, "train"))["num_classes"] == 1
