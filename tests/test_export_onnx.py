"""A file of ONNX says what its model says, tells all about itself, and is refused where it does not agree."""

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import ROOT, printed_by

from effbackbones import Model, UserError, build_model, load_predictor, save_model
from effbackbones.export import export_model, formats
from effbackbones.export.onnxfile import require
from effbackbones.export.quantisation import quantise
from effbackbones.export.record import ExportRecord
from effbackbones.inference.exported import ExportedModel
from effbackbones.inference.runtimes import open_runtime
from tasks.detect import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {"width": 0.25, "depth": 0.3}
NAMES = ("cat", "dog", "hen")


@pytest.mark.parametrize(("package", "extra"), [("onnx", "export"), ("onnxscript", "export"), ("openvino", "openvino")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"the package {package}, .*effbackbones\[{extra}\]"):
        require(package)


def scenes(count: int, size: tuple[int, int] = (90, 120)) -> list[Any]:
    """Smooth images of different shapes, uint8."""
    rng = np.random.default_rng(0)
    height, width = size
    return [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(
                (width + 17 * i, height), Image.Resampling.BICUBIC
            )
        )
        for i in range(count)
    ]


def spread(model: Model, std: float = 1.0) -> Model:
    """The model with a last layer that tells images apart."""
    last = [module for module in model.head.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)][-1]
    torch.nn.init.normal_(last.weight, std=std, generator=torch.Generator().manual_seed(1))
    return model


def detector() -> Model:
    torch.manual_seed(0)
    options = {"channels": 8, "cells": 1, "repeats": 1, "levels": [3, 4], "max_detections": 20, "pre_nms": 200}
    model = build_model("det", "b0", num_classes=3, backbone_options=SMALL, head_options=options).eval()
    head: Any = model.head
    torch.nn.init.normal_(head.class_net.predict.pointwise.weight, std=0.5)
    torch.nn.init.normal_(head.class_net.predict.depthwise.weight, std=0.5)
    model.use_image_spec(replace(model.image_spec, size=(64, 96)))
    model.classes = NAMES
    return model


