"""Lines of text as pictures: what is read, how it is drawn, what is told."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from tests_support import QUIET

from effbackbones import ImageSpec, load_predictor
from effbackbones.errors import UserError
from effbackbones.inference.fitting import Fitting
from tasks.classification.examples import label_sheet
from tasks.classify import main
from tasks.data.check import check_dataset
from tasks.data.door.labels import lines
from tasks.data.door.reading import image_spec
from tasks.data.door.transforms import class_transform
from tasks.data.fingerprint import difference, fingerprint
from tasks.data.knowledge import Knowledge
from tasks.data.lettering import line as drawing, typefaces as typefaces_module
from tasks.data.lettering.line import Line, needs_shaping
from tasks.data.lettering.style import Style
from tasks.data.lettering.textfile import read_lines
from tasks.data.lettering.typefaces import own_typefaces, typefaces
from tasks.data.sample import Sample
from tasks.data.sets import lines as sets
from tasks.data.sets.lines import LineDataset
from tasks.data.suspicions import told_of_shared_images
from tasks.data.transforms.lines import DrawLine
from tasks.data.transforms.listed import Listed, check_listed
from tasks.settings.commandline import parse
from tasks.settings.data import DataConfig

SANS = own_typefaces()[:1]
PLAIN = Style(SANS)
ENGLISH, GERMAN = ("The cat sat.", "A dog ran home."), ("Die Straße ist naß.", "Aller Anfang ist schwer.")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two languages."""
    write(tmp_path / "en.txt", *ENGLISH)
    write(tmp_path / "de.txt", *GERMAN)
    return tmp_path


