"""How images are read: by the model file, wherever it lies, unless the command line says otherwise; every difference is told."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from effbackbones import build_model, save_model
from effbackbones.images.spec import ReadingSpec
from tasks.classify import main
from tasks.data.door.reading import image_reader, read_as, reading_spec
from tasks.settings.commandline import parse
from tasks.settings.data import DataConfig

NATIVE = ReadingSpec("native", "ignore", (64, 96), 16, "aspect")


def test_a_config_says_how_images_are_read_and_takes_it_back():
    data, told = read_as(DataConfig(), NATIVE, ())
    assert reading_spec(data) == NATIVE
    assert (image_reader(data, "val").depth, image_reader(data, "val").exif, data.tile) == (
        "native",
        "ignore",
        (64, 96),
    )
    assert [line.split()[0] for line in told] == [
        "data.options.depth",
        "data.exif",
        "data.tile",
        "data.tile_overlap",
        "data.batch_shape",
    ]
    assert read_as(data, NATIVE, ()) == (data, ())
    plain = ReadingSpec()
    back, _ = read_as(data, plain, ())
    assert replace(reading_spec(back), tile_overlap=plain.tile_overlap) == plain


@pytest.mark.parametrize(
    ("keys", "exif", "depth"),
    [((), "ignore", "native"), (("data.exif",), "apply", "native"), (("data.options.depth",), "ignore", "8")],
)
def test_the_command_line_wins_and_that_is_told(keys, exif, depth):
    data, told = read_as(DataConfig(options={"depth": 8}), NATIVE, keys)
    assert (data.exif, str(data.options["depth"])) == (exif, depth)
    assert sum("as asked for" in line for line in told) == len(keys)
    assert len(told) == 5


def test_a_data_set_without_depths_is_not_given_one():
    data, _ = read_as(DataConfig(name="shapes"), ReadingSpec(exif="ignore"), ())
    assert "depth" not in data.options


def test_the_keys_that_a_line_says_are_known():
    request = parse("segment", ["predict", "x.png", "--data.exif", "ignore", "--data.tile", "96"])
    assert request.extras.overrides == ("data.exif", "data.tile")


def test_a_model_file_far_from_its_run_reads_as_it_was_trained(tmp_path, capsys):
    torch.manual_seed(0)
    model = build_model("cls", "lite0", num_classes=3, backbone_options={"width": 0.25, "depth": 0.25})
    model.reading = ReadingSpec(exif="ignore")
    save_model(model, tmp_path / "m.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    pixels[:20, :30] = 0  # so that a turned image gives other probabilities
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=tag)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    names = [str(tmp_path / name) for name in ("turned.png", "plain.png")]
    line = ["predict", "--checkpoint", str(tmp_path / "m.safetensors"), *names, "--data.workers", "0"]

    def said(*more: str) -> list[list[list[str]]]:
        assert main([*line, "--out", str(tmp_path / "out"), *more]) == 0
        rows = list(csv.reader((tmp_path / "out" / "predictions.csv").open()))
        return [[row[1:] for row in rows if row[0].endswith(name)] for name in ("turned.png", "plain.png")]

    turned, plain = said()
    assert turned == plain
    assert "data.exif ignore as the model was made with" in capsys.readouterr().err
    turned, plain = said("--data.exif", "apply")
    assert turned != plain
    assert "data.exif apply as asked for" in capsys.readouterr().err
