"""What an image spec says of recordings, and that those of pictures are written as they always were."""

import json
from dataclasses import replace

import pytest
import torch

from effbackbones import ImageSpec, UserError, build_model, load_model, save_model
from effbackbones.images.spec import SILENCE


def test_sound_is_a_row_of_samples_that_become_waves():
    spec = ImageSpec.of_sound(8000, 4000)
    assert (spec.size, spec.rate, spec.crop_mode, spec.mean) == ((1, 4000), 8000, "window", (SILENCE,))
    assert (
        spec.told()
        == "windows of 0.5 s (4,000 samples) at 8,000 samples a second, shorter recordings padded with silence"
    )
    assert ImageSpec(**spec.record()) == spec
    samples = torch.tensor([0, 32768, 65535], dtype=torch.float64)
    waves = (samples / 65535 - spec.mean[0]) / spec.std[0]
    assert torch.allclose(waves, torch.tensor([-1, 0, 32767 / 32768], dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rate": None}, "image_spec.rate"),
        ({"crop_mode": "center"}, "image_spec.rate"),
        ({"rate": 10}, "image_spec.rate"),
        ({"rate": 8000.5}, "image_spec.rate"),
        ({"size": (2, 4000)}, "image_spec.size"),
        ({"size": (1, 2**25)}, "image_spec.size"),
        ({"size": (1, 0)}, "image_spec.size"),
    ],
)
def test_sound_specs_that_are_none_are_refused_with_the_field(changes, line):
    with pytest.raises(UserError, match=f"^{line}: "):
        replace(ImageSpec.of_sound(8000, 4000), **changes)


def test_files_of_pictures_say_no_rate_and_are_read(tmp_path):
    model = build_model(backbone="b0", num_classes=2, backbone_options={"width": 0.1, "depth": 0.1})
    assert "rate" not in model.image_spec.record()
    file = save_model(model, tmp_path / "a.safetensors") or tmp_path / "a.safetensors"
    head = file.read_bytes()
    record = json.loads(json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])["__metadata__"]["record"])
    assert sorted(record["image_spec"]) == ["crop_fraction", "crop_mode", "interpolation", "mean", "size", "std"]
    assert load_model(file).image_spec == model.image_spec