def write(path: Path, *sentences: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{one}\n" for one in sentences), encoding="utf-8")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_lines_are_samples_by_file_and_number(root: Path) -> None:
    dataset = LineDataset(root, PLAIN)
    assert dataset.classes == ("de", "en")
    assert [dataset[index].label for index in range(4)] == [0, 0, 1, 1]
    assert [dataset[index].id for index in range(4)] == ["de.txt:1", "de.txt:2", "en.txt:1", "en.txt:2"]
    assert [dataset.line(index).text for index in range(4)] == [*GERMAN, *ENGLISH]
    assert dataset.notes == ()
    check_dataset(dataset, labels=["label"])


def test_a_picture_is_a_function_of_seed_and_index(root: Path) -> None:
    style = Style(own_typefaces()).changed({"height": [8, 40], "noise": 0.1, "rotation": [-5, 5]}, "x")
    one, again, other = (LineDataset(root, style, seed=seed)[1].image for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert one.shape != other.shape or (one != other).any()


def test_a_text_means_the_same_however_it_is_written(tmp_path: Path) -> None:
    """White space, accents after their letters, soft hyphens, a mark at the beginning, and ends of lines of Windows change nothing."""
    (tmp_path / "a.txt").write_bytes("\ufeffÉté\tà la\u00a0mer\r\n\r\nfin\u00adi\r\n".encode())
    (tmp_path / "b.txt").write_bytes(unicodedata.normalize("NFD", "Été à  la mer\n\nfini").encode())
    one, other = read_lines(tmp_path / "a.txt"), read_lines(tmp_path / "b.txt")
    assert one.lines == other.lines == [(1, "Été à la mer"), (3, "fini")]
    assert one.blank == other.blank == [2]
    assert (one.dropped, other.dropped) == ([3], [])


def test_characters_of_windows_are_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "fr.txt").write_text("l\x92eau \x85\nbip\x07\n", encoding="utf-8")
    found = read_lines(tmp_path / "fr.txt")
    assert found.lines == [(1, "l\u2019eau \u2026"), (2, "bip")]
    assert (found.restored, found.dropped) == ([1], [2])


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("gut\nschön".encode("latin-1"), 2, "expected UTF-8, got the byte 0xF6 in b'gut.*sch"),
        ("gut\n".encode("utf-16"), 1, "UTF-16"),
        (b"good\n" + b"x" * 100_000, 2, "expected a sentence of at most 10,000 characters, got 100,000"),
        (b"good\nb\0d", 2, "NUL"),
    ],
)
def test_what_is_no_text_is_refused_by_its_line(root: Path, content: bytes, line: int, message: str) -> None:
    (root / "fr.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"fr\.txt, line {line}: .*{message}"):
        LineDataset(root, PLAIN)


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\u00ad\n", "\u200d\n\u2800 \u3164\n\u200c \u200c\n"])
def test_a_file_without_text_is_refused(root: Path, content: str) -> None:
    write(root / "fr.txt", content)
    with pytest.raises(UserError, match=r"fr\.txt: holds no line with text"):
        LineDataset(root, PLAIN)


def test_folders_that_hold_something_else(root: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder: expected"):
        LineDataset(root / "none", PLAIN)
    (root / "pictures/en").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no file CLASS\.txt: .*are the data set folder"):
        LineDataset(root / "pictures", PLAIN)
    (root / "en.txt").unlink()
    with pytest.raises(UserError, match=r"holds de\.txt alone"):
        lines(DataConfig(name="lines", root=str(root), val=0.5), "train", None)


def test_the_class_of_a_file_does_not_depend_on_how_its_name_is_written(root: Path) -> None:
    (root / "de.txt").rename(root / "grüezi.TXT")
    found = LineDataset(root, PLAIN)
    assert found.classes == ("en", "grüezi")
    assert found.ids[len(found) - 1].startswith("grüezi.TXT:")
    (root / "grüezi.TXT").rename(root / unicodedata.normalize("NFD", "grüezi.txt"))
    assert LineDataset(root, PLAIN, found.classes).classes == found.classes
    write(root / "EN.txt", *ENGLISH)
    write(root / "en.TXT", *ENGLISH)
    with pytest.raises(UserError, match=r"en\.TXT and en\.txt are of one class"):
        LineDataset(root, PLAIN)


def test_what_is_mended_and_left_out_is_counted(root: Path) -> None:
    (root / "README.md").write_text("about", encoding="utf-8")
    write(
        root / "en.txt",
        *ENGLISH,
        "",
        "l\x92eau",
        "bip\x07",
        ENGLISH[0],
        GERMAN[0],
        *(f"Line {n}." for n in range(20)),
        "猫",
    )
    notes = "\n".join(LineDataset(root, PLAIN).notes)
    for part in (
        "passed over, for they are no .txt: README.md",
        "1 blank lines are no samples: en.txt:3",
        "1 lines had characters of Windows-1252 as control characters; they are drawn as what was meant: en.txt:4",
        "1 lines had characters without a picture (control, format), which are left out: en.txt:5",
        "warning: 1 sentences are in more than one class, such as 'Die Straße ist naß.' (de.txt:1 and en.txt:7)",
        "1 sentences are there more than once in their class, such as en.txt:1, en.txt:6",
        "1 lines of en.txt left out; the first, line 28: no font has its letters, such as '猫' (U+732B)",
    ):
        assert part in notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{n}\t{text}", "2 of 2 lines of en.txt have tabs, as columns do, and all of a line is drawn (en.txt:1)"),
        ("__label__{name} {text}", "2 of 2 lines of en.txt begin or end with the name of their class"),
        ('{name},"{text}"', "2 of 2 lines of en.txt begin or end with the name of their class"),
        ("{text} | {name}", "2 of 2 lines of en.txt begin or end with the name of their class"),
    ],
)
def test_what_is_drawn_beside_the_sentence_is_told(tmp_path: Path, line: str, message: str) -> None:
    for name, sentences in (("en", ENGLISH), ("de", GERMAN)):
        write(tmp_path / f"{name}.txt", *(line.format(n=n, text=text, name=name) for n, text in enumerate(sentences)))
    notes = LineDataset(tmp_path, PLAIN).notes
    assert len(notes) == 2
    assert message in notes[1]


