"""Reports: nothing leaves the page, nothing in a name becomes code, and the figures are those that were given."""

import base64
import csv
import io
import json
import re
import subprocess
from html.parser import HTMLParser
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tests_support import results_of

from effbackbones import UserError
from effbackbones.contracts import ImageSizes, ImageSpec
from tasks.classification.examples import KEPT, ConfidentMistakes, Mistake
from tasks.classification.metrics import ClassificationMetrics
from tasks.classification.report import classification_report
from tasks.data.batch import Batch, ImageMeta
from tasks.report import words
from tasks.report.drawings import curves, reliability
from tasks.report.metricsfile import command, commit, environment, plain, write_metrics
from tasks.report.page import Link, Report, Tile, picture, setting, show
from tasks.report.records import EvaluationResults, Results, RunResults, Summary

NASTY = "<script>alert(1)</script> & \"co\" 'x' {{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags with their attributes, and all the text a reader sees but for the list of contents."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.seen = ""
        self._hidden = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("style", "nav")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "nav")

    def handle_data(self, data: str) -> None:
        self.seen += "" if self._hidden else f"{data}\n"

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def scores(names: list[str], skill: float, *, multilabel: bool = False, samples: int = 300) -> dict[str, Any]:
    k, rng = len(names), torch.Generator().manual_seed(0)
    logits = torch.randn(samples, k, generator=rng)
    metric = ClassificationMetrics(names, multilabel)
    if multilabel:
        targets = (torch.rand(samples, k, generator=rng) < 0.2).float()
        metric.update((logits + skill * targets).sigmoid(), targets)
    else:
        labels = torch.randint(0, k, (samples,), generator=rng)
        metric.update((logits + skill * torch.nn.functional.one_hot(labels, k)).softmax(1), labels)
    return metric.compute() | {"errors": metric.anatomy()}


def history(epochs: int) -> list[dict[str, Any]]:
    keys = ("epoch", "lr", "train/loss", "val/loss", "val/top1", "images_per_s", "data_wait", "val/non_finite")
    return [
        dict(zip(keys, (e, 0.1 / e, 2 / e, 3 / e, 1 - 1 / e, 812.0, 0.1, 0), strict=True)) for e in range(1, epochs + 1)
    ]


