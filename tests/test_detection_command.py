"""``python -m tasks.detect`` as users run it: on drawn shapes, on real COCO files, and what ``check`` finds in bad data."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import QUIET, Synchronisations, error_of, guarded_step, small_line

from effbackbones import BoxTargets, ImageSizes, load_model
from effbackbones.model import Model
from tasks.data.boxes.table import BoxTable
from tasks.data.sampling import Repeated
from tasks.detect import main
from tasks.detection.check import GOAL, check_headers, check_scores, quick_checks, truth_as_predictions
from tasks.detection.statistics import statistics
from tasks.detection.task import TASK
from tasks.engine.assembly import make_model
from tasks.engine.splits import open_dataset, open_splits
from tasks.settings.commandline import parse
from tasks.telling import Teller
from tasks.verbs import deep_check
from tasks.verbs.deep_check import Fingerprints, fingerprint, learn_eight, same_images

SMALL = small_line("--model.head_options", "{channels: 16, cells: 1, repeats: 1}")
"""The smallest detector; images stay as the config has them."""
TINY = [*SMALL, "--data.image_size", "64", "--data.limit_train", "12", "--data.limit_val", "8", "--optim.epochs", "1"]


def validation_images(coco: Path) -> list[str]:
    """The files that the validation annotations name; the folder has more."""
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    return [str(coco / "val2017" / image["file_name"]) for image in content["images"]]


def test_shapes_train_evaluate_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert (
        main(["--config", "shapes", *TINY, "--data.options", "{train: 12, val: 8, test: 8}", "--run.out", str(run)])
        == 0
    )
    metrics = json.loads((run / "metrics.json").read_text())
    scores = metrics[metrics["best"]]
    assert 0 <= scores["AP"] <= 1
    assert set(scores["per_class"]) == {"circle", "square", "triangle", "star", "cross", "ring"}
    assert scores["errors"]["ap50"] == pytest.approx(scores["AP50"], abs=1e-12)
    page = (run / "report.html").read_text()
    assert "AP50" in page
    assert "Kinds of errors" in page
    assert "circle" in page
    model = load_model(run / "best.safetensors")
    assert model.provenance["category_ids"] == [1, 2, 3, 4, 5, 6]
    point = model.provenance["operating_point"][""]  # on the validation split
    assert 0 < point["threshold"] < 1
    assert 0 < point["f1"] <= 1
    assert model.image_spec.size == (64, 64)
    assert main(["evaluate", "--checkpoint", str(run), *QUIET]) == 0
    assert f"AP {scores['AP']:.6g}" in capsys.readouterr().out
    Image.fromarray(np.full((50, 90, 3), 120, np.uint8)).save(tmp_path / "grey.png")
    assert (
        main(["predict", "--checkpoint", str(run), str(tmp_path / "grey.png"), "--out", str(tmp_path / "out"), *QUIET])
        == 0
    )
    assert isinstance(json.loads((tmp_path / "out" / "predictions.json").read_text()), list)
    drawn = [path for path in (tmp_path / "out").iterdir() if path.suffix == ".jpg"]
    assert len(drawn) == 1


@pytest.mark.peer
def test_real_coco_files_train_predict_and_score_again(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mission's own command; and the file that ``predict`` writes scores as the model does, here and in pycocotools."""
    coco, run, out = data_root / "coco_mini", tmp_path / "run", tmp_path / "out"
    line = ["--config", "coco", "--data.root", str(coco), *TINY, "--run.out", str(run), "--optim.max_steps", "2"]
    every = ["--model.head_options.score_threshold", "0.0", "--model.head_options.pre_nms", "300"]  # untrained
    assert main([*line, *every]) == 0
    assert load_model(run / "best.safetensors").provenance["category_ids"][-1] == 90
    assert main(["predict", "--checkpoint", str(run), *validation_images(coco), "--out", str(out), *QUIET]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(run), *QUIET, "--data.limit_val", "null"]) == 0
    by_model = dict(row.split(" ", 1) for row in capsys.readouterr().out.splitlines())
    file = str(out / "predictions.json")
    assert main(["evaluate", "--config", "coco", "--data.root", str(coco), "--predictions", file, *QUIET]) == 0
    by_file = dict(row.split(" ", 1) for row in capsys.readouterr().out.splitlines())
    assert float(by_file["AR_100"]) > 0
    of_model, of_file = (
        json.loads((folder / "evaluate-val" / "metrics.json").read_text())["model"]["errors"] for folder in (run, out)
    )
    assert of_file == of_model
    assert {name: by_file[name] for name in by_file if name[0] == "A"} == {
        name: by_model[name] for name in by_file if name[0] == "A"
    }

    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(coco / "annotations" / "instances_val2017.json"))
    scorer = COCOeval(truth, truth.loadRes(file), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    precisions, recalls = (
        ("", "50", "75", "_small", "_medium", "_large"),
        ("_1", "_10", "_100", "_small", "_medium", "_large"),
    )
    names = [f"AP{kind}" for kind in precisions] + [f"AR{kind}" for kind in recalls]
    for name, value in zip(names, scorer.stats, strict=True):
        assert float(by_file[name]) == pytest.approx(float(value), abs=1e-9, rel=1e-5), name  # printed with six digits


def test_predictions_carry_the_ids_of_the_data_and_are_scored_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = coco_folder(tmp_path / "coco")
    file = coco / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    for image in content["images"]:  # ids that no file name tells
        image["id"] += 100
    for row in content["annotations"]:
        row["image_id"] += 100
    file.write_text(json.dumps(content))
    run, out = str(tmp_path / "run"), tmp_path / "out"
    every = ["--model.head_options.score_threshold", "0.0", "--model.head_options.pre_nms", "300"]
    assert (
        main(["--config", "coco", "--data.root", str(coco), *TINY, *every, "--optim.max_steps", "1", "--run.out", run])
        == 0
    )
    assert main(["evaluate", "--checkpoint", run, "--out", str(tmp_path / "scored"), *QUIET]) == 0
    assert main(["predict", "--checkpoint", run, "--split", "val", "--out", str(out), *QUIET]) == 0
    scored, predicted = (json.loads((folder / "predictions.json").read_text()) for folder in (tmp_path / "scored", out))
    assert {record["image_id"] for record in scored} == {image["id"] for image in content["images"]}
    assert {record["category_id"] for record in scored} <= {3, 7}
    assert sorted(map(str, predicted)) == sorted(map(str, scored))
    capsys.readouterr()
    shutil.rmtree(coco / "val2017")
    shutil.rmtree(coco / "train2017")
    line = ["evaluate", "--config", "coco", "--data.root", str(coco), "--out", str(tmp_path / "again"), *QUIET]
    assert main([*line, "--predictions", str(out / "predictions.json")]) == 0
    by_file = json.loads((tmp_path / "again/metrics.json").read_text())["model"]
    by_model = json.loads((tmp_path / "scored/metrics.json").read_text())["model"]
    assert {name: by_file[name] for name in by_file if name[0] == "A"} == {
        name: by_model[name] for name in by_file if name[0] == "A"
    }
    assert main([*line[: -len(QUIET)], "--checkpoint", run, *QUIET]) == 2  # a model needs the images
    assert "have no file" in capsys.readouterr().err.splitlines()[-1]


def test_a_split_without_files_is_predicted_by_its_ids(tmp_path: Path) -> None:
    """Drawn images have no files."""
    run, out = str(tmp_path / "run"), tmp_path / "out"
    every = ["--model.head_options.score_threshold", "0.0", "--model.head_options.pre_nms", "300"]  # untrained
    assert main(["--config", "shapes", *TINY, *every, "--data.options", "{train: 12, val: 8}", "--run.out", run]) == 0
    assert main(["predict", "--checkpoint", run, "--split", "val", "--out", str(out), *QUIET]) == 0
    assert sorted(path.stem for path in out.glob("*.jpg")) == [f"val-{number}" for number in range(8)]
    found = json.loads((out / "predictions.json").read_text())
    assert {row["image_id"] for row in found} == {f"val-{number}" for number in range(8)}


def test_check_passes_on_real_data(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", "--config", "bccd", "--data.root", str(data_root / "bccd"), *SMALL, "--out", str(tmp_path)]
    assert main(line) == 0
    said = capsys.readouterr()
    assert "train: 205 samples" in said.out
    assert "anchors: " in said.err
    assert Image.open(tmp_path / "samples.jpg").size[0] > 100


def coco_folder(root: Path, change: Callable[[dict[str, Any]], None] = lambda content: None) -> Path:
    """A folder in COCO's layout with six drawn images in each split; ``change`` edits the training annotations."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir(parents=True)
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 3, "name": "bar"}, {"id": 7, "name": "blob"}],
        }
        for number in range(1, 7):
            image = rng.integers(0, 80, (60, 100, 3), dtype=np.uint8)
            left, top = int(rng.integers(2, 40)), int(rng.integers(2, 10))
            box = [left, top, 12, 44] if number % 2 else [left, top, 40, 30]
            image[top : top + box[3], left : left + box[2]] = (250, 60, 60) if number % 2 else (60, 60, 250)
            Image.fromarray(image).save(root / f"{split}2017" / f"{number}.png")
            content["images"].append({"id": number, "file_name": f"{number}.png", "width": 100, "height": 60})
            annotation = {
                "id": number,
                "image_id": number,
                "category_id": 3 if number % 2 else 7,
                "bbox": box,
                "iscrowd": 0,
            }
            content["annotations"].append(annotation | {"area": box[2] * box[3]})
        if split == "train":
            change(content)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def loaded(root: Path, *more: str) -> tuple[Any, Model, dict[str, Any]]:
    command = parse("detect", ["--config", "coco", "--data.root", str(root), *SMALL, "--data.image_size", "64", *more])
    datasets = open_splits(command.config, TASK)
    return command.config, make_model(command.config, TASK, datasets["train"]), datasets


def test_sizes_that_the_files_contradict_are_named(tmp_path: Path) -> None:
    def lie(content: dict[str, Any]) -> None:
        content["images"][2]["width"] = 300

    _, _, datasets = loaded(coco_folder(tmp_path, lie))
    with pytest.raises(Exception, match=r"3\.png: the annotations say 300 x 60 pixels, the file 100 x 60"):
        check_headers(datasets["train"].table)


def test_check_names_boxes_that_a_transform_moves_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth as predictions gives AP 1; with targets that do not follow the image it does not, and that is said."""
    config, model, datasets = loaded(coco_folder(tmp_path))
    check_scores(TASK, config, model, datasets["val"], "val")
    from tasks.data.transforms import window

    honest = window.ViewTransform.__call__

    def shifted(self: Any, sample: Any, rng: Any) -> Any:
        moved = honest(self, sample, rng)
        return replace(moved, boxes=moved.boxes + np.float32(9))

    monkeypatch.setattr(window.ViewTransform, "__call__", shifted)
    with pytest.raises(
        Exception, match="split val, sent as predictions through resizing, restoration and scores, give AP 0"
    ):
        check_scores(TASK, config, model, datasets["val"], "val")


def test_poor_anchor_coverage_is_told_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def slender(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["bbox"] = [2, 10, 96, 16]

    root = coco_folder(tmp_path, slender)
    line = [
        "check",
        "--config",
        "coco",
        "--data.root",
        str(root),
        *SMALL,
        "--data.image_size",
        "128",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(line) == 0
    said = capsys.readouterr().err
    assert "anchors: 0.0% of 6 boxes have one of IoU 0.5 or more" in said
    assert "anchors that fit better: --model.head_options." in said
    options = said.split("anchors that fit better: ")[1].splitlines()[0]
    assert main([*line, *shlex.split(options)]) == 0
    assert "anchors: 100.0% of 6 boxes" in capsys.readouterr().err


def test_boxes_that_no_point_is_to_predict_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of five pixels between the points, at the size that the network sees them; of a head that has a point for each, none."""

    def small(content: dict[str, Any]) -> None:
        for annotation in content["annotations"][::2]:
            annotation["bbox"] = [5.5, 5.5, 5, 5]

    root = coco_folder(tmp_path, small)
    line = ["check", "--config", "coco", "--data.root", str(root), "--data.image_size", "100", "--out", str(tmp_path)]
    for name, options in (("fcos", "{channels: 64, repeats: 1}"), ("yolo", "{channels: 16, depth: 1, repeats: 1}")):
        assert main([*line, *small_line("--model.head", name, "--model.head_options", options)]) == 0
        told = "boxes: 3 of 6 get no anchor or point at image size 100 x 100, and are not learnt: raise data.image_size"
        assert (told in capsys.readouterr().err) == (name == "fcos")


def test_boxes_that_share_a_point_or_are_too_large_for_the_head_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def odd(content: dict[str, Any]) -> None:
        images = [image["id"] for image in content["images"]]
        boxes = [[1, 1, 3, 3], [1, 1, 2, 2], [0, 0, 95, 58]]
        for index, annotation in enumerate(content["annotations"]):
            box = boxes[index % 3]
            annotation.update(bbox=box, area=box[2] * box[3], image_id=images[index // 3])

    root = coco_folder(tmp_path, odd)
    line = ["check", "--config", "coco", "--data.root", str(root), "--data.image_size", "100", "--out", str(tmp_path)]
    words = [
        *line,
        *small_line("--model.head", "yolo", "--model.head_options", "{channels: 16, depth: 1, dfl_bins: 2}"),
    ]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "boxes: 2 of 6 have no point at image size 100 x 100 but the only one of another box" in told
    text = "boxes: 2 of 6 are larger than the head can say at image size 100 x 100: "
    assert f"{text}--model.head_options.dfl_bins '3'" in told
    assert main([*words, "--model.head_options.dfl_bins", "3"]) == 0
    assert "larger than the head" not in capsys.readouterr().err


def test_options_of_a_head_that_change_nothing_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By ``check`` and by ``train``, of one head and of several; defaults that rest are nobody's concern."""
    head = [
        "--model.head",
        "yolo",
        "--model.head_options",
        "{channels: 16, depth: 1, repeats: 1, dfl_weight: 0.2, radius: 2.0}",
    ]
    line = [
        "--config",
        "shapes",
        *small_line(*head),
        "--data.image_size",
        "64",
        "--data.options",
        "{train: 8, val: 4, test: 4}",
    ]
    expected = {"model.head_options.dfl_weight": "dfl_bins is 0", "model.head_options.radius": "assigner is aligned"}
    for words in (
        ["check", *line, "--out", str(tmp_path / "o")],
        [*line, "--optim.max_steps", "1", "--run.out", str(tmp_path / "r")],
    ):
        assert main(words) == 0
        said = capsys.readouterr()
        told = [row for row in (said.out + said.err).splitlines() if "is set and changes nothing" in row]
        assert sorted(told) == [f"{key} is set and changes nothing: {why}" for key, why in expected.items()]


def test_statistics_see_boxes_as_the_network_does(tmp_path: Path) -> None:
    config, model, datasets = loaded(coco_folder(tmp_path))
    found = statistics(config, model, datasets["train"])
    assert sorted(map(tuple, found.original.tolist())) == sorted([(12.0, 44.0)] * 3 + [(40.0, 30.0)] * 3)
    np.testing.assert_allclose(
        found.network, found.original * [0.64, 38 / 60], rtol=1e-6
    )  # letterbox: 100 x 60 to 64 x 38
    assert ((found.best_iou > 0) & (found.best_iou <= 1)).all()


def test_deep_check_finds_damaged_and_shared_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep_check, "learn_eight", lambda *_: "not tried")
    root = coco_folder(tmp_path / "data")
    line = [
        "check",
        "--deep",
        "--config",
        "coco",
        "--data.root",
        str(root),
        *SMALL,
        "--data.image_size",
        "64",
        "--out",
        str(tmp_path),
    ]
    assert main(line) == 0
    assert "ok: train and val share no image" in capsys.readouterr().err
    Image.open(root / "train2017" / "2.png").convert("RGB").save(root / "val2017" / "5.png")
    assert main(line) == 2
    error = error_of(capsys)
    assert "1 images of train are also in val" in error
    assert "2.png = " in error
    config, _, datasets = loaded(root)
    damaged = root / "train2017" / "4.png"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    with pytest.raises(Exception, match=r"every image decodes: \S*4\.png: cannot be read as an image"):
        deep_check.deep_checks(TASK, config, datasets, Teller(False, quiet=True), GOAL)


def test_same_images_are_recompressed_copies_not_other_images(data_root: Path, tmp_path: Path) -> None:
    paths = sorted((data_root / "coco_mini" / "train2017").glob("*.jpg"))[:40]
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]

    def prints(images: list[np.ndarray]) -> Fingerprints:
        hashes, thumbs = zip(*(fingerprint(image) for image in images), strict=True)
        return Fingerprints(
            [str(number) for number in range(len(images))], np.array(hashes, np.uint64), np.stack(thumbs)
        )

    copies = []
    for number, image in enumerate(images[:10]):
        Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2)).save(
            tmp_path / f"{number}.jpg", quality=60
        )
        copies.append(np.asarray(Image.open(tmp_path / f"{number}.jpg")))
    assert same_images(prints(images), prints(copies)) == [(str(n), str(n)) for n in range(10)]
    assert same_images(prints(images[:20]), prints(images[20:])) == []
    plain = [np.full((40, 40, 3), level, np.uint8) for level in (10, 200)]
    assert same_images(prints(plain[:1]), prints(plain[1:])) == []


