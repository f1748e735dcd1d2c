"""What the pages of the documentation say is true: commands are understood, configs load, links lead somewhere, Python runs."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from scenes import write_picture
from tests_support import QUIET, ROOT

from effbackbones.catalogue import weight_rows
from effbackbones.registry import HEADS
from effbackbones.weights.classifiers import SOURCES
from tasks.data.dataset import DATASETS
from tasks.settings.commandline import bundled, parse
from tasks.settings.onecommand import ordered
from tasks.settings.verboptions import OPTIONS
from tasks.settings.verbs import VERBS


def of_docs(name: str) -> ModuleType:
    """A module of the folder ``docs``, imported as MkDocs does it: with that folder on the path."""
    path = ROOT / f"docs/{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


DOCS = ROOT / "docs"
TABLES, LINKS, EXECUTE = (of_docs(name) for name in ("tables", "links", "execute"))
SOURCES_OF_PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))
}
PAGES = {page: TABLES.with_files(text) for page, text in SOURCES_OF_PAGES.items()}
"""With the files that they include."""
TEXTS = {**PAGES, "../README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
TEXTS["../CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
OTHERS = {f"../{name}": (ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "SECURITY.md")}
"""Of which the links are looked at alone."""
NOTEBOOKS = sorted(path.stem for path in DOCS.rglob("*.ipynb"))
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUNS = (
    "classify/folder",
    "detect/coco",
    "detect/mine",
    "detect/bccd",
    "segment/folder",
    "joint/coco",
    "tutorial",
    "other",
    "larger",
    "lines",
    *NOTEBOOKS,
    *(f"{name}-flip" for name in NOTEBOOKS),
)
MINE = {
    "examples/plugin/greys.yaml": "base: shapes\n",
    "mine.yaml": "base: coco\n",
    "examples/counting.yaml": "plugins: []\n",
}
OF_SAMPLE = re.compile(r"^effbackbones (brightness|train grade|train count|evaluate count) ")
"""What plug-ins bring, and their own tests run."""
OURS = re.compile(r"(effbackbones(-\w+)?|python -m (effbackbones|tasks\.\w+))( |$)")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [body for found, body in BLOCK.findall(text) if found == language]


def commands(text: str) -> Iterator[str]:
    """The shell commands of a page: lines of blocks, parts of a pipe one by one, and our own among the words of a sentence."""
    for block in blocks(text, "bash"):
        block = block.replace(" $more", "").replace("$root", "data")  # variables of notebooks
        for line in block.splitlines():
            yield from (part.strip() for part in re.split(r"(?:^|\s)#\s.*$| \| ", line) if part.strip())
    for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)):
        if OURS.match(code) and not re.search(r"[A-Z]{3}|\.\.\.", code) and " " in code:
            yield code


def our_line(line: str) -> tuple[str, list[str]] | None:
    """The command, and what follows it, of a line of ours; None for others."""
    words = shlex.split(line)
    if words[:2] == ["python", "-m"] and words[2].startswith(("tasks.", "effbackbones")):
        task = words[2].removeprefix("tasks.")
        if not words[3:]:
            return None  # the name of the program alone
        return ordered(words[3:]) if task in ("run", "effbackbones") else (task, words[3:])
    if words[0].startswith("effbackbones-"):
        return None if words[0] == "effbackbones-weights" else (words[0].removeprefix("effbackbones-"), words[1:])
    return ordered(words[1:]) if words[0] == "effbackbones" and words[1:] != ["--version"] else None


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs and configs that pages speak of."""
    monkeypatch.chdir(tmp_path)
    for run in RUNS:
        (tmp_path / "runs" / run / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").write_text("data: {name: shapes}\n", encoding="utf-8")
    (tmp_path / "runs/joint/coco/config.yaml").write_text("model: {task: [det, seg]}\n", encoding="utf-8")
    for name, text in MINE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("page", TEXTS)
def test_commands_are_understood(page: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verbs, tasks, options, keys with their values, and configs exist, by the reader of the command line itself."""
    for line in commands(TEXTS[page]):
        assert (
            "weights fetch" in line or OF_SAMPLE.search(line) or our_line(line) is None or parse_quietly(line) in VERBS
        ), line
        check_foreign(line)


def parse_quietly(line: str) -> str:
    command, argv = our_line(line) or ("", [])
    if {"--help", "--print-config"} & set(argv):
        with pytest.raises(SystemExit) as done:
            parse(command, argv)
        assert done.value.code == 0
        return argv[0] if argv[0] in VERBS else "train"
    return parse(command, argv).verb


def check_foreign(line: str) -> None:
    """A line that is not for our parser: ``make`` targets, files of benchmarks, extras, and sources of weights exist."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        words = [word for word in words if "=" not in word]
        assert set(words[1:]) <= set(targets), line
    if words[:1] == ["python"] and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), line
    if words[:3] == ["effbackbones", "weights", "fetch"]:
        assert any(words[3] in (row["name"], row["default"]) for row in weight_rows()), line
    for extra in re.findall(r"\.\[(\w+)\]", line):
        assert extra in project()["optional-dependencies"], line


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_reader_of_pages_finds_mistakes(desk: Path) -> None:
    """It would see a wrong verb, option, value, config and target."""
    from effbackbones.errors import UserError

    page = (
        "```bash\nfind x | effbackbones tran detect   # no\n```\nand `effbackbones list heads` or `effbackbones VERB`"
    )
    assert list(commands(page)) == ["find x", "effbackbones tran detect", "effbackbones list heads"]
    wrong = (
        "tran detect",
        "train detect --confg coco",
        "train detect --config cocoo",
        "train detect --config coco --optim.lr x",
    )
    for line in wrong:
        with pytest.raises(UserError):
            parse_quietly(f"effbackbones {line}")
    for line in (
        "make demoo",
        "python benchmarks/none.py",
        "pip install '.[lit]'",
        "effbackbones weights fetch imagenett",
    ):
        with pytest.raises(AssertionError):
            check_foreign(line)


@pytest.mark.parametrize("page", PAGES)
def test_configs_load(page: str, desk: Path) -> None:
    for block in blocks(PAGES[page], "yaml"):
        said = re.match(r"# (\S+\.yaml), for (\w+)\b", block)
        assert said is not None, "a config begins with `# NAME.yaml, for TASK`"
        (desk / said[1]).write_text(block, encoding="utf-8")
        assert parse(said[2], ["--config", said[1]]).verb == "train"


@pytest.mark.parametrize("page", [*TEXTS, *OTHERS])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", {**TEXTS, **OTHERS}[page])):
        if target.startswith(("http:", "https:", "data:")):
            continue
        name, _, anchor = target.partition("#")
        path = (DOCS / page).parent / name if name else DOCS / page
        assert path.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}
            assert anchor in known or "table: options" in path.read_text(encoding="utf-8"), target


