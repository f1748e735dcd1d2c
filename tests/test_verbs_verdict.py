"""What ``check`` says at its end, of unreadable images and warnings, and how many samples were tried in place of an unreadable one."""

from pathlib import Path

import pytest
from scenes import write_picture
from tests_support import QUIET

from effbackbones.errors import UserError
from tasks.classify import main
from tasks.data.batch import KeyedDataset
from tasks.data.check import check_dataset
from tasks.data.door.labels import folder
from tasks.settings.data import DataConfig
from tasks.verbs.check import verdict


@pytest.mark.parametrize(
    ("warnings", "dropped", "says"),
    [
        (0, 0, "no fault found"),
        (1, 0, "no fault found but 1 warning (see above)"),
        (0, 1200, "no fault found but 1,200 dropped boxes (see above)"),
        (3, 2, "no fault found but 3 warnings and 2 dropped boxes (see above)"),
    ],
)
def test_the_last_line_counts(warnings: int, dropped: int, says: str) -> None:
    assert verdict(warnings, dropped) == says


def broken(root: Path, bad: int, count: int = 4) -> DataConfig:
    """Two classes of ``count`` images a split; the first ``bad`` of one class cannot be read."""
    for split in ("train", "val"):
        for name in "ab":
            for number in range(count):
                level = 50 + number + 10 * (name == "b") + 100 * (split == "val")
                path = write_picture(root / split / name / f"{number}.png", (32, 32), level)
                if name == "b" and number < bad:
                    path.write_bytes(f"no image of {split}".encode())
    return DataConfig(root=str(root))


def test_check_counts_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = broken(tmp_path / "data", 1).root
    model = [
        "--model.backbone",
        "b0",
        "--model.backbone_options",
        "{width: 0.25, depth: 0.3}",
        "--model.weights",
        "null",
    ]
    line = ["check", "--config", "folder", "--data.root", str(root), *model, "--data.image_size", "32", *QUIET]
    assert main([*line, "--out", str(tmp_path / "out"), "--data.on_error", "skip"]) == 0
    said = capsys.readouterr().err.splitlines()
    for split in ("train", "val"):
        told = f"warning: {split}: 1 of 8 samples looked at cannot be read, where a run stops at 1%; the first: "
        assert any(text.startswith(told) for text in said)
    assert said[-1] == "no fault found but 2 warnings (see above)"


def test_what_can_be_read_leaves_nothing_to_tell(tmp_path: Path) -> None:
    assert check_dataset(folder(broken(tmp_path, 0), "train", None), on_error="skip") == ""


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_samples_that_were_tried_is_right(tmp_path: Path, count: int) -> None:
    data = broken(tmp_path, count, count)
    for number in range(count):
        (tmp_path / "train/a" / f"{number}.png").write_bytes(b"no image")
    samples = KeyedDataset(folder(data, "train", None), on_error="skip")
    total = 2 * count
    with pytest.raises(
        UserError, match=rf"data: {total} of {total} samples were tried and cannot be read; the first: .*\.png"
    ):
        samples[0, 0]