class Exported(NamedTuple):
    model: Model
    path: Path
    checkpoint: Path
    record: ExportRecord


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small detector, its file, and what it was exported from."""
    folder = tmp_path_factory.mktemp("exported")
    model = detector()
    save_model(model, folder / "model.safetensors")
    record = export_model(folder / "model.safetensors", folder / "out" / "model.onnx", images=scenes(4))
    return Exported(model, folder / "out" / "model.onnx", folder / "model.safetensors", record)


def test_a_detector_answers_as_its_model_in_batches_of_any_number(exported: Exported) -> None:
    images = torch.from_numpy(np.stack([np.asarray(Image.fromarray(one).resize((96, 64))) for one in scenes(5)]))
    images = images.permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        expected = exported.model.predict(images)
    assert expected.count.min() > 3
    runtime = open_runtime(exported.path)
    found = runtime({"images": images.numpy(), "valid": np.array([[64, 96]] * 5)})
    np.testing.assert_array_equal(found["count"], expected.count)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found["labels"], expected.labels)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-2)
    assert found["finite"].all()


def test_the_file_says_all_about_itself(exported: Exported) -> None:
    told = {entry.key: entry.value for entry in onnx.load(str(exported.path)).metadata_props}
    record = json.loads(told["effbackbones"])
    beside = json.loads((exported.path.parent / "model.onnx.json").read_text())
    assert record == beside
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ["model.onnx", "model.onnx.json"]
    assert record["model"]["classes"] == list(NAMES)
    assert record["model"]["image_spec"]["size"] == [64, 96]
    assert record["heads"][0]["thresholds"]["nms_iou"] == 0.5
    assert record["heads"][0]["thresholds"]["max_detections"] == 20
    assert record["inputs"][0]["shape"] == ["batch", 3, 64, 96]
    assert record["inputs"][0]["dtype"] == "uint8"
    assert record["outputs"][0] | {"meaning": ""} == {
        "name": "boxes",
        "dtype": "float32",
        "shape": ["batch", 20, 4],
        "meaning": "",
    }
    assert record["source"]["file"] == "model.safetensors"
    assert len(record["source"]["sha256"]) == 64
    assert record["certificate"]["images"] == 4
    assert record["certificate"]["agreement"] == {"boxes": 1.0}
    assert record["certificate"]["largest_difference"]["scores"] < 1e-4
    graph = onnx.load(str(exported.path)).graph
    assert [side.dim_param or side.dim_value for side in graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        64,
        96,
    ]


def test_a_predictor_takes_the_file_as_it_takes_a_checkpoint(exported: Exported) -> None:
    images = scenes(3, (70, 50))
    ours, theirs = load_predictor(exported.checkpoint), load_predictor(exported.path)
    assert theirs.classes == NAMES
    again = pickle.loads(pickle.dumps(theirs))  # noqa: S301  # our own
    for one, other, third in zip(ours(images), theirs(images), again(images), strict=True):
        assert len(one) > 0
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-2)
        np.testing.assert_allclose(other.scores, one.scores, atol=1e-4)
        assert other.names == one.names
        np.testing.assert_array_equal(third.boxes, other.boxes)


@pytest.mark.parametrize(
    "looks",
    [
        {"tta": "flip"},
        {"slices": "48,12"},
        {"slices": "48,12,whole", "tta": "flip"},
        {"slices": "48,12", "tta": "1.25"},
    ],
)
def test_looks_through_a_graph_of_one_size_find_what_those_of_its_model_find(
    exported: Exported, looks: dict[str, str]
) -> None:
    images = scenes(2, (70, 90))
    ours, theirs = (load_predictor(file, **looks)(images) for file in (exported.checkpoint, exported.path))  # type: ignore[arg-type]
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) > 0
        assert other.names == one.names
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-2)
        np.testing.assert_allclose(other.scores, one.scores, atol=1e-4)


def test_looks_at_other_sizes_through_a_graph_of_one_size(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"^tta: the exported graph takes images of one size, .*; use flip, or ask"):
        load_predictor(exported.path, tta="flip,0.8")
    # Slices are of one size at every scale, and the look at the whole image stays the usual one.
    assert len(load_predictor(exported.path, tta="1.5", slices="48,12,whole")(scenes(1)[0])) > 0


def test_ranges_of_int8_end_where_an_activation_cuts_off(tmp_path: Path) -> None:
    """Of a layer from about -100 to 100 before ReLU6, steps are those of 0..6 and not those of 200."""
    rng, helper = np.random.default_rng(0), onnx.helper
    weights = {f"w{n}": rng.normal(0, 20, (4, 4, 1, 1)).astype(np.float32) for n in range(3)}
    ends = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    nodes = [
        helper.make_node("Conv", ["images", "w0"], ["a"]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["answer"]),
    ]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("images", "answer")
    ]
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in (weights | ends).items()]
    graph = helper.make_graph(nodes, "cuts", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "cuts.onnx"))
    quantise(tmp_path / "cuts.onnx", [{"images": rng.normal(0, 2, (1, 4, 8, 8)).astype(np.float32)} for _ in range(3)])
    made = onnx.load(str(tmp_path / "cuts.onnx")).graph
    known = {one.name: onnx.numpy_helper.to_array(one) for one in made.initializer}
    of_conv = [node.input[1] for node in made.node if node.op_type == "QuantizeLinear" and node.input[0] in ("a", "b")]
    assert len(of_conv) == 1
    assert float(known[of_conv[0]]) == pytest.approx(6 / 255, rel=0.02)
    assert "Clip" not in [node.op_type for node in made.node]


def damaged(path: Path, tmp_path: Path) -> Path:
    """The file with one weight of the class predictor that says something else."""
    model = onnx.load(str(path))
    weights = [one for one in model.graph.initializer if one.name.endswith("class_net.predict.pointwise.weight")]
    values = onnx.numpy_helper.to_array(weights[0]).copy()
    weights[0].CopyFrom(onnx.numpy_helper.from_array(-values, weights[0].name))
    onnx.save(model, str(tmp_path / "damaged.onnx"))
    return tmp_path / "damaged.onnx"


def test_a_broken_graph_is_refused_and_nothing_is_left(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, out = damaged(exported.path, tmp_path), tmp_path / "out"

    def write(found: Any, path: Path, *_: Any) -> Any:
        shutil.copy(broken, path)
        return exported.record.outputs

    monkeypatch.setitem(formats.WRITERS, "onnx", formats.WRITERS["onnx"]._replace(write=write))
    out.mkdir()
    (out / "model.onnx").write_bytes(b"before")
    with pytest.raises(UserError, match=r"model\.onnx: not exported: .* agrees with the model in .*% of boxes alone"):
        export_model(exported.checkpoint, out / "model.onnx", images=scenes(4))
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("model.onnx", b"before")]


def test_answers_that_are_not_finite_are_seen(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(str(exported.path))
    for one in model.graph.initializer:
        if one.name.endswith("class_net.predict.pointwise.weight"):
            one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) * np.float32("nan"), one.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(UserError, match="image 0: the network answers with what is not finite"):
        load_predictor(tmp_path / "nan.onnx")(scenes(1)[0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            {"out": "model.engine", "format": "tensorrt"},
            "format: unknown value 'tensorrt'; export to onnx, then trtexec",
        ),
        ({"out": "model.bin"}, "model.bin: is no name for an exported file; name it .onnx, .pt2 or .xml"),
        ({"out": "model.pt2", "format": "onnx"}, "model.pt2: is no name for onnx"),
        ({"postprocessing": "nms"}, "postprocessing: unknown value 'nms'; .*known: answer, none, predict"),
        ({"dynamic_size": True}, "dynamic_size: boxes are decoded at the anchors of one image size"),
        ({"images": []}, "images: there is none to compare"),
        ({"preprocessing": "resize", "postprocessing": "none"}, "preprocessing: raw output is of the resized image"),
    ],
)
def test_what_cannot_be_exported_is_told(tmp_path: Path, call: dict[str, Any], says: str) -> None:
    wanted = {"out": "model.onnx", "images": scenes(1), **call}
    with pytest.raises(UserError, match=says):
        export_model(detector(), tmp_path / wanted.pop("out"), **wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_is_told(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(UserError, match=r"other\.onnx: carries no record 'effbackbones': it was not exported here"):
        load_predictor(tmp_path / "other.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"broken\.onnx: cannot be opened as ONNX"):
        load_predictor(tmp_path / "broken.onnx")


def test_commands_take_the_file_as_they_take_a_checkpoint(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(scenes(1)[0]).save(picture)
    quiet = ["--run.progress", "false", "--data.workers", "0", "--run.device", "cpu"]
    for name, file in (("ours", exported.checkpoint), ("theirs", exported.path)):
        assert main(["predict", "--checkpoint", str(file), "--out", str(tmp_path / name), str(picture), *quiet]) == 0
    ours, theirs = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("ours", "theirs"))
    assert len(ours) > 3
    for one, other in zip(ours, theirs, strict=True):
        assert one["category_id"] == other["category_id"]
        np.testing.assert_allclose(other["bbox"], one["bbox"], atol=0.1)
    capsys.readouterr()
    for argv, says in (
        (
            ["--model.head_options", "{nms_iou: 0.7}"],
            "model.head_options.nms_iou: with --checkpoint: is part of the exported graph",
        ),
        (["--data.image_size", "128"], "image_spec: is part of the graph in"),
        (["--model.mean", "[0.5, 0.5, 0.5]"], "image_spec: is part of the graph in"),
    ):
        assert main(["predict", "--checkpoint", str(exported.path), str(picture), *quiet, *argv]) == 2
        assert says in capsys.readouterr().err


def test_shapes_and_dtypes_that_a_graph_does_not_take_are_told(exported: Exported) -> None:
    model = ExportedModel.open(exported.path)
    with pytest.raises(UserError, match=r"images: expected \['batch', 3, 64, 96\], got \[1, 3, 96, 96\]"):
        model.predict(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    with pytest.raises(UserError, match="images: expected uint8, got float32"):
        model.predict(torch.zeros(1, 3, 64, 96))
    with pytest.raises(UserError, match=r"model\.onnx: onnxruntime fails on images \[1, 3, 9, 9\]"):
        model.runtime({"images": np.zeros((1, 3, 9, 9), np.uint8)})
    with pytest.raises(UserError, match=r"exported model: cannot be trained; take the checkpoint"):
        model.head.loss(None, None, None)  # type: ignore[arg-type]


def test_the_example_without_torch_finds_what_a_predictor_finds(exported: Exported, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(scenes(1)[0]).save(picture)
    code = (
        "import sys, json; sys.modules['torch'] = None; sys.path.insert(0, sys.argv[1]); from deploy import detect;"
        "print(json.dumps(detect(sys.argv[2], sys.argv[3], 0.0)))"
    )
    found = json.loads(printed_by(code, str(ROOT / "examples"), str(exported.path), str(picture)))
    expected = load_predictor(exported.checkpoint)(picture)
    assert [name for name, _, _ in found] == list(expected.names)
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, atol=1e-4)
    np.testing.assert_allclose(np.array([box for _, _, box in found]), expected.boxes, atol=0.5)
