"""What several test files share."""

import pytest

from effbackbones.errors import UserError

TINY = [
    "--config", "shapes", "--model.backbone", "b0", "--model.backbone_options", "{width: 0.25, depth: 0.3, drop_path: 0.2}",
    "--data.image_size", "32", "--data.batch_size", "8", "--data.limit_train", "28", "--data.limit_val", "12", "--data.workers", "0",
    "--optim.epochs", "2", "--run.progress", "false", "--run.device", "cpu",
]  # fmt: skip
"""The smallest run of the command: four steps an epoch, the last of each filled up; dropout, drop path, augmentation and EMA are on."""


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    """The error is one short line that says ``words``."""
    text = str(error.value)
    assert "\n" not in text, text
    assert len(text) <= 300, text
    for word in words:
        assert word in text
