"""Images to vectors, and the nearest of each."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import one_line

from effbackbones import Embedder, ImageSpec, UserError, build_model, create_backbone, save_model
from effbackbones.inference.embedding import nearest_images
from tasks.run import main

SMALL = {"width": 0.25, "depth": 0.3}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    options = {**SMALL, "image_spec": ImageSpec((32, 48), crop_fraction=1.0)}
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    torch.manual_seed(0)
    model = build_model("cls", "b0", num_classes=2, backbone_options=options)
    for _ in range(2):
        model.train()(torch.rand(8, 3, 32, 48))  # batch statistics, so that images differ in their vectors
    save_model(model.eval(), path)
    return path


def pictures(folder, count=5, size=(48, 32)):
    folder.mkdir()
    draw = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return paths


def test_vectors_are_the_means_of_the_map(tmp_path, model_file):
    paths = pictures(tmp_path / "x")
    embedder = Embedder(model_file, batch_size=2, device="cpu")
    found = embedder(paths)
    model = embedder.network
    for path, vector in zip(paths, found, strict=True):
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = model.backbone(model.normalize(image))[-1].mean((2, 3))[0]
        torch.testing.assert_close(torch.from_numpy(vector), expected)
    assert found.shape == (5, embedder.dimensions)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(embedder))(paths[0]), found[:1], rtol=1e-4, atol=1e-6)  # noqa: S301
    assert embedder([]).shape == (0, embedder.dimensions)


def test_what_a_letterbox_pads_is_no_part_of_the_mean():
    torch.manual_seed(0)
    spec = ImageSpec((64, 64), crop_mode="letterbox")
    backbone = create_backbone("b0", levels=("C2", "C3"), image_spec=spec, **SMALL)
    embedder = Embedder(backbone, level="C2")
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    whole = np.concatenate([image, np.broadcast_to([124, 116, 104], (32, 64, 3)).astype(np.uint8)])
    with torch.no_grad():
        maps = backbone(backbone.normalize(torch.from_numpy(whole).permute(2, 0, 1)[None]))[0]
    torch.testing.assert_close(torch.from_numpy(embedder(image)), maps[:, :, :8].mean((2, 3)))


def test_a_wrong_level_and_image_are_one_line(tmp_path, model_file):
    with pytest.raises(UserError) as error:
        Embedder(model_file, level="C2")
    one_line(error, "level", "b0 gives no C2", "C5")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        Embedder(model_file)([tmp_path / "a.png"])
    one_line(error, "a.png")


@pytest.mark.parametrize("block", [3, 100])
def test_the_nearest_are_those_of_all_pairs(block):
    vectors = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    rows, values = nearest_images(vectors, 4, block=block)
    for i in range(20):
        expected = [j for j in np.argsort(-cosine[i]) if j != i][:4]
        assert rows[i].tolist() == expected
        np.testing.assert_allclose(values[i], cosine[i][expected], rtol=1e-4, atol=1e-6)
    assert nearest_images(vectors[:3], 9)[0].shape == (3, 2)
    assert nearest_images(vectors[:1], 9)[0].shape == (1, 0)


def embed(*words):
    return main(["classify", "embed", *map(str, words), "--run.device", "cpu", "--run.progress", "false"])


def test_the_command_writes_an_array_with_names_and_the_nearest(tmp_path, model_file, capsys):
    paths = pictures(tmp_path / "x")
    (tmp_path / "x" / "bad.png").write_bytes(b"no image")
    out = tmp_path / "new" / "f.npy"
    assert embed("--checkpoint", model_file, tmp_path / "x", "--out", out, "--nearest", 2) == 2
    assert "bad.png" in capsys.readouterr().err
    about = json.loads(Path(f"{out}.json").read_text())  # f.json may be somebody's
    assert about["images"] == list(map(str, paths))
    assert (about["backbone"], about["level"]) == ("b0", "C5")
    expected = Embedder(model_file)(paths)
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-4, atol=1e-6)
    with open(out.with_suffix(".nearest.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["nearest"] for row in rows[:2]] == [str(paths[i]) for i in nearest_images(expected, 2)[0][0]]
    assert embed("--checkpoint", model_file, paths[0], "--out", tmp_path / "f.txt") == 2
    assert "ends in .npy or .parquet" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_a_table(tmp_path, model_file):
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = pictures(tmp_path / "x", 3)
    assert embed("--checkpoint", model_file, tmp_path / "x", "--out", tmp_path / "f.parquet") == 0
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table["image"].to_pylist() == list(map(str, paths))
    np.testing.assert_allclose(
        np.array(table["features"].to_pylist()), Embedder(model_file)(paths), rtol=1e-4, atol=1e-6
    )
    assert json.loads(table.schema.metadata[b"effbackbones"])["level"] == "C5"
