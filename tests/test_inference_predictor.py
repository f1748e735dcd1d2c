"""The predictor: what goes in, what comes out, and that it is what the commands write."""

import io
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import ONE_THREAD, QUIET, ROOT, class_names, one_line
from torch import Tensor

from effbackbones import ReadingSpec, UserError, build_model, load_predictor, save_model
from effbackbones.contracts import Head
from effbackbones.inference import results
from effbackbones.inference.results import Boxes, Classes, Failed, Mask, Values
from effbackbones.model import Model
from tasks.data.sample import Sample
from tasks.data.transforms.alone import fit_of
from tasks.verbs.command import run_command

NARROW = {"width": 0.25, "depth": 0.3}
COMMANDS = {"cls": "classify", "det": "detect", "seg": "segment", ("det", "seg"): "joint"}


def narrow(task: Any, classes: int = 3, size: int = 64, **reading: Any) -> Model:
    """A small model with random weights whose scores differ."""
    torch.manual_seed(0)
    several = {} if isinstance(task, str) else {word: classes for word in task}
    options: Any = {"det": {"channels": 16, "repeats": 1}}
    head = options.get(task, {}) if isinstance(task, str) else {word: options.get(word, {}) for word in task}
    head = {word: values for word, values in head.items() if values or not isinstance(values, dict)}
    model = build_model(
        task=task, backbone="b0", num_classes=several or classes, backbone_options=NARROW, head_options=head or None
    ).eval()
    for name, parameter in model.head.named_parameters():
        if "class_net.predict.pointwise" in name or (task in ("cls", "seg") and parameter.ndim > 1):
            parameter.data.uniform_(-1, 1) if parameter.ndim == 1 else parameter.data.mul_(3)
    names = class_names(classes)
    model.classes = tuple(names) if isinstance(task, str) else {word: tuple(names) for word in task}
    model.reading = ReadingSpec(**reading)
    model.use_image_spec(replace(model.image_spec, size=(size, size)))
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide, a tall, a very tall one, and one that its EXIF tag turns."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for number, size in enumerate([(48, 80), (90, 50), (200, 20), (40, 72)]):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if number == 3:
            exif[0x0112] = 6
        image.save(folder / f"p{number}.png", exif=exif)
        found.append(folder / f"p{number}.png")
    return found


def run_verb(task: Any, model: Model, files: list[Path], tmp_path: Path, *more: str) -> Path:
    """The folder that the verb ``predict`` writes."""
    save_model(model, tmp_path / "model.safetensors")
    out, quiet = tmp_path / "out", ["--run.progress", "false", "--data.workers", "0", "--run.device", "cpu"]
    line = ["predict", "--checkpoint", str(tmp_path / "model.safetensors"), "--out", str(out), *quiet, *more]
    assert run_command(COMMANDS[task], [*line, *map(str, files)]) == 0
    return out


def same_boxes(path: Path, found: list[Boxes], files: list[Path]) -> int:
    rows = json.loads(path.read_text())
    for file, mine in zip(files, found, strict=True):
        theirs = [row for row in rows if row["file_name"] == file.name]
        assert len(theirs) == len(mine)
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in theirs)]).reshape(-1, 4)
        assert np.allclose(corners, mine.boxes, atol=1e-3)
        assert np.allclose([row["score"] for row in theirs], mine.scores, atol=1e-6)
        assert [row["category_id"] - 1 for row in theirs] == mine.labels.tolist()
    return len(rows)


def same_masks(folder: Path, found: list[Mask], files: list[Path]) -> None:
    for file, mine in zip(files, found, strict=True):
        theirs = np.asarray(Image.open(folder / "index" / f"{file.stem}.png"))
        assert theirs.shape == mine.size
        assert (theirs != mine.labels).mean() < 1e-3  # batches of other sizes round in another way


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_equals_the_files_of_the_verb(task: str, exif: str, pictures: list[Path], tmp_path: Path) -> None:
    model = narrow(task, exif=exif)
    out = run_verb(task, model, pictures, tmp_path)
    found = load_predictor(tmp_path / "model.safetensors", device="cpu", batch_size=3)(pictures)
    assert [result.source for result in found] == list(map(str, pictures))
    assert found[3].size == ((72, 40) if exif == "apply" else (40, 72))
    if task == "cls":
        rows = json.loads((out / "predictions.json").read_text())["images"]
        for row, mine in zip(rows, found, strict=True):
            assert [one["label"] for one in row["predictions"]] == mine.order.tolist()
            values = [one["probability"] for one in row["predictions"]]
            assert np.allclose(values, mine.probabilities[mine.order], atol=1e-6)
    elif task == "det":
        assert same_boxes(out / "predictions.json", found, pictures) > 20
    else:
        same_masks(out, found, pictures)


