"""Classification scores: equal to reference libraries, independent of batches, order and processes, never raised by NaN."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import class_names
from torch import Tensor

from effbackbones import UserError
from tasks.classification.metrics import ClassificationMetrics, average_precision

SCORES = {False: ("top1", "top5", "macro_f1"), True: ("map", "micro_ap", "macro_f1", "micro_f1")}


def probabilities_and_targets(seed: int, n: int, k: int, multilabel: bool = False) -> tuple[Tensor, Tensor]:
    """Probabilities that are better than chance, and targets; classes thin out, so that the last ones may be absent."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=rng)
    if multilabel:
        targets = (torch.rand(n, k, generator=rng) < torch.linspace(0.5, 0.0, k)).float()
        return (logits + targets).sigmoid(), targets
    targets = (torch.rand(n, generator=rng) ** 2 * k).long()
    logits[torch.arange(n), targets] += 1
    return logits.softmax(1), targets


def score(probabilities: Tensor, targets: Tensor, *, multilabel: bool = False, batch: int = 7) -> dict[str, Any]:
    metric = ClassificationMetrics(class_names(probabilities.shape[1]), multilabel)
    for start in range(0, len(targets), batch):
        metric.update(probabilities[start : start + batch], targets[start : start + batch])
    return metric.compute()