def classification_page(
    folder: Path,
    results: dict[str, Any],
    *,
    mistakes: list[Mistake] | None = None,
    epochs: int = 3,
    title: str = "Shapes",
) -> Page:
    summary = Summary(
        title,
        config={"model": {"backbone": "b0", "head": None}, "data": {"scale": (0.3, 1.0)}},
        history=history(epochs),
        results=results_of(results),
        facts={"assumed": ["mean/std of ImageNet"], **environment()},
    )
    path = classification_report(folder, summary, mistakes or [])
    assert path == folder / "report.html"
    return Page(path)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    names = [NASTY, "b", "c"]
    rng = np.random.default_rng(0)
    mistake = Mistake(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), f"{NASTY}, taken for b", 0.9, "folder/<b>.png")
    page = classification_page(
        tmp_path, {"best": "ema", "raw": scores(names, 1), "ema": scores(names, 3)}, mistakes=[mistake], title=NASTY
    )
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base", "b"} == set()
    policy = [
        attributes["content"]
        for attributes in page.all("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name.split(":")[-1] in ("src", "href", "data", "action", "poster"):
                assert (value or "").startswith(("data:", "#")), (tag, name, value)
    style = (tmp_path / "report.html").read_text().split("<style>")[1]
    assert "url(" not in style.split("</style>")[0]
    # Every place that shows a name shows it as it is: title, matrix, table of classes, gallery.
    assert page.seen.count(NASTY) >= 6
    assert len(page.all("img")) == 1
    assert "folder/<b>.png" in page.seen


def test_the_page_tells_how_near_and_how_sure_mistakes_are(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(8)]
    errors = scores(names, 1)["errors"]
    page = classification_page(tmp_path, scores(names, 1))
    lines = [line for line in page.seen.splitlines() if line.strip()]
    near = lines[lines.index("the true class is among the five most probable") :]
    assert near[1:3] == [str(errors["in_top5"]), f"{100 * errors['in_top5'] / errors['wrong']:.1f} %"]
    page = classification_page(tmp_path, scores(names, 1, multilabel=True))
    assert "Mistakes by label" in page.seen


def test_drawings_take_the_colour_of_the_page(tmp_path: Path) -> None:
    page = classification_page(tmp_path, scores(["a", "b"], 2))
    assert len(page.all("svg")) == 4  # loss, score, learning rate, calibration
    text = (tmp_path / "report.html").read_text()
    assert "currentColor" in text
    assert "#000000" not in text


def test_figures_and_facts_are_those_given(tmp_path: Path) -> None:
    names = ["cat", "dog", "emu"]
    raw, ema = scores(names, 0.5), scores(names, 3)
    page = classification_page(tmp_path, {"best": "ema", "raw": raw, "ema": ema})
    for result in (raw, ema):
        assert f"{100 * result['top1']:.1f} %" in page.seen
    assert f"top-1\n{100 * ema['top1']:.1f} %" in page.seen  # in large letters
    assert "Best: the ema weights." in page.seen
    version = f"torch {torch.__version__.partition('+')[0]}"
    assert "model.head" not in page.seen  # unset
    for text in ("model.backbone", "b0", "data.scale", "(0.3, 1.0)", "mean/std of ImageNet", version, "machine"):
        assert text in page.seen, text
    titles = [cell["title"] for cell in page.all("td") if cell.get("title")]
    expected = [f"{t} as {p}: {ema['confusion'][i][j]}" for i, t in enumerate(names) for j, p in enumerate(names)]
    assert titles == expected


def test_mistakes_come_in_falling_confidence(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    page = classification_page(
        tmp_path,
        scores(["a", "b"], 2),
        mistakes=[Mistake(image, "a, taken for b", c, f"id{c}") for c in (0.5, 0.9, 0.7)],
    )
    assert re.findall(r"id(0\.\d)", page.seen) == ["0.9", "0.7", "0.5"]
    assert "90.0 % sure" in page.seen


def examined(predictions: list[list[float]], labels: list[Any], *, multilabel: bool) -> list[tuple[str, float, str]]:
    """What is shown of images of these predictions, one batch for each image; the first pixel of image i is i."""
    shown = ConfidentMistakes(("cat", "dog", "emu"), multilabel)
    for i, (row, label) in enumerate(zip(predictions, labels, strict=True)):
        images = torch.full((1, 3, 4, 5), i, dtype=torch.uint8)
        meta = ImageMeta(
            f"id{i}", "", (4, 5), label=label if label is None or not multilabel else np.array(label, np.float32)
        )
        shown.update(Batch(images, ImageSizes((4, 5), torch.tensor([[4, 5]])), None, [meta]), torch.tensor([row]))
    found = shown.mistakes()
    assert all(m.image.shape == (4, 5, 3) and m.image[0, 0, 0] == int(m.id[2:]) for m in found)
    return [(m.what, round(m.confidence, 4), m.id) for m in found]


def test_the_most_confident_mistakes_are_kept() -> None:
    rows = [[0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]]
    found = examined(rows, [0, 0, 2, None], multilabel=False)
    assert found == [("cat, taken for dog", 0.9, "id1"), ("emu, taken for cat", 0.6, "id2")]
    many = [[1 - p, p, 0.0] for p in (0.51 + 0.01 * i for i in range(40))]
    nothing = [float("nan")] * 3  # no confidence, and so neither kept nor in the way
    kept = [confidence for _, confidence, _ in examined([nothing, *many], [1, *[0] * 40], multilabel=False)]
    assert kept == [round(0.51 + 0.01 * i, 4) for i in range(39, 39 - KEPT, -1)]


def test_of_several_labels_the_one_that_is_most_wrong_is_shown() -> None:
    rows = [[0.9, 0.8, 0.1], [0.1, 0.3, 0.0], [0.9, 0.4, 0.6], [0.6, 0.1, 0.1], [0.9, 0.9, 0.9]]
    found = examined(rows, [[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0], None], multilabel=True)
    assert found == [
        ("cat, overlooked", 0.9, "id1"),
        ("dog, seen where there is none", 0.8, "id0"),
        ("dog, overlooked", 0.6, "id2"),
    ]


@pytest.mark.parametrize(("k", "matrix"), [(2, True), (50, True), (51, False), (1000, False)])
def test_many_classes_give_pairs_in_place_of_a_matrix(tmp_path: Path, k: int, matrix: bool) -> None:
    result = scores([f"class {i}" for i in range(k)], 1.0)
    page = classification_page(tmp_path, result)
    assert ("Confusion matrix" in page.seen) is matrix
    assert ("Most confused" in page.seen) is (k > 2)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_most_confused_pairs_are_the_largest_counts(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(60)]
    result = scores(names, 30, samples=600)
    assert result["top1"] == 1.0
    for true, predicted, count in ((3, 7, 5), (9, 1, 8)):
        result["confusion"][true][predicted] = count
    page = classification_page(tmp_path, result)
    after = page.seen.split("Most confused")[1].split("Calibration")[0]
    assert re.findall(r"c\d+", after) == ["c9", "c1", "c3", "c7"]


def test_multilabel_and_empty_results_can_be_shown(tmp_path: Path) -> None:
    page = classification_page(tmp_path / "multi", scores(["a", "b", "c"], 2, multilabel=True), epochs=1)
    assert "Confusion matrix" not in page.seen
    assert "Training" not in page.seen
    assert "average precision" in page.seen
    with pytest.warns(UserWarning, match="before"):
        empty = ClassificationMetrics(["a", "b"]).compute()
    assert "Scores" in classification_page(tmp_path / "empty", empty, epochs=0).seen


def test_metrics_files(tmp_path: Path) -> None:
    results = {"best": "raw", "raw": scores(["cat, big", "dog"], 2)}
    results["raw"]["seconds"] = np.float32(1.5)
    epochs = [
        {"epoch": 1, "val/loss": float("nan"), "val/top1": torch.tensor(0.5)},
        {"epoch": 2, "val/loss": 1.0, "val/top1": 0.75},
    ]
    write_metrics(tmp_path, results_of(results), epochs)
    text = (tmp_path / "metrics.json").read_text()
    loaded = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert loaded["raw"] == results["raw"]
    assert loaded["raw"]["seconds"] == 1.5
    assert loaded["history"][0] == {"epoch": 1, "val/loss": None, "val/top1": 0.5}
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(newline="")))
    found = {(r["weights"], r["epoch"], r["class"], r["metric"]): float(r["value"]) for r in rows}
    assert found["raw", "", "", "top1"] == results["raw"]["top1"]
    assert found["raw", "", "cat, big", "f1"] == results["raw"]["per_class"]["cat, big"]["f1"]
    assert found["", "2", "", "val/loss"] == 1.0
    assert found["", "1", "", "val/top1"] == 0.5
    assert ("", "1", "", "val/loss") not in found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.json"]


@pytest.mark.parametrize(
    ("results", "head"),
    [
        (RunResults({"ema": {}, "raw": {}}, "ema"), {"best": "ema"}),
        (
            RunResults({"ema": {}, "raw": {}}, "ema", "test"),
            {"finished": True, "split": "test", "best": "ema"},
        ),
        (EvaluationResults({"model": {}}, split="val"), {"split": "val", "checkpoint": None}),
        (EvaluationResults({"model": {}}, split="val", checkpoint="m"), {"split": "val", "checkpoint": "m"}),
        (EvaluationResults({"model": {}}, split="val", predictions="p"), {"split": "val", "predictions": "p"}),
    ],
)
def test_the_file_of_each_kind_of_results_says_what_it_always_said(
    results: Results, head: dict[str, Any], tmp_path: Path
) -> None:
    write_metrics(tmp_path, results, [])
    loaded = json.loads((tmp_path / "metrics.json").read_text())
    assert list(loaded.items()) == [*head.items(), *results.sets.items(), ("history", [])]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classification_page(tmp_path, scores(["a", "b"], 2), title="old")

    def fail(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match=r"report\.html"):
        classification_page(tmp_path, scores(["a", "b"], 2), title="new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "old" in Page(tmp_path / "report.html").seen


def test_names_that_are_not_utf8_do_not_stop_a_report(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    page = classification_page(
        tmp_path, scores([name, "b"], 2), mistakes=[Mistake(np.zeros((4, 4, 3), np.uint8), name, 0.5, name)]
    )
    assert r"caf\udce9.png" in page.seen
    write_metrics(tmp_path, results_of(scores([name, "b"], 2)), [])
    assert json.loads((tmp_path / "metrics.json").read_text())["model"]["per_class"][name]


@pytest.mark.parametrize(
    ("image", "mode", "pixel"),
    [
        (np.full((4, 6, 3), (255, 0, 100), np.uint8), "RGB", (255, 0, 100)),
        (np.full((4, 6), 7, np.uint8), "L", 7),
        (np.full((4, 6, 1), 7 * 256, np.uint16), "L", 7),
        (np.full((4, 6, 2), 0.5, np.float32), "L", 128),
        (np.full((4, 6, 5), 200, np.uint8)[:, ::-1], "RGB", (200, 200, 200)),
        (np.full((4, 6), np.nan, np.float32), "L", 0),
    ],
)
def test_pictures_of_any_kind(image: np.ndarray, mode: str, pixel: Any) -> None:
    head, _, data = picture(image).partition(",")
    decoded = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/png;base64"
    assert (decoded.size, decoded.mode, decoded.getpixel((5, 3))) == ((6, 4), mode, pixel)


def test_large_pictures_are_reduced() -> None:
    head, _, data = picture(np.zeros((1000, 3000, 3), np.uint8)).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 85)


def test_flat_pictures_have_room(tmp_path: Path) -> None:
    """Lines of text can be read: a wide cell each, where all are flat."""
    line, square = np.zeros((24, 480, 3), np.uint8), np.zeros((80, 80, 3), np.uint8)
    for images, kind in (([line, line], "pictures flat"), ([line, square], "pictures"), ([], "pictures")):
        report = Report("x")
        report.gallery("Worst", [(image, "x") for image in images])
        text = report.write(tmp_path / "page.html").read_text(encoding="utf-8")
        assert f'<div class="{kind}">' in text
        assert (picture(line, 512) in text) == (kind == "pictures flat")


def test_curves_draw_each_figure_once_and_skip_gaps() -> None:
    rows = history(4)
    rows[1]["val/top1"] = float("nan")
    rows[3]["val/top1_raw"] = 0.5  # measured at the end alone: a point, and no curve
    axes = [axis for figure in curves(rows) for axis in figure.axes]
    drawn = {line.get_label(): line.get_xydata() for axis in axes for line in axis.lines}
    assert [axis.get_title(loc="left") for axis in axes] == ["loss", "score", "learning rate"]
    assert set(drawn) == {"train/loss", "val/loss", "val/top-1", "lr"}
    assert drawn["val/top-1"].tolist() == [[1, 0], [3, 1 - 1 / 3], [4, 0.75]]


def test_reliability_draws_the_bins() -> None:
    bins = ClassificationMetrics(["a", "b"], bins=2)
    bins.update(torch.tensor([[0.8, 0.2], [0.9, 0.1]]), torch.tensor([0, 1]))
    axes = reliability(bins.compute()["reliability"]).axes[0]
    assert [(bar.get_x(), bar.get_height()) for bar in axes.patches] == [(0.5, 1.0), (0.5, 0.5)]
    assert axes.lines[0].get_xydata().tolist()[0] == pytest.approx([0.85, 0.5])


def test_other_tasks_can_use_the_page(tmp_path: Path) -> None:
    report = Report("Any task")
    figure = Figure()
    figure.subplots().set_title(NASTY)
    report.figure("A drawing", figure, "Its caption")
    report.table("A table", ["name", "n"], [[NASTY, 12345], ["b", None]])
    report.facts({"list": [1, 2.0], "nothing": None})
    page = Page(report.write(tmp_path / "new folder" / "page.html"))
    assert page.seen.count(NASTY) == 2
    assert "script" not in {tag for tag, _ in page.tags}
    assert [cell.get("class") for cell in page.all("td")[:2]] == ["number", "number"]
    assert [cell.get("scope") for cell in page.all("th")[:4]] == ["col", "col", "row", "row"]
    report = Report("Intervals stay in a line")
    report.table("A table", ["name", "interval"], [["a", "35.6 to 39.8 %"], ["b", None], ["c", "-1.5 to +2.0"]])
    assert {cell.get("class") for cell in Page(report.write(tmp_path / "page.html")).all("td")} == {"number"}
    assert "Its caption" in page.seen


def test_small_things() -> None:
    assert [setting(v) for v in (2026, 0.123456, None, True)] == ["2026", "0.1235", "—", "True"]
    assert [show(v) for v in (None, 0.123456, 999, 6937, 12_345_678, True, float("nan"), "x")] == [
        "—",
        "0.1235",
        "999",
        "6,937",
        "12,345,678",
        "True",
        "nan",
        "x",
    ]
    assert plain({1: (np.int64(3), float("inf")), "path": Path("a")}) == {"1": [3, None], "path": "a"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("AP_small", "AP, small objects"),
        ("AR_1", "AR, 1 box an image"),
        ("AR_100", "AR, 100 boxes an image"),
        ("miou", "mIoU"),
        ("det/AP50", "det/AP50"),
        ("seg/miou", "seg/mIoU"),
        ("false_positives_on_empty", "false positives on empty"),
        ("my_score_2", "my score 2"),
    ],
)
def test_scores_have_names_that_people_read(name: str, shown: str) -> None:
    assert words.label(name) == shown


def test_how_images_are_prepared_is_told_in_words() -> None:
    told = ImageSpec(size=(256, 320), mean=(0.5,), std=(0.25,), crop_mode="letterbox").told()
    assert told == "256 x 320, fitted in and padded, bicubic; mean 0.5; std 0.25"
    assert "shorter side to 256, centre crop" in ImageSpec(size=(224, 224)).told()


def test_a_page_leads_to_others_and_folds_what_is_long(tmp_path: Path) -> None:
    report = Report("t", tiles=[Tile("AP", "38.0 %", "33.1 to 42.0")])
    report.facts({"reports": [Link("of <detect>", "detect/report.html"), "and more"]}, "Facts")
    report.facts({"a": 1}, "Configuration", folded=True)
    report.table(
        "T", ["name", "n"], [[f"row {i}", i] for i in range(30)], notes=["why"] * 30, first=5, rest="{} more rows"
    )
    pictures = [({"truth": np.zeros((8, 8, 3), np.uint8)}, f"p{i}\n{i}.png") for i in range(6)]
    report.pairs("Worst", pictures)
    page = Page(report.write(tmp_path / "page.html"))
    links = {attributes["href"] for attributes in page.all("a")}
    assert links == {"detect/report.html", "#part-1", "#part-2", "#part-3", "#part-4"}
    assert {attributes["id"] for attributes in page.all("section")} == {f"part-{i}" for i in range(1, 5)}
    assert len(page.all("details")) == 3  # configuration, 25 rows, 2 pictures
    for word in ("25 more rows", "2 more", "of <detect>", "33.1 to 42.0", "row 29"):
        assert word in page.seen
    assert page.seen.count("why") == 30
    assert [image["alt"] for image in page.all("img")] == [f"truth: {i}.png" for i in range(6)]


def test_the_code_of_a_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert commit() == ""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for asked in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *asked], check=True, cwd=tmp_path)
    assert re.fullmatch(r"commit [0-9a-f]{12}", commit())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == ""


@pytest.mark.parametrize(
    ("program", "module", "typed"),
    [
        ("/env/bin/effbackbones", None, "effbackbones train detect"),
        ("/src/tasks/detect.py", "tasks.detect", "python -m tasks.detect train detect"),
        ("/src/effbackbones/__main__.py", "effbackbones.__main__", "python -m effbackbones train detect"),
    ],
)
def test_the_command_line_is_told_as_it_can_be_typed_again(program: str, module: str | None, typed: str) -> None:
    spec = None if module is None else ModuleSpec(module, None)
    assert command([program, "train", "detect"], spec) == typed