def test_several_tasks_and_tiles_too(pictures: list[Path], tmp_path: Path) -> None:
    both = narrow(("det", "seg"))
    out = run_verb(("det", "seg"), both, pictures, tmp_path)
    found = load_predictor(both, device="cpu")(pictures)
    same_boxes(out / "detect" / "predictions.json", [one["det"] for one in found], pictures)
    same_masks(out / "segment", [one["seg"] for one in found], pictures)

    tiled = narrow("seg", tile=(32, 32), tile_overlap=8)
    (tmp_path / "tiled").mkdir()
    out = run_verb("seg", tiled, pictures, tmp_path / "tiled")
    same_masks(out, load_predictor(tiled, device="cpu")(pictures), pictures)


def test_all_kinds_of_images_are_one(pictures: list[Path]) -> None:
    ask = load_predictor(narrow("cls"), device="cpu")
    file = pictures[3]  # turned by its tag
    with Image.open(file) as image:
        upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
        kinds = [str(file), file, image.copy(), upright, torch.from_numpy(upright.copy()).permute(2, 0, 1)]
        kinds[2].getexif()[0x0112] = 6  # type: ignore[union-attr]  # a copy may lose it
    first = ask(kinds[0]).probabilities
    for kind in kinds[1:]:
        assert np.allclose(ask(kind).probabilities, first, atol=1e-6)
    assert np.allclose(ask(upright[..., ::-1], bgr=True).probabilities, first, atol=1e-6)
    assert np.allclose(ask(upright.astype(np.float32) / 255).probabilities, first, atol=1e-3)
    batch = ask(np.stack([upright, upright]))
    assert len(batch) == 2
    assert np.allclose(batch[1].probabilities, first, atol=1e-6)


def test_an_iterator_in_gives_an_iterator_that_holds_two_batches(pictures: list[Path]) -> None:
    taken = []
    buffer = np.zeros((40, 60, 3), np.uint8)

    def frames() -> Iterator[np.ndarray[Any, Any]]:
        for number in range(20):
            taken.append(number)
            buffer[:] = number * 10  # the same memory, as a camera's
            yield buffer

    ask = load_predictor(narrow("cls"), device="cpu", batch_size=2)
    stream = ask(frames())
    assert taken == []
    first = next(stream)
    assert len(taken) <= 4
    found = [first, *stream]
    assert [int(one.original()[0, 0, 0]) for one in found] == [number * 10 for number in range(20)]
    assert np.allclose(found[7].probabilities, ask(np.full_like(buffer, 70)).probabilities, atol=1e-6)
    assert ask([]) == []


BAD: list[tuple[Any, tuple[str, ...]]] = [
    ("no-such.jpg", ("no-such.jpg",)),
    (np.zeros((4, 5, 7), np.uint8), ("[4, 5, 7]", "channels")),
    (np.zeros((3, 8, 8), np.uint8), ("[3, 8, 8]", "last")),
    (np.zeros((8, 8, 3), np.int64), ("int64",)),
    (np.full((8, 8, 3), 200.0), ("0..1", "255")),
    (np.full((8, 8, 3), math.nan, np.float32), ("not finite",)),
    (np.zeros((0, 8, 3), np.uint8), ("[0, 8, 3]",)),
    (torch.zeros(8, 8, 3), ("[3, H, W]",)),
    (Image.new("F", (8, 8)), ("mode F",)),
]


@pytest.mark.parametrize(("given", "words"), BAD, ids=range(len(BAD)))
def test_what_is_no_image_is_one_line(given: Any, words: tuple[str, ...], pictures: list[Path]) -> None:
    model = narrow("cls")
    with pytest.raises(UserError) as error:
        load_predictor(model, device="cpu")([pictures[0], given])
    one_line(error, *words)
    found = load_predictor(model, device="cpu", on_error="return")([pictures[0], given, pictures[1]])
    assert [type(one) for one in found] == [Classes, Failed, Classes]
    assert found[1].error == str(error.value)
    assert json.loads(found[1].to_json())["error"] == found[1].error