def test_links_of_the_built_site_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/index.html").write_text('<h2 id="x">X</h2><a href="../#none"></a>', encoding="utf-8")
    page = '<a href="a%20b/#x"></a><a href="a%20b/#y"></a><img src="gone.png"><a href="http://x.org/z"></a><a href="#top"></a>'
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    assert [*LINKS.broken(tmp_path)] == [
        "a b/index.html: ../#none has no such anchor",
        "index.html: a%20b/#y has no such anchor",
        "index.html: gone.png is not there",
    ]


def test_cells_are_executed_and_shown(tmp_path: Path) -> None:
    """Python and lines for a shell share their variables; what fails ends it; what is kept names no place of the machine."""

    def cell(*lines: str, **metadata: Any) -> dict[str, Any]:
        return {"cell_type": "code", "metadata": metadata, "source": [*lines], "outputs": []}

    cells = [cell("# parameters", tags=["parameters"]), cell("!echo $root/x $more"), cell("print(root)\n", "[more, 1]")]
    cells.append(cell("from PIL import Image\n", "Image.new('RGB', (4, 4))"))
    notebook: dict[str, Any] = {"cells": cells, "metadata": {"pictures": ""}, "nbformat": 4, "nbformat_minor": 5}
    source = tmp_path / "a.ipynb"
    source.write_text(json.dumps(notebook), encoding="utf-8")
    done = EXECUTE.execute(source, tmp_path / "d", tmp_path, "--few")
    assert "".join(done["cells"][1]["outputs"][0]["text"]) == f"{tmp_path}/d/x --few\n"
    assert done["cells"][2]["outputs"][1]["data"]["text/plain"] == ["['--few', 1]"]
    assert "image/jpeg" in done["cells"][3]["outputs"][0]["data"]
    kept = EXECUTE.kept(done, tmp_path / "d", tmp_path)
    assert not kept["cells"][3]["outputs"]
    source.write_text(json.dumps(kept), encoding="utf-8")
    page = TABLES.as_markdown(source)
    assert "```bash\necho $root/x $more\n```\n\n```text\ndata/x --few\n```" in page
    assert str(tmp_path) not in page
    notebook["cells"] = [cell("!false")]
    source.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.raises(RuntimeError, match="false"):
        EXECUTE.execute(source, tmp_path, tmp_path)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_executed(name: str) -> None:
    """Each cell that says something says it here, without a path of the machine; pictures are there where a licence allows it."""
    text = (DOCS / f"tutorials/{name}.ipynb").read_text(encoding="utf-8")
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] or "parameters" in cell["metadata"].get("tags", ()) for cell in cells)
    assert not re.search(r"error: |Traceback|/tmp/|/home/|/work/|/root/", text)
    assert ('"image/jpeg"' in text) == bool(notebook["metadata"]["pictures"])
    assert '"image/png"' not in text
    assert len(text) < 120_000


