"""The verb ``plan``: which network fits, what it takes, and the command that trains it."""

import shlex
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effbackbones.errors import UserError
from tasks.engine.rehearsal import Limits
from tasks.run import main
from tasks.settings.commandline import parse
from tasks.settings.sections import Config
from tasks.settings.tree import to_mapping
from tasks.verbs import plan as verb
from tasks.verbs.candidates import MARGIN
from tasks.verbs.rehearsing import rehearsed

BASE, PER_PIXEL, PER_IMAGE = 500.0, 100.0, 0.02
"""Of the networks here: megabytes without images, and for a million pixels of the smallest; seconds for one of its images."""


def told(
    config: Config, limits: Limits, scale: float, *, saving: float = 1.0, wrong: float = 1.0
) -> Generator[dict[str, Any], None, None]:
    """Rows of a network that takes ``scale`` times what the smallest takes; when it is tried whole, ``wrong`` times that memory."""
    side = round(100 * scale)
    size = config.data.image_size or side
    size = [size, size] if isinstance(size, int) else list(size)
    yield {"of": "config", "config": to_mapping(config)}
    known = {"size": size, "padded": size, "trained": size, "channels": 3}
    yield {"of": "facts", **known, "parameters": 1000, "multiply_adds": int(scale * 1e6)}
    if "predict" in limits.of:
        yield row("predict", 1, size, BASE + 10, PER_IMAGE * scale)
    if "train" in limits.of:
        pieces = config.optim.accumulate
        images = [config.data.batch_size] if limits.whole else [1, 2]
        for count in images:
            per = PER_PIXEL * scale * saving * size[0] * size[1] / 1e6
            memory = (BASE + per * count / pieces) * (wrong if limits.whole else 1)
            yield row("train", count, size, memory, 0.1 + 0.05 * scale * count) | {"update": 0.1}


def row(of: str, images: int, size: list[int], megabytes: float, seconds: float) -> dict[str, Any]:
    height, width = size
    return {"of": of, "images": images, "height": height, "width": width, "seconds": seconds, "megabytes": megabytes}


class Networks:
    """b0 to b7 take 1 to 8 times as much, with activations recomputed ``saving`` of it; ``asked``: what was tried."""

    def __init__(self) -> None:
        self.saving, self.asked = 0.5, list[tuple[Config, Limits]]()

    def __call__(self, command: str, config: Config, own: str, limits: Limits) -> Generator[dict[str, Any], None, None]:
        self.asked.append((config, limits))
        saving = self.saving if config.model.backbone_options.get("checkpointing") else 1.0
        yield from told(config, limits, int(config.model.backbone[-1]) + 1, saving=saving)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Networks:
    found = Networks()
    monkeypatch.setattr(verb, "rehearsed", found)
    return found


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words, "--device", "cpu", "--run.progress", "false"]) == 0
    return capsys.readouterr().out


def needs(scale: float, side: int, images: int) -> float:
    """Megabytes of a step, by what :func:`told` says."""
    return BASE + PER_PIXEL * scale * side * side / 1e6 * images


