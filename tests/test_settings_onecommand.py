"""The one command: verbs, and tasks below them; what shells complete."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests_support import ROOT, error_of, printed_by

from effbackbones.errors import UserError
from effbackbones.registry import BACKBONES, HEADS, TASKS
from tasks.run import main
from tasks.settings.completion import SHELLS
from tasks.settings.onecommand import is_ordered, ordered
from tasks.settings.verbs import VERBS

PLUGIN = '''
from effbackbones import register_backbone, register_head
from heads.classification import ClassificationHead
from tasks.classification.task import Classification
from tasks.spec import register_dataset, register_task, register_verb


@register_verb("measure nothing")
def gauge(task, config, extras):
    print("gauge", task.name)
    return 6


@register_task("grade")
class Grade(Classification):
    name, command = "grade", "grade"


@register_head("grader")
class Grader(ClassificationHead):
    task = "grade"


@register_backbone("broken")
def broken():
    raise RuntimeError("no such net")


@register_dataset("marks")
def marks(data, split, classes):
    """Marks of a school."""
'''


@pytest.fixture
def plugin(tmp_path: Path, lend: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A plug-in with a verb, a task, a head, a backbone and a data set, of which nothing is left afterwards."""
    from tasks.data.dataset import DATASETS

    for registry in (BACKBONES, HEADS, TASKS, DATASETS):
        lend(registry, {}, alone=True)
    path = tmp_path / "grading_plugin.py"
    path.write_text(PLUGIN)
    before = dict(VERBS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield str(path)
    sys.modules.pop("grading_plugin", None)
    VERBS.clear()
    VERBS.update(before)


@pytest.mark.parametrize(
    ("line", "command", "argv"),
    [
        ("train detect --config coco", "detect", "train --config coco"),
        ("detect train --config coco", "detect", "train --config coco"),
        ("detect --config coco", "detect", "--config coco"),
        ("train det", "detect", "train"),
        ("seg bench", "segment", "bench"),
        ("evaluate joint --split train", "joint", "evaluate --split train"),
        ("push --checkpoint a USER/NAME", "", "push --checkpoint a USER/NAME"),
        ("list heads detect", "", "list heads detect"),
        ("compare runs/a runs/b --out c", "", "compare runs/a runs/b --out c"),
        ("train count --plugins c.py", "count", "train --plugins c.py"),
        ("count bench --plugins=c.py", "count", "bench --plugins=c.py"),
        ("train --help", "", "train --help"),
    ],
)
def test_a_verb_and_a_task_in_either_order(line: str, command: str, argv: str) -> None:
    assert ordered(line.split()) == (command, argv.split())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trian detect", "verb or task 'trian': no such name; did you mean train?"),
        ("dtect train", "verb or task 'dtect': no such name; did you mean detect"),
        ("train detct --config x", "task 'detct': no such name behind train; did you mean detect?"),
        (
            "predict holiday.jpg --checkpoint .",
            "task 'holiday.jpg': no such name behind predict; known: classify, detect",
        ),
        ("train --config coco", "command 'train': which task?; write effbackbones train TASK [...]; known: classify"),
        ("train", "command 'train': which task?"),
        ("--config coco", "--config: expected a verb first; write effbackbones VERB TASK"),
        ("list bones", "list 'bones': no such kind; did you mean backbones"),
        ("list heads detct", "task 'detct': no such name; did you mean detect?"),
        ("list weights b99", "backbone 'b99': has no published weights"),
        ("list backbones b99", "backbone 'b99': no such name"),
        ("list tasks det", "list tasks 'det': takes no names"),
        ("list --jsn", "--jsn: no such option; did you mean --json?"),
        ("completion bsh", "completion 'bsh': no such shell; did you mean bash"),
        ("completion", "completion: expected one shell, got none; known: bash, zsh, fish"),
        ("weights", "weights: nothing is named"),
        ("weights lite0", "weights lite0: is published, and no file here"),
        ("weights fetch", "weights fetch: nothing is named; write weights fetch NAME"),
        ("weights fetch b0 --json", "weights fetch: prints paths"),
        ("weights fetch lite0 --backbone b0", "--backbone: is b0, and lite0 is a backbone itself; leave one out"),
        ("weights list b99", "backbone 'b99': has no published weights"),
        ("weights a --cache b", "--cache: is for weights fetch"),
        ("detect list --json=1", "--json: takes no value"),
    ],
)
def test_wrong_words_are_one_line(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert error_of(capsys).startswith(f"error: {said}")


def test_a_config_file_may_bring_the_task(tmp_path: Path) -> None:
    (tmp_path / "count.yaml").write_text("plugins: [count.py]")
    with pytest.raises(UserError):
        ordered(["train", "count", "--config", "count"])
    for config in (["--config", str(tmp_path / "count.yaml")], [f"--config={tmp_path / 'count.yaml'}"]):
        assert ordered(["train", "count", *config]) == ("count", ["train", *config])


def test_help_has_every_verb_and_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["help"]) == 0
    shown = capsys.readouterr().out
    for verb in VERBS.values():
        assert f"  {verb.name} " in shown
    assert "Verbs with a task (classify, detect, joint, segment):" in shown
    for words, said in (
        (
            ["train", "--help"],
            "usage: effbackbones train TASK --config NAME|FILE [--section.key VALUE ...] [--option VALUE ...]\n",
        ),
        (["list", "--help"], "usage: effbackbones list KIND [NAME ...] [--option VALUE ...]\n"),
        (["evaluate", "detect", "--help"], "usage: effbackbones evaluate detect [--config NAME|FILE]"),
        (["evaluate", "--help", "detect"], "usage: effbackbones evaluate detect [--config NAME|FILE]"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert capsys.readouterr().out.startswith(said)


def test_help_and_lists_load_no_torch() -> None:
    """Help takes 0.3 s at most, which is told here by what it loads, for that does not depend on the machine."""
    code = (
        "import io, sys, contextlib, tasks.run\n"
        "with contextlib.redirect_stdout(io.StringIO()): tasks.run.main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'timm', 'lightning', 'albumentations', 'torchmetrics', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for kind in ('backbones', 'heads', 'weights', 'configs', 'datasets', 'tasks'): tasks.run.main(['list', kind])\n"
        "print('torch' in sys.modules)"
    )
    assert printed_by(code).split("\n") == ["[]", "False"]


@pytest.mark.slow
def test_help_takes_less_than_a_third_of_a_second() -> None:
    """Of a processor's time, for what others do on the machine is not the command's."""
    resource = pytest.importorskip("resource")

    def used() -> float:
        times = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(times.ru_utime + times.ru_stime)

    taken = []
    for _ in range(3):
        before, line = used(), [sys.executable, "-m", "effbackbones", "--help"]
        assert subprocess.run(line, capture_output=True, cwd=ROOT, check=True).stdout.startswith(b"usage: ")
        taken.append(used() - before)
    assert min(taken) < 0.3


def test_python_m_is_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("")
    line = [
        sys.executable,
        "-c",
        f"import sys, runpy; sys.path.append({str(ROOT)!r}); sys.argv = ['x', *sys.argv[1:]]; ",
    ]
    line[-1] += "runpy.run_module('effbackbones', run_name='__main__')"

    def done(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*line, *words], capture_output=True, text=True, cwd=folder, timeout=60, check=False)

    shown = done(ROOT, "bench", "--help")
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (
        0,
        "usage: effbackbones bench TASK [--config NAME|FILE] [--section.key VALUE ...] [--option VALUE ...]",
    )
    shadowed = done(tmp_path, "--help")
    assert shadowed.returncode == 2
    assert shadowed.stderr.startswith(
        f"error: {tmp_path / 'tasks' / '__init__.py'}: stands in front of effbackbones' own"
    )
    assert len(shadowed.stderr.splitlines()) == 1


def test_the_line_that_a_launcher_starts_again_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes on one machine are started by the words of this one, whose order is not that of the verb's."""
    told = []
    monkeypatch.setattr("tasks.verbs.command._run", lambda *words, **more: told.append(more["again"]) or 0)
    words = ["train", "detect", "--config", "shapes"]
    monkeypatch.setattr(sys, "argv", ["effbackbones", *words])
    assert main() == main(words) == main(["train", "detect", "--config", "coco"]) == 0
    assert told == [True, True, False]


def test_plug_ins_bring_verbs_and_tasks(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model.backbone", "b0", "--plugins", plugin]
    assert not is_ordered(["gauge", "grade"])
    for words in (["gauge", "grade"], ["grade", "gauge"]):
        assert main([*words, *small]) == 6
        told = capsys.readouterr()
        assert (told.out, told.err) == ("gauge grade\n", f"plug-in {plugin}\n")
    assert main(["gauge", "cls", *small]) == 6
    assert capsys.readouterr().out == "gauge cls\n"
    assert main(["--plugins", plugin, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "measure nothing" in shown
    assert "(classify, detect, grade, joint, segment)" in shown
    assert main(["gauge", "nobody", *small]) == 2


def test_lists_have_what_plug_ins_bring(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--plugins", plugin]
    found = {}
    for kind in ("heads", "datasets", "tasks", "backbones"):
        assert main(["list", kind, *more]) == 0
        found[kind] = [
            line for line in capsys.readouterr().out.splitlines() if "grading_plugin" in line or "broken" in line
        ]
    assert [line.split()[0] for lines in found.values() for line in lines] == [
        "grader",
        "marks",
        "grade",
        "broken",
        "broken:",
    ]
    assert "Marks of a school." in found["datasets"][0]
    assert found["heads"][0].split()[1] == "grade"
    assert found["backbones"][1] == "broken: RuntimeError: no such net"
    assert main(["completion", "bash", *more]) == 0
    assert "gauge" in capsys.readouterr().out


def completed(shell: str, *words: str) -> list[str]:
    """What a shell offers for the last of ``words``."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    script = printed_by(f"import sys, tasks.run; sys.exit(tasks.run.main(['completion', {shell!r}]))")
    line = " ".join(("effbackbones", *words))
    if shell == "fish":
        command = [program, "--no-config", "-c", f"{script}\ncomplete -C {line!r}"]
    else:
        ask = 'compadd() { shift; print -l -- "$@"; }; _files() { :; }; words=("$@"); CURRENT=$#; _effbackbones'
        command = [program, "-f", "-c", f"compdef() {{ :; }}\n{script}\n{ask}", "zsh", "effbackbones", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word.startswith(words[-1]) and word]


COMPLETED = [
    ("tr", ["train"]),
    ("train d", ["detect"]),
    ("evaluate detect --spl", ["--split"]),
    ("evaluate detect --split va", ["val"]),
    ("evaluate detect --split = va", ["val"]),  # which bash makes of --split=va
    ("train detect --config co", ["coco", "coco_mini"]),
    ("segment --config ca", ["camvid"]),
    ("train detect --model.backbone lite", [f"lite{i}" for i in range(5)]),
    ("train segment --model.head unet", ["unet", "unetplusplus"]),
    ("train detect --model.head un", []),
    ("train detect --data.roo", ["--data.root"]),
    ("train detect --optim.name ad", ["adamw"]),
    ("train detect --print-config --confi", ["--config"]),
    ("predict detect --thresh", ["--threshold"]),
    ("train detect --thresh", []),
    ("list h", ["heads"]),
    ("list weights lite1", ["lite1"]),
    ("list configs jo", ["joint"]),
    ("completion f", ["fish"]),
    ("push --pri", ["--private"]),
]


@pytest.mark.parametrize(("line", "words"), COMPLETED)
def test_bash_completes(line: str, words: list[str], bash: Any) -> None:
    assert bash(line.split(" ")) == words


@pytest.fixture(scope="module")
def bash() -> Any:
    """Asks one bash, to which the script was given, for each line."""
    lines = [line.split(" ") for line, _ in COMPLETED]
    program = shutil.which("bash")
    if program is None:
        pytest.skip("no bash here")
    script = printed_by("import sys, tasks.run; sys.exit(tasks.run.main(['completion', 'bash']))")
    ask = 'ask() { COMP_WORDS=(effbackbones "$@"); COMP_CWORD=$#; _effbackbones; echo "${COMPREPLY[@]-}"; }\n'
    asked = "\n".join(f"ask {' '.join(line)}" for line in lines)
    command = [program, "--norc", "-c", f"set -u\n{script}\n{ask}{asked}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stderr == ""
    answers = dict(zip(map(tuple, lines), done.stdout.split("\n"), strict=False))
    return lambda line: answers[tuple(line)].split()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete(shell: str) -> None:
    assert completed(shell, "train", "d") == ["detect"]
    assert completed(shell, "evaluate", "detect", "--split", "va") == ["val"]


def test_scripts_say_where_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith(f"# Completion of effbackbones for {shell}: ")
