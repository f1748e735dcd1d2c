"""Configuration: types, merging, bundled files, round trips, the help page."""

import collections.abc
import dataclasses
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from effbackbones import Head, register_head
from effbackbones.errors import UserError
from tasks.settings.commandline import bundled, parse
from tasks.settings.data import DataConfig, RandAugmentConfig
from tasks.settings.distill import DistillConfig
from tasks.settings.keytypes import field_docs, leaves, members_of, section_of
from tasks.settings.lent import without_unknown
from tasks.settings.sections import Config, HeadConfig, ModelConfig, OptimConfig, RunConfig
from tasks.settings.tree import absolute, changed_keys, dump, from_mapping, to_mapping
from tasks.strictyaml import read_value, write_value

SECTIONS = (ModelConfig, HeadConfig, DataConfig, RandAugmentConfig, OptimConfig, DistillConfig, RunConfig)
BUNDLED = [(task, name) for task in ("classify", "detect", "segment", "joint") for name in sorted(bundled(task))]


def read(tmp_path: Path, text: str, *argv: str, task: str = "classify") -> Config:
    """The config of a file with this text."""
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return parse(task, ["--config", str(path), *argv]).config


def refused(tmp_path: Path, text: str, *argv: str, task: str = "classify") -> str:
    """The one line that a file with this text is refused with."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, *argv, task=task)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(tmp_path) + "/", "")


# The schema itself --------------------------------------------------------------------------------------------------


def _parts(hint: Any) -> set[Any]:
    inner = get_args(hint) if get_origin(hint) is not Literal else ()
    return {get_origin(hint) or hint}.union(*(_parts(part) for part in inner if part is not Ellipsis))


@pytest.mark.parametrize("section", SECTIONS)
def test_fields_have_closed_types_and_docs(section: type) -> None:
    # Callable, Any and object let a config name code; a type of unknown size would too.
    plain = {int, float, str, bool, NoneType, tuple, list, dict, Literal, RandAugmentConfig, DistillConfig}
    docs = field_docs(section)
    for name, hint in get_type_hints(section).items():
        if name in ("SECTION", "LIMITS", "MEANT_FOR"):
            continue
        assert _parts(hint) - {UnionType, Union} <= plain, f"{name}: {hint}"
        assert not _parts(hint) & {Any, object, collections.abc.Callable}
        assert docs[name].endswith("."), f"{name} has no help text"
    assert set(section.LIMITS) <= {field.name for field in dataclasses.fields(section)}  # type: ignore[attr-defined,arg-type]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_has_limits(section: type) -> None:
    for name, hint in get_type_hints(section).items():
        if (
            name not in ("SECTION", "LIMITS", "MEANT_FOR")
            and members_of(hint) & {int, float}
            and bool not in members_of(hint)
        ):
            assert name in section.LIMITS, f"{section.__name__}.{name} is a number without limits"  # type: ignore[attr-defined]


# Bundled files ------------------------------------------------------------------------------------------------------


def test_the_promised_configs_are_there() -> None:
    assert {"shapes", "cifar10", "imagenet", "folder", "multilabel", "coco", "coco_mini"} <= set(bundled("classify"))
    assert {"shapes", "coco", "coco_mini", "bccd", "voc", "yolo"} <= set(bundled("detect"))
    assert {"shapes", "coco", "coco_mini", "camvid", "folder", "voc"} <= set(bundled("segment"))
    assert {"shapes", "coco", "coco_mini"} <= set(bundled("joint"))


@pytest.mark.parametrize(("task", "name"), BUNDLED)
def test_bundled_config_parses_and_runs_again(task: str, name: str, tmp_path: Path) -> None:
    verb, config, extras = parse(task, ["--config", name])
    assert (verb, extras.config_name) == ("train", name)
    assert read(tmp_path, dump(config), task=task) == config
    assert from_mapping(to_mapping(config)) == config


@pytest.mark.parametrize(("task", "name"), BUNDLED)
def test_each_key_of_a_bundled_config_misspelt(task: str, name: str, tmp_path: Path) -> None:
    lines = bundled(task)[name].read_text(encoding="utf-8").splitlines()
    mutated = 0
    for number, line in enumerate(lines):
        key, colon, rest = line.partition(":")
        if line.startswith(("#", "    ")) or not colon or key == "base":  # options have names of their own
            continue
        changed = [*lines[:number], f"{key}x:{rest}", *lines[number + 1 :]]
        message = refused(tmp_path, "\n".join(changed), task=task)
        assert message.startswith(f"own.yaml:{number + 1}: ")
        assert f"{key.strip()}x: no such key; did you mean " in message
        assert key.strip() in message.partition("did you mean")[2]
        assert len(message) <= 300
        mutated += 1
    assert mutated


@pytest.mark.parametrize(("task", "name"), BUNDLED)
def test_each_key_of_a_bundled_config_twice(task: str, name: str, tmp_path: Path) -> None:
    lines = bundled(task)[name].read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("#") or ":" not in line or line.endswith(":") or line.lstrip().startswith("- "):
            continue  # of a list the same may stand there twice
        key = line.partition(":")[0].strip()
        message = refused(tmp_path, "\n".join([*lines[: number + 1], line, *lines[number + 1 :]]), task=task)
        assert message == f"own.yaml:{number + 2}: holds the key {key!r} twice, which is refused; correct the line"


# Reading ------------------------------------------------------------------------------------------------------------


def test_values_are_read_as_meant(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "model: {weights: None, head: ~, backbone_options: {a: 1e-4, b: no, c: '1', d: [1, 2.5, x], e: true}}\n"
        "data: {image_size: [64, 32], root: 2020-01-01, randaugment: {num_ops: 3}}\n"
        "optim: {lr: 1e-4, epochs: 3, betas: [0.6, 1e-1]}\n"
        "run:\n",
    )
    assert config.model.weights is None
    assert config.model.head is None
    assert config.model.backbone_options == {"a": 1e-4, "b": "no", "c": "1", "d": [1, 2.5, "x"], "e": True}
    assert config.data.image_size == (64, 32)
    assert config.data.root == "2020-01-01"
    assert config.data.randaugment == RandAugmentConfig(num_ops=3)
    assert (config.optim.lr, config.optim.epochs, config.optim.betas) == (1e-4, 3.0, (0.6, 0.1))
    assert isinstance(config.optim.epochs, float)
    assert config.run == RunConfig()


@pytest.mark.parametrize("text", ["run: {seed: 010}", "data:\n  options: {classes: [a, -01]}"])
def test_a_number_that_begins_with_0_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"holds (010|-01), a whole number that begins with 0 \(in quotes it is text\)"):
        read(tmp_path, text)


def test_overrides_win_and_are_typed(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "optim: {lr: 1}\nmodel: {head_options: {dropout: 0.1, k: 1}}\n",
        "--optim.lr",
        "1e-3",
        "--run.out=12",
        "--run.patience",
        "None",
        "--model.head_options.dropout",
        "0.3",
        "--optim.lr=2e-3",
        "--data.image_size",
        "[8, 9]",
        "--data.randaugment",
        "{num_ops: 1}",
        "--plugins",
        "own.py",
        "--model.weights",
        "null",
    )
    assert config.optim.lr == 2e-3
    assert config.run.out == "12"
    assert config.model.head_options == {"dropout": 0.3, "k": 1}
    assert config.data.image_size == (8, 9)
    assert config.data.randaugment == RandAugmentConfig(num_ops=1)
    assert config.plugins == ("own.py",)
    assert config.model.weights is None


def test_base_is_merged_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text(
        "plugins: [a, b]\nmodel: {head_options: {x: 1, y: [1, 2]}}\noptim: {lr: 1, epochs: 7}\n"
    )
    config = read(tmp_path, "base: low.yaml\nplugins: [c]\nmodel: {head_options: {y: [3]}}\noptim: {lr: 2}\n")
    assert config.plugins == ("c",)
    assert config.model.head_options == {"x": 1, "y": [3]}
    assert (config.optim.lr, config.optim.epochs) == (2.0, 7.0)
    (tmp_path / "low.yaml").write_text("base: shapes\n")
    assert refused(tmp_path, "base: low.yaml\n").startswith("low.yaml:1: base: a base may not have a base")
    assert read(tmp_path, "base: shapes\n").data.name == "shapes"
    unknown = refused(tmp_path, "base: shape\n")
    assert unknown.startswith("own.yaml:1: base: no file and no bundled config is called 'shape'; did you mean shapes")


def test_a_file_wins_over_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("classify", ["--config", "shapes"]).config.data.name == "shapes"
    Path("shapes").write_text("optim: {lr: 0.125}\n")
    assert parse("classify", ["--config", "shapes"]).config.optim.lr == 0.125


def test_verbs_and_what_they_take(tmp_path: Path) -> None:
    verb, config, extras = parse(
        "classify", ["predict", "a.jpg", "--model.backbone", "lite0", "b", "--out", "o", "--", "-c.jpg"]
    )
    assert (verb, extras.inputs, extras.out) == ("predict", ("a.jpg", "b", "-c.jpg"), "o")
    assert config.model.backbone == "lite0"
    assert config.model.task == "cls"
    assert (
        parse("classify", ["evaluate", "--config", "shapes", "--split", "test", "--checkpoint", "m"]).extras.split
        == "test"
    )
    for argv, text in {
        ("trian", "--config", "shapes"): "command 'trian': no such verb; did you mean train?",
        ("train",): "--config: train needs a config; bundled: ",
        (
            "train",
            "--config",
            "shaps",
        ): "--config: no file and no bundled config is called 'shaps'; did you mean shapes?",
        ("--config", "shapes", "a.jpg"): "argument 'a.jpg': train takes none",
        ("--config", "shapes", "--split", "val"): "--split: does not go with train",
        ("evaluate", "--split", "vall"): "--split: unknown split 'vall'; did you mean val",
        ("--config",): "--config: needs a value",
        ("--cofnig", "x"): "--cofnig: no such option; did you mean --config?",
        ("--config", "shapes", "--optim.lrr", "1"): "--optim.lrr: no such option; did you mean optim.lr",
        ("--config", "shapes", "--optim.l", "1"): "--optim.l: no such option; did you mean optim.lr",
        ("--config", "shapes", "--batch_size", "1"): "--batch_size: no such option; did you mean data.batch_size?",
        ("--config", "shapes", "--optim.lr", "--run.seed", "1"): "--optim.lr: needs a value",
        ("--config", "shapes", "--data", "x"): "--data: no such option; name one of its keys, such as data.name",
    }.items():
        with pytest.raises(UserError) as caught:
            parse("classify", list(argv))
        assert str(caught.value).startswith(text)


def test_a_run_lends_its_config_to_its_checkpoint_but_never_its_plugins(tmp_path: Path) -> None:
    run = tmp_path / "runs"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("optim: {lr: 0.5}\nplugins: [evil]\n")
    for checkpoint in (run, run / "best.safetensors", run / "checkpoints" / "last.safetensors"):
        config = parse("classify", ["evaluate", "--checkpoint", str(checkpoint)]).config
        assert config.optim.lr == 0.5
        assert config.plugins == ()
    (run / "checkpoints").rmdir()  # then it is no run, and the file not ours to read
    assert parse("classify", ["evaluate", "--checkpoint", str(run / "best.safetensors")]).config == Config()


def test_another_tasks_config_is_refused(tmp_path: Path) -> None:
    assert (
        refused(tmp_path, "model:\n  task: det\n")
        == "own.yaml:2: model.task: is 'det', the command's is 'cls'; use that task's command"
    )
    assert read(tmp_path, "model: {task: classify}\n").model.task == "cls"


def test_changed_keys(tmp_path: Path) -> None:
    old = read(tmp_path, "model: {head_options: {a: 1, b: 2}}\noptim: {lr: 1}\nrun: {seed: 1, log_every: 1}\n")
    new = read(
        tmp_path,
        "model: {head_options: {a: 1, c: 2}}\noptim: {lr: 2}\nrun: {seed: 2, log_every: 2}\ndata: {randaugment: {}}\n",
    )
    assert changed_keys(old, old) == []
    assert changed_keys(old, new) == [
        "data.randaugment",
        "data.randaugment.magnitude",
        "data.randaugment.num_ops",
        "model.head_options.b",
        "model.head_options.c",
        "optim.lr",
        "run.seed",
    ]


def test_relative_paths_of_an_older_run_are_no_change_and_addresses_are_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    old = read(tmp_path, "model: {weights: w.pth}\ndata: {root: photos}\nplugins: [mine.py, module]\n")
    new = absolute(old)
    assert (new.model.weights, new.data.root) == (str(tmp_path / "w.pth"), str(tmp_path / "photos"))
    assert new.plugins == (str(tmp_path / "mine.py"), "module")
    assert changed_keys(old, new) == changed_keys(new, old) == []
    named = read(tmp_path, "model: {weights: imagenet}\ndata: {root: 's3://bucket/photos'}\n")
    assert absolute(named) == named
    part = absolute(read(tmp_path, "model: {weights: 'w.pth#ema'}\n"))
    assert part.model.weights == f"{tmp_path / 'w.pth'}#ema"
    monkeypatch.chdir(tmp_path.parent)
    assert changed_keys(new, old) == ["model.weights", "plugins"]


def test_print_config_shows_places_and_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text("optim:\n  lr: 0.5\nmodel: {backbone_options: {a: 'x\n\n    y: z'}}\n")
    argv = ["--config", str(tmp_path / "own.yaml"), "--data.image_size", "[8, 9]"]
    config = parse("classify", argv).config
    with pytest.raises(SystemExit) as caught:
        parse("classify", [*argv, "--print-config"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"  lr: 0.5  # {tmp_path}/own.yaml:2\n" in text
    assert "  image_size: [8, 9]  # --data.image_size\n" in text
    assert "  momentum: 0.9  # default\n" in text
    assert read(tmp_path, text) == config


def test_no_environment_value_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    text = dump(read(tmp_path, "run: {out: '${oc.env:SECRET}/$SECRET/~'}\n", "--data.root", "${SECRET}"))
    assert "s3cr3t" not in text
    assert "${oc.env:SECRET}/$SECRET/~" in text


def test_help_is_complete_and_imports_no_torch() -> None:
    code = "import sys; from tasks.settings.commandline import parse\ntry: parse('classify', ['--help'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert time.perf_counter() - start < 10  # 0.4 s when idle; the machine may be busy
    told = re.findall(r"^  --([\w.]+)", shown.stdout, re.MULTILINE)
    assert [key for key, _, _ in leaves() if told.count(key) != 1] == []
    assert "shapes" in shown.stdout
    assert "(0, 1]" in shown.stdout
    assert shown.stderr == ""


# Round trips --------------------------------------------------------------------------------------------------------

TRICKY = [
    "null",
    "None",
    "~",
    "1",
    "1e-4",
    "true",
    "no",
    ".nan",
    "1:30",
    "0x1F",
    "#",
    "&a",
    "*a",
    "<<",
    "=",
    "'",
    '"',
    "2020-01-01",
    "- a",
    "a: b",
    "!!int 3",
    "a\nb",
    " x ",
]
_TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(TRICKY)
_OPTION = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)
_OPTIONS = st.dictionaries(st.text("abc_", min_size=1, max_size=4), _OPTION | st.lists(_OPTION, max_size=3), max_size=3)


def _numbers(kind: type, interval: str) -> st.SearchStrategy[Any]:
    low, high = (float(end) for end in interval[1:-1].split(","))
    if kind is int:
        return st.integers(
            math.floor(low) + (interval[0] == "("), int(min(high, 10**9)) - (interval[-1] == ")" and high <= 10**9)
        )
    limits = {"exclude_min": interval[0] == "(", "exclude_max": interval[-1] == ")" and high <= 1e9}
    return st.floats(low, min(high, 1e9), allow_nan=False, **limits)


def _means_itself(text: str) -> bool:
    """Whether a text is filled in nowhere: of a home folder or variable that does not exist, paths are refused."""
    return not text.startswith("~") and "$" not in text


def _values(hint: Any, interval: str) -> st.SearchStrategy[Any]:
    inner_section = section_of(hint)
    if inner_section is not None:
        return st.none() | _section(inner_section) if NoneType in members_of(hint) else _section(inner_section)
    if len(members_of(hint)) > 1:
        return st.one_of([_values(member, interval) for member in get_args(hint)])
    if hint in (NoneType, bool, str):
        return {NoneType: st.none(), bool: st.booleans(), str: _TEXT.filter(_means_itself)}[hint]
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is dict:
        return _OPTIONS
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if inner[-1] is Ellipsis:
            return st.lists(_values(inner[0], interval), min_size=1, max_size=3).map(tuple)
        return st.tuples(*(_values(part, interval) for part in inner))
    return _numbers(hint, interval)


@st.composite
def _section(draw: st.DrawFn, cls: type) -> Any:
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.name != "task"]
    values = {name: draw(_values(hints[name], cls.LIMITS.get(name, ""))) for name in names if draw(st.booleans())}  # type: ignore[attr-defined]
    try:
        return cls(**values)
    except UserError as error:  # two fields that contradict each other
        assume("expected a number in" in str(error) and False)


_CONFIGS = st.builds(
    Config,
    model=_section(ModelConfig),
    heads=st.dictionaries(st.text("abc_", min_size=1, max_size=4), _section(HeadConfig), max_size=2),
    data=_section(DataConfig),
    optim=_section(OptimConfig),
    run=_section(RunConfig),
    plugins=st.lists(_TEXT, max_size=2).map(tuple),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(_CONFIGS)
def test_any_config_reads_back_equal(config: Config) -> None:
    values, _ = read_value(dump(config), "dump")
    assert isinstance(values, dict)
    again = from_mapping(values)
    assert again == config
    assert dump(again) == dump(config)
    assert changed_keys(config, again) == []


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        _OPTION, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=12
    )
)
def test_any_value_reads_back_equal(value: Any) -> None:
    assert read_value(write_value(value), "dump")[0] == value


# What means nothing to a command -----------------------------------------------------------------------------------------

FOREIGN = [
    ("detect", "data.mixup", "0.2"),
    ("detect", "data.cutmix", "1.0"),
    ("detect", "data.erasing", "0.1"),
    ("detect", "data.randaugment", "{num_ops: 2}"),
    ("detect", "data.multilabel", "true"),
    ("detect", "data.tile", "128"),
    ("detect", "optim.class_weights", "median_frequency"),
    ("detect", "model.crop_mode", "center"),
    ("segment", "data.crop", "center"),
    ("segment", "data.scale", "[0.5, 1.0]"),
    ("segment", "data.mixup", "0.2"),
    ("segment", "data.repeat_threshold", "0.1"),
    ("segment", "data.min_box", "3"),
    ("detect", "data.multilabel", "true"),
    ("segment", "model.crop_fraction", "0.5"),
    ("segment", "optim.task_weighting", "uncertainty"),
    ("classify", "data.mosaic", "0.5"),
    ("classify", "data.crop_size", "64"),
    ("classify", "data.tile", "128"),
    ("classify", "data.scale_jitter", "[0.5, 2.0]"),
    ("detect", "data.balance", "1.0"),
    ("joint", "data.tile", "128"),
    ("joint", "data.cutmix", "1.0"),
    ("joint", "model.crop_mode", "squash"),
]


@pytest.mark.parametrize(("task", "key", "value"), FOREIGN)
def test_a_setting_that_means_nothing_to_a_command_is_refused(task: str, key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^--{key}: is for [a-z ]+; remove it$"):
        parse(task, ["--config", "shapes", f"--{key}", value])


def test_what_others_mean_is_accepted_at_its_default_and_by_those_others(tmp_path: Path) -> None:
    assert read(tmp_path, "data: {mixup: 0.0, tile: null, crop_size: null}\n", task="detect").data.mixup == 0
    assert (
        parse("segment", ["--config", "shapes", "--data.tile", "128", "--data.mosaic", "0.5"]).config.data.tile == 128
    )
    assert parse("classify", ["--config", "shapes", "--data.mixup", "0.2"]).config.data.mixup == 0.2


@pytest.mark.parametrize("section", SECTIONS)
def test_settings_with_a_meaning_for_some_exist(section: type) -> None:
    meant: dict[str, tuple[str, ...]] = section.MEANT_FOR  # type: ignore[attr-defined]
    assert set(meant) <= {field.name for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    assert {word for words in meant.values() for word in words} <= {"cls", "det", "seg", "multi"}


def test_tiles_must_be_larger_than_what_they_share() -> None:
    with pytest.raises(UserError, match=r"data\.tile_overlap: expected less than a tile, got 64 pixels of tiles of 64"):
        parse("segment", ["--config", "shapes", "--data.tile", "64"])
    assert parse(
        "segment", ["--config", "shapes", "--data.tile", "[64, 96]", "--data.tile_overlap", "63"]
    ).config.data.tile == (64, 96)


# Options that were written for another backbone or head --------------------------------------------------------------


def left(task: str, *argv: str) -> tuple[Config, list[str]]:
    """The config of a command line without what its backbone and heads do not know, and what is said of that."""
    _, config, extras = parse(task, list(argv))
    config, told = without_unknown(config, extras.lent)
    return config, [line.partition(" of the bundled config left out: ")[0] for line in told]


def test_options_of_a_bundled_config_stay_with_its_own_backbone() -> None:
    config, told = left("classify", "--config", "cifar10", "--model.backbone", "timm:resnet18")
    assert (config.model.backbone_options, told) == ({"drop_path": 0.0}, ["model.backbone_options.stem_stride"])
    config, told = left("classify", "--config", "imagenet", "--model.backbone", "timm:resnet18")
    assert (config.model.numerics, told) == (None, ["model.numerics"])
    for same in ("b0", "lite3"):
        config, told = left("classify", "--config", "cifar10", "--model.backbone", same)
        assert (config.model.backbone_options, told) == ({"stem_stride": 1, "drop_path": 0.0}, [])
    assert left("classify", "--config", "cifar10") == (parse("classify", ["--config", "cifar10"]).config, [])


@pytest.mark.parametrize(
    "own",
    [["--model.backbone_options.stem_stride", "2"], ["--model.backbone_options", "{stem_stride: 2}"]],
)
def test_the_users_own_options_are_left_for_the_backbone_to_refuse(own: list[str], tmp_path: Path) -> None:
    config, told = left("classify", "--config", "cifar10", "--model.backbone", "timm:resnet18", *own)
    assert (config.model.backbone_options["stem_stride"], told) == (2, [])
    (tmp_path / "own.yaml").write_text(
        "base: cifar10\nmodel: {backbone: timm:resnet18, backbone_options: {stem_stride: 2}}\n"
    )
    config, told = left("classify", "--config", str(tmp_path / "own.yaml"))
    assert (config.model.backbone_options["stem_stride"], told) == (2, [])


def test_options_of_a_bundled_config_stay_with_its_own_head(tmp_path: Path) -> None:
    config, told = left("segment", "--config", "camvid", "--model.head", "fpn")
    assert (config.model.head_options, told) == ({"loss": ["cross_entropy", "dice"]}, [])
    (tmp_path / "own.yaml").write_text("base: imagenet\nmodel: {head: classification}\n")
    assert left("classify", "--config", str(tmp_path / "own.yaml"))[1] == []

    @register_head("without dropout")
    class Plain(Head):
        task = "cls"

        def forward(self, features: Any, sizes: Any) -> Any: ...

        def loss(self, raw: Any, targets: Any, sizes: Any) -> Any: ...

        def predict(self, raw: Any, sizes: Any) -> Any: ...

    config, told = left("classify", "--config", "cifar10", "--model.head", "without dropout")
    assert (config.model.head_options, told) == ({}, ["model.head_options.dropout"])
    with pytest.raises(UserError, match="no such name"):
        left("classify", "--config", "cifar10", "--model.head", "nobody's")


def test_an_option_that_a_value_on_the_command_line_holds_comes_from_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("classify", ["--config", "cifar10", "--model.backbone_options", "{drop_path: 0.1}", "--print-config"])
    shown = capsys.readouterr().out
    assert "    stem_stride: 1  # bundled cifar10.yaml:5\n" in shown
    assert "    drop_path: 0.1  # --model.backbone_options\n" in shown


@pytest.mark.parametrize(
    ("text", "value"), [("0.2", 0.2), (".5", 0.5), ("2017", "2017"), ("val: x", "val: x"), ("null", None)]
)
def test_a_split_is_a_name_or_a_share(text: str, value: str | float | None) -> None:
    assert parse("segment", ["--config", "folder", "--data.val", text]).config.data.val == value


@pytest.mark.parametrize("text", ["{split}/rgb", "{name}_{class}", "{split}", "images/{split}"])
def test_patterns_with_braces_can_be_typed(text: str) -> None:
    request = parse("segment", ["--config", "folder", "--data.options.images", text])
    assert request.config.data.options["images"] == text
