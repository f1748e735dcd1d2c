"""What counts as agreement, resizing as PIL does it, and the record that files carry."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from effbackbones import build_model
from effbackbones.errors import UserError
from effbackbones.export import exporting
from effbackbones.export.agreement import Agreement, Tolerance
from effbackbones.export.certificate import refused, scored
from effbackbones.export.record import ExportRecord, HeadFacts, Port, files_of
from effbackbones.export.resizing import Resizing
from effbackbones.images.geometry import ResizePlan


def boxes(*rows: tuple[float, float, int], count: int | None = None) -> dict[str, Any]:
    """Boxes of ten pixels at (left, score, label)."""
    corners = np.array([[left, 0, left + 10, 10] for left, _, _ in rows], np.float32)
    scores, labels = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    return {
        "boxes": corners,
        "scores": scores,
        "labels": labels,
        "count": np.array(len(rows) if count is None else count),
    }


@pytest.mark.parametrize(
    ("expected", "found", "same", "of"),
    [
        (boxes((0, 0.9, 1), (50, 0.8, 1)), boxes((0.5, 0.9004, 1), (50, 0.8, 1)), 4, 4),
        (boxes((0, 0.9, 1), (50, 0.8, 1)), boxes((0, 0.85, 1), (50, 0.8, 1)), 2, 4),
        (boxes((0, 0.9, 1), (50, 0.8, 1)), boxes((0, 0.9, 2), (50, 0.8, 1)), 2, 4),
        (boxes((0, 0.9, 1), (50, 0.8, 1)), boxes((2, 0.9, 1), (50, 0.8, 1)), 2, 4),
        (boxes((0, 0.9, 1), (0, 0.0, 1), count=1), boxes((0, 0.9, 1), (50, 0.8, 1)), 2, 3),  # one more
        (boxes((0, 0.9, 1), (50, 0.8, 1)), boxes((0, 0.9, 1), (90, 0.8, 1)), 2, 2),  # at the end of full lists, either
        (boxes((0, 0.9, 1), (0, 0.0, 1), count=0), boxes((0, 0.9, 1), (0, 0.0, 1), count=0), 0, 0),
    ],
)
def test_boxes_agree_within_a_pixel_and_a_thousandth(expected: Any, found: Any, same: int, of: int) -> None:
    agreement = Agreement(Tolerance())
    agreement.add("det", expected, found)
    assert (agreement.same["boxes"], agreement.all["boxes"]) == (same, of)
    assert agreement.share() == (same / of if of else 0)


def test_classes_and_pixels_agree_by_what_they_decide() -> None:
    agreement = Agreement(Tolerance())
    one, other = np.array([0.5, 0.4, 0.1]), np.array([0.4, 0.5, 0.1])
    agreement.add("cls", {"probabilities": one}, {"probabilities": one})
    agreement.add("cls", {"probabilities": one}, {"probabilities": other})
    agreement.add("cls", {"probabilities": one}, {"probabilities": one + np.nan}, multilabel=True)
    maps = np.array([[[0.6, 0.2]], [[0.4, 0.8]]])
    agreement.add("seg", {"probabilities": maps}, {"probabilities": maps[::-1]})
    surer = maps + np.array([[[0.1]], [[0.2]]])
    agreement.add("seg", {"probabilities": maps}, {"probabilities": surer}, multilabel=True)  # each class by itself
    agreement.add("seg", {"labels": np.array([[0, 1]])}, {"labels": np.array([[0, 0]])})
    agreement.add("cls", {"logits": one}, {"logits": one + 0.1})
    assert agreement.same == {"top-1": 1, "labels": 3, "pixels": 4, "values": 0}
    assert agreement.all == {"top-1": 2, "labels": 3, "pixels": 8, "values": 3}
    assert agreement.largest["probabilities"] == np.inf  # NaN is no agreement
    assert agreement.share() == 0


def test_a_certificate_refuses_by_agreement_by_score_and_where_nothing_was_seen() -> None:
    fine = {
        "images": 2,
        "agreement": {"boxes": 0.99},
        "compared": {"boxes": 9},
        "least_agreement": 0.99,
        "bounds": {"agreement": 0.9, "score": 0.01},
    }
    assert refused(fine) is None
    assert refused({**fine, "least_agreement": 0.8}) is not None
    assert "no boxes to compare" in str(refused({**fine, "compared": {"boxes": 0}}))
    assert refused(scored(fine, {"AP": 0.5}, {"AP": 0.505})) is None
    assert refused(scored(fine, {"AP": None}, {"AP": None})) is None
    for after in (0.48, 0.52, None):
        assert "AP of the model and of the exported file is 0.5000 and" in str(
            refused(scored(fine, {"AP": 0.5}, {"AP": after}))
        )


@pytest.mark.parametrize("mode", ["letterbox", "squash", "center"])
@settings(max_examples=30, deadline=None)
@given(
    original=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.sampled_from([(32, 32), (24, 40), (64, 48)]),
    crop=st.sampled_from([1.0, 0.875]),
)
def test_sides_are_those_of_the_commands(
    mode: str, original: tuple[int, int], size: tuple[int, int], crop: float
) -> None:
    resizing = Resizing(size, mode, "bilinear", crop if mode != "letterbox" else 1.0, (0.0, 0.0, 0.0))
    if mode == "letterbox":
        plan = ResizePlan.letterbox(original, size)
    else:
        plan = ResizePlan.center_crop(original, size, crop, squash=mode == "squash")
    ours = resizing.scaled(*original)
    if mode == "center" and size[0] != size[1]:  # halves may be rounded to the other side
        assert max(abs(a - b) for a, b in zip(ours, plan.scaled, strict=True)) <= 1
    else:
        assert ours == plan.scaled


@pytest.mark.parametrize("mode", ["letterbox", "squash", "center"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("original", [(120, 90), (40, 31), (64, 200)])
def test_pixels_are_those_of_pil_but_for_rounding(mode: str, interpolation: str, original: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    image = np.asarray(small.resize(original[::-1], Image.Resampling.BICUBIC))
    resizing = Resizing((48, 48), mode, interpolation, 0.875 if mode == "center" else 1.0, (124.0, 116.0, 104.0))
    plan = (
        ResizePlan.letterbox(original, (48, 48))
        if mode == "letterbox"
        else ResizePlan.center_crop(original, (48, 48), resizing.crop_fraction, squash=mode == "squash")
    )
    expected = plan.apply_image(image, interpolation, (124, 116, 104))
    found, sizes = resizing(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
    assert sizes.valid.tolist() == [list(plan.valid)]
    gap = np.abs(found[0].permute(1, 2, 0).numpy() * 255 - expected)
    assert gap.max() <= 2
    assert gap.mean() < 0.3


def test_a_full_disk_is_told_once_and_is_no_fault_of_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(exporting.WRITERS, "onnx", exporting.WRITERS["onnx"]._replace(write=full))
    monkeypatch.setattr(exporting.Traced, "of", lambda *_, **__: None)
    told: list[str] = []
    model = build_model("cls", "lite0", num_classes=2, backbone_options={"width": 0.25, "depth": 0.25}).eval()
    with pytest.raises(UserError, match=r"m\.onnx: cannot be written \(No space left on device\)"):
        exporting.export_model(model, tmp_path / "m.onnx", images=None, tell=told.append)
    assert not told
    assert not list(tmp_path.iterdir())


def record() -> ExportRecord:
    model = {"config": {"backbone": "b0"}}
    port = Port("images", "uint8", ("batch", 3, 64, 64), "images")
    facts = HeadFacts("cls", 3, ("probabilities",))
    return ExportRecord("onnx", "fp32", "normalize", "predict", (port,), (port,), (facts,), False, model)


def test_a_record_is_read_as_it_was_written() -> None:
    assert ExportRecord.of(record().to_json(), Path("a.onnx")) == record()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "a.onnx: carries no record 'effbackbones': it was not exported here"),
        ("{", "a.onnx: its record 'effbackbones' is broken"),
        ("[]", "is broken"),
        ('{"version": 1}', "is broken"),
        ('{"version": 99}', "its record is of version 99, this installation reads up to 1; update effbackbones"),
    ],
)
def test_a_record_that_is_none_is_told(text: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ExportRecord.of(text, Path("a.onnx"))


def test_a_file_is_as_large_as_all_that_it_consists_of(tmp_path: Path) -> None:
    assert files_of(tmp_path / "a.xml") == [tmp_path / "a.xml", tmp_path / "a.bin"]
    assert files_of(tmp_path / "a.onnx") == [tmp_path / "a.onnx"]