def test_letters_that_no_font_has_stop_where_they_are_many(root: Path) -> None:
    write(root / "ja.txt", "猫がいる。", "Hello")
    with pytest.raises(UserError, match=r"ja\.txt, line 1: .*'猫' \(U\+732B\); so it is with 1 of 2 lines; name fonts"):
        LineDataset(root, PLAIN)


def test_fonts_that_tell_the_class_are_told(root: Path) -> None:
    roman = str(Path(matplotlib.get_data_path(), "fonts/ttf/cmr10.ttf"))
    write(root / "ru.txt", "Кот сидит.", "Дом стоит.")
    dataset = LineDataset(root, replace(PLAIN, fonts=(*SANS, roman)))
    assert "warning: 1 of 2 fonts write no line of ru (cmr10.ttf): their looks" in "\n".join(dataset.notes)
    write(root / "el.txt", "Δύο γάτες κάθονται.")
    write(root / "uk.txt", "Мій дім тут.")
    upright = Path(matplotlib.get_data_path(), "fonts/ttf/cmtt10.ttf")
    told = LineDataset(root, replace(PLAIN, fonts=(*SANS, roman, str(upright)))).notes
    assert "warning: 2 of 3 fonts write no line of el, ru, uk (cmr10.ttf, cmtt10.ttf): their looks" in "\n".join(told)
    picture = Line("Кот сидит.", replace(PLAIN, fonts=(roman, *SANS))).drawn(generator())  # drawn by the one that can
    np.testing.assert_array_equal(picture.image, Line("Кот сидит.", PLAIN).drawn(generator()).image)


def test_empty_squares_are_never_drawn() -> None:
    with pytest.raises(UserError, match="'猫': no font has all its letters"):
        Line("猫", PLAIN).drawn(generator())


def test_fonts_by_file_and_by_family(root: Path) -> None:
    (root / "mine.ttf").write_bytes(Path(SANS[0]).read_bytes())
    (root / "broken.ttf").write_text("no font")
    assert typefaces(["mine.ttf"], root, "f") == (str(root / "mine.ttf"),)
    family = typefaces(["dejavu serif"], root, "f")
    assert family
    assert all("DejaVuSerif" in path for path in family)
    for name, message in (
        ("none.ttf", r"f: there is no file none\.ttf"),
        ("broken.ttf", "cannot be drawn with"),
        ("DejaVu Sams", "did you mean DejaVu Sans"),
    ):
        with pytest.raises(UserError, match=message):
            typefaces([name], root, "f")


