"""Shared fixtures. Tests on real data read the folder named by EFFBACKBONES_DATA and are skipped without it."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(int(os.environ.get("EFFBACKBONES_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets (``coco_mini/``, ``bccd/``, ``camvid/``, ``cifar10.tar.xz``)."""
    folder = os.environ.get("EFFBACKBONES_DATA")
    if not folder:
        pytest.skip("EFFBACKBONES_DATA is not set: no real data")
    return Path(folder).resolve()
