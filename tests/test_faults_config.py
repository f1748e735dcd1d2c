"""Hostile and mistaken configs (fault catalogue B6 to B14): each is one line, nothing runs, nothing large is built."""

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings, strategies as st

from effbackbones.errors import UserError
from tasks.settings.commandline import parse
from tasks.settings.data import DataConfig, RandAugmentConfig
from tasks.settings.keytypes import leaves, members_of
from tasks.settings.sections import ModelConfig, OptimConfig, RunConfig
from tasks.settings.tree import from_mapping
from tasks.strictyaml import MAX_BYTES, read_value

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij")
)
IN_LINE = "{" + ", ".join(BOMB.strip().split("\n")) + "}"
TAGS = [
    "!!python/object/apply:os.system ['touch PWNED']",
    "!!python/object/new:subprocess.Popen [[touch, PWNED]]",
    "!!python/name:os.system",
    "!!python/module:evilmod",
    "!!python/object:evilmod.Foo {}",
    "!!python/tuple [1, 2]",
    "!!binary aGVsbG8=",
    "!include other.yaml",
    "!!set {a}",
    "!!int abc",
    "!!timestamp 2020-01-01",
    "!<tag:yaml.org,2002:python/name:os.system> x",
]
EVIL = "class_path: evilmod.Foo"
HOSTILE = {
    **{f"tag {tag}": f"model: {{backbone: {tag}}}" for tag in TAGS},
    "class_path as a section": f"model:\n  {EVIL}",
    "class_path in an optional section": f"data:\n  randaugment:\n    {EVIL}",
    "class_path with init_args": f"data:\n  randaugment:\n    {EVIL}\n    init_args: {{num_ops: 1}}",
    "class_path as text": "data:\n  randaugment: evilmod.Foo",
    "class_path for a number": f"optim:\n  lr:\n    {EVIL}",
    "class_path among options": f"model:\n  head_options:\n    x:\n      {EVIL}",
    "class_path in a list option": "model:\n  head_options: {x: [{class_path: subprocess.Popen, init_args: {args: [touch, PWNED]}}]}",
    "function for a number": "optim: {lr: os.system}",
    "file for a section": "model: /etc/passwd",
    "file for an optional section": "data: {randaugment: other.yaml}",
    "file for a mapping": "model: {head_options: other.yaml}",
    "interpolation for a number": "optim: {lr: '${oc.env:SECRET}'}",
    "text that is YAML": "optim: {betas: '[0.9, 0.99]'}",
    "bomb of aliases": BOMB,
    "bomb among options": "model:\n  head_options:\n" + "".join(f"    {line}\n" for line in BOMB.splitlines()),
    "bomb in text": f"optim: {{lr: '{IN_LINE}'}}",
    "bomb in the text of a list": f"optim: {{betas: ['{IN_LINE}', 1]}}",
    "alias of itself": "model: &a {head_options: *a}",
    "alias of itself in a list": "plugins: &a [*a]",
    "merge key": "model: &a {backbone: b1}\ndata:\n  <<: *a",
    "deep lists": "x: " + "[" * 100_000,
    "deep mappings": "".join(f"{' ' * i}a:\n" for i in range(900)),
    "many values": "x: [" + "1," * 200_000 + "]",
    "large file": "# " + "x" * MAX_BYTES,
    "digits without end": "optim: {max_steps: " + "9" * 10_000 + "}",
    "huge exponent": "optim: {lr: 1e99999}",
    "complex key": "? [model]\n: 1",
    "two documents": "model: {}\n---\ndata: {}",
    "null byte": "model: \0",
    "control character": "model: {backbone: \x1b[2J}",
    "unfinished": "model: {backbone: [",
    "undefined alias": "model: *a",
    "tabs": "model:\n\tbackbone: b0",
    "a list": "- model",
    "a word": "model",
    "key twice": "optim: {lr: 1, lr: 2}",
    "section twice": "optim: {lr: 1}\nmodel: {}\noptim: {lr: 2}",
}


