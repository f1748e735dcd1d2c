"""The data set of recordings: class folders, tables with parts, names that say what they are, and splits by what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effbackbones import ImageSpec, UserError
from tasks.classification.task import TASK as CLS
from tasks.data.check import check_dataset
from tasks.data.dataset import DATASETS
from tasks.data.division import divided
from tasks.data.door.caching import cached
from tasks.data.door.reading import read_as
from tasks.data.knowledge import Knowledge
from tasks.data.recordings import told_of_sound
from tasks.data.sets.selecting import Selection, of_split
from tasks.data.transforms.waves import WaveTransform
from tasks.engine.splits import open_splits
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config

soundfile = pytest.importorskip("soundfile")
PATTERN = r"(?P<label>\d)_(?P<speaker>\w+)_(?P<index>\d+)"


def write(path: Path, seconds: float = 0.1, rate: int = 8000, level: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(path.name)) % 2**32)
    soundfile.write(path, level * rng.uniform(-1, 1, round(seconds * rate)), rate)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    for label in range(2):
        for speaker in ("ann", "bob", "cid"):
            for index in range(8):
                write(root / "recordings" / f"{label}_{speaker}_{index}.wav", 0.05)
    return root


def config_of(root: Path, options: dict[str, Any] | None = None, **data: Any) -> Config:
    options = {"rate": 8000, **(options or {})}
    return Config(data=DataConfig(name="sound", root=str(root), options=options, **data))


def ids(dataset: Any) -> list[str]:
    return [name.rpartition("/")[2].removesuffix(".wav") for name in Knowledge.of(dataset).ids]


def test_names_say_labels_and_splits(digits: Path) -> None:
    config = config_of(digits, {"pattern": PATTERN}, val=0.25, test="index=0-1")
    splits = open_splits(config, CLS)
    assert {split: len(data) for split, data in splits.items()} == {"train": 27, "val": 9, "test": 12}
    assert splits["train"].classes == ("0", "1")
    assert {name.rpartition("_")[2] for name in ids(splits["test"])} == {"0", "1"}
    together = [name for data in splits.values() for name in ids(data)]
    assert len(set(together)) == len(together) == 48
    sample = splits["test"][0]
    assert (sample.image.shape, sample.image.dtype, sample.label) == ((1, 400, 1), np.uint16, 0)
    for data in splits.values():
        assert check_dataset(data, labels=("label",)) == ""


def test_speakers_are_held_out_and_groups_stay_together(digits: Path) -> None:
    config = config_of(
        digits, {"pattern": PATTERN}, val=0.25, test="speaker=bob", split_group=r"_(\d+)\.", split_by="random"
    )
    splits = open_splits(config, CLS)
    assert {name.split("_")[1] for name in ids(splits["test"])} == {"bob"}
    assert {name.split("_")[1] for name in ids(splits["train"])} == {"ann", "cid"}
    assert not {name.rpartition("_")[2] for name in ids(splits["train"])} & {
        name.rpartition("_")[2] for name in ids(splits["val"])
    }


def test_validation_and_training_by_condition(digits: Path) -> None:
    config = config_of(
        digits, {"pattern": PATTERN}, train="speaker=ann|cid", val="speaker=cid,index=0-3", test="speaker=bob"
    )
    splits = open_splits(config, CLS)
    assert {split: len(data) for split, data in splits.items()} == {"train": 24, "val": 8, "test": 16}


@pytest.mark.parametrize(
    ("options", "data", "line"),
    [
        ({"pattern": PATTERN}, {"val": "speker=ann"}, r"data\.val: nothing says 'speker' of the samples; did you mean"),
        ({"pattern": PATTERN}, {"val": "speaker=dan"}, r"data\.val: no sample has speaker=dan"),
        ({"pattern": PATTERN}, {"val": "speaker="}, r"data\.val: 'speaker=' is no condition; write NAME=VALUE"),
        ({"pattern": PATTERN}, {}, r"data\.val: there is no folder .*, and nothing divides"),
        ({"pattern": PATTERN}, {"test": "speaker=ann"}, r"data\.val: nothing says which of the recordings"),
        ({"pattern": "(?P<label>"}, {"val": 0.1}, r"data\.options\.pattern: is no regular expression"),
        ({"pattern": r"\d_\w+_\d"}, {"val": 0.1}, r"data\.options\.pattern: .* has no named group"),
        ({"pattern": r"(?P<label>x)_.*"}, {"val": 0.1}, r"48 of 48 recordings have names that do not follow"),
        ({"pattern": r"(?P<label>\d)_ann_\d"}, {"val": 0.1}, r"32 of 48 recordings have names that do not follow"),
        ({"pattern": r"\d_\w+_\d(?P<label>)"}, {"val": 0.1}, r"one class is nothing to tell apart"),
        ({"patern": PATTERN}, {"val": 0.1}, r"data\.options\.patern: data set 'sound' has no such option"),
        ({"pattern": PATTERN, "rate": 12}, {"val": 0.1}, r"data\.options\.rate: expected 1000 to 768000"),
        ({"pattern": PATTERN, "channels": 0}, {"val": 0.1}, r"data\.options\.channels: expected"),
        (
            {"table": "none.csv"},
            {"val": 0.1},
            r"none\.csv: cannot be read: No such file .*; name a UTF-8 text file with the columns",
        ),
    ],
)
def test_mistakes_are_one_line(digits: Path, options: dict[str, Any], data: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_splits(config_of(digits, options, **data), CLS)
    assert "\n" not in str(caught.value)


def test_names_that_do_not_follow_can_be_passed_over_and_are_told(digits: Path) -> None:
    config = config_of(digits, {"pattern": r"(?P<label>\d)_ann_\d", "other_files": "ignore"}, val=0.25)
    train = open_splits(config, CLS)["train"]
    assert train.notes[0].startswith("32 recordings whose names do not follow data.options.pattern are not used: ")


def test_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            write(tmp_path / split / label / "a.wav")
    splits = open_splits(config_of(tmp_path), CLS)
    assert splits["train"].classes == ("cat", "dog")
    assert splits["val"][1].label == 1
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt: is not a recording by its ending; remove it, or set"):
        open_splits(config_of(tmp_path), CLS)


def test_class_folders_of_one_list_with_folds_in_their_names(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for fold in range(1, 5):
            write(tmp_path / label / f"{fold}-x.wav")
    config = config_of(tmp_path, {"pattern": r"(?P<fold>\d)-x"}, val="fold=4")
    splits = open_splits(config, CLS)
    assert (ids(splits["train"]), ids(splits["val"])) == (["1-x", "2-x", "3-x"] * 2, ["4-x"] * 2)
    write(tmp_path / "cat" / "5.wav")
    with pytest.raises(UserError, match=r"1 of 9 recordings have names that do not follow .*; correct it, so that all"):
        open_splits(config, CLS)


def test_a_table_of_parts_with_several_labels_and_a_column_of_splits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "audio" / f"{name}.wav", 1.0)
    (tmp_path / "all.csv").write_text(
        "file,labels,from,to,part\na.wav,wind;rain,0,0.25,train\na.wav,,0.25,0.5,train\nb.wav,rain,0.5,,train\nb.wav,wind,,0.5,check\n"
    )
    options = {"table": "all.csv", "image_root": "audio", "start": "from", "end": "to"}
    config = config_of(tmp_path, options, multilabel=True, train="part=train", val="part=check")
    splits = open_splits(config, CLS)
    assert Knowledge.of(splits["train"]).ids == ["a.wav@0-0.25", "a.wav@0.25-0.5", "b.wav@0.5-"]
    assert [splits["train"][row].image.shape[1] for row in range(3)] == [2000, 2000, 4000]
    assert splits["train"][0].labels.tolist() == [1, 1]
    whole, _ = soundfile.read(tmp_path / "audio" / "a.wav", dtype="int16")
    assert np.array_equal(splits["train"][1].image[0, :, 0].astype(int) - 32768, whole[2000:4000])
    assert Knowledge.of(splits["val"]).ids == ["b.wav@-0.5"]
    known = Knowledge.of(splits["train"])
    assert (known.copies, known.groups) == ([], ["a.wav", "a.wav", "b.wav"])


def test_parts_of_a_recording_stay_together_whatever_the_share(tmp_path: Path) -> None:
    rows = ["file,labels,start,end"]
    for place, name in enumerate("abcdefgh"):
        write(tmp_path / f"{name}.wav", 1.0 + place / 100)
        rows += [f"{name}.wav,{'xy'[part % 2]},{part / 4},{part / 4 + 0.25}" for part in range(4)]
    (tmp_path / "all.csv").write_text("\n".join(rows))
    options = {"table": "all.csv", "start": "start", "end": "end"}
    whole = DATASETS.get("sound")(config_of(tmp_path, options).data, "train", None)
    division = divided(Knowledge.of(whole), {"val": 0.25}, seed=0)
    files = {split: {name.partition("@")[0] for name in part} for split, part in division.parts.items()}
    assert (len(files["val"]), files["val"] & files["train"]) == (2, set())
    assert "8 groups kept together" in division.told
    assert "more than once" not in division.told


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("a.wav,x,0,abc", r"all\.csv:2: expected seconds, got 'abc'"),
        ("a.wav,x,nan,1", r"all\.csv:2: expected seconds, got 'nan'"),
        ("a.wav,x,0.5,0.5", r"all\.csv:2: a part from 0.5 to 0.5 s is none"),
        ("b.wav,x,0,1", r"all\.csv:2: there is no file"),
        ("a.wav,x,0,0.05\na.wav,y,0,0.05", r"all\.csv:3: 'a\.wav', the same part, stands in line 2 already"),
        ("a.wav,x,0,0.05\n./a.wav,y,0.0,5e-2", r"all\.csv:3: 'a\.wav', the same part, stands in line 2 already"),
        ("a.wav,x,,0", r"all\.csv:2: a part from 0 to 0 s is none"),
        ("a.wav,x,1_0,2_0", r"all\.csv:2: expected seconds, got '1_0'"),
        (f"{'a' * 5000},x,,", r"all\.csv:2: there is no file"),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path: Path, row: str, line: str) -> None:
    write(tmp_path / "a.wav")
    (tmp_path / "all.csv").write_text(f"file,labels,start,end\n{row}\n")
    config = config_of(tmp_path, {"table": "all.csv", "start": "start", "end": "end"})
    with pytest.raises(UserError, match=line):
        DATASETS.get("sound")(config.data, "train", None)


def test_a_selection_divides_without_rest_or_overlap() -> None:
    values = {"speaker": ["a", "b", "a", "c", "b"], "index": ["0", "1", "2", "3", "10"]}
    chosen = {name: Selection.of(text, name) for name, text in {"val": "index=1-3", "test": "speaker=a|c"}.items()}
    parts = [of_split(split, chosen, values, 5).tolist() for split in ("train", "val", "test")]
    assert parts == [[4], [1], [0, 2, 3]]


def test_the_rate_of_a_model_is_taken_where_nothing_is_said(digits: Path) -> None:
    from effbackbones.images.spec import ReadingSpec

    data = DataConfig(name="sound", root=str(digits))
    assert read_as(data, ReadingSpec(), (), 8000)[0].options == {"rate": 8000}
    assert read_as(DataConfig(), ReadingSpec(), (), 8000)[0].options == {}


def test_what_is_told_of_recordings(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.wav", 0.5, 16000)
    write(tmp_path / "train" / "a" / "2.wav", 2.0, 8000, level=0.0)
    write(tmp_path / "train" / "b" / "3.wav", 1.0, 2000, level=3.0)
    soundfile.write(tmp_path / "train" / "b" / "4.wav", np.zeros((8000, 2)) + 0.1, 8000)
    data = DATASETS.get("sound")(config_of(tmp_path).data, "train", None)
    lines = list(told_of_sound(data, ImageSpec.of_sound(8000, 8000)))
    assert lines == [
        "4 recordings looked at last 0.50 to 2.00 s, half of them 1.00 s or less; 1 are longer than a window of 1 s",
        "1 of 4 have several channels, of which the mean is taken",
        "2 of 4 are resampled to 8,000 samples a second: 1 of 16,000, 1 of 2,000",
        "warning: 1 of 4 have less than half of the samples a second that the model hears: above that there is nothing in them "
        "(model.backbone_options.rate and data.options.rate: 2000)",
        "warning: 1 of 4 recordings looked through (3.wav) are clipped: 0.01% or more of their samples are at full scale",
        "warning: 1 of 4 recordings looked through (2.wav) are silent, 60 dB below full scale or fainter",
    ]
    lines = list(told_of_sound(data, ImageSpec.of_sound(8000, 80000)))
    assert (
        "warning: windows of 10 s are mostly silence around half of them (model.backbone_options.seconds: 2)" in lines
    )


def test_what_cannot_be_opened_stops_before_a_run_or_is_counted(tmp_path: Path) -> None:
    for name in ("a/1.wav", "a/2.wav", "b/3.wav"):
        write(tmp_path / "train" / name, 0.5)
    (tmp_path / "train" / "a" / "2.wav").write_bytes(b"no sound")
    data = DATASETS.get("sound")(config_of(tmp_path).data, "train", None)
    with pytest.raises(UserError, match=r"2\.wav: cannot be read as a recording"):
        list(told_of_sound(data, ImageSpec.of_sound(8000, 8000)))
    first, second, *_ = told_of_sound(data, ImageSpec.of_sound(8000, 8000), "skip")
    assert first.startswith("warning: 1 of those looked at cannot be opened")
    assert "2.wav" in first
    assert second.startswith("2 recordings looked at")


def test_a_part_behind_the_end_stops_before_a_run_and_names_the_line(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 0.5)
    (tmp_path / "all.csv").write_text("file,labels,start,end\na.wav,x,0,0.2\na.wav,y,0.2,9\n")
    config = config_of(tmp_path, {"table": "all.csv", "start": "start", "end": "end"})
    data = DATASETS.get("sound")(config.data, "train", None)
    with pytest.raises(UserError, match=r"all\.csv:3: a\.wav: lasts 0\.500 s, and a part is to end at 9 s"):
        list(told_of_sound(data, ImageSpec.of_sound(8000, 8000)))
    with pytest.raises(
        UserError, match=r"data\.val: all\.csv is the table of all .*; set it to a share, such as 0\.2, or write NAME"
    ):
        DATASETS.get("sound")(config.data, "val", data.classes)


def test_the_cache_keeps_recordings_as_they_are_read(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.wav", 0.5, 16000)
    write(tmp_path / "train" / "b" / "2.wav", 2.0, 8000)
    config = config_of(tmp_path, cache=str(tmp_path / "kept"), augment=("Gain",))
    plain = DATASETS.get("sound")(config.data, "train", None)
    kept, lines = cached(config.data, plain, WaveTransform(ImageSpec.of_sound(8000, 800), True))
    assert lines[0].startswith("data.cache: 2 training samples are kept, as large as they are read, in ")
    assert len(lines) == 1
    for _ in range(2):  # made, and taken
        assert all(np.array_equal(kept[row].image, plain[row].image) for row in range(2))
    assert len([one for one in (tmp_path / "kept").rglob("*") if one.is_file()]) == 2


def test_folders_of_one_list_are_recognised(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        write(tmp_path / label / "1.wav")
    with pytest.raises(UserError, match=r"holds the folders cat, dog; set data\.val: 0\.2, if these are the classes"):
        open_splits(config_of(tmp_path), CLS)
