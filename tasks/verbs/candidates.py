"""What the verb ``plan`` chooses from: networks, what was tried of each, and whether it fits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from tasks.engine.foresight import ENOUGH, Foresight, Step, enough
from tasks.engine.rehearsal import Facts, Trial
from tasks.settings.sections import Config
from tasks.settings.tree import from_mapping

MARGIN = 0.95
"""Share of the memory that is planned with: allocators do not always waste the same."""


@dataclass(frozen=True)
class Wish:
    """What was asked for: ``memory`` in megabytes (``said``: by the user; else it is what was free), ``latency`` in seconds, ``batch``
    images of one process in a step, ``device`` and ``precision``. Trials stay below ``bound`` megabytes. ``purpose``: train or predict.
    ``sized_for``: the backbone that the config's image size is meant for, to others it is scaled; empty: to all alike."""

    memory: float
    latency: float | None
    purpose: str
    batch: int
    device: str
    precision: str
    bound: float
    said: bool = True
    sized_for: str = ""


@dataclass
class Candidate:
    """A network, as ``config`` has it: what was tried of it, the ``step`` that fits, if one does, and what is to be said of that."""

    config: Config
    foresight: Foresight
    fits: bool = False
    verdict: str = ""
    step: Step | None = None
    needs: float | None = None
    """Megabytes that it takes at least, where it is too large."""

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], wish: Wish) -> Self:
        """From the rows of :func:`tasks.verbs.rehearsing.rehearsed`, of which no more are read than it takes to see that it is too slow."""
        config, trials = Config(), list[Trial]()
        found: Self | None = None
        for row in rows:
            if row["of"] == "config":
                config = from_mapping(row["config"])
            elif row["of"] == "facts":
                found = cls(config, Foresight(Facts.read(row), trials))
            elif row["of"] != "memory":
                trials.append(Trial(**row))
                if row["of"] == "train" and found and found.too_slow(wish):
                    break
        assert found is not None, "a network whose facts nobody told"
        found._judge(wish)
        return found

    @property
    def backbone(self) -> str:
        """Its name."""
        return self.config.model.backbone

    @property
    def checkpointing(self) -> bool:
        """Whether its activations are recomputed in the backward pass."""
        return bool(self.config.model.backbone_options.get("checkpointing"))

    def too_slow(self, wish: Wish) -> bool:
        """Whether one image takes longer than it may."""
        return bool(wish.latency and self.foresight.of("predict") and self.foresight.latency() > wish.latency)

    def rank(self, wish: Wish) -> tuple[int, int]:
        """The greater, the better: by how many images batch norm sees at a time, up to enough of them, then by the work, as compound
        scaling has it."""
        seen = min(ENOUGH, wish.batch, self.step.images) if self.step else 0
        return seen, self.foresight.facts.multiply_adds

    def refuse(self, verdict: str, needs: float | None = None) -> None:
        """It does not fit, and why."""
        self.fits, self.verdict, self.needs = False, verdict, needs

    def whole(self) -> Config:
        """Its config, in the pieces of its step."""
        pieces = self.step.pieces if self.step else 1
        return replace(self.config, optim=replace(self.config.optim, accumulate=pieces))

    def _judge(self, wish: Wish) -> None:
        foresight, room = self.foresight, MARGIN * wish.memory
        if not foresight.of("predict") or (
            wish.purpose == "train" and not self.too_slow(wish) and not foresight.of("train")
        ):
            return self.refuse("too large for the smallest trial")
        if self.too_slow(wish):
            return self.refuse("too slow")
        needs = foresight.predicting()
        if wish.purpose == "train":
            self.step = foresight.fitting(wish.batch, room)
            least = self.step or foresight.step(wish.batch, wish.batch)
            needs = max(needs, least.megabytes)
        if needs > room:
            self.step = None
            return self.refuse("too large", needs)
        few = self.step is not None and not enough(self.step, wish.batch)
        self.fits, self.verdict = True, "fits, few at a time" if few else "fits"
        return None
