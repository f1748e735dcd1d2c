"""Several tasks on one backbone, through the command; batches of which only some images have the labels of a task."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import QUIET, STILL, Synchronisations, error_of, guarded_step, shapes_line, small_line

from effbackbones import ImageSpec, build_model, load_model, save_model
from effbackbones.contracts import BoxTargets, Labelled
from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.registry import TASKS
from tasks.classification.metrics import ClassificationMetrics
from tasks.data.batch import Batch
from tasks.data.collating import box_targets, class_targets, mask_targets, targets_by_task
from tasks.data.dataset import DATASETS
from tasks.data.sample import Sample
from tasks.data.sets.shapes import ShapesDataset
from tasks.data.transforms.mosaic import mosaic
from tasks.data.transforms.views import JitterRange
from tasks.engine.assembly import make_model
from tasks.engine.evaluation import readable
from tasks.engine.splits import open_dataset, open_splits
from tasks.joint import main
from tasks.multitask.metrics import JointMetrics
from tasks.multitask.parts import parts, parts_alone
from tasks.multitask.task import TASK, _PartTeller
from tasks.scoring.outcomefile import outcomes_file, read_outcomes
from tasks.segmentation.results import Segmented
from tasks.settings.commandline import parse
from tasks.telling import Teller
from tasks.verbs.models import data_classes

SMALL = small_line(
    "--heads.det.options",
    "{channels: 16, cells: 1, repeats: 1}",
    "--heads.seg.options",
    "{channels: [16, 16, 8, 8, 8]}",
    "--heads.cls.options",
    "{channels: 32, dropout: 0.0}",
    backbone=STILL,
)
TINY = shapes_line(SMALL)
MAKERS = {"det": (("boxes",), box_targets), "seg": (("mask",), mask_targets), "cls": (("label",), class_targets)}


class PartlyLabelled(ShapesDataset):
    """Shapes of which every second lacks its mask, every third its boxes, and every fourth its label."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if index % 2:
            sample = replace(sample, mask=None)
        if index % 3 == 1:
            sample = replace(sample, boxes=None, box_labels=None, crowd=None)
        return replace(sample, label=None) if index % 4 == 2 else sample


@pytest.fixture
def partly(lend: Any) -> None:
    """The data set ``partly``."""
    lend(DATASETS, {"partly": lambda data, split, classes: PartlyLabelled((64, 64), 12, split=split)})


def test_shapes_train_evaluate_and_predict_as_three_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*TINY, "--run.out", str(run)]) == 0
    record = json.loads((run / "metrics.json").read_text())
    scores = record[record["best"]]
    wanted = [scores["det/AP"], scores["seg/miou"], scores["cls/top1"]]
    assert scores["mean"] == pytest.approx(sum(wanted) / 3)
    for task in ("detect", "segment", "classify"):
        assert "trained jointly" in (run / task / "report.html").read_text()
    rows = (run / "metrics.csv").read_text().splitlines()
    assert any(row.startswith(f"{record['best']},,ring,seg/iou,") for row in rows)
    for word, name in (("det", "AP"), ("seg", "miou"), ("cls", "top1")):  # what became of each image gives the same
        outcomes = read_outcomes(run / outcomes_file("val", word)).outcomes
        assert float(outcomes.point()[name]) == pytest.approx(scores[f"{word}/{name}"], abs=1e-9)
    assert "detect/report.html" in (run / "report.html").read_text()
    model = load_model(run / "best.safetensors")
    assert {task: len(names) for task, names in model.classes.items()} == {"det": 6, "seg": 7, "cls": 6}
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda module, given, maps: calls.append(len(given[0])))
    found = model.predict(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert (set(found), calls) == ({"det", "seg", "cls"}, [2])
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(run), *QUIET]) == 0
    assert f"mean {scores['mean']:.6g}" in capsys.readouterr().out
    assert (run / "evaluate-val" / "detect" / "predictions.json").is_file()
    Image.fromarray(np.full((50, 90, 3), 120, np.uint8)).save(tmp_path / "grey.png")
    assert (
        main(["predict", "--checkpoint", str(run), str(tmp_path / "grey.png"), "--out", str(tmp_path / "out"), *QUIET])
        == 0
    )
    assert Image.open(tmp_path / "out" / "segment" / "index" / "grey.png").size == (90, 50)
    assert (tmp_path / "out" / "detect" / "predictions.json").is_file()
    assert len(json.loads((tmp_path / "out" / "classify" / "predictions.json").read_text())["images"]) == 1


