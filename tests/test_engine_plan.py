"""The steps of a run, and what is told of them."""

from tasks.engine.plan import Plan
from tasks.settings.sections import Config, OptimConfig


def test_a_warmup_longer_than_the_run_is_told() -> None:
    plan = Plan.of(Config(optim=OptimConfig(epochs=1, warmup_epochs=3)), 320)
    assert (plan.total, plan.warmup) == (10, 10)
    assert plan.told[0].startswith("the warm-up of 30 steps ends with the run, after 10")
    assert Plan.of(Config(optim=OptimConfig(epochs=3, warmup_epochs=3)), 320).told == ()