def test_the_largest_that_fits_is_chosen_and_its_command_trains_it(
    networks: Networks, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    memory = needs(4, 1000, 16) / MARGIN + 1
    networks.saving = 1.0  # b4 to b7 then see fewer than 8 images at a time
    words = (
        "detect",
        "--memory",
        f"{memory:.0f}M",
        "--batch",
        "16",
        "--backbone",
        "b0,b2,b3,b7",
        "--data.image_size",
        "1000",
        "--images",
        "1600",
    )
    out = printed(capsys, *words)
    line = next(line for line in out.splitlines() if line.startswith("effbackbones train detect"))
    assert "b3 at 1000 x 1000 is the largest of 4 that fits" in out
    asked = parse("detect", ["train", *shlex.split(line)[3:-2]]).config
    assert (asked.model.backbone, asked.data.image_size, asked.data.batch_size) == ("b3", 1000, 16)
    assert asked.optim.accumulate == 1
    assert asked.optim.epochs == 300
    assert line.endswith("--data.root ROOT")
    seconds = 0.1 + 0.05 * 4 * 16  # of a step; 100 of them an epoch
    assert f"30,000 steps, {30_000 * seconds / 3600:.1f} hours" in out
    assert "not real time" in out  # 80 ms an image
    assert "(median, the network and its suppression alone)" in out
    assert "AP 47.1" in out  # published for b3
    assert "+0.0%" in out  # what was foreseen is what was measured
    file = tmp_path / "planned.yaml"
    assert f"--config {file}" in printed(capsys, *words, "--out", str(file))
    again = parse("detect", ["train", "--config", str(file)]).config
    assert (again.model, again.data, again.optim) == (asked.model, asked.data, asked.optim)
    assert "# b3 at 1000 x 1000 is the largest" in file.read_text()


def test_a_batch_that_does_not_fit_is_split_and_kept(networks: Networks, capsys: pytest.CaptureFixture[str]) -> None:
    memory = needs(1, 1000, 16) / MARGIN + 200  # gradients and waiting images take some
    out = printed(
        capsys, "detect", "--memory", f"{memory:.0f}M", "--backbone", "b0", "--data.image_size", "1000", "--no-verify"
    )
    assert "64 images in 4 pieces of 16" in out
    assert "--optim.accumulate 4" in out
    assert "--model.backbone_options" not in out
    assert "tried at full size" not in out


def test_activations_are_recomputed_where_batch_norm_would_see_too_few_images(
    networks: Networks, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = needs(8, 1000, 4) / MARGIN + 200
    out = printed(
        capsys, "detect", "--memory", f"{memory:.0f}M", "--backbone", "b7", "--data.image_size", "1000", "--no-verify"
    )
    assert "64 images in 8 pieces of 8" in out
    assert """--model.backbone_options '{"checkpointing": true}'""" in out
    assert [bool(config.model.backbone_options) for config, _ in networks.asked] == [False, True]


def test_what_was_published_of_a_detector_is_not_said_of_another_on_its_backbone(
    networks: Networks, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("detect", "--memory", "8G", "--backbone", "b0", "--no-verify", "--head")
    assert "published for b0 on COCO: AP" in printed(capsys, *words, "bifpn")
    out = printed(capsys, *words, "yolo")
    assert "AP " not in out
    assert "published for b0 on ImageNet: top-1 77.7" in out


def test_what_has_no_boxes_has_no_suppression(networks: Networks, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "classify", "--memory", "8G", "--backbone", "b0,b1", "--no-verify"]) == 0
    assert "(median, the network alone)" in capsys.readouterr().out


def test_what_is_too_slow_is_passed_over(networks: Networks, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(
        capsys, "classify", "--memory", "9G", "--latency", "45ms", "--for", "predict", "--data.image_size", "100"
    )
    assert "b1 at 100 x 100 is the largest of 8 that fits into 9 GB and answers within 45 ms" in out
    assert "25.0 a second: real time at 25, not at 30" in out
    assert out.count("too slow") == 6
    assert "effbackbones train" not in out
    assert {kind for _, limits in networks.asked for kind in limits.of} == {"predict"}


def test_one_that_takes_more_than_foreseen_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(command: str, config: Config, own: str, limits: Limits) -> Generator[dict[str, Any], None, None]:
        scale = int(config.model.backbone[-1]) + 1
        yield from told(config, limits, scale, wrong=1.5 if scale == 2 else 1.0)

    monkeypatch.setattr(verb, "rehearsed", rows)
    memory = needs(2, 1000, 32) / MARGIN + 1
    words = ("--memory", f"{memory:.0f}M", "--backbone", "b0,b1", "--data.image_size", "1000")
    out = printed(capsys, "segment", *words)
    assert "b0 at 1000 x 1000" in out
    assert "too large when tried" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--memory 505M", "--memory: nothing fits into 0.493 GB: the smallest, b0 at 512x512, needs 0.56 GB"),
        ("--memory 9G --latency 1ms", "--latency: nothing is so fast: the smallest, b0 at 512x512, takes 20.0 ms"),
        ("--memory 16", "--memory 16: has no unit; write 16G or 16M"),
        ("--memory much", "--memory much: expected a size such as 12G"),
        ("--memory 0G", "--memory 0G: expected a size"),
        ("--memory 9G --latency 15", "--latency 15: expected a time such as 15ms"),
        ("--memory 9G --backbone b0,b99", "backbone 'b99'"),
        ("--memory 9G --batch 4 --data.batch_size 8", "--batch: says what --data.batch_size says"),
        ("--memory 9G --batch 0", "--batch: expected 1 or more images, got 0"),
        ("--memory 9G --images 0", "--images: is 0"),
        ("--memory 9G --for fun", "--for: unknown for 'fun'"),
        ("--memory 9G --for predict --out plan.yaml", "--out: gets the config of a training"),
        ("--memory 9G --out plan.txt", "--out plan.txt: expected the name of a config"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(
    words: str, said: str, networks: Networks, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "detect", "--device", "cpu", "--data.image_size", "512", *words.split()]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "classify --backbone b0 --data.image_size 128 --batch 16",
        "segment --backbone lite0 --head deeplabv3plus --data.image_size 128 --batch 4",
    ],
)
def test_memory_is_within_a_tenth_of_what_is_then_measured(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *words.split(), "--memory", "6G")
    off = [float(line.split()[-1].rstrip("%")) for line in out.splitlines() if ", GB" in line and line.endswith("%")]
    assert len(off) == 2
    assert max(map(abs, off)) < 10, out


@pytest.mark.slow
def test_a_trial_that_is_left_ends_and_one_that_is_refused_says_why() -> None:
    config = parse("classify", ["train", "--config", "shapes", "--run.device", "cpu", "--model.weights", "null"]).config
    rows = rehearsed("classify", config, "lite0", Limits(0.1, 4000.0, ("predict",)))
    assert next(rows)["of"] == "config"
    rows.close()
    wrong = replace(config, model=replace(config.model, head_options={"colour": 1}))
    with pytest.raises(UserError, match="colour"):
        list(rehearsed("classify", wrong, "lite0", Limits(0.1, 4000.0, ("predict",))))