def test_every_page_is_in_the_contents() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(re.findall(r"[\w/-]+\.md", str(site["nav"]))) == sorted(PAGES)


def test_tables_are_those_of_the_code() -> None:
    for page, text in PAGES.items():
        made = TABLES.on_page_markdown(text)
        assert "<!-- table" not in made, page
    weights = TABLES.on_page_markdown("<!-- table: weights -->").splitlines()
    assert len(weights) == len(SOURCES) + 2
    assert len({line.count(" | ") for line in weights}) == 1
    assert all(source.licence in "\n".join(weights) for source in SOURCES)
    options = TABLES.on_page_markdown(PAGES["command-line.md"])
    assert all(f"`--{name}`" in options for name in OPTIONS)
    assert all(f"| [`{verb}`](#{verb})" in options for verb in VERBS)
    assert all(f"| `{name}` |" in TABLES.on_page_markdown("<!-- table: recipes -->") for name in bundled("detect"))
    with pytest.raises(KeyError):
        TABLES.on_page_markdown("<!-- table: none -->")


def test_extras_are_all_described() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGES["install.md"], re.MULTILINE))
    assert told == set(project()["optional-dependencies"])


@pytest.mark.parametrize("page", [page for page, text in SOURCES_OF_PAGES.items() if blocks(text, "python")])
def test_python_runs(page: str, desk: Path, lend: Any) -> None:
    """The blocks of a page, one after the other as in a notebook; not those that name a trained run that they need, and not included
    files, which the sample package's own tests run."""
    write_picture(Path("holiday.jpg"))
    for registry in (HEADS, DATASETS):  # what a page registers is its own
        lend(registry, {}, alone=True)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(SOURCES_OF_PAGES[page], "python")):
        code = compile(block, f"{page}, Python block {number + 1}", "exec")
        if not block.startswith("# needs: "):
            exec(code, names)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_tutorials_run_in_order(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, on a run of two steps, and the Python that needs the run; not what wants a trained network, takes minutes, or
    serves."""
    from tasks.run import main

    monkeypatch.chdir(tmp_path)
    for name in ("holiday.jpg", "big.jpg"):
        write_picture(Path(name))
    small = [
        "--data.limit_train",
        "16",
        "--data.limit_val",
        "8",
        "--data.batch_size",
        "4",
        "--data.eval_batch_size",
        "4",
    ]
    page = PAGES[f"tutorials/{task}.md"]
    for line in commands(page):
        words = shlex.split(line)[1:]
        if not line.startswith("effbackbones ") or words[0] in ("serve", "compare") or "--seeds" in words:
            continue
        if "shapes.onnx" in line:
            continue  # of a network of two steps file and model need not agree; tests/test_export_onnx.py has it
        extra = [*small, *QUIET] if words[0] in ("train", "check") else []
        extra += ["--optim.max_steps", "2"] if words[0] == "train" and "--run.resume" not in words else []
        if "--deep" in words or "--run.resume" in words:
            continue  # minutes of learning; of a run of two steps no more epochs are to be had
        assert main([*words, *extra]) == 0, line
    assert (tmp_path / "runs/tutorial/report.html").is_file()
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_on_real_data(name: str, data_root: Path, tmp_path: Path) -> None:
    """All cells, with training cut to a few steps."""
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    for folder in ("bccd", "camvid"):
        (data / folder).symlink_to(data_root / folder)
    if name == "things":
        with tarfile.open(data_root / "cifar10.tar.xz") as archive:
            every = (one for number, one in enumerate(archive) if one.isdir() or number % 20 == 0)
            archive.extractall(data, every, filter="data")
    few = "--optim.max_steps 3 --optim.warmup_steps 1 --data.batch_size 4 --data.limit_train 24 --data.limit_val 8"
    done = EXECUTE.execute(DOCS / f"tutorials/{name}.ipynb", data, run, f"{few} --run.device cpu")
    assert str(tmp_path) in json.dumps(done)
    assert str(tmp_path) not in json.dumps(EXECUTE.kept(done, data, run))
    assert (run / "runs" / f"{name}-compared" / "compare.html").is_file()


@pytest.mark.slow
def test_the_sample_package_works_where_it_is_installed(tmp_path: Path) -> None:
    """Its tests, its verb with an option, a run that uses all its parts by name, and its task."""
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(ROOT / "examples/plugin", source, ignore=shutil.ignore_patterns("__pycache__"))
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(target)])}

    def run(*arguments: str, folder: Path = tmp_path) -> str:
        line = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("pip", "install", *quiet, "--target", str(target), str(source))
    assert "4 passed" in run("pytest", "-q", "-p", "no:cacheprovider", "tests", folder=source)
    (command,) = (line for line in commands(PAGES["plugins.md"]) if "brightness" in line)
    words = shlex.split(command.replace("examples/plugin", str(source)))
    assert run(*words) == "4 images, brightness 120.0 of 255\n"
    for line in ("train classify", "train grade --model.head grade_sample"):
        folder = f"runs/{line.split()[1]}"
        run("effbackbones", *line.split(), "--config", str(source / "greys.yaml"), *QUIET, "--run.out", folder)
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text(encoding="utf-8"))
        assert metrics[metrics["best"]]["off_by_sample"] == 0.0
    listed = run("effbackbones", "list", "heads", "--json")
    assert '"two_scales_sample"' in listed
    assert "effbackbones-sample" in listed


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^WARNING", done.stderr, re.MULTILINE)  # a theme has a line of its own with that word in it
    home = (tmp_path / "site/api/effbackbones/index.html").read_text(encoding="utf-8")
    assert 'id="effbackbones.build.build_model"' in home
    assert not re.search(r":class:<code>", home)
    weights = (tmp_path / "site/weights/index.html").read_text(encoding="utf-8")
    assert all(source.licence in weights for source in SOURCES)
