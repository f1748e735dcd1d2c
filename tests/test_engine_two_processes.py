"""What two processes compute together is what one computes: all of it in one pair of processes, which take seconds to start."""

from pathlib import Path
from typing import Any

import pytest
import test_backbones_syncnorm
import test_classification_metrics
import test_detection_metrics
import test_engine_normalising
import test_scoring_outcomes
import test_segmentation_metrics
from tests_support import on_two_processes

SCORED = (test_classification_metrics, test_detection_metrics, test_segmentation_metrics, test_scoring_outcomes)


def shares(rank: int) -> list[Any]:
    scores = [module.score_share(rank) for module in SCORED]
    return [scores, test_engine_normalising.shared(rank), test_backbones_syncnorm.shared(rank)]


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_for_every_detector(tmp_path: Path) -> None:
    for found in on_two_processes(test_engine_normalising.shared_by_detectors, tmp_path):
        assert found == pytest.approx([0.0] * 10, abs=1e-4)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    whole = [module.score_whole() for module in SCORED]
    for scores, pieces, norms in on_two_processes(shares, tmp_path):
        assert scores == whole
        # Each with half of the images, in two pieces: averaged losses and gradients, of a detector and of a joint model.
        assert pieces == pytest.approx([0.0] * 4, abs=1e-5)
        gradients, buffers, not_shared = norms
        assert gradients < 1e-4
        assert buffers < 1e-5
        assert not_shared > 1e-3
