"""A command called in a process of somebody else's, such as a notebook, leaves it as it was."""

import logging
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests_support import TINY

from tasks.classify import main


def surroundings() -> dict[str, Any]:
    return {
        # Libraries set variables of their own when they are imported.
        "environment": {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTORCH_", "TORCH"))
        },
        "filters": list(warnings.filters),
        "levels": [logging.getLogger(name).level for name in ("", "lightning.fabric", "lightning.pytorch")],
        "random": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def test_a_run_puts_back_what_it_changes_and_can_be_made_twice(tmp_path: Path) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    before = surroundings()
    for name in ("one", "two"):
        more = ["--run.deterministic", "true", "--optim.max_steps", "1", "--run.out", str(tmp_path / name)]
        assert main([*TINY, *more]) == 0
        after = surroundings()
        assert [key for key, value in before.items() if after[key] != value] == []
    states = [
        (tmp_path / name / "checkpoints/step-00000001.safetensors").read_bytes()[-4000:] for name in ("one", "two")
    ]
    assert states[0] == states[1]


def test_a_run_that_fails_puts_it_back_too(tmp_path: Path) -> None:
    before = surroundings()
    assert (
        main([*TINY, "--run.deterministic", "true", "--data.batch_size", "29", "--run.out", str(tmp_path / "run")]) == 2
    )
    after = surroundings()
    assert [key for key, value in before.items() if after[key] != value] == []
    assert not (tmp_path / "run").exists()