def test_targets_of_a_batch_labelled_in_part(partly: None) -> None:
    dataset = PartlyLabelled((64, 64), 12)
    samples = [
        dataset[index] for index in (0, 1, 2, 3)
    ]  # 0: all, 1: label alone, 2: boxes and mask, 3: boxes and label
    found = targets_by_task(samples, makers=MAKERS)
    assert {task: targets.rows.tolist() for task, targets in found.items()} == {
        "det": [0, 2, 3],
        "seg": [0, 2],
        "cls": [0, 1, 3],
    }
    assert isinstance(found["det"].targets, BoxTargets)
    assert found["cls"].targets.tolist() == [samples[row].label for row in (0, 1, 3)]
    assert torch.equal(found["seg"].targets, torch.from_numpy(np.stack([samples[0].mask, samples[2].mask])))
    whole = targets_by_task(samples[:1], makers=MAKERS)
    assert not any(isinstance(targets, Labelled) for targets in whole.values())
    assert targets_by_task(samples[1:2], makers=MAKERS)["seg"] is None


def test_images_that_lack_labels_train_and_count_where_they_have_some(tmp_path: Path, partly: None) -> None:
    line = ["--config", "shapes", *SMALL, "--data.name", "partly", "--data.image_size", "64", "--optim.max_steps", "4"]
    assert (
        main(
            [*line, "--data.options", "{}", "--run.out", str(tmp_path / "run"), "--optim.task_weighting", "uncertainty"]
        )
        == 0
    )
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    scores = record[record["best"]]
    indices = range(12)
    assert scores["seg/images"] == sum(index % 2 == 0 for index in indices)
    assert scores["det/images"] == sum(index % 3 != 1 for index in indices)
    assert scores["cls/samples"] == sum(index % 4 != 2 for index in indices)
    model = load_model(tmp_path / "run" / "best.safetensors")
    assert model.config["loss_weights"] == "uncertainty"
    assert all(value.item() != 0 for value in model.head.log_variances.values())


def partly_labelled_batch(*, train: bool = True) -> tuple[Model, Batch]:
    """A model of three tasks, and four images of which not all have the labels of each."""
    config = parse("joint", [*TINY, "--optim.task_weighting", "uncertainty"]).config
    dataset = PartlyLabelled((64, 64), 12)
    model = make_model(config, TASK, dataset).train(train)
    transform = TASK.transform(config, model, train=train)
    samples = [transform(dataset[index], np.random.default_rng(index)) for index in range(4)]
    return model, TASK.collate(config, model)(samples)