@pytest.mark.slow
def test_eight_images_are_learnt_and_wrong_targets_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from heads.detection.efficientdet import EfficientDetHead

    config, _, datasets = loaded(coco_folder(tmp_path), "--data.image_size", "128")
    assert "AP50" in learn_eight(TASK, config, datasets["train"], Teller(False, quiet=True), GOAL)
    monkeypatch.setattr(deep_check, "MINUTES", 0.2)
    honest = EfficientDetHead.loss

    def transposed(self: Any, raw: Any, targets: BoxTargets, sizes: ImageSizes) -> Any:
        return honest(self, raw, targets._replace(boxes=targets.boxes[..., [1, 0, 3, 2]]), sizes)

    monkeypatch.setattr(EfficientDetHead, "loss", transposed)
    with pytest.raises(Exception, match="AP50 on 6 images is 0"):
        learn_eight(TASK, config, datasets["train"], Teller(False, quiet=True), GOAL)


def test_truth_as_predictions_leaves_out_crowds_and_padding() -> None:
    boxes = torch.arange(12.0).view(1, 3, 4)
    detections = truth_as_predictions(
        BoxTargets(boxes, torch.tensor([[2, 1, -1]]), torch.tensor([[True, False, False]]))
    )
    assert detections.count.tolist() == [1]
    assert detections.boxes[0, 0].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert detections.labels[0, 0].item() == 1


