"""Looks at an image, mirrored, at other sizes and in slices, through exported files: what their models find, or one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_inference_predictor import narrow
from tests_support import QUIET, calibrated, class_names, one_line

from effbackbones import UserError, load_predictor, save_model
from effbackbones.export import export_model
from effbackbones.export.agreement import Agreement, Tolerance
from effbackbones.inference.runtimes import TRUST
from tasks.verbs.command import run_command

pytestmark = pytest.mark.slow
pytest.importorskip("onnxscript")
SUFFIXES = (".onnx", ".xml", ".pt2")
SCALES, PIECES = {"tta": "flip,0.8,1.5"}, {"slices": "48,12"}


def scenes(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)) for _ in range(count)]
    return [np.asarray(one.resize((100 + 9 * i, 80), Image.Resampling.BICUBIC)) for i, one in enumerate(small)]


def written(task: Any, suffix: str, folder: Path, **how: Any) -> tuple[Path, Path]:
    """A checkpoint and its exported file."""
    if suffix == ".xml":
        pytest.importorskip("openvino")
    # A detector whose images need no padding: a checkpoint fills it with more of the image, a graph of one size cannot.
    model = calibrated(narrow(task, size=128 if "det" in task else 64), scenes(4))
    save_model(model, folder / "model.safetensors")
    export_model(folder / "model.safetensors", folder / f"model{suffix}", images=None, **how)
    return folder / "model.safetensors", folder / f"model{suffix}"


def same(task: Any, one: Any, other: Any) -> None:
    if isinstance(one, dict):
        for word in one:
            same(word, one[word], other[word])
    elif task == "cls":
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-4)
    elif task == "det":
        assert len(one) > 3
        found = Agreement(Tolerance(pixels=0.05))  # boxes of equal scores may change places
        lists = [vars(each) | {"count": np.array(len(each))} for each in (one, other)]
        found.add("det", *lists)
        assert found.share() > 0.98
    else:
        assert other.labels.shape == one.labels.shape
        assert (other.labels == one.labels).mean() > 0.999
        np.testing.assert_allclose(other.confidence, one.confidence, atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("task", "how", "fine", "refused"),
    [
        ("cls", {}, [{"tta": "flip"}, SCALES], [PIECES]),
        ("seg", {}, [{"tta": "flip"}, SCALES], [PIECES]),
        ("det", {}, [{"tta": "flip"}, {**PIECES, "tta": "1.5"}, {"tta": "flip", "slices": "48,12,whole"}], [SCALES]),
        (("det", "seg"), {}, [{"tta": "flip"}], [SCALES, PIECES]),
        ("cls", {"dynamic_size": False}, [{"tta": "flip"}], [SCALES, PIECES]),
        ("seg", {"dynamic_size": False}, [{"tta": "flip"}], [SCALES, PIECES]),
        ("cls", {"preprocessing": "resize"}, [{"tta": "flip"}], [SCALES, PIECES]),
        ("det", {"preprocessing": "resize"}, [{"tta": "flip"}], [SCALES, PIECES]),
        ("seg", {"preprocessing": "resize"}, [{"tta": "flip"}], [SCALES, PIECES]),
    ],
)
def test_looks_find_what_those_of_the_model_find(
    task: Any,
    how: dict[str, Any],
    fine: Any,
    refused: Any,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TRUST, "1")
    checkpoint, file = written(task, suffix, tmp_path, **how)
    images = scenes(3)
    for looks in fine:
        ours, theirs = (load_predictor(one, device="cpu", batch_size=3, **looks)(images) for one in (checkpoint, file))
        for one, other in zip(ours, theirs, strict=True):
            assert type(other) is type(one)
            if how.get("preprocessing") != "resize":  # which is not PIL's
                same(task, one, other)
            elif task == "cls":
                np.testing.assert_allclose(other.probabilities, one.probabilities, atol=0.05)
            elif task == "seg":
                assert (other.labels == one.labels).mean() > 0.9
    for looks in refused:
        with pytest.raises(UserError) as error:
            load_predictor(file, device="cpu", **looks)
        one_line(error, next(name for name in ("slices", "tta") if name in looks))


def data(task: str, folder: Path) -> list[str]:
    """Three labelled images, and the line that names them."""
    images = scenes(3)
    if task == "cls":
        for number, image in enumerate(images):
            for split in ("train", "val"):
                place = folder / split / class_names(3)[number]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{number}.png")
        return ["--data.name", "folder", "--data.root", str(folder)]
    if task == "seg":
        for split in ("train", "val"):
            for number, image in enumerate(images):
                for kind, pixels in (("images", image), ("masks", image[..., 0] // 86)):
                    (folder / split / kind).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(folder / split / kind / f"{number}.png")
        (folder / "classes.txt").write_text("\n".join(class_names(3)))
        return ["--data.name", "masks", "--data.root", str(folder)]
    rows, names = [], [{"id": k + 1, "name": name} for k, name in enumerate(class_names(3))]
    told = []
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
        told.append({"id": number, "file_name": f"{number}.png", "height": image.shape[0], "width": image.shape[1]})
        box = {"image_id": number, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
        rows += [{"id": 3 * number + k, "category_id": k + 1, **box} for k in range(3)]
    (folder / "val.json").write_text(json.dumps({"images": told, "annotations": rows, "categories": names}))
    options = ["--data.options", f"{{images: {folder}}}"]
    return [
        "--data.name",
        "coco",
        "--data.root",
        str(folder),
        "--data.train",
        "val.json",
        "--data.val",
        "val.json",
        *options,
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("task", "command", "looks"),
    [
        ("cls", "classify", ["--tta", "flip,1.25"]),
        ("det", "detect", ["--tta", "flip", "--slices", "64,16,whole"]),
        ("seg", "segment", ["--tta", "flip,1.25"]),
    ],
)
def test_commands_look_so_too(
    task: str, command: str, looks: list[str], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, "1")
    files = written(task, suffix, tmp_path)
    line, scores, found = data(task, tmp_path / "data") if (tmp_path / "data").mkdir() is None else [], [], []
    (tmp_path / "picture").mkdir()
    Image.fromarray(scenes(1)[0]).save(tmp_path / "picture" / "one.png")
    for file in files:
        out = tmp_path / file.suffix
        named = ["--checkpoint", str(file), *QUIET, *looks]
        assert run_command(command, ["evaluate", *named, "--out", str(out / "scores"), *line]) == 0
        assert run_command(command, ["predict", *named, "--out", str(out / "found"), str(tmp_path / "picture")]) == 0
        told = json.loads((out / "scores" / "metrics.json").read_text())["model"]
        scores.append({name: told[name] for name in ("top1", "AP", "miou", "top-1") if name in told})
        pictures = sorted((out / "found").rglob("*one*.png"))
        found.append([np.asarray(Image.open(picture), np.float64) for picture in pictures])
    assert scores[0]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    for one, other in zip(*found, strict=True):
        assert np.abs(one - other).mean() < 1
