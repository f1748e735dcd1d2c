"""The table of verbs is what the command line is built from: rows that name what is there, and rows added from outside."""

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_support import ROOT, printed_by

from effbackbones.errors import UserError
from tasks.detect import main
from tasks.settings.commandline import Extras, parse
from tasks.settings.keytypes import hint_of
from tasks.settings.verboptions import OPTIONS, Option
from tasks.settings.verbs import VERBS, Verb, register_verb
from tasks.verbs.command import explain, run_line

TOY = '''"""A verb that reads neither config nor task."""
seen = []


def join(extras):
    """Notes what it was called with."""
    seen.append(extras)
    return 7
'''


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_row_names_a_function_and_options_that_exist(verb: Verb) -> None:
    function = getattr(importlib.import_module(verb.module), verb.name)
    wanted = ["extras"] if verb.config == "none" else ["task", "config", "extras"]
    assert list(inspect.signature(function).parameters) == wanted
    assert set(verb.options) <= set(OPTIONS)
    assert verb.help


def test_every_option_reaches_a_verb() -> None:
    fields = set(Extras.__dataclass_fields__)
    assert {name.replace("-", "_") for name in OPTIONS} - {"config", "print_config"} <= fields
    assert [name for verb in VERBS.values() for name in verb.own if name in OPTIONS] == []
    for name in OPTIONS:
        assert any(verb.takes(name) for verb in VERBS.values()), name


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Extras]]:
    """A verb added from outside by a file and a row; what it was called with."""
    (tmp_path / "toy_verb.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        VERBS, "join", Verb("join", "toy_verb", "say nothing about anything", ("out",), config="none", inputs=True)
    )
    yield importlib.import_module("toy_verb").seen
    del sys.modules["toy_verb"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export --out m.xyz", "m.xyz: is no name for an exported file"),
        ("export --out m.onnx --format openvino", "m.onnx: is no name for openvino"),
        ("export --out m.onnx --bound 2,0.1", "--bound: expected two numbers of 0 to 1"),
        (
            "export --out m.onnx --bound 0_9,0.1",
            "--bound: expected two numbers of 0 to 1, AGREEMENT,CHANGE, got '0_9,0.1'",
        ),
        ("export --out m.onnx --certify \u0663", "--certify: expected a count of at least 1"),
        ("prune --out m.safetensors --batches 1_0", "--batches: expected a whole number, got '1_0'"),
        ("export --out m.onnx --certify 0", "--certify: expected a count of at least 1"),
        ("embed --out e.npy", "INPUT: nothing is named"),
    ],
)
def test_what_a_line_says_is_looked_at_before_the_work(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--checkpoint", str(tmp_path / "nowhere.safetensors")]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_verb_without_config_and_task_is_a_file_and_a_row(
    toy: list[Extras], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effbackbones.registry.Registry.get", lambda *_: pytest.fail("a task was loaded"))
    assert main(["join", "runs/a", "--out=there", "runs/b"]) == 7
    assert toy == [Extras(inputs=("runs/a", "runs/b"), out="there")]
    for argv, text in {
        (
            "--config",
            "shapes",
        ): "--config: does not go with join; it goes with train, evaluate, predict, check, export, prune, bench, plan, embed",
        ("--data.root", "x"): "--data.root: does not go with join; it goes with train",
        ("--print-config",): "--print-config: does not go with join",
        ("--split", "val"): "--split: does not go with join; it goes with evaluate, predict, export, prune",
    }.items():
        assert main(["join", *argv]) == 2
        assert f"error: {text}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["join", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "say nothing about anything" in shown
    assert "--out OUT" in shown


def test_inputs_and_flags_go_with_the_verbs_that_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    takers = ", ".join(verb.name for verb in VERBS.values() if verb.inputs)
    for argv, text in {
        (
            "bench",
            "a.jpg",
        ): f"argument 'a.jpg': bench takes none; options start with --; inputs go with {takers}",
        ("--config", "shapes", "--deep"): "--deep: does not go with train; it goes with check",
        ("check", "--config", "shapes", "--deep=1"): "--deep: takes no value; write --deep",
    }.items():
        with pytest.raises(UserError) as caught:
            parse("detect", list(argv))
        assert str(caught.value) == text
    assert parse("detect", ["check", "--config", "shapes", "--deep"]).extras.deep


def test_a_verb_of_this_process_alone_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "toy_verb.py").write_text(TOY)
    code = (
        "import sys; from tasks.settings.verbs import VERBS, Verb; from tasks.detect import main\n"
        "VERBS['join'] = Verb('join', 'toy_verb', 'x', config='none', inputs=True)\n"
        "code = main(['join', 'a']); print(code, 'torch' in sys.modules)"
    )
    said = printed_by(f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n{code}")
    assert said.split() == ["7", "False"]


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    """``ru_maxrss`` of a small child of a large process begins at the large one's."""
    if not Path("/proc/self/status").exists():
        pytest.skip("not Linux")
    measure = "import json, torch; from tasks.verbs.bench import peak_memory; print(json.dumps(peak_memory(torch.device('cpu'))))"
    large = "import subprocess, sys; ballast = b'x' * (2 << 30); sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    used, what = json.loads(printed_by(large, measure))
    assert what == "of the process"
    assert 50 < used < 1.5 * 2**10


def test_options_of_a_head_are_named_as_in_a_config_of_several_tasks() -> None:
    assert (
        explain(UserError("head_options['seg'].chanels", "no such option"))[0]
        == "heads.seg.options.chanels: no such option"
    )
    assert explain(UserError("head_options.chanels", "no such option"))[0] == "head_options.chanels: no such option"


PLUGIN = """
from tasks.settings.verboptions import Option
from tasks.settings.verbs import register_verb


@register_verb("what it was asked", options=("out",), inputs=True)
def inquire(task, config, extras):
    print(task.command, config.data.image_size, extras.out, *extras.inputs)
    return 5


@register_verb("nothing", config="none", inputs=True)
def idle(extras):
    print(extras.inputs)
    return 0


@register_verb(
    "how deep a file is",
    options=("out",),
    config="none",
    inputs=True,
    own={
        "least-depth": Option("how deep at least", type=int, default=3),
        "share": Option("of what", type=float),
        "unit": Option("of the answer", values=("metres", "feet"), default="metres"),
        "place": Option("where the rule lies", path=True),
        "loud": Option("say it twice", flag=True),
    },
)
def sound(extras):
    print(extras.out, *sorted(extras.own.items()), *extras.inputs)
    return 4
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A plug-in with two verbs, of which nothing is left afterwards."""
    path = tmp_path / "inquiring.py"
    path.write_text(PLUGIN)
    before = dict(VERBS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield str(path)
    sys.modules.pop("inquiring", None)
    VERBS.clear()
    VERBS.update(before)


def test_a_plug_in_brings_verbs(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["inquire", "--plugins", plugin, "--data.image_size", "64", "--out", "there", "a.jpg"]
    assert main(["inquire", "--data.image_size", "64"]) == 2
    assert "error: command 'inquire': no such verb; " in capsys.readouterr().err
    for _ in range(2):
        assert main(line) == 5
        told = capsys.readouterr()
        assert told.out == "detect 64 there a.jpg\n"
        assert told.err == f"plug-in {plugin}\n"  # once
    assert main(["idle", f"--plugins=[{plugin}]", "b.jpg"]) == 0
    assert capsys.readouterr().out == "('b.jpg',)\n"
    assert main(["inquire", "--plugins", plugin, "--split", "val"]) == 2
    assert "--split: does not go with inquire" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inquire", "--plugins", plugin, "--help"])
    assert "\n\nwhat it was asked\n" in capsys.readouterr().out


def test_verbs_keep_their_names_and_know_their_options() -> None:
    def predict(task: Any, config: Any, extras: Any) -> int:
        return 0

    with pytest.raises(UserError, match=r"verb 'predict': is that of tasks\.verbs\.predict; give the function another"):
        register_verb("mine")(predict)
    predict.__name__ = "mine"
    with pytest.raises(UserError, match=r"verb 'mine': there is no option 'ouut'; did you mean out"):
        register_verb("mine", options=("ouut",))(predict)
    assert "mine" not in VERBS


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.config != "none"], ids=lambda verb: verb.name)
def test_what_a_verb_does_not_read_are_keys(verb: Verb) -> None:
    assert [key for key in verb.unread if key != "optim" and hint_of(key) is None] == []
    assert verb.reads("data.image_size")
    assert verb.reads("data.flip") == (verb.name in ("train", "check", "plan", "prune"))
    assert verb.reads("data.root", split=True)
    assert verb.reads("data.root") == (verb.name not in ("predict", "bench", "embed"))


def test_a_plug_in_verb_brings_options(
    plugin: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RULE", "/rules")
    bare = ["sound", "--plugins", plugin, "a"]
    assert main(bare) == 4
    defaults = "('least_depth', 3) ('loud', False) ('place', None) ('share', None) ('unit', 'metres')"
    assert capsys.readouterr().out == f"None {defaults} a\n"
    given = ["--least-depth", "-7", "--share=0.25", "--unit", "feet", "--place", "$RULE/r", "--loud", "--out", "o"]
    assert main([*bare, *given]) == 4
    told = "('least_depth', -7) ('loud', True) ('place', '/rules/r') ('share', 0.25) ('unit', 'feet')"
    assert capsys.readouterr().out == f"o {told} a\n"
    for words, said in {
        "--least-depth deep": "--least-depth: expected a whole number, got 'deep'; correct it",
        "--share nan": "--share: expected a number, got 'nan'; correct it",
        "--unit feets": "--unit: unknown unit 'feets'; did you mean feet or metres? known: feet, metres",
        "--loud=1": "--loud: takes no value; write --loud",
        "--least-dept 1": "--least-dept: no such option; did you mean --least-depth?",
        "--share": "--share: needs a value; write --share VALUE",
    }.items():
        assert main([*bare, *words.split()]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {said}"
    assert main(["inquire", "--plugins", plugin, "--least-depth", "1"]) == 2
    assert "error: --least-depth: does not go with inquire; it goes with sound" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sound", "--plugins", plugin, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for line in (
        "--least-depth DEPTH how deep at least (a whole number; default 3)",
        "--unit UNIT of the answer (metres or feet; default metres)",
        "--loud say it twice",
    ):
        assert line in shown


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("out", Option("x"), "is one that verbs share"),
        ("plugins", Option("x"), "is one that verbs share"),
        ("Least", Option("x"), "expected small letters"),
        ("data.root", Option("x"), "expected small letters"),
        ("least", Option("x", type=dict), "expected one of str, int, float as its type, got <class 'dict'>"),
        ("least", Option("x", flag=True, default=True), "is a flag, which is false"),
    ],
)
def test_options_that_could_not_be_read_are_refused(name: str, option: Option, said: str) -> None:
    with pytest.raises(UserError) as error:
        register_verb("mine", own={name: option})(join_nothing)
    assert str(error.value).startswith(f"verb 'join_nothing', option {name!r}: {said}")
    assert "join_nothing" not in VERBS


def join_nothing(extras: Extras) -> int:
    return 0


def test_a_verb_without_a_task_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_line(["serve", "detect", "--checkpoint", "runs/other"]) == 2
    assert (
        capsys.readouterr().err == "error: argument 'detect': serve takes no task, which the model says; leave it out\n"
    )


def test_check_looks_at_one_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", "shapes", "--checkpoint", "runs/other"]) == 2
    said = "error: --checkpoint: names a run whose config is checked, and --config another; give one of them"
    assert capsys.readouterr().err.splitlines()[-1] == said