def test_a_case_counted_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0]])
    result = score(probabilities, torch.tensor([0, 1, 1, 1]))
    assert result["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert result["top1"] == 0.75
    assert "top5" not in result  # it would be 1 whatever the model says
    assert result["per_class"]["class 0"] == {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
    assert result["per_class"]["class 2"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert result["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    # Bins of width 1/15: 0.6 is alone and wrong, 0.7 and 0.7 are right, 0.9 is right.
    assert result["ece"] == pytest.approx((0.6 + 2 * 0.3 + 0.1) / 4, abs=1e-6)
    assert [row["count"] for row in result["reliability"] if row["count"]] == [1, 2, 1]


@pytest.mark.peer
@pytest.mark.parametrize("k", [2, 6, 30])
def test_single_label_equals_references(k: int) -> None:
    from sklearn import metrics as reference
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    probabilities, targets = probabilities_and_targets(k, 400, k)
    result = score(probabilities, targets)
    present = sorted(set(targets.tolist()))
    predicted = probabilities.argmax(1)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        targets, predicted, labels=range(k), zero_division=0
    )
    for i in present:
        expected = {"precision": precision[i], "recall": recall[i], "f1": f1[i], "support": support[i]}
        assert result["per_class"][f"class {i}"] == pytest.approx(expected)
    assert result["macro_f1"] == pytest.approx(f1[present].mean())
    assert result["top1"] == pytest.approx(reference.accuracy_score(targets, predicted))
    if k > 5:
        top5 = multiclass_accuracy(probabilities, targets, num_classes=k, top_k=5, average="micro")
        assert result["top5"] == pytest.approx(top5.item())
    assert result["confusion"] == reference.confusion_matrix(targets, predicted, labels=range(k)).tolist()
    ece = multiclass_calibration_error(probabilities, targets, num_classes=k, n_bins=15)
    assert result["ece"] == pytest.approx(ece.item(), abs=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("rounded", [False, True])
def test_multilabel_equals_references(rounded: bool) -> None:
    from sklearn import metrics as reference
    from torchmetrics.functional.classification import binary_calibration_error

    probabilities, targets = probabilities_and_targets(1, 300, 12, multilabel=True)
    if rounded:  # many equal scores
        probabilities = (probabilities * 8).round() / 8
    result = score(probabilities, targets, multilabel=True)
    present = [i for i in range(12) if targets[:, i].any()]
    assert len(present) < 12
    ap = [reference.average_precision_score(targets[:, i], probabilities[:, i]) for i in present]
    assert [result["per_class"][f"class {i}"]["ap"] for i in present] == pytest.approx(ap, abs=1e-9)
    assert result["map"] == pytest.approx(np.mean(ap))
    assert result["micro_ap"] == pytest.approx(
        reference.average_precision_score(targets.flatten(), probabilities.flatten())
    )
    chosen = (probabilities > 0.5).float()
    f1 = reference.f1_score(targets[:, present], chosen[:, present], average=None, zero_division=0)
    assert result["macro_f1"] == pytest.approx(f1.mean())
    assert result["micro_f1"] == pytest.approx(reference.f1_score(targets, chosen, average="micro"))
    if not rounded:  # the reference gives probability 1 a bin of its own
        ece = binary_calibration_error(probabilities.flatten(), targets.flatten().long(), n_bins=15)
        assert result["ece"] == pytest.approx(ece.item(), abs=1e-6)
    absent = next(i for i in range(12) if i not in present)
    assert result["per_class"][f"class {absent}"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
        "ap": None,
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 60),
    k=st.integers(1, 9),
    batch=st.integers(1, 60),
    multilabel=st.booleans(),
)
def test_batches_and_order_do_not_matter(seed: int, n: int, k: int, batch: int, multilabel: bool) -> None:
    probabilities, targets = probabilities_and_targets(seed, n, k, multilabel)
    whole = score(probabilities, targets, multilabel=multilabel, batch=n)
    shuffle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert score(probabilities[shuffle], targets[shuffle], multilabel=multilabel, batch=batch) == whole
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    k=st.integers(1, 8),
    share=st.floats(0, 1),
    multilabel=st.booleans(),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)
def test_non_finite_predictions_never_raise_a_score(
    seed: int, n: int, k: int, share: float, multilabel: bool, value: float
) -> None:
    probabilities, targets = probabilities_and_targets(seed, n, k, multilabel)
    clean = score(probabilities, targets, multilabel=multilabel)
    bad = torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < share
    result = score(probabilities.masked_fill(bad, value), targets, multilabel=multilabel)
    assert result["non_finite"] == int((bad if multilabel else bad.any(1)).sum())
    for key in SCORES[multilabel]:
        assert result.get(key) is clean.get(key) is None or result[key] <= clean[key] + 1e-12
    assert result["ece"] >= clean["ece"] - 1e-12
    for name, row in result["per_class"].items():
        before = clean["per_class"][name]
        assert row["support"] == before["support"]
        assert row["f1"] is before["f1"] is None or row["f1"] <= before["f1"]


def test_predictions_that_are_all_nan_do_not_tie_into_a_good_score() -> None:
    """Found by the test above: among few negatives, a ranking in which everything ties has a high average precision."""
    probabilities, targets = probabilities_and_targets(820, 1, 5, True)
    clean = score(probabilities, targets, multilabel=True)
    result = score(torch.full_like(probabilities, float("nan")), targets, multilabel=True)
    assert clean["micro_ap"] == pytest.approx(0.5889, abs=1e-4)
    assert (result["micro_ap"], result["map"], result["non_finite"]) == (0, 0, 5)


def test_one_nan_among_good_samples_is_wrong_and_counted() -> None:
    probabilities, targets = torch.eye(8)[[0, 1, 2, 3]], torch.arange(4)
    probabilities[2, 5] = float("nan")
    result = score(probabilities, targets)
    assert (result["non_finite"], result["top1"], result["top5"]) == (1, 0.75, 0.75)
    assert result["per_class"]["class 2"]["recall"] == 0.0
    assert result["ece"] == pytest.approx(0.25)


def test_top5_gives_nothing_for_equal_scores() -> None:
    """A model that answers the same for all classes is right for the first five of ten, not for all."""
    result = score(torch.full((10, 10), 0.1), torch.arange(10))
    assert (result["top1"], result["top5"]) == (0.1, 0.5)


def test_average_precision_of_small_rankings() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert average_precision(scores, torch.tensor([True, False, True])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(torch.ones(4), torch.tensor([True, False, False, False])) == 0.25
    assert average_precision(scores, torch.zeros(3, dtype=torch.bool)) is None


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("multilabel", [False, True])
def test_an_empty_split_is_undefined_not_zero(multilabel: bool) -> None:
    result = ClassificationMetrics(class_names(7), multilabel).compute()
    assert result["samples"] == 0
    assert [result[key] for key in (*SCORES[multilabel], "ece")] == [None] * (len(SCORES[multilabel]) + 1)


def test_reset_starts_again_even_under_inference_mode() -> None:
    probabilities, targets = probabilities_and_targets(0, 20, 6)
    metric = ClassificationMetrics(class_names(6))
    with torch.inference_mode():
        metric.update(probabilities.flip(0), targets)
        metric.reset()
        metric.update(probabilities[:9], targets[:9])
    metric.update(probabilities[9:], targets[9:])
    assert metric.compute() == score(probabilities, targets)


@pytest.mark.parametrize(
    ("probabilities", "targets", "multilabel", "says"),
    [
        (torch.rand(4, 5), torch.zeros(3).long(), False, "expected probabilities [B, 5]"),
        (torch.rand(4, 5), torch.rand(4, 5), False, "integer targets [4]"),
        (torch.rand(4, 5), torch.rand(4), False, "torch.float32 [4]"),
        (torch.rand(4, 5), torch.zeros(4).long(), True, "targets [4, 5]"),
        (torch.rand(4, 5) + 2, torch.zeros(4).long(), False, "20 predicted values lie outside of 0..1"),
        (torch.rand(4, 5), torch.tensor([0, 1, 5, -1]), False, "2 targets are no class index"),
        (torch.rand(4, 5), torch.full((4, 5), 0.3), True, "20 targets are no class index"),
    ],
)
def test_impossible_input_is_named(probabilities: Tensor, targets: Tensor, multilabel: bool, says: str) -> None:
    with pytest.raises(UserError) as error:
        score(probabilities, targets, multilabel=multilabel)
    assert says in str(error.value)


def test_class_names_must_differ() -> None:
    with pytest.raises(UserError, match="distinct class names"):
        ClassificationMetrics(["cat", "dog", "cat"])


def score_share(rank: int) -> list[Any]:
    """Process ``rank`` of 2 scores its share; for one of the sets the second process has no sample at all."""
    results = []
    for multilabel in (False, True):
        for share in (slice(rank, None, 2), slice(0, None if rank == 0 else 0)):
            probabilities, targets = probabilities_and_targets(3, 51, 7, multilabel)
            metric = ClassificationMetrics(class_names(7), multilabel)
            if len(targets[share]):
                metric.update(probabilities[share], targets[share])
            results.append(metric.compute())
    return results


def score_whole() -> list[Any]:
    """What each process of :func:`score_share` has to find."""
    single, multi = (
        score(*probabilities_and_targets(3, 51, 7, multilabel), multilabel=multilabel) for multilabel in (False, True)
    )
    return [single, single, multi, multi]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("multilabel", [False, True])
def test_update_never_waits_for_the_device(multilabel: bool) -> None:
    probabilities, targets = probabilities_and_targets(5, 64, 9, multilabel)
    metric = ClassificationMetrics(class_names(9), multilabel).to("cuda")
    moved = probabilities.cuda(), targets.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(*moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.compute() == score(probabilities, targets, multilabel=multilabel)


def test_mistakes_are_told_by_how_near_and_how_sure_they_are() -> None:
    probabilities = torch.full((8, 7), 0.01)
    guesses = [0, 0, 1, 2, 3, 3, 4, 5]
    probabilities[range(8), guesses] = torch.tensor([0.94, 0.94, 0.94, 0.94, 0.6, 0.6, 0.6, 0.6])
    probabilities[7] = torch.nan  # wrong, and neither near nor sure
    labels = torch.tensor([0, 6, 1, 0, 3, 6, 6, 5])
    metric = ClassificationMetrics(class_names(7))
    metric.update(probabilities, labels)
    # Of the others' equal scores the first are nearer: class 6 is the last of seven.
    assert metric.anatomy() == {"wrong": 5, "in_top5": 1, "confident": 2}
    few = ClassificationMetrics(class_names(2))
    few.update(torch.tensor([[0.95, 0.05], [0.2, 0.8]]), torch.tensor([1, 1]))
    assert few.anatomy() == {"wrong": 1, "confident": 1}


def test_mistakes_of_several_labels_are_told_by_label() -> None:
    metric = ClassificationMetrics(class_names(2), multilabel=True, ignore_unknown=True)
    metric.update(torch.tensor([[0.9, 0.1], [0.9, 0.2], [0.1, 0.9]]), torch.tensor([[1.0, 1], [0, 1], [-1, 1]]))
    assert metric.anatomy() == {
        "by_class": {
            "class 0": {"false_positives": 1, "false_negatives": 0},
            "class 1": {"false_positives": 0, "false_negatives": 2},
        }
    }
