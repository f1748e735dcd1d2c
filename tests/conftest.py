"""Shared fixtures. Tests on real data read the folder named by EFFBACKBONES_DATA and are skipped without it."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from effbackbones.registry import Registry

# The same examples each time, so that a change is judged by itself alone; HYPOTHESIS_PROFILE=explore looks for others.
settings.register_profile("repeated", derandomize=True, database=None, deadline=None)  # a busy machine is no fault
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeated"))
torch.set_num_threads(int(os.environ.get("EFFBACKBONES_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets (``coco_mini/``, ``bccd/``, ``camvid/``, ``cifar10.tar.xz``)."""
    folder = os.environ.get("EFFBACKBONES_DATA")
    if not folder:
        pytest.skip("EFFBACKBONES_DATA is not set: no real data")
    return Path(folder).resolve()


@pytest.fixture
def lend() -> Iterator[Callable[..., None]]:
    """``lend(registry, {name: thing}, alone=False)``: registered until the test ends, and so is what the test registers."""
    with ExitStack() as stack:

        def until_the_end(registry: Registry, things: dict[str, Any], *, alone: bool = False) -> None:
            stack.enter_context(registry.temporary(things, alone=alone))

        yield until_the_end
