"""Registered metrics, and the score that chooses the best weights."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torchmetrics import MeanAbsoluteError, Metric

from effbackbones.errors import UserError
from tasks.classification.task import Classification
from tasks.engine.evaluation import metric_of, monitor
from tasks.multitask.metrics import JointMetrics
from tasks.report.drawings import curves
from tasks.report.records import RunResults, Summary
from tasks.report.skeleton import add_training, begun
from tasks.scoring.added import METRICS, Monitor, register_metric
from tasks.settings.sections import Config, RunConfig
from tasks.settings.tree import changed_keys

CLASSES = ("a", "b", "c")


class Distance(MeanAbsoluteError):  # noqa: N818  # no exception
    """How far the guess is from the truth, in classes."""

    def __init__(self, classes: Any) -> None:
        super().__init__()

    def update(self, predictions: Any, truths: Any) -> None:
        super().update(predictions.argmax(1).float(), truths.float())


@pytest.fixture
def distance(lend: Any) -> None:
    lend(METRICS, {}, alone=True)
    register_metric("distance")(Distance)
    register_metric("pair")(lambda classes: Pair(classes))


class Pair(Distance):
    higher_is_better = None  # type: ignore[assignment]  # it does not say

    def compute(self) -> Any:
        return {"near": torch.tensor(3.0), "far": 5}


def config_of(**run: Any) -> Config:
    return Config(run=RunConfig(**run))


@pytest.mark.usefixtures("distance")
def test_registered_metrics_stand_beside_the_tasks_own() -> None:
    metric = metric_of(Classification(), config_of(metrics=("distance", "pair")), CLASSES)
    metric.update(torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 0, 2]))
    scores = metric.compute()
    assert scores["distance"] == 0.5  # one of four is two classes off
    assert (scores["pair_near"], scores["pair_far"]) == (3.0, 5)
    assert scores["top1"] == 0.75
    metric.reset()
    metric.update(torch.eye(3), torch.tensor([0, 1, 2]))
    assert metric.compute()["distance"] == 0
    assert not isinstance(metric_of(Classification(), Config(), CLASSES).compute().get("distance"), float)


@pytest.mark.usefixtures("distance")
def test_the_monitor_knows_its_direction() -> None:
    task = Classification()
    assert monitor(task, Config(), CLASSES) == ("top1", True)
    assert monitor(task, config_of(monitor="ece"), CLASSES) == ("ece", False)
    assert monitor(task, config_of(monitor="distance", metrics=("distance",)), CLASSES) == ("distance", False)
    assert monitor(task, config_of(monitor="pair_near", metrics=("pair",)), CLASSES) == ("pair_near", True)
    with pytest.raises(UserError, match=r"run.monitor: there is no score 'macrof1'; did you mean macro_f1"):
        monitor(task, config_of(monitor="macrof1"), CLASSES)
    with pytest.raises(UserError, match=r"metric 'distanc': no such name; did you mean distance"):
        monitor(task, config_of(metrics=("distanc",)), CLASSES)
    falling, rising = Monitor("x", False), Monitor("x", True)
    assert falling.better(0.1, 0.2)
    assert not falling.better(0.2, 0.1)
    assert rising.better(-3.0, None)
    assert not rising.better(None, None)
    assert rising.value({"x": float("nan")}) is None


def test_a_task_may_be_judged_by_an_error() -> None:
    class Counting(Classification):
        lower_is_better = ("off_by",)

        def monitor(self, config: Config) -> str:
            return "off_by"

        def metrics(self, config: Config, classes: Any) -> Metric:
            return Off()

    class Off(Distance):
        higher_is_better = None

        def __init__(self) -> None:
            super().__init__(())

        def compute(self) -> Any:
            raise ZeroDivisionError  # it has seen nothing

    assert monitor(Counting(), Config(), ()) == ("off_by", False)
    joint = JointMetrics({"cls": Classification().metrics(Config(), CLASSES)}, {"cls": "top1"})
    assert "cls/ece" in joint.compute()


@pytest.mark.usefixtures("distance")
def test_a_name_of_two_scores_is_refused() -> None:
    register_metric("top1")(Distance)
    with pytest.raises(
        UserError, match=r"run.metrics: top1: the task has a score 'top1'; register it under another name"
    ):
        monitor(Classification(), config_of(metrics=("top1",)), CLASSES)
    register_metric("none")(lambda classes: 3)
    with pytest.raises(UserError, match=r"run.metrics: none: gives a int, not a torchmetrics.Metric"):
        monitor(Classification(), config_of(metrics=("none",)), CLASSES)


def test_own_metrics_appear_in_headline_and_curves_as_numbers() -> None:
    scores: Mapping[str, Any] = {"top1": 0.5, "mae": 12.5, "samples": 4}
    history = [{"epoch": 1, "val_top1": 0.4, "val_mae": 20.0}, {"epoch": 2, "val_top1": 0.5, "val_mae": 12.5}]
    run = {"run": {"metrics": ["mae"], "monitor": "mae"}}
    report = begun(Summary("t", run, history, RunResults({"raw": scores}, "raw", "val"), {}), ("top1",), {})
    add_training(report, Summary("t", run, history, RunResults({"raw": scores}, "raw", "val"), {}))
    text = str(vars(report))
    assert report.subtitle == "4 validation images"
    assert "Tile(name='mae', value='12.5'" in text
    assert "1250" not in text
    figures = curves(history, None, ["val_mae"])
    drawn = {line.get_label(): list(line.get_ydata()) for figure in figures for line in figure.axes[0].lines}
    assert drawn == {"mae": [20.0, 12.5], "top-1": [0.4, 0.5]}


def test_another_monitor_is_another_run() -> None:
    assert changed_keys(Config(), config_of(monitor="ece", log_every=3)) == ["run.monitor"]
