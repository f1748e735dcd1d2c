"""The state of a run: the curve that it keeps."""

import itertools

import pytest

from tasks.engine import state
from tasks.engine.state import MOST_LOGGED, Progress


@pytest.mark.parametrize("steps", [1, MOST_LOGGED, MOST_LOGGED + 1, 5 * MOST_LOGGED])
def test_the_curve_of_a_run_is_thinned_out_evenly_and_keeps_its_ends(steps: int) -> None:
    progress = Progress()
    for step in range(1, steps + 1):
        progress.log(step, 1 / step, 0.1)
    kept = [int(row[0]) for row in progress.logged]
    assert min(MOST_LOGGED, steps) / 2 <= len(kept) <= MOST_LOGGED
    assert {b - a for a, b in itertools.pairwise(kept)} <= {progress.logged_every}
    assert steps - kept[-1] < progress.logged_every
    assert all(row[1] == pytest.approx(1 / row[0], rel=1e-5) for row in progress.logged)


def test_states_of_before_the_curve_are_read() -> None:
    assert {"logged", "logged_every"} == state._LATER
    assert vars(Progress()).keys() > state._LATER
