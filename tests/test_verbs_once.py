"""Nothing is decoded, restored or counted twice."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_multitask_command import SMALL, TINY
from tests_support import QUIET

from effbackbones import save_model
from effbackbones.contracts import ImageSizes
from effbackbones.images.geometry import ResizePlan
from effbackbones.images.reading import read_image
from tasks.classification.metrics import ClassificationMetrics
from tasks.classification.task import TASK as CLASSIFICATION
from tasks.data.batch import Batch, ImageMeta
from tasks.data.masks.count import count_masks
from tasks.data.sets.shapes import ShapesDataset
from tasks.engine.assembly import make_model
from tasks.engine.evaluation import evaluate
from tasks.engine.splits import open_dataset
from tasks.joint import main
from tasks.multitask.task import TASK
from tasks.report import outputs
from tasks.report.outputs import Originals
from tasks.segment import main as segment
from tasks.segmentation import statistics as mask_statistics
from tasks.segmentation.statistics import statistics
from tasks.settings.commandline import parse
from tasks.settings.sections import Config


def counted(monkeypatch: pytest.MonkeyPatch, calls: Counter[str], owner: Any, name: str) -> None:
    """Count the calls of ``owner.name``, which is otherwise as before."""
    honest = getattr(owner, name)

    def counting(*given: Any, **more: Any) -> Any:
        calls[name] += 1
        return honest(*given, **more)

    monkeypatch.setattr(owner, name, counting)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A model of three tasks that was not trained."""
    config = parse("joint", TINY).config
    dataset = open_dataset(config, TASK, "train")
    record = {**TASK.label_record(config, dataset), "data_classes": list(dataset.classes)}
    save_model(make_model(config, TASK, dataset), tmp_path / "model.safetensors", provenance=record)
    return str(tmp_path / "model.safetensors")


def test_an_evaluation_with_a_report_restores_each_image_once(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    counted(monkeypatch, calls, ResizePlan, "restore_boxes")
    counted(monkeypatch, calls, ResizePlan, "restore_rows")
    assert main(["evaluate", *TINY, "--checkpoint", checkpoint, "--out", str(tmp_path / "out")]) in (0, 2)
    assert (tmp_path / "out" / "detect" / "report.html").is_file()
    assert calls == {"restore_boxes": 8, "restore_rows": 8}  # images, each in one band of rows


@pytest.mark.parametrize("room", [True, False])
def test_a_photograph_is_decoded_once_where_there_is_room_for_it(
    room: bool, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{k}.png" for k in range(6)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(file)
    if not room:
        monkeypatch.setattr(outputs, "KEPT_BYTES", 0)
    calls: Counter[str] = Counter()
    counted(monkeypatch, calls, Image, "open")
    line = ["predict", "--checkpoint", checkpoint, *map(str, files), "--config", "shapes", *SMALL, *QUIET]
    assert main([*line, "--out", str(tmp_path / "out"), "--data.workers", "2"]) == 0
    assert calls["open"] == 6 * (1 if room else 3)  # the network, the boxes, the masks
    monkeypatch.undo()
    for k in range(6):
        assert Image.open(tmp_path / "out" / "segment" / "index" / f"{k}.png").size == (90, 50)
        assert (tmp_path / "out" / "detect" / f"{k}.jpg").is_file()


def test_what_is_drawn_does_not_depend_on_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(path)
    pixels = read_image(path)
    originals = Originals(read_image)
    first = originals(str(path))
    assert np.array_equal(first, pixels)
    assert originals(str(path)) is first
    originals.forget([str(path)])
    assert originals(str(path)) is not first
    assert np.array_equal(originals(str(path)), pixels)


@pytest.mark.parametrize("weights", ["null", "median_frequency"])
def test_masks_are_counted_once_a_run(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    counted(monkeypatch, calls, mask_statistics, "count_masks")
    line = ["--config", "shapes", *QUIET, "--model.backbone", "b0", "--model.weights", "null", "--optim.max_steps", "1"]
    line += [
        "--model.backbone_options",
        "{width: 0.25, depth: 0.3}",
        "--model.head_options",
        "{channels: [16, 16, 8, 8, 8]}",
    ]
    line += ["--data.image_size", "64", "--data.options", "{train: 8, val: 4, test: 4}", "--data.batch_size", "4"]
    assert segment([*line, "--optim.class_weights", weights, "--run.out", str(tmp_path / "run")]) == 0
    assert calls["count_masks"] == 2  # of train, and of val
    assert "Frequencies" in (tmp_path / "run" / "report.html").read_text()


def test_a_data_set_that_cannot_be_remembered_is_counted_each_time() -> None:
    class Slotted(ShapesDataset):
        __hash__ = None  # type: ignore[assignment]

    dataset = Slotted((32, 32), 3)
    assert (statistics(dataset).pixels == count_masks(dataset).pixels).all()
    assert statistics(dataset) is not statistics(dataset)


class Undecided(torch.nn.Module):
    """Gives both of two classes the same probability."""

    def predict(self, images: torch.Tensor, sizes: ImageSizes) -> torch.Tensor:
        return torch.full((len(images), 2), 0.5)


class Unasked:
    """Fails if it is shown anything."""

    def update(self, batch: Batch, predictions: Any) -> None:
        pytest.fail("there was nothing to see")


def one_image(meta: ImageMeta) -> Batch:
    return Batch(torch.zeros(1, 3, 8, 8), ImageSizes((8, 8), torch.tensor([[8, 8]])), None, [meta])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_batch_of_which_nothing_could_be_read_is_passed_over() -> None:
    batch = one_image(ImageMeta("a", "a", (8, 8), skipped=("a: cannot be read",), label=0))
    device, metric, model = torch.device("cpu"), ClassificationMetrics(("a", "b")), Undecided()
    scores = evaluate(CLASSIFICATION, Config(), model, [batch], metric, [Unasked()], samples=1000, device=device)  # type: ignore[arg-type]
    assert scores["samples"] == 0


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_batch_without_labels_adds_nothing_to_the_scores(multilabel: bool) -> None:
    metric = ClassificationMetrics(("a", "b"), multilabel)
    metric.update(*CLASSIFICATION.scored(one_image(ImageMeta("a", "a", (8, 8))), [torch.tensor([0.5, 0.5])]))
    assert metric.compute()["samples"] == 0