@pytest.mark.parametrize("given", [5, None, b"abc", io.BytesIO(b"abc"), {"a": 1}])
def test_what_is_no_list_of_images_either(given: Any) -> None:
    with pytest.raises(UserError) as error:
        load_predictor(narrow("cls"), device="cpu")(given)
    one_line(error, type(given).__name__, "path")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("cls", {"threshold": 2}, "threshold"),
    ("cls", {"top_k": 0}, "top_k"),
    ("seg", {"top_k": 1}, "not masks"),
    ("det", {"probabilities": True}, "probabilities"),
    ("cls", {"batch_size": 0}, "batch_size"),
    ("cls", {"on_error": "skip"}, "on_error"),
    ("cls", {"precision": "fp8"}, "precision"),
    ("cls", {"device": "tpu9"}, "device"),
]


@pytest.mark.parametrize(("task", "options", "word"), WRONG)
def test_wrong_arguments(task: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as error:
        load_predictor(narrow(task), **{"device": "cpu", **options})
    one_line(error, word)


def test_threshold_and_top_k(pictures: list[Path]) -> None:
    detector = narrow("det")
    whole = load_predictor(detector, device="cpu")(pictures[0])
    assert (np.diff(whole.scores) <= 0).all()
    limit = float(np.median(whole.scores))
    cut = load_predictor(detector, device="cpu", threshold=limit)(pictures[0])
    assert 0 < len(cut) == (whole.scores >= limit).sum()
    assert load_predictor(detector, device="cpu", top_k=2)(pictures[0]).boxes.tolist() == whole.boxes[:2].tolist()

    asked = load_predictor(narrow("cls"), device="cpu", top_k=1)(pictures[0])
    assert [one["class"] for one in asked.to_dict()["predictions"]] == [asked.name]
    assert len(asked.probabilities) == 3

    segmenter = narrow("seg")
    mask = load_predictor(segmenter, device="cpu", probabilities=True)(pictures[0])
    assert mask.probabilities.shape == (3, *mask.size)
    unsure = load_predictor(segmenter, device="cpu", threshold=float(np.median(mask.confidence)))(pictures[0])
    assert ((unsure.labels == 255) == (mask.confidence < np.median(mask.confidence))).all()
    binary = narrow("seg", classes=1)
    soft = load_predictor(binary, device="cpu", probabilities=True)(pictures[0])
    hard = load_predictor(binary, device="cpu", threshold=0.2)(pictures[0])
    assert ((hard.labels == 1) == (soft.probabilities[0] > 0.2)).mean() > 0.99
    assert (hard.labels != soft.labels).any()
    assert hard.classes == ("background", "foreground")


def test_pictures_and_json(pictures: list[Path]) -> None:
    for task in ("cls", "det", "seg"):
        result = load_predictor(narrow(task), device="cpu")(pictures[1])
        told = json.loads(result.to_json())
        assert told["source"] == str(pictures[1])
        assert told["size"] == [90, 50]
        drawn = result.draw()
        assert drawn.mode == "RGB"
        assert (drawn.height / 90, drawn.width / 50) == (drawn.height // 90,) * 2
        with Image.open(pictures[1]) as image:
            assert np.asarray(drawn.resize(image.size)).tolist() != np.asarray(image.convert("RGB")).tolist()
    runs = told["runs"]
    assert np.repeat(runs[::2], runs[1::2]).tolist() == result.labels.ravel().tolist()
    assert sum(told["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_what_is_not_finite_is_no_result(task: str, pictures: list[Path]) -> None:
    model = narrow(task)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(UserError) as error:
        load_predictor(model, device="cpu")(pictures[0])
    one_line(error, pictures[0].name, "not finite")


class Mean(Head):
    """A task of one's own: the mean of the coarsest map."""

    task: ClassVar[str] = "mean"

    def forward(self, features: list[Tensor], sizes: Any) -> Tensor:
        return features[-1].mean((1, 2, 3))

    def loss(self, raw: Any, targets: Any, sizes: Any) -> dict[str, Tensor]:
        return {"mean": raw.mean()}

    def predict(self, raw: Tensor, sizes: Any) -> Any:
        return {"value": raw}


def test_heads_of_others(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from effbackbones import create_backbone, register_result

    backbone = create_backbone("b0", **NARROW)
    ask = load_predictor(Model(backbone, Mean(backbone.feature_spec, 1)).eval(), device="cpu", batch_size=2)
    for idle in ({"threshold": 0.5}, {"top_k": 2}):
        with pytest.raises(UserError, match="is not for what a head of task mean predicts"):
            load_predictor(ask.model, device="cpu", **idle)
    found = ask(pictures)
    assert [type(one) for one in found] == [Values] * 4
    assert json.loads(found[2].to_json())["values"]["value"] == pytest.approx(float(found[2].values["value"]))

    monkeypatch.setattr(results, "RESULTS", dict(results.RESULTS))
    monkeypatch.setattr("effbackbones.inference.answering.RESULTS", results.RESULTS)

    @register_result("mean")
    def made(prediction: Any, plan: Any, **about: Any) -> Values:
        return Values(**about, values=[float(prediction["value"]), plan.original])

    assert ask(pictures[0]).values[1] == (48, 80)


def test_threads_and_pickles(pictures: list[Path]) -> None:
    ask = load_predictor(narrow("det"), device="cpu", batch_size=2)
    alone = [one.boxes for one in ask(pictures)]
    again = pickle.loads(pickle.dumps(ask))  # noqa: S301  # made here
    with ThreadPoolExecutor(2) as pool:
        for found in [*pool.map(ask, [pictures] * 4), again(pictures)]:
            for mine, one in zip(alone, found, strict=True):
                assert np.array_equal(mine, one.boxes)
    json.loads(pickle.loads(pickle.dumps(found[0])).to_json())  # noqa: S301


def test_loads_no_training_library(pictures: list[Path], tmp_path: Path) -> None:
    save_model(narrow("seg"), tmp_path / "model.safetensors")
    text = (
        "import sys; from effbackbones import load_predictor\n"
        f"mask = load_predictor({str(tmp_path / 'model.safetensors')!r})({str(pictures[0])!r}); mask.draw()\n"
        "heavy = {'lightning', 'albumentations', 'torchmetrics', 'tasks'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_verb_skips_hidden_files_and_keeps_a_threshold(pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "._p0.png").write_bytes(b"not an image")
    (folder / "p0.png").write_bytes(pictures[0].read_bytes())
    model = narrow("det")
    whole = load_predictor(model, device="cpu")(folder / "p0.png")
    limit = float(np.median(whole.scores))
    out = run_verb("det", model, [folder], tmp_path, "--threshold", repr(limit))
    same_boxes(
        out / "predictions.json",
        [load_predictor(model, device="cpu", threshold=limit)(folder / "p0.png")],
        [folder / "p0.png"],
    )
    line = ["predict", "--checkpoint", str(tmp_path / "model.safetensors"), "--threshold", "2", str(folder)]
    assert run_command("detect", line) == 2


@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_the_verb_limits_results_as_the_predictor_does(
    task: str, pictures: list[Path], tmp_path: Path, capsys: Any
) -> None:
    model = narrow(task)
    if task == "seg":
        out, limit = run_verb(task, model, pictures[:1], tmp_path, "--threshold", "0.9"), {"threshold": 0.9}
    else:
        out, limit = run_verb(task, model, pictures[:1], tmp_path, "--top-k", "2"), {"top_k": 2}
    (mine,) = load_predictor(model, device="cpu", **limit)(pictures[:1])
    if task == "cls":
        record = json.loads((out / "predictions.json").read_text())
        assert [one["label"] for one in record["images"][0]["predictions"]] == mine.order.tolist()
        assert len(mine.order) == 2
        assert record["written"].startswith("2 of 3 classes")
    elif task == "det":
        assert same_boxes(out / "predictions.json", [mine], pictures[:1]) == 2
    else:
        same_masks(out, [mine], pictures[:1])
        assert (mine.labels == 255).any()
    option, word = {"cls": ("--threshold", "0.5"), "det": ("--top-k", "0"), "seg": ("--top-k", "1")}[task], "top"
    line = ["predict", "--checkpoint", str(tmp_path / "model.safetensors"), *option, str(pictures[0])]
    assert run_command(COMMANDS[task], line) == 2
    assert (option[0] if task != "seg" else word) in capsys.readouterr().err


def test_links_are_followed_unless_the_line_says_otherwise(pictures: list[Path], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(pictures[0])
    out = run_verb("cls", narrow("cls"), [tmp_path / "in"], tmp_path)
    assert len(json.loads((out / "predictions.json").read_text())["images"]) == 1
    line = ["predict", "--checkpoint", str(tmp_path / "model.safetensors"), "--data.links", "inside"]
    assert run_command("classify", [*line, str(tmp_path / "in")]) == 2
    assert "a.png: is a link that leaves" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [("coco_mini", "det"), ("bccd", "det"), ("camvid", "seg")])
def test_equals_the_files_of_the_verb_on_real_data(name: str, task: str, tmp_path: Path) -> None:
    root = os.environ.get("EFFBACKBONES_DATA")
    if not root:
        pytest.skip("EFFBACKBONES_DATA is not set")
    files = sorted(path for path in Path(root, name).rglob("*") if path.suffix in (".jpg", ".png"))[:60]
    files = list({path.stem: path for path in files}.values())
    model = narrow(task, size=128)
    out = run_verb(task, model, files, tmp_path)
    found = load_predictor(model, device="cpu", batch_size=5)(files)
    if task == "det":
        assert same_boxes(out / "predictions.json", found, files) > 1000
    else:
        same_masks(out, found, files)


def ask_elsewhere(ask: Any, file: Path, answers: Any) -> None:
    answers.put(ask(file).boxes.tolist())


@pytest.mark.slow
def test_goes_into_a_spawned_process(pictures: list[Path]) -> None:
    ask, context = load_predictor(narrow("det"), device="cpu"), multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=ask_elsewhere, args=(ask, pictures[0], answers))
    process.start()
    assert np.array(answers.get(timeout=120)) == pytest.approx(np.array(ask(pictures[0]).boxes.tolist()), abs=1e-3)
    process.join()


def test_the_verb_asks_the_predictor(pictures: list[Path], tmp_path: Path, capsys: Any) -> None:
    """Unreadable files are counted one by one, however many stand in a row; other depths, in batches of their own."""
    bad = [tmp_path / f"a{k:02}.png" for k in range(25)]
    for file in bad:
        file.write_bytes(b"x")
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    model = narrow("cls", depth="native")
    save_model(model, tmp_path / "model.safetensors")
    line = ["predict", "--checkpoint", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "out"), *QUIET]
    good = [tmp_path / "deep.png", pictures[0]]
    assert run_command("classify", [*line, *map(str, [*bad, *good])]) == 2
    told = capsys.readouterr().err
    assert f"predictions of 2 images in {tmp_path / 'out'}" in told
    assert f"error: {bad[0]}: cannot be read as an image" in told
    assert told.rstrip().endswith("(and 24 more files)")
    assert [f"not predicted: {name}: " in told for name in bad] == [False, *[True] * 19, *[False] * 5]
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    for row, mine in zip(rows, load_predictor(model, device="cpu")(good), strict=True):
        assert [row["file"], *(one["label"] for one in row["predictions"])] == [mine.source, *mine.order.tolist()]


def test_a_transform_of_ones_own_brings_images_to_size() -> None:
    def halved(sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, image=sample.image[::2, ::2])

    pixels, plan = fit_of(halved)(np.zeros((40, 60, 3), np.uint8))
    assert pixels.shape == (20, 30, 3)
    assert (plan.original, plan.scaled) == ((40, 60), (20, 30))
    found = load_predictor(narrow("seg"), device="cpu", fit=fit_of(halved))(np.zeros((80, 100, 3), np.uint8))
    assert found.labels.shape == (80, 100)


def test_names_that_are_not_those_of_the_head_are_told_and_missing_ones_are_numbers(pictures: list[Path]) -> None:
    model = narrow("cls")
    model.classes = ("a",)
    with pytest.raises(UserError, match=r"Model\.classes: expected \d names, got \('a',\)"):
        load_predictor(model, device="cpu")
    both: Any = narrow(("det", "seg"))
    both.classes = ("a", "b")
    with pytest.raises(UserError, match=r"Model\.classes: expected names by task: det, seg"):
        load_predictor(both, device="cpu")
    both.classes = {"det": tuple("abcdefgh"[: both.head.heads["det"].num_classes])}
    assert load_predictor(both, device="cpu").classes["seg"][0] == "0"