def test_a_step_of_three_tasks_never_waits_for_the_device() -> None:
    model, batch = partly_labelled_batch()
    assert isinstance(batch.targets["seg"], Labelled)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    with Synchronisations() as watch:
        guarded_step(model, optimizer, batch.images, batch.targets, batch.sizes)
    assert watch.seen == []
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_of_three_tasks_never_waits_for_a_gpu() -> None:
    model, batch = partly_labelled_batch()
    model, batch = model.cuda(), batch.to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    guarded_step(model, optimizer, batch.images, batch.targets, batch.sizes)  # kernels are chosen, anchors made
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.autocast("cuda", torch.bfloat16):
            guarded_step(model, optimizer, batch.images, batch.targets, batch.sizes)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_task_reads_its_own_section() -> None:
    more = ["--heads.seg.weight", "0.5", "--heads.seg.options", "{loss: [dice]}", "--data.multilabel", "true"]
    config = parse("joint", [*TINY, *more]).config
    found = parts(config)
    assert {word: part.config.data.multilabel for word, part in found.items()} == {
        "det": False,
        "seg": False,
        "cls": True,
    }
    assert found["seg"].config.model.head_options["loss"] == ["dice"]
    assert "loss" not in found["det"].config.model.head_options
    told = TASK.heads(config, None)
    assert told["loss_weights"] == {"det": 1.0, "seg": 0.5, "cls": 1.0}
    assert TASK.labels(config) == ("boxes", "mask", "labels")
    model = make_model(config, TASK, None)
    assert model.head.heads["seg"].loss_weights == {"dice": 1.0}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--heads.sgm.weight", "1"], ("heads.sgm", "no such key", "did you mean seg")),
        (["--heads.seg.weight", "2", "--heads.segment.name", "unet"], ("heads.segment", "another section for seg")),
        (["--heads.seg.weight", "2", "--optim.task_weighting", "uncertainty"], ("heads.seg.weight", "task_weighting")),
        (["--data.mosaic", "0.5"], ("data.mosaic", "multilabel")),
        (["--model.task", "[det]"], ("model.task", "at least two")),
        (["--model.task", "[det, det]"], ("model.task", "different")),
        (["--model.task", "det"], ("model.task", "a list")),
        (["--model.task", "[det, seg, cls, sag]"], ("task 'sag'",)),
        (["--heads.seg.weight", "-1"], ("heads.seg.weight", "[0, 1000]")),
        (["--heads.seg.wieght", "1"], ("heads.seg.wieght", "weight")),
        (["--heads.seg.options", "{chanels: 3}"], ("error: heads.seg.options.chanels: ", "channels")),
        (["--heads.seg.options", "{ignore_index: 3}"], ("error: heads.seg.options.ignore_index: ",)),
        (["--model.head", "unet"], ("heads.TASK",)),
        (["--data.tile", "64"], ("data.tile",)),
        (["--data.mixup", "0.1"], ("data.mixup",)),
    ],
)
def test_wrong_sections_are_one_line(
    argv: Sequence[str], words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *argv]) == 2
    error = error_of(capsys)
    assert len(error) <= 307
    for word in words:
        assert word in error


def test_the_command_of_one_task_refuses_sections_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    for command, task in (("segment", "seg"), ("detect", "det")):
        own_main = __import__(f"tasks.{command}", fromlist=["main"]).main
        assert own_main(["--config", "shapes", f"--heads.{task}.weight", "2"]) == 2
        assert f"heads.{task}: no such key; use the command joint" in error_of(capsys)
        assert own_main(["--config", "shapes", "--model.task", "[det, seg]"]) == 2
        assert "use the command joint" in error_of(capsys)
    assert TASKS.canonical("joint") == "multi"


def test_the_mean_leaves_out_what_is_undefined() -> None:
    metric = JointMetrics(
        {"a": ClassificationMetrics(("x", "y")), "b": ClassificationMetrics(("x", "y"))}, {"a": "top1", "b": "top1"}
    )
    right, none = (
        (torch.tensor([[0.9, 0.1]]), torch.tensor([0])),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)),
    )
    metric.update({"a": right[0], "b": none[0]}, {"a": right[1], "b": none[1]})
    scores = metric.compute()
    assert (scores["mean"], scores["a/top1"], scores["b/top1"]) == (1.0, 1.0, None)
    metric.reset()
    metric.update({"a": none[0], "b": none[0]}, {"a": none[1], "b": none[1]})
    assert metric.compute()["mean"] is None


def test_coco_files_serve_three_tasks_at_once(data_root: Path, tmp_path: Path) -> None:
    line = ["--config", "coco_mini", "--data.root", str(data_root / "coco_mini"), *SMALL, "--data.image_size", "96"]
    few = ["--data.limit_train", "8", "--data.limit_val", "2", "--optim.max_steps", "2"]
    assert main([*line, *few, "--run.out", str(tmp_path / "run")]) == 0
    model = load_model(tmp_path / "run" / "best.safetensors")
    assert {task: len(names) for task, names in model.classes.items()} == {"det": 80, "seg": 81, "cls": 80}
    assert main(["evaluate", "--checkpoint", str(tmp_path / "run"), *few[2:4], *QUIET]) == 0


