"""A run on disk: its state saved between two steps, and continued from the newest one that is this run's."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from effbackbones.errors import UserError
from tasks.engine import processes
from tasks.engine.divergence import DivergedError
from tasks.engine.identity import compare
from tasks.engine.preparation import Prepared
from tasks.engine.resume import load_state, save_state
from tasks.engine.rundir import BEST, STATES, keep_config
from tasks.settings.sections import Config


@dataclass
class Keeper:
    """Saves and continues a run in its ``folder``, which all processes know; all of them call it alike."""

    folder: Path
    prepared: Prepared
    tell: Callable[[str], None]
    saved_at: float = field(default_factory=time.monotonic)
    """When the run was saved for the last time, or began: of the clock that :func:`time.monotonic` reads."""

    def save(self) -> None:
        """Write the state after the step just done. One that is not finite raises :class:`DivergedError` in all processes."""
        state, now = self.prepared.state, time.monotonic()
        state.agree()
        state.progress.seconds += now - self.saved_at
        self.saved_at = now
        tensors = state.tensors()  # alike in all processes, so that all stop here or none
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                kept = "; the checkpoint before is kept" if any((self.folder / STATES).glob("step-*")) else ""
                raise DivergedError(f"{name} is not finite after step {state.step}{kept}")
        if processes.is_first():
            known, planned = self.prepared.identity, self.prepared.plan.total
            record = {"progress": vars(state.progress), "identity": known, "planned": planned}
            save_state(self.folder / STATES, state.step, tensors, record)

    def resume(self, config: Config) -> None:
        """Continue from the newest state, if there is one and this is the run that it is a state of."""
        fabric, state, plan, known = (
            self.prepared.fabric,
            self.prepared.state,
            self.prepared.plan,
            self.prepared.identity,
        )
        if fabric.broadcast(known)["data"] != known["data"]:
            what = "reads other data than the first process"
            raise UserError(f"process {state.share.rank}", what, "give all machines the same data.root")
        found = load_state(self.folder / STATES, self.tell) if config.run.resume != "never" else None
        if found:
            compare(found.part("identity"), known, self.folder, self.tell)
            state.restore(found)
        if processes.is_first():
            keep_config(self.folder, config, self.tell)
        if not found:
            return
        self.tell(f"continuing after step {state.step} of {plan.total}")
        planned = found.record.get("planned", plan.total)
        if planned != plan.total:
            self._lengthen(planned, config.optim.schedule)
        if fabric.broadcast(state.progress.best is not None and not (self.folder / BEST).is_file()):
            self.tell(f"warning: {self.folder / BEST} is gone: the best weights are sought from here on")
            state.progress.best, state.progress.since_best = None, 0

    def _lengthen(self, planned: int, schedule: str) -> None:
        """Who wants more than a run of ``planned`` steps, perhaps one that patience ended, gets it."""
        state, total, factor = self.prepared.state, self.prepared.plan.total, self.prepared.lr_factor
        state.progress.since_best = 0
        before, now = state.set_lr(factor(state.step, total=planned)), state.set_lr(factor(state.step))
        text = f"{planned} steps became {total}, and the schedule {schedule} is that of the new length"
        self.tell(f"{text}: lr goes on at {now:.3g}, where it had come to {before:.3g}")
