"""The place from which to look on at the steps of a run: for measurements, tests and plug-ins, which take no part in it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from tasks.engine.state import RunState
from tasks.engine.stepping import StepLog


class Watcher:
    """Sees nothing; override what is to be seen. What it raises ends the run."""

    def step(self, state: RunState) -> AbstractContextManager[object]:
        """Entered before a step of the optimiser and left after it: the step before and after, in ``state.step`` and its tensors."""
        return nullcontext()

    def log(self, state: RunState, log: StepLog) -> None:
        """The figures of a finished step, when the host reads them: one step late, or before a save."""


WATCHERS: list[Watcher] = []
"""Those who look on at every run of this process."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Inside, ``watcher`` looks on."""
    WATCHERS.append(watcher)
    try:
        yield
    finally:
        WATCHERS.remove(watcher)
