"""The benchmarks: rows that exist, sides that are compared before they are timed, figures that are kept, and pages that say them."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import ROOT
from torch import nn

sys.path.insert(0, str(ROOT))  # benchmarks are not installed

from benchmarks import __main__ as command, pages, results, smaller
from benchmarks.limits import Limits, Work, counting
from benchmarks.row import Found, Ratio, Row, Setting, Side
from benchmarks.table import ROWS
from benchmarks.turns import Spread, in_turns, ratios
from effbackbones.contracts import Detections
from effbackbones.errors import UserError

MACHINE = {"processor": "a CPU", "threads": 2, "rounds": 9, "python": "3.11", "versions": {"torch": "2.14"}}


def row(name: str = "b0-batch8", ours: float = 10.0, theirs: float = 20.0) -> dict[str, Any]:
    """A record as a row leaves it."""
    share = {"arithmetic": 0.25, "traffic": 0.5}
    sides = [
        Side("model.predict", True, ours, ours, ours, 9, share),
        Side("timm channels_last", False, theirs, 19, 21, 9, share),
    ]
    limits = {"flops": 1e9, "flops_bf16": 2e9, "bytes_per_second": 3e9}
    found = Found("ms", sides, [Ratio("model.predict", "timm channels_last", ours / theirs, 0.4, 0.6)], limits=limits)
    return {"what": ROWS[name].what, "group": ROWS[name].group, "device": "cpu", **found.record(), "machine": MACHINE}


@pytest.mark.parametrize("name", ROWS)
def test_rows_lead_to_functions(name: str) -> None:
    module, _, function = ROWS[name].run.partition(":")
    taken = importlib.import_module(module)
    parameters = getattr(taken, function).__annotations__
    assert {"setting", "return"} | set(ROWS[name].arguments) <= set(parameters)


def test_the_list_needs_no_torch_and_a_wrong_name_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys\nfrom benchmarks.__main__ import main\nmain(['--list'])\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert all(f"\n{name} " in f"\n{done.stdout}" for name in ROWS)
    assert command.main(["b0-stepp"]) == 2
    assert "did you mean b0-step" in capsys.readouterr().err
    assert command.main(["gpu-b0"]) == 2
    assert "--device cuda" in capsys.readouterr().err
    assert command.main(["b0-step", "--rounds", "1"]) == 2
    assert {row.group for row in command.chosen(["training"], "cpu")} == {"training"}
    assert not {row.name for row in command.chosen([], "cpu")} & {
        row.name for row in ROWS.values() if row.device == "cuda"
    }
    assert {row.device for row in command.chosen(["gpu"], "cuda")} == {"cuda"}


def test_a_missing_peer_is_named_with_its_package() -> None:
    absent = Row("x", "g", "w", "benchmarks.startup:seconds", needs=("no_such_package", "segmentation_models_pytorch2"))
    with pytest.raises(UserError, match=r"compares with no_such_package and segmentation_models_pytorch2.*pip install"):
        absent.measure(Setting())


def test_turns_go_there_and_back_and_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.turns.ENOUGH", 0.0)
    order: list[str] = []
    times = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 4)
    assert "".join(order) == "bbaaaabb" * 3  # the second run of a turn counts
    assert [len(found) for found in times.values()] == [4, 4]
    assert ratios([1, 2, 9], [2, 4, 3]) == Spread(0.5, 0.5, 3.0, 3)


def test_work_is_counted_of_convolutions_and_products_alone() -> None:
    convolution, images = nn.Conv2d(4, 8, 1, bias=False), torch.zeros(2, 4, 5, 5)
    with counting() as work, torch.no_grad():
        convolution(images).sigmoid()
    assert work == Work(2 * 2 * 25 * 4 * 8, 4 * (2 * 4 * 25 + 4 * 8 + 2 * 8 * 25))
    limits = Limits(1e4, 2e4, 1e3)
    assert work.share(2.0, limits) == {"arithmetic": work.flops / 2e4, "traffic": work.bytes / 2e3}
    assert work.share(2.0, limits, half=True)["traffic"] == work.bytes / 4e3


@pytest.mark.peer
def test_sides_that_do_other_work_are_refused() -> None:
    pytest.importorskip("timm")
    from benchmarks.networks import classifier, our_loss, same_answers, same_losses, without_chance

    pair = classifier("b0", classes=5, side=64)
    pixels, targets = pair.pictures(2), torch.tensor([1, 3])
    images = pair.ours.normalize(pixels)
    mine, other = pair.ours.eval().predict(pixels), pair.answer(pair.peer.eval())(images).detach()
    assert same_answers(mine, other, "answers").startswith("answers equal to")
    with pytest.raises(UserError, match="do not do the same work"):
        same_answers(mine.flip(1), other, "answers")
    loss = pair.loss(pair.peer.train(), targets)
    before = {key: value.clone() for key, value in pair.ours.train().state_dict().items()}
    assert same_losses(pair, pixels, targets, loss, images).startswith("loss equal")
    assert all(value.equal(before[key]) for key, value in pair.ours.state_dict().items())
    with pytest.raises(UserError, match="do not do the same work"):
        same_losses(pair, pixels, targets.flip(0), loss, images)
    with without_chance(pair.ours), torch.no_grad():
        assert our_loss(pair.ours, targets)(pixels) == our_loss(pair.ours, targets)(pixels)
    with torch.no_grad():
        assert our_loss(pair.ours, targets)(pixels) != our_loss(pair.ours, targets)(pixels)  # chance is back


def test_boxes_are_compared_as_a_set() -> None:
    from benchmarks.networks import same_answers

    corners = torch.arange(40.0).view(1, 20, 2).repeat(1, 1, 2) * 9 + torch.tensor([0, 0, 8, 8])
    found = Detections(corners, torch.linspace(0.9, 0.5, 20)[None], torch.zeros(1, 20), torch.tensor([20]))
    swapped = found._replace(boxes=found.boxes[:, [1, 0, *range(2, 20)]])
    assert "equal" in same_answers(swapped, found, "answers")
    with pytest.raises(UserError, match="are not among ours"):
        same_answers(found._replace(boxes=found.boxes + 30), found, "answers")
    with pytest.raises(UserError, match="too few"):
        same_answers(found._replace(count=torch.tensor([2])), found, "answers")


def test_what_the_processor_does_not_compute_is_told_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("effbackbones.inference.backends.plan.computes_bfloat16", lambda: False)
    monkeypatch.setattr(command, "_apart", lambda row, options: {"what": row.what, "unit": "ms"})
    words = ["b0-step", "b0-step-bf16"]
    assert command.main([*words, "--json", str(tmp_path / "results.json")]) == 0
    said = capsys.readouterr().out
    assert "b0-step-bf16: left out: this processor multiplies no bfloat16" in said
    assert "b0-step: B0" in said
    assert command.main(["b0-step-bf16", "--json", str(tmp_path / "results.json")]) == 2
    assert "error: row b0-step-bf16: this processor multiplies no bfloat16" in capsys.readouterr().err
    assert not ROWS["gpu-b0-step"].unfit()


def test_rows_are_merged_into_a_file_that_is_one(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    results.merge(file, {"b0-batch8": row()})
    results.merge(file, {"b0-batch1": row("b0-batch1"), "b0-batch8": row(ours=5.000049)})
    kept = results.read(file)
    assert list(kept) == ["b0-batch8", "b0-batch1"]
    assert kept["b0-batch8"]["sides"][0]["median"] == 5.0
    for text in ("{", "[]", '{"rows": {}}', json.dumps({"format": 9, "rows": {}})):
        file.write_text(text)
        with pytest.raises(UserError, match=r"results.json"):
            results.read(file)


def test_pages_say_what_the_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    (tmp_path / "README.md").write_text("a\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nb\n")
    monkeypatch.setattr(pages, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(pages, "README", tmp_path / "README.md")
    with pytest.raises(UserError, match="has no rows"):
        pages.write_pages(file)
    results.merge(file, {"b0-batch8": row()})
    written = pages.write_pages(file)
    assert all(path.is_file() for path in written)
    picture = (tmp_path / "pictures/benchmarks-ratio.svg").read_bytes()
    assert b"prefers-color-scheme" in picture
    assert b"#000000" not in picture
    assert "a B0 on 8 images 0.50 of timm channels_last" in (tmp_path / "README.md").read_text()
    pages.write_pages(file)
    assert (tmp_path / "pictures/benchmarks-ratio.svg").read_bytes() == picture
    table = pages.speed_table(file)
    assert "| **model.predict** | 10 ms | 10 to 10 | 50% of traffic | 0.50 of timm channels_last |" in table
    assert "`gpu-b0`: B0, 256 images of 224, bf16 | not measured" in table


def test_readme_says_what_was_measured() -> None:
    """``python -m benchmarks pages`` makes it so."""
    rows = results.fitting(results.read(results.KEPT), ROWS)
    assert pages.readme_line(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_ways_to_smaller_models_are_told_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All figures are means over the seeds, not those of the first."""
    costs = {"megabytes": 2.0, "multiply_adds": 3e6, "steps": 60}
    for seed, score in enumerate((0.25, 0.75)):
        told = {"row": "pruned", "seed": seed, "file": score, "model": score + 0.125, "cpu_minutes": seed + 1.0}
        (tmp_path / f"pruned-{seed}.json").write_text(json.dumps(told | costs))
        (tmp_path / f"pruned-{seed}.onnx.json").write_text("{}")
    (tmp_path / "times.json").write_text(json.dumps({"ms": {"pruned": [1, 2, 3]}}))
    assert smaller.table(tmp_path) == 0
    (line,) = capsys.readouterr().out.splitlines()[2:]
    scores = "0.5000 (0.2500-0.7500) | 0.6250 (0.3750-0.8750)"
    assert line == f"| pruned | 2 | {scores} | 2.00 | 3 | 2.00 (1.00-3.00) | 60 | 1.50 |"