def coco_folder(root: Path) -> Path:
    """Four drawn images in each split, in COCO's layout, with boxes and outlines; ids that no file name tells."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, 5):
            image, x = rng.integers(0, 80, (64, 96, 3), dtype=np.uint8), 8 * number
            image[10:40, x : x + 30] = (250, 60, 60) if number % 2 else (60, 60, 250)
            Image.fromarray(image).save(root / f"{split}2017" / f"{number}.png")
            images.append({"id": 100 + number, "file_name": f"{number}.png", "width": 96, "height": 64})
            outline = [[x, 10, x + 30, 10, x + 30, 40, x, 40]]
            own = {"id": number, "image_id": 100 + number, "category_id": 3 if number % 2 else 7, "iscrowd": 0}
            annotations.append({**own, "bbox": [x, 10, 30, 30], "area": 900, "segmentation": outline})
        kinds = [{"id": 3, "name": "bar"}, {"id": 7, "name": "blob"}]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": kinds}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def test_what_several_tasks_have_found_is_written_and_can_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--config", "coco", "--data.root", str(coco_folder(tmp_path / "coco")), "--data.image_size", "64"]
    line = [*data, *SMALL]
    config = parse("joint", line).config
    datasets = open_splits(config, TASK)
    torch.manual_seed(0)
    model = make_model(config, TASK, datasets["train"])
    model.classes = TASK.classes(config, datasets["train"])
    model.provenance["data_classes"] = list(datasets["train"].classes)
    save_model(model, tmp_path / "m.safetensors")
    line += ["--out", str(tmp_path / "scored")]
    assert main(["evaluate", "--checkpoint", str(tmp_path / "m.safetensors"), *line]) == 0
    file = tmp_path / "scored" / "detect" / "predictions.json"
    assert f"predictions {file}" in capsys.readouterr().err
    assert {row["image_id"] for row in json.loads(file.read_text())} == {101, 102, 103, 104}
    out = str(tmp_path / "out")
    predicted = ["predict", "--checkpoint", str(tmp_path / "m.safetensors"), "--split", "val", *data, *QUIET]
    assert main([*predicted, "--out", out]) == 0
    by_model = json.loads((tmp_path / "scored" / "metrics.json").read_text())["model"]
    for folder, tasks in ((out, ("det", "seg")), (tmp_path / "scored", ("det",))):
        capsys.readouterr()
        again = ["evaluate", *data, *QUIET, "--out", str(tmp_path / "again"), "--predictions", str(folder)]
        assert main(again) == 0
        told = capsys.readouterr().err
        assert f"classify: no predictions to score in {Path(folder, 'classify')}, left out" in told
        assert ("segment: no predictions" in told) == ("seg" not in tasks)
        by_file = json.loads((tmp_path / "again" / "metrics.json").read_text())["model"]
        assert by_file["det/errors"]["costs"].keys() == by_model["det/errors"]["costs"].keys()
        assert by_file["det/AP"] == pytest.approx(by_model["det/AP"], abs=1e-9)
        monitored = [by_file[name] for name in ("det/AP", "seg/miou") if name[:3] in tasks]
        assert by_file["mean"] == pytest.approx(sum(monitored) / len(monitored))
        assert {name.partition("/")[0] for name in by_file} == {"mean", *tasks}
        if "seg" in tasks:
            assert by_file["seg/miou"] == pytest.approx(by_model["seg/miou"], abs=1e-6)
    assert main([*again[:-1], str(tmp_path / "coco")]) == 2
    assert "holds no folder of predictions of a task (detect, segment, classify)" in error_of(capsys)


def test_a_checkpoint_says_what_tasks_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((50, 90, 3), 120, np.uint8)).save(tmp_path / "grey.png")
    config = parse("joint", [*TINY, "--model.task", "[det, cls]"]).config
    assert "seg" in config.heads  # whose section rests
    model = make_model(config, TASK, ShapesDataset((64, 64), 4))
    save_model(model, tmp_path / "alone.safetensors")
    line = ["predict", "--checkpoint", str(tmp_path / "alone.safetensors"), str(tmp_path / "grey.png"), *QUIET]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0  # no config is named
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"detect", "classify"}
    assert main([*line, "--config", "shapes"]) == 2
    assert "holds a model for task ['det', 'cls']; set model.task to that" in error_of(capsys)
    single = build_model("seg", "lite0", num_classes=3)
    save_model(single, tmp_path / "single.safetensors")
    assert (
        main(["predict", "--checkpoint", str(tmp_path / "single.safetensors"), str(tmp_path / "grey.png"), *QUIET]) == 2
    )
    assert "single.safetensors: model.task: expected a list" in error_of(capsys)


def test_heads_that_no_weights_were_made_for_predict_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((50, 90, 3), 120, np.uint8)).save(tmp_path / "grey.png")
    line = ["predict", "--model.task", "[det, cls]", "--model.backbone", "lite0", "--model.weights", "imagenet"]
    assert main([*line, str(tmp_path / "grey.png"), "--out", str(tmp_path / "out"), *QUIET]) == 2
    assert "imagenet holds no whole joint head" in error_of(capsys)


def test_deep_checks_are_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.engine import splits

    monkeypatch.setattr(splits, "open_splits", lambda *_: pytest.fail("data were opened"))
    assert main(["check", "--deep", *TINY]) == 2
    assert "--deep: looks at one task at a time" in error_of(capsys)


def test_a_mosaic_has_the_labels_of_all_its_images_and_wants_them_alike() -> None:
    jitter = JitterRange()
    spec, rng = ImageSpec(), np.random.default_rng(0)
    dataset = ShapesDataset((64, 64), 4)
    samples = [replace(dataset[index], label=None, labels=np.eye(6, dtype=np.float32)[index]) for index in range(4)]
    whole = mosaic(samples, (64, 64), jitter, spec, rng)
    assert whole.labels.tolist() == [1, 1, 1, 1, 0, 0]
    assert mosaic([dataset[index] for index in range(4)], (64, 64), jitter, spec, rng).label is None
    with pytest.raises(
        UserError, match="with 3 channels and labels, mask, train-0 is uint8 with 3 channels and labels, boxes, mask"
    ):
        mosaic(
            [samples[0], replace(samples[1], boxes=None, box_labels=None), *samples[2:]], (64, 64), jitter, spec, rng
        )


def test_each_report_counts_from_the_threshold_of_its_own_task(partly: None) -> None:
    model, _ = partly_labelled_batch(train=False)
    config, point = parse("joint", TINY).config, {"threshold": 0.7, "f1": 1.0}
    names = ("circle", "square")
    model.provenance, model.classes = {"operating_point": {"det": point, "cls": {}}}, {"det": names}
    reporter: Any = TASK.observer_of(config, dict.fromkeys(("det", "seg", "cls"), names), model)
    assert reporter.parts["det"].threshold == 0.7
    alone = {word: one for word, _, one in parts_alone(config, model)}
    assert (alone["det"].provenance, alone["det"].classes) == ({"operating_point": {"": point}}, names)
    assert (alone["seg"].provenance, alone["seg"].classes) == ({"operating_point": {}}, None)


def test_predictions_of_segmentation_are_restored_once(partly: None) -> None:
    model, batch = partly_labelled_batch(train=False)
    found = TASK.predict(parse("joint", TINY).config, model, batch)
    assert all(isinstance(one, Segmented) for one in found["seg"])
    batch.meta[1].skipped = ("cannot be read",)
    kept, chosen = readable(batch, found)
    assert (len(kept), len(chosen["seg"]), len(chosen["det"]), len(chosen["cls"])) == (3, 3, 3, 3)


def test_heads_that_were_never_trained_are_evaluated_on_data_of_their_classes() -> None:
    """A file knows the names of its heads alone; the data set is opened by those of boxes or labels, or has its own."""
    config, extras = parse("joint", [*TINY, "--config", "shapes"]).config, parse("joint", [*TINY]).extras
    names = ("circle", "square")
    classes: Any = {"seg": ("background", *names), "det": names}
    made: Any = SimpleNamespace(classes=classes, provenance={})
    assert data_classes(TASK, config, extras, made, classes) == names
    made = SimpleNamespace(classes={"seg": classes["seg"]}, provenance={})
    drawn = open_dataset(config, TASK, "val").classes
    assert data_classes(TASK, config, extras, made, made.classes) == tuple(drawn)
    made.provenance = {"data_classes": ["cat"]}  # of a trained one
    assert data_classes(TASK, config, extras, made, made.classes) == ("cat",)


def test_what_a_check_proposes_is_named_as_it_is_among_several(capsys: pytest.CaptureFixture[str]) -> None:
    told = _PartTeller(Teller(False), "det", "detect")
    told("raise it, or take --model.head yolo, or --model.head_options.dfl_bins 3")
    proposed = "raise it, or take --heads.det.name yolo, or --heads.det.options.dfl_bins 3"
    assert f"detect: {proposed}" in capsys.readouterr().err