@pytest.mark.parametrize(
    ("looks", "message"),
    [
        ({"noise": 2}, r"data\.options\.noise: expected a number or \[low, high\] in \[0, 1\], got 2"),
        ({"height": [40, 20]}, r"data\.options\.height: .*got \[40, 20\]"),
        ({"height": [1, 2, 3]}, r"data\.options\.height"),
        ({"inverted": [0, 1]}, r"data\.options\.inverted: expected a number in"),
        ({"blur": True}, r"data\.options\.blur"),
        ({"turns": [45]}, r"data\.options\.turns: expected some of \[0, 90, 180, 270\]"),
        ({"direction": "down"}, r"data\.options\.direction"),
        ({"font": ["x"]}, "has no such option; did you mean fonts"),
        ({"fonts": []}, r"data\.options\.fonts"),
        ({"aspect": 2}, r"data\.options\.aspect"),
    ],
)
def test_wrong_options(root: Path, looks: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lines(DataConfig(name="lines", root=str(root), val=0.5, options=looks), "train", None)


def test_a_line_wants_a_flat_picture(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.image_size: expected a width of 4 heights at least"):
        lines(DataConfig(name="lines", root=str(root), val=0.5, image_size=64), "train", None)
    flat = lines(DataConfig(name="lines", root=str(root), val=0.5, image_size=(32, 256)), "train", None)
    assert flat.style.aspect == 8


def test_splits_in_folders_or_by_shares(root: Path) -> None:
    for split in ("train", "val"):
        write(root / split / "en.txt", f"In {split}.", *(ENGLISH[:1]))
        write(root / split / "de.txt", f"Zu {split}.")
    data = DataConfig(name="lines", root=str(root))
    train, val = (lines(data, split, None) for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 3)
    known = {"train": Knowledge.of(train), "val": Knowledge.of(val)}
    assert "1 of 3 images of val are training images too (The cat sat.)" in told_of_shared_images(known)[0]
    write(root / "val/fr.txt", "Le chat.")
    with pytest.raises(UserError, match=r"fr\.txt: class 'fr' is not in the training data"):
        lines(data, "val", train.classes)
    with pytest.raises(UserError, match="there is no such folder"):
        lines(DataConfig(name="lines", root=str(root), train="other"), "train", None)
    (root / "train").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"there is no such folder: .*; set data\.val: 0\.1, if the files in"):
        lines(data, "train", None)


def test_copies_stay_together_and_changes_are_noticed(root: Path) -> None:
    write(root / "de.txt", *GERMAN, GERMAN[0])
    dataset = LineDataset(root, PLAIN)
    assert Knowledge.of(dataset).copies == [[0, 2]]
    before = fingerprint(dataset)
    assert difference(before, fingerprint(LineDataset(root, PLAIN))) is None
    looked = difference(before, fingerprint(LineDataset(root, replace(PLAIN, noise=(0, 0.1)))))
    assert looked == "files were replaced, or what is made of them looks otherwise"
    write(root / "en.txt", "The cat sits.", ENGLISH[1])
    assert difference(before, fingerprint(LineDataset(root, PLAIN))) == looked


LETTERS = "aäéñßŁğžÅĝ́ЙщЇѣΰΆÿfjQ,|_'()Ǘ "
SENTENCES = (
    st.text(LETTERS, min_size=1, max_size=40)
    .map(lambda text: unicodedata.normalize("NFC", " ".join(text.split())))
    .filter(bool)
)


@settings(max_examples=60, deadline=None)
@given(
    text=SENTENCES,
    font=st.sampled_from(own_typefaces()),
    height=st.integers(4, 60),
    margin=st.sampled_from([0.0, 0.05, 0.5]),
    aspect=st.integers(4, 30),
    angle=st.sampled_from([0, -7, 90]),
    seed=st.integers(0, 99),
)
def test_what_is_shown_lies_inside(
    text: str, font: str, height: int, margin: float, aspect: int, angle: int, seed: int
) -> None:
    """As much ink as the same letters have on a large sheet: nothing is cut at an edge."""
    style = Style((font,), aspect=aspect, height=(height, height), margin=(margin, margin), rotation=(angle, angle))
    written = Line(text, style).drawn(generator(seed))
    assert written.text in text
    wide = Line(written.text, replace(style, aspect=200, margin=(1.0, 1.0))).drawn(generator(seed))
    assert wide.text == written.text
    ink, all_ink = ((255 - picture.image[..., 0].astype(float)).sum() for picture in (written, wide))
    exact = height >= drawing.DRAWN_AT and angle != -7  # else pixels are mixed, and rounded
    assert ink == (all_ink if exact else pytest.approx(all_ink, rel=0.03, abs=15 * height))


@pytest.mark.parametrize("letter", ["J", "Ǘ", "\u03a9\u0318", "/", "Ў"])
def test_letters_that_reach_beyond_their_place_lie_inside(letter: str) -> None:
    """To the left of where they begin, above the ascent of their font, below its descent."""
    for font in own_typefaces():
        style = Style((font,), height=(60, 60), margin=(0, 0))
        ink, all_ink = (
            (255 - Line(letter, one).drawn(generator()).image.astype(int)).sum()
            for one in (style, replace(style, margin=(1, 1)))
        )
        assert ink == all_ink > 0


@settings(max_examples=60, deadline=None)
@given(text=SENTENCES, count=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_part_of_a_line_has_whole_characters(text: str, count: int, seed: int) -> None:
    """It begins with a word, unless that leaves too few, has at most so many characters, and no mark without its letter."""
    part = Line(text, replace(PLAIN, aspect=200, characters=(count, count))).drawn(generator(seed)).text
    place = text.find(part)
    assert place >= 0
    assert not unicodedata.combining(part[0]) or text.startswith(part)
    after = text[place + len(part) :]
    assert not (after and unicodedata.combining(after[0])) or text.count(part) > 1
    assert 1 <= len(drawing._ends(part)) <= count


def test_what_has_no_room_is_not_shown() -> None:
    sentence = "The quick brown fox jumps over the lazy dog. " * 4
    written = Line(sentence.strip(), replace(PLAIN, aspect=8)).drawn(generator())
    assert written.image.shape[1] <= 8 * 32
    assert 10 < len(written.text) < 30
    parts = {Line(sentence.strip(), replace(PLAIN, aspect=8)).drawn(generator(seed)).text for seed in range(8)}
    assert len(parts) > 3
    assert all(sentence.startswith(part) or f" {part}" in sentence for part in parts)


def test_looks_change_what_they_say() -> None:
    def drawn(**looks: object) -> np.ndarray:
        return Line("Straße", PLAIN.changed({"margin": 0.3, **looks}, "x")).drawn(generator(1)).image.astype(float)

    plain = drawn()
    assert plain.shape[0] == pytest.approx(32 * 1.6, abs=2)
    assert (plain.min(), plain.max()) == (0, 255)
    assert drawn(height=10).shape[0] == pytest.approx(16, abs=2)
    assert np.ptp(drawn(contrast=0.4)) == pytest.approx(102, abs=2)
    assert drawn(inverted=1)[0, 0, 0] == 0
    assert drawn(noise=0.2)[:, :5].std() > 20  # on paper
    assert plain[:, :5].std() == 0
    assert np.abs(np.diff(drawn(blur=0.1), axis=1)).max() < np.abs(np.diff(plain, axis=1)).max() / 2
    assert np.ptp(drawn(tint=0.4)[0, 0]) > 5
    turned = drawn(rotation=5)
    assert turned.shape[0] > plain.shape[0] + 5
    np.testing.assert_array_equal(drawn(turns=180), plain[::-1, ::-1])
    assert drawn(turns=[90]).shape[:2] == plain.shape[1::-1]


def test_scripts_from_right_to_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused where no library lays them out; drawn by it, the order of letters is reversed."""
    assert needs_shaping("שלום")
    assert not needs_shaping("Straße Ελλάς Россия")
    write(root / "he.txt", "שלום")
    monkeypatch.setattr(sets, "can_shape", lambda: False)
    with pytest.raises(UserError, match=r"he\.txt, line 1: its letters need complex layout.*libfribidi"):
        LineDataset(root, PLAIN)
    monkeypatch.undo()
    if not drawing.can_shape():
        pytest.skip("no library of complex layout here")
    dataset = LineDataset(root, PLAIN)
    (mixed,) = (dataset.line(index) for index in range(len(dataset)) if dataset.ids[index] == "he.txt:1")
    forced = Line("".join(reversed("שלום")), replace(PLAIN, direction="ltr"))
    assert mixed.drawn(generator()).image.shape == forced.drawn(generator()).image.shape


def test_lines_are_drawn_anew_in_training(root: Path) -> None:
    sample = LineDataset(root, PLAIN)[1]
    check_listed([{"DrawLine": {"noise": [0, 0.1]}}], ["label"])
    anew = Listed([{"DrawLine": {"height": 20, "noise": [0, 0.1]}}])
    one, again, other = (anew(sample, generator(seed)).image for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.shape != other.shape or (one != other).any()
    assert one.shape[0] == pytest.approx(24, abs=1)  # where nothing else is said, as the data set has it
    with pytest.raises(UserError, match=r"DrawLine\.nois: a line has no such look; did you mean noise"):
        check_listed([{"DrawLine": {"nois": 1}}], ["label"])
    with pytest.raises(UserError, match=r"draws lines of the data set lines, and a\.png is none"):
        DrawLine()(Sample(np.zeros((4, 4, 3), np.uint8), "a.png"), generator())


def test_training_sees_whole_lines_as_evaluation_does() -> None:
    """By the bundled config nothing is mirrored, cut or coloured beside what is drawn: but for rounding the pictures are the same."""
    config = parse("classify", ["--config", "languages", "--data.root", "x"]).config
    assert config.data.options == {}
    spec = image_spec(config, ImageSpec())
    assert (spec.size, spec.crop_mode) == ((24, 480), "letterbox")
    sample = Sample(Line("Die Straße ist naß.", PLAIN).drawn(generator()).image, "x")
    seen = class_transform(config.data, spec, train=False)(sample, generator()).image
    np.testing.assert_array_equal(Fitting.of_classes(spec)(sample.image)[0], seen)  # as predict has it
    for listed in ((), ({"HueSaturationValue": {"p": 0.0}},)):
        training = class_transform(replace(config.data, augment=listed), spec, train=True)
        for seed in range(4):
            shown = training(sample, generator(seed)).image
            assert np.abs(shown.astype(int) - seen.astype(int)).max() <= 3


@pytest.mark.slow
def test_scripts_are_learnt_and_a_picture_is_answered(tmp_path: Path) -> None:
    """From two files of text to a trained network, and to its answer about a picture of a line, which is that of its evaluation."""
    rng = generator()
    for name, letters in (("latin", "abcdefghijklmnop"), ("russian", "бгджзийлнпфцчшщя")):
        words = ["".join(rng.choice(list(letters), rng.integers(3, 9))) for _ in range(400)]
        write(tmp_path / f"{name}.txt", *(" ".join(rng.choice(words, 6)) for _ in range(160)))
    out = tmp_path / "run"
    line = ["train", "--config", "languages", "--data.root", str(tmp_path), "--run.out", str(out), *QUIET]
    assert (
        main(
            [*line, "--optim.epochs", "3", "--optim.ema", "0.9", "--data.batch_size", "16", "--optim.base_batch", "16"]
        )
        == 0
    )
    record = json.loads((out / "metrics.json").read_text())
    assert (record["split"], record[record["best"]]["top1"] > 0.9) == ("test", True)
    asked = ["predict", "--checkpoint", str(out), "--split", "test", "--out", str(tmp_path / "answers")]
    assert main([*asked, "--run.probabilities", "true", *QUIET]) == 0
    found = json.loads((tmp_path / "answers/predictions.json").read_text())["images"]
    dataset = LineDataset(tmp_path, Style(own_typefaces(), aspect=20))
    places = {dataset.ids[index]: index for index in range(len(dataset))}
    predictor = load_predictor(out)
    for row in found[:6]:
        Image.fromarray(dataset[places[row["file"]]].image).save(tmp_path / "line.png")
        answer = predictor(tmp_path / "line.png")
        said = {one["class"]: one["probability"] for one in row["predictions"]}
        assert said[answer.name] == pytest.approx(answer.score, abs=1e-4)


def test_a_sheet_of_lines(root: Path) -> None:
    dataset = LineDataset(root, PLAIN)
    samples = [dataset[index] for index in range(4)]
    sheet = Image.fromarray(label_sheet(samples, dataset.classes))
    assert sheet.width > 2 * max(sample.image.shape[1] for sample in samples[:2]) / 2
    assert sheet.height > sheet.width / 20


def test_a_font_that_is_gone_is_told() -> None:
    """The system's list of fonts may name a file that was removed since."""
    with pytest.raises(UserError, match=r"gone\.ttf cannot be drawn with"):
        typefaces_module._check("/nowhere/gone.ttf", "f")
