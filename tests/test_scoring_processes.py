"""Scores on two processes: what one finds, for every task, in one pair of processes, which take seconds to start."""

from pathlib import Path
from typing import Any

import pytest
import test_classification_metrics
import test_detection_metrics
import test_scoring_outcomes
import test_segmentation_metrics
from tests_support import on_two_processes

SCORED = (test_classification_metrics, test_detection_metrics, test_segmentation_metrics, test_scoring_outcomes)


def shares(rank: int) -> list[Any]:
    return [module.score_share(rank) for module in SCORED]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    assert on_two_processes(shares, tmp_path) == [[module.score_whole() for module in SCORED]] * 2