def test_limited_and_repeated_views_keep_what_a_data_set_knows(tmp_path: Path) -> None:
    config, _, datasets = loaded(coco_folder(tmp_path), "--data.limit_train", "4")
    limited = datasets["train"]
    assert len(limited) == 4
    assert limited.category_ids == (3, 7)
    assert isinstance(limited.table, BoxTable)
    whole = open_dataset(replace(config, data=replace(config.data, limit_train=None)), TASK, "train")
    for index in range(4):
        row = limited.table.rows(index)
        xywh = limited.table.boxes[row]
        sample = limited[index]
        np.testing.assert_allclose(sample.boxes, np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), rtol=1e-6)
    view = Repeated(whole, np.array([5, 5, 0]))
    assert [view[i].id for i in range(3)] == [whole[5].id, whole[5].id, whole[0].id]
    np.testing.assert_allclose(view.aspects, np.full(3, 100 / 60))


def test_a_training_step_never_waits_for_the_device() -> None:
    """Forward, loss, backward, clipping, guarded update and averages of a detector; what is read is read a step later."""
    command = parse("detect", ["--config", "shapes", *SMALL, "--data.image_size", "64"])
    model = make_model(replace(command.config, model=replace(command.config.model, num_classes=2)), TASK, None).train()
    boxes = torch.tensor([[[4.0, 4, 30, 40], [10, 10, 20, 60]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    targets = BoxTargets(boxes, torch.tensor([[0, 1], [-1, -1]]), torch.zeros(2, 2, dtype=torch.bool))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    sizes = ImageSizes.of(images)
    with Synchronisations() as watch:
        loss = guarded_step(model, optimizer, images, targets, sizes)
    assert watch.seen == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with Synchronisations() as watch:
        float(loss)
    assert watch.seen == ["aten::_local_scalar_dense"]  # the watch sees what it should


def test_a_table_of_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / split / name / "a.png")
    line = [
        "--config",
        "coco",
        "--data.name",
        "folder",
        "--data.root",
        str(tmp_path),
        *TINY,
        "--run.out",
        str(tmp_path / "run"),
    ]
    assert main(line) == 2
    assert "boxes" in error_of(capsys)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_published_classes_keep_their_ids(tmp_path: Path) -> None:
    """The 80 names go with COCO's ids and their gaps, the 90 raw channels with 1 to 90."""
    from effbackbones.weights.coco_names import COCO_NAMES

    config = parse("detect", ["--config", "coco", *SMALL]).config
    for count, last in ((80, 90), (90, 90), (3, 3)):
        model = make_model(replace(config, model=replace(config.model, num_classes=count)), TASK, None)
        names = TASK.default_classes(count) or ("a", "b", "c")
        writer = TASK.writer(config, tmp_path, model, names, lambda line: None)
        assert list(writer.category_ids)[-1] == last  # type: ignore[attr-defined]
    assert TASK.default_classes(80) == tuple(COCO_NAMES.values())


def test_splits_and_models_that_number_classes_otherwise_are_matched_by_name_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = coco_folder(tmp_path / "data"), tmp_path / "run"
    line = ["--config", "coco", "--data.root", str(root), *SMALL, "--data.image_size", "64", "--optim.max_steps", "1"]
    assert main([*line, "--run.out", str(run)]) == 0
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for item in content["categories"]:
        item["id"] += 10
    for item in content["annotations"]:
        item["category_id"] += 10
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["check", *line, "--out", str(tmp_path / "check")]) == 0
    assert "val: its category ids are 13, 17, those of training 3, 7" in capsys.readouterr().err
    assert main(["evaluate", "--checkpoint", str(run), *QUIET]) == 0


def test_an_undefined_score_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco_folder(tmp_path)
    annotations = root / "annotations" / "instances_val2017.json"
    content = json.loads(annotations.read_text())
    (root / "annotations" / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    (tmp_path / "none.json").write_text("[]")
    line = ["evaluate", "--config", "coco", "--data.root", str(root), "--data.options", "{images: val2017}", *QUIET]
    score = ["--predictions", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]
    assert main([*line, *score]) == 0
    assert "AP 0\n" in capsys.readouterr().out
    assert main([*line, *score, "--data.test", "annotations/empty.json", "--split", "test"]) == 2
    said = capsys.readouterr()
    assert "AP undefined" in said.out
    assert "data.test: AP is undefined" in said.err


def test_small_sets_are_evaluated_whatever_the_training_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs are counted in training batches alone; files to predict have no aspects to sort by."""
    root, run = coco_folder(tmp_path / "data"), tmp_path / "run"
    line = ["--config", "coco", "--data.root", str(root), *SMALL, "--data.image_size", "128", "--optim.max_steps", "1"]
    assert (
        main(
            [
                *line,
                "--data.batch_size",
                "6",
                "--data.limit_val",
                "3",
                "--data.batch_shape",
                "aspect",
                "--run.out",
                str(run),
            ]
        )
        == 0
    )
    picture = str(root / "val2017" / "1.png")
    assert main(["predict", "--checkpoint", str(run), picture, "--out", str(tmp_path / "out"), *QUIET]) == 0
    assert (tmp_path / "out" / "1.jpg").is_file()


def test_unreadable_images_are_skipped_by_the_checks_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco_folder(tmp_path)
    config, model, datasets = loaded(root, "--data.on_error", "skip")
    (root / "train2017" / "3.png").write_bytes(b"")
    damaged = root / "train2017" / "4.png"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    said: list[str] = []
    quick_checks(TASK, config, model, datasets, said.append)  # type: ignore[arg-type]  # all that is asked of a teller here
    files = len(datasets["train"].table)
    told = [line for line in said if "cannot be read" in line]
    assert told == [f"train: 1 of {files} files cannot be read and are skipped, such as {root}/train2017/3.png"]
    said.clear()
    quick_checks(TASK, config, model, datasets, said.append, samples_told=True)  # type: ignore[arg-type]
    assert not any("cannot be read" in line for line in said)
    strict = replace(config, data=replace(config.data, on_error="stop"))
    with pytest.raises(Exception, match=r"3\.png"):
        quick_checks(TASK, strict, model, datasets, said.append)  # type: ignore[arg-type]


def test_results_files_follow_the_numbering_of_the_training_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pascal VOC numbers its classes by name: a class that the scored split lacks must not shift the others."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for split, names in (("train", ("apple", "banana", "cherry")), ("val", ("banana", "cherry"))):
        (tmp_path / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{split}{name}\n" for name in names))
        for name in names:
            Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "JPEGImages" / f"{split}{name}.jpg")
            box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
            size = "<size><width>60</width><height>50</height><depth>3</depth></size>"
            text = f"<annotation>{size}<object><name>{name}</name>{box}</object></annotation>"
            (tmp_path / "Annotations" / f"{split}{name}.xml").write_text(text)
    found = [
        {"image_id": f"val{name}", "category_id": number, "bbox": [10, 5, 20, 35], "score": 0.9}
        for number, name in ((2, "banana"), (3, "cherry"))
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    line = [
        "evaluate",
        "--config",
        "voc",
        "--data.root",
        str(tmp_path),
        "--predictions",
        str(tmp_path / "found.json"),
        *QUIET,
    ]
    assert main(line) == 0
    assert "AP 1\n" in capsys.readouterr().out


def test_boxes_thinner_than_a_pixel_are_scored_but_not_trained_on(tmp_path: Path) -> None:
    def slim(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [20, 5, 0.8, 30]

    root = coco_folder(tmp_path, slim)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    slim(content)
    path.write_text(json.dumps(content))
    config, model, datasets = loaded(root)
    assert len(datasets["train"].table.boxes) == 5
    assert datasets["train"].table.repairs.counts["thin"] == 1
    assert len(datasets["val"].table.boxes) == 6
    assert [20, 5, 0.8, 30] in datasets["val"].table.boxes.tolist()
    check_scores(TASK, config, model, datasets["val"], "val")


def test_scores_are_for_as_many_detections_as_the_head_gives() -> None:
    config = parse("detect", ["--config", "coco", *SMALL, "--model.head_options.max_detections", "300"]).config
    assert TASK.metrics(config, ("a", "b")).max_dets == (1, 10, 300)  # type: ignore[attr-defined]