def outcome(call: Callable[[], Any]) -> tuple[Any, str]:
    """What ``call`` gives, and the message it is refused with, one of them empty."""
    try:
        return call(), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module and a file that must not be touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", "s3cr3t")
    (tmp_path / "evilmod.py").write_text("open('IMPORTED', 'w').write('x')\nclass Foo: pass\n")
    (tmp_path / "other.yaml").write_text("num_ops: 3\n")
    return tmp_path


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_config_is_one_line(case: str, folder: Path) -> None:
    (folder / "c.yaml").write_text(HOSTILE[case], encoding="utf-8")
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 1 << 40
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), limit[1]))
    start = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            parse("classify", ["--config", "c.yaml"])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert time.process_time() - start < 5
    message = str(caught.value)
    assert message.startswith("c.yaml:")
    assert "; " in message
    assert len(message) <= 300
    assert message.isprintable()
    assert "s3cr3t" not in message
    assert "root:" not in message
    assert "evilmod" not in sys.modules
    assert not {"IMPORTED", "PWNED"} & set(os.listdir(folder))


def test_there_are_enough_cases() -> None:
    assert len(HOSTILE) >= 25


def test_a_config_that_only_names_code_stays_text(folder: Path) -> None:
    # Where text is what a key takes, text it stays; registries refuse it later.
    (folder / "c.yaml").write_text(
        "model: {backbone: os.system, head_options: {x: evilmod.Foo}}\nrun: {out: '$(touch PWNED)'}"
    )
    config = parse(
        "classify", ["--config", "c.yaml", "--model.head", "evilmod.Foo", "--data.root", "`touch PWNED`"]
    ).config
    assert (config.model.backbone, config.model.head, config.model.head_options) == (
        "os.system",
        "evilmod.Foo",
        {"x": "evilmod.Foo"},
    )
    assert os.listdir(folder).count("PWNED") == os.listdir(folder).count("IMPORTED") == 0


OVERRIDES = [
    "{class_path: evilmod.Foo}",
    "other.yaml",
    IN_LINE,
    "!!python/name:os.system",
    "[",
    "{num_ops: 1, num_ops: 2}",
]


@pytest.mark.parametrize("text", OVERRIDES)
def test_hostile_override_is_one_line(text: str, folder: Path) -> None:
    for key in ("data.randaugment", "optim.lr", "optim.betas"):
        with pytest.raises(UserError) as caught:
            parse("classify", ["--config", "shapes", f"--{key}", text])
        assert str(caught.value).startswith(f"--{key}")
        assert len(str(caught.value)) <= 300
        assert "\n" not in str(caught.value)
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize(
    ("content", "text"), [(b"\xff\xfe\x00", "is not UTF-8"), (b"", ""), (b"# only a comment\n", "")]
)
def test_odd_files(content: bytes, text: str, folder: Path) -> None:
    (folder / "c.yaml").write_bytes(content)
    if not text:  # an empty file means the defaults
        assert parse("classify", ["--config", "c.yaml"]).config.model.backbone == "b0"
        return
    with pytest.raises(UserError, match=text):
        parse("classify", ["--config", "c.yaml"])


def test_unreadable_config(folder: Path) -> None:
    (folder / "d.yaml").mkdir()
    with pytest.raises(UserError, match=r"no file and no bundled config is called 'd\.yaml'"):
        parse("classify", ["--config", "d.yaml"])
    for name in ("../classify/shapes", "/etc/hostname-not-there", "", "shapes\n"):
        with pytest.raises(UserError) as caught:
            parse("classify", ["--config", name])
        assert "\n" not in str(caught.value)


_LIMITED = [
    (cls, name) for cls in (ModelConfig, DataConfig, RandAugmentConfig, OptimConfig, RunConfig) for name in cls.LIMITS
]