def test_shares_are_of_what_is_done() -> None:
    from benchmarks.profiles import OUTSIDE, REST, shares

    x, weight = torch.randn(2, 8, 40, 40), torch.randn(64, 8, 3, 3)
    found = shares(lambda: torch.nn.functional.conv2d(x, weight), "cpu")
    assert max(found, key=lambda kind: found[kind] if kind not in (OUTSIDE, REST) else 0) == "convolutions"
    assert sum(found.values()) == pytest.approx(1, abs=0.01)


def test_profiles_are_of_the_plain_call_and_of_peers(tmp_path: Path) -> None:
    spent = {"convolutions": 0.5}
    sides = [Side(name, ours, 10.0, 9.0, 11.0, 9, {}, spent) for name, ours in (("a", True), ("b", True), ("c", False))]
    results.merge(tmp_path / "r.json", {"x": Found("ms", sides).record()})
    lines = pages.profile_table(tmp_path / "r.json").splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [["| `x`", "a", "5"], ["| ", "c", "5"]]


def test_torchvisions_ssdlite_begins_as_torchvision_has_it() -> None:
    """What ours is trained beside has normal weights of deviation 0.03 in extra blocks and predictors."""
    pytest.importorskip("torchvision")
    from benchmarks.detectors import ssd

    kernels = {name: p for name, p in ssd(nn.Identity(), (112, 320), 3, 256).named_parameters() if p.ndim == 4}
    assert any("extra" in name for name in kernels)
    for name, weight in kernels.items():
        assert abs(float(weight.detach().std()) - 0.03) < 0.004, name
