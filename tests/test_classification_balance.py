"""Classes of unequal size: weights in the loss, weights of positives, and images repeated until classes are alike."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scenes import write_picture
from torch.nn import functional as F

from effbackbones.contracts import FeatureSpec, ImageSizes
from effbackbones.errors import UserError
from heads.classification import ClassificationHead
from tasks.classification.statistics import class_weights, label_pairs, positive_weights
from tasks.classification.task import TASK
from tasks.data.masks.count import MaskStatistics, inverse_frequency
from tasks.data.sampling import Repeated, balanced
from tasks.engine import splits
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config, ModelConfig, OptimConfig

SPEC = FeatureSpec("test", ("C5",), (8,), (32,))
SIZES = ImageSizes((32, 32), torch.full((4, 2), 32))


def loss(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> float:
    head = ClassificationHead(SPEC, 3, channels=0, **options)
    assert not any("weights" in name or "pos" in name for name in head.state_dict())
    return float(next(iter(head.loss(logits, targets, SIZES).values())))


def test_weights_of_classes_in_the_loss() -> None:
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(4, 3), torch.tensor([0, 1, 1, 2]), [0.5, 1.0, 3.0]
    each = F.cross_entropy(logits, targets, reduction="none")
    assert loss(logits, targets, class_weights=weights) == pytest.approx(
        float((each * torch.tensor(weights)[targets]).mean())
    )
    assert loss(logits, targets, class_weights=[1, 1, 1]) == pytest.approx(loss(logits, targets))
    soft = F.one_hot(targets, 3).float()
    assert loss(logits, soft, class_weights=weights) == pytest.approx(loss(logits, targets, class_weights=weights))


def test_weights_of_positives() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 3), torch.randint(0, 2, (4, 3)).float()
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor([1.0, 2.0, 5.0]))
    assert loss(logits, targets, multilabel=True, pos_weight=[1, 2, 5]) == pytest.approx(float(expected))
    one = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor([2.0, 2.0, 2.0]))
    assert loss(logits, targets, multilabel=True, pos_weight=2) == pytest.approx(float(one))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_weight": 2}, "goes with sigmoids alone"),
        ({"class_weights": [1, 2]}, "expected 3 numbers, one per class"),
        ({"class_weights": [1, 2, -1]}, "class_weights"),
        ({"class_weights": "abc"}, "expected 3 numbers"),
        ({"multilabel": True, "pos_weight": True}, "expected 3 numbers"),
    ],
)
def test_weights_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassificationHead(SPEC, 3, channels=0, **options)


def folders(root: Path, counts: dict[str, int]) -> Config:
    for split in ("train", "val"):
        for name, count in counts.items():
            for number in range(count):
                write_picture(root / split / name / f"{number}.png", (6, 8))
    return Config(data=DataConfig(root=str(root), image_size=32))


def test_weights_follow_from_the_training_images(tmp_path: Path) -> None:
    config = folders(tmp_path, {"a": 6, "b": 2, "c": 1})
    train = splits.open_dataset(config, TASK, "train")
    assert class_weights(train, "balanced") == pytest.approx([9 / 18, 9 / 6, 9 / 3])
    median = np.array([2 / 6, 1, 2])
    scaled = median * 9 / (median * [6, 2, 1]).sum()
    assert class_weights(train, "median_frequency") == pytest.approx(scaled)
    for kind in ("balanced", "median_frequency"):
        assert np.dot(class_weights(train, kind), [6, 2, 1]) / 9 == pytest.approx(1)
    with_weights = Config(data=config.data, optim=OptimConfig(class_weights="balanced"))
    assert TASK.heads(with_weights, train)["head_options"]["class_weights"] == pytest.approx([0.5, 1.5, 3])
    own = Config(
        model=ModelConfig(head_options={"class_weights": [1, 2, 3]}), optim=with_weights.optim, data=config.data
    )
    assert TASK.heads(own, train)["head_options"]["class_weights"] == [1, 2, 3]


def test_weights_of_positives_follow_from_the_training_images(tmp_path: Path) -> None:
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", (6, 8))
    (tmp_path / "train.csv").write_text("file,labels\n0.png,x;y\n1.png,x\n2.png,\n3.png,x\n")
    data = DataConfig(name="table", root=str(tmp_path), multilabel=True, options={"classes": ["x", "y", "z"]})
    config = Config(data=data, optim=OptimConfig(class_weights="balanced"))
    train = splits.open_dataset(config, TASK, "train")
    assert positive_weights(train) == pytest.approx([1 / 3, 3, 1])
    assert TASK.heads(config, train)["head_options"]["pos_weight"] == pytest.approx([1 / 3, 3, 1])
    view = TASK.view(Config(data=DataConfig(**{**vars(data), "balance": 1.0})), train)
    images, labels = label_pairs(view, multilabel=True)
    assert len(view) == 6
    assert Counter(labels.tolist()) == {0: 5, 1: 3}
    assert len(set(images.tolist())) == 5  # one has no label


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_classes_become_alike(labels: list[int], seed: int) -> None:
    images, classes = np.arange(len(labels)), np.array(labels, np.int64)
    counts = np.bincount(classes)
    found = np.bincount(classes[balanced(images, classes, len(labels), 1.0, seed)])
    assert all(abs(found[k] - counts.max()) <= counts[k] for k in np.flatnonzero(counts))  # a fraction of each image
    assert balanced(images, classes, len(labels), 0.0, seed).tolist() == images.tolist()
    assert set(balanced(images, classes, len(labels), 0.5, seed).tolist()) == set(images.tolist())


def test_a_view_is_balanced_and_the_run_sees_it(tmp_path: Path) -> None:
    config = folders(tmp_path, {"a": 6, "b": 2, "c": 1})
    train = splits.open_dataset(config, TASK, "train")
    assert TASK.view(config, train) is train
    view = TASK.view(Config(data=DataConfig(root=str(tmp_path), balance=1.0)), train)
    assert isinstance(view, Repeated)
    assert Counter(label_pairs(view)[1].tolist()) == {0: 6, 1: 6, 2: 6}


def test_inverse_frequency_of_pixels() -> None:
    pixels = np.array([60, 30, 0])
    found = MaskStatistics(("a", "b", "c"), pixels, pixels > 0, pixels, 0, 4, 4)
    assert inverse_frequency(found) == pytest.approx([0.75, 1.5, 0])