@pytest.mark.parametrize(("cls", "name"), _LIMITED, ids=[f"{cls.SECTION}.{name}" for cls, name in _LIMITED])
def test_every_number_refuses_what_is_out_of_range(cls: Any, name: str) -> None:
    low, high = (float(end) for end in cls.LIMITS[name][1:-1].split(","))
    bad = [float("nan"), float("inf"), -float("inf"), low - 1]
    bad += [low] if cls.LIMITS[name][0] == "(" else []
    bad += [] if high == float("inf") else [high + 1] + ([high] if cls.LIMITS[name][-1] == ")" else [])
    hint = get_type_hints(cls)[name]
    pair = next(
        (
            len(get_args(member))
            for member in members_of(hint)
            if get_args(member) and get_args(member)[0] in (int, float)
        ),
        0,
    )
    for value in bad:
        for given_value in [value] if members_of(hint) & {int, float} else [(value,) * pair]:
            with pytest.raises(UserError) as caught:
                cls(**{name: given_value})
            assert str(caught.value).startswith(f"{cls.SECTION}.{name}: expected ")
            assert str(value) in str(caught.value)


def test_the_place_of_a_number_out_of_range_is_named(folder: Path) -> None:
    (folder / "c.yaml").write_text("optim:\n  name: sgd\n  lr: .nan\n")
    with pytest.raises(UserError) as caught:
        parse("classify", ["--config", "c.yaml"])
    assert str(caught.value) == "c.yaml:3: optim.lr: expected a finite number, got nan; correct it"
    with pytest.raises(UserError, match=r"^--optim.lr: expected a number in \[0, 1000\], got -1"):
        parse("classify", ["--config", "shapes", "--optim.lr", "-1"])
    with pytest.raises(UserError, match=r"^--model.head_options.x: expected a finite number, got inf"):
        parse("classify", ["--config", "shapes", "--model.head_options.x", "[1, .inf]"])


@pytest.mark.parametrize("cls", [ModelConfig, DataConfig, OptimConfig])
def test_contradictions_name_a_field(cls: Any) -> None:
    cases: dict[Any, list[dict[str, Any]]] = {
        ModelConfig: [
            {"unfreeze_epoch": 1},
            {"weights": "imagenet", "init_from": "x"},
            {"mean": (0.5,), "std": (0.5, 0.5)},
            {"crop_mode": "x"},
        ],
        DataConfig: [{"scale": (1.0, 0.5)}, {"multilabel": True, "mixup": 0.2}, {"crop": "pd"}, {"on_error": "ignore"}],
        OptimConfig: [{"nesterov": True}, {"name": "adam"}, {"schedule": "cos"}],
    }
    for values in cases[cls]:
        with pytest.raises(UserError) as caught:
            cls(**values)
        assert any(str(caught.value).startswith(f"{cls.SECTION}.{name}: ") for name in values)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is clearly of the key's type, by a reading of the types of our own."""
    for member in members_of(hint):
        if member is NoneType and value is None:
            return True
        if member in (bool, str) and type(value) is member:
            return True
        if member is int and type(value) is int:
            return True
        if member is float and type(value) in (int, float):
            return True
    return False


_NUMBER = st.integers(-(2**50), 2**50) | st.just(10**400) | st.floats()
_ANYTHING = st.none() | st.booleans() | _NUMBER | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
_SIMPLE = [(key, hint) for key, hint, _ in leaves() if members_of(hint) <= {int, float, str, bool, NoneType}]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(_SIMPLE), _ANYTHING)
def test_a_value_of_another_type_is_refused(leaf: tuple[str, Any], value: Any) -> None:
    key, hint = leaf
    *sections, name = key.split(".")
    mapping: Any = {name: value}
    for section in reversed(sections):
        mapping = {section: mapping}
    config, message = outcome(lambda: from_mapping(mapping, "c.yaml"))
    if message:
        assert message.startswith("c.yaml: ")
        assert len(message) <= 300
        assert _fits(hint, value) or message.startswith(f"c.yaml: {key}: expected ")
        return
    assert _fits(hint, value)
    for section in sections:
        config = config[section] if isinstance(config, dict) else getattr(config, section)
    assert getattr(config, name) == value
    assert dataclasses.is_dataclass(config)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abc:{}[]&*!?-|>'\"%@`,#\n \t0.1e", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    _, message = outcome(lambda: read_value(text, "t"))
    assert message == "" or (message.startswith("t") and message.isprintable())
