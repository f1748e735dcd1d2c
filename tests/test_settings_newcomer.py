"""What a newcomer types first: --version, --help, names of other tools, tasks of plug-ins."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tests_support import printed_by

from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.classification.task import Classification
from tasks.run import main
from tasks.settings.commandline import parse
from tasks.settings.keytypes import SYNONYMS, leaves
from tasks.spec import register_task
from tasks.verbs.command import import_plugins


@pytest.mark.parametrize("argv", [["--version"], ["classify", "--version"]])
def test_versions_of_what_matters(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    words = capsys.readouterr().out.split(", ")
    assert [word.split()[0] for word in words] == ["effbackbones", "torch", "Python"]
    assert words[2].split()[1] == sys.version.split()[0]


def test_help_lists_verbs_heads_backbones_and_says_how_to_see_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("segment", ["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: effbackbones train segment --config NAME|FILE [--section.key VALUE ...]")
    flat = " ".join(text.split())
    for said in (
        "train, then evaluate the best weights Configs: ",
        "Heads: deeplabv3, deeplabv3plus, ",
        "default here: unet.",
        "Backbones: b0, b1",
        "Other verbs: evaluate, predict, ",
        "--print-config shows each value and its origin",
        "--print-config show each value of the config and where it comes from",
        "--optim.lr Peak learning rate, stated at base_batch. (a number; range [0, 1000]; default 0.001)",
        "(one of fixed, aspect; default fixed)",
        "--data.exif",
        "default [0.9, 0.999])",
        "(true or false; default false)",
    ):
        assert said in flat, said
    assert "efficientdet" not in flat.partition("Options:")[0]
    assert max(map(len, text.splitlines())) <= 100


def test_help_of_a_verb_has_the_options_and_keys_that_it_reads_and_no_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for verb, there, elsewhere in (
        ("train", ("--seeds", "--optim.lr", "--data.mosaic"), ("--tta", "--out ", "--checkpoint")),
        ("predict", ("--out OUT", "(default: predictions)", "--data.root"), ("--seeds", "--optim.lr", "--data.mosaic")),
        ("export", (".onnx, .pt2 or .xml", "--fixed "), ("--fixed FIXED", "--top-k", "--memory")),
        ("prune", ("--target TARGET", "--unscored"), ("--latency", "embeddings.npy")),
    ):
        for words, key in ((["detect", verb, "--help"], True), ([verb, "--help"], False)):
            with pytest.raises(SystemExit):
                main(words)
            text = capsys.readouterr().out
            for said in there:
                assert said in text or (not key and "." in said and said.startswith("--")), (verb, said)
            assert not [said for said in elsewhere if said in text], verb


def test_names_of_other_tools_lead_to_ours() -> None:
    keys = {key for key, _, _ in leaves()}
    assert set(SYNONYMS) <= keys
    for word, ours in (
        ("optim.learning_rate", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("data.num-workers", "data.workers"),
    ):
        with pytest.raises(UserError, match=rf"--{word}: no such option; it is called {ours} here"):
            parse("classify", ["--config", "shapes", f"--{word}", "1"])
    with pytest.raises(UserError, match=r"did you mean optim\.lr"):
        parse("classify", ["--config", "shapes", "--optim.lrr", "1"])


def test_a_task_is_registered_as_a_class_or_an_instance(lend: Any) -> None:
    lend(TASKS, {}, alone=True)

    @register_task("mine")
    class Mine(Classification):
        name = "mine"

    assert isinstance(TASKS.get("mine"), Mine)
    register_task("mine")(Mine())  # the same again
    with pytest.raises(UserError, match=r"task 'other': expected a TaskSpec, got .*int.*; derive it from"):
        register_task("other")(int)
    assert parse("mine", ["bench", "--model.backbone", "b1"]).config.model.task == "mine"


def test_the_command_of_any_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: effbackbones VERB TASK" in capsys.readouterr().out
    assert main(["--config", "x"]) == 2
    assert main(["nothing", "bench", "--model.backbone", "b0"]) == 2
    assert "error: verb or task 'nothing': no such name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("mine", ["--help"])
    assert "usage: effbackbones train mine --config NAME|FILE" in capsys.readouterr().out


def test_the_plug_ins_of_a_run_are_named_and_not_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"plugins": ["/a/mine.py"]}), encoding="utf-8")
    line = ["evaluate", "--checkpoint", str(tmp_path)]
    assert parse("classify", line).config.plugins == ()
    assert "not imported on a run's word: --plugins '[/a/mine.py]'\n" in capsys.readouterr().err
    assert parse("classify", [*line, "--plugins", "b.py"]).config.plugins == ("b.py",)
    assert capsys.readouterr().err == ""


def test_a_plug_in_that_is_started_and_named_does_not_meet_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "started_plugin.py"
    file.write_text("raise AssertionError('imported a second time')", encoding="utf-8")
    running = ModuleType("__main__")
    running.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "__main__", running)
    monkeypatch.delitem(sys.modules, "started_plugin", raising=False)
    import_plugins((str(file),))
    assert sys.modules.pop("started_plugin") is running


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("\n1 / 0", "ZeroDivisionError: .*, line 2"),
        ("import nowhere_at_all", "ModuleNotFoundError: .*nowhere_at_all"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_named(code: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "faulty_plugin.py").write_text(code, encoding="utf-8")
    with pytest.raises(UserError, match=rf"plugins: .*faulty_plugin.py: cannot be imported \({says}"):
        import_plugins((str(tmp_path / "faulty_plugin.py"),))


def test_version_needs_no_torch() -> None:
    script = "import sys\nfrom tasks.run import main\ntry: main(['--version'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    assert printed_by(script).split()[-1] == "False"


def test_a_task_that_is_not_there_is_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clssify", "--config", "shapes"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: verb or task 'clssify': no such name; did you mean classify")
    assert "plugins" in said


def test_a_run_that_is_not_there_is_called_that() -> None:
    with pytest.raises(UserError, match=r"--run\.resume .*gone: holds no run \(config\.yaml is missing\)"):
        parse("classify", ["--run.resume", "gone", "--optim.epochs", "3"])


@pytest.mark.parametrize("share", ["1.5", "-0.2", "1.0", "0.0"])
def test_shares_are_shares(share: str) -> None:
    with pytest.raises(UserError, match=r"--data\.val: expected a number in \(0, 1\), got"):
        parse("classify", ["--config", "folder", "--data.val", share])
    assert parse("classify", ["--config", "folder", "--data.val", "2017"]).config.data.val == "2017"
