"""Rules of the house that no reader should have to check: who imports whom, and what is never called."""

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tests_support import ROOT, printed_by

ROOMS = ("effbackbones", "heads", "tasks")
FILES = sorted(path for room in (*ROOMS, "benchmarks") for path in (ROOT / room).rglob("*.py"))

# What a room never imports, not even inside a function.
NEVER = {
    "effbackbones": {"heads", "tasks", "lightning", "pytorch_lightning", "torchvision", "albumentations"},
    "heads": {"tasks", "lightning", "pytorch_lightning", "albumentations"},
    "tasks": {"heads"},
}
# What a room imports inside functions only.
LATE = {
    "effbackbones": {
        "av",
        "scipy",
        "soundfile",
        "timm",
        "tifffile",
        "h5py",
        "huggingface_hub",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "onnx_ir",
        "openvino",
        "matplotlib",
        "segmentation_models_pytorch",
        "fastapi",
        "starlette",
        "uvicorn",
        "python_multipart",
    },
    "tasks": {"matplotlib", "jinja2", "albumentations"},
}
BRIDGES = "effbackbones/bridges/"
"""Where a file is loaded only when it is asked for: it imports the framework that it serves, and of the house public names alone."""
RUNS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "torch.hub.load",
    "torch.jit.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "yaml.full_load_all",
    "yaml.unsafe_load_all",
}
READER = "effbackbones/weights/pickled.py"
ONLY_IN = {"torch.load": (READER, "read_pickled")}
NAMELESS = {"utils.py", "util.py", "base.py", "common.py", "helpers.py", "misc.py", "setup.py"}

# Every room, from top to bottom: one imports those of its own layer and below, and no circle closes, neither of rooms nor of files
# within one, also not through imports inside functions and for types. A file that lies in none of these has no place yet.
LAYERS = (
    "tasks.classify tasks.detect tasks.segment tasks.joint tasks.run",
    "tasks.verbs tasks.multitask tasks.classification tasks.detection tasks.segmentation",
    "tasks.engine",
    "tasks.spec tasks.report",
    "tasks.data.door",
    "tasks.data.suspicions",
    "tasks.data.sets tasks.data.check tasks.data.collating tasks.data.sampling tasks.data.division tasks.data.pixels tasks.data.recordings",
    "tasks.data.knowledge",
    "tasks.data.boxes tasks.data.transforms",
    "tasks.data.masks",
    "tasks.data.batch",
    "tasks.data.fingerprint",
    "tasks.data.dataset",
    "tasks.data.sample tasks.data.files tasks.data.lettering",
    "tasks.settings tasks.scoring tasks.telling tasks.configs",
    "tasks.strictyaml",
    "heads.sed",
    "heads.classification heads.detection heads.segmentation",
    "heads.options heads.targets heads.teaching",
    "effbackbones.__main__",
    "effbackbones.describing",
    "effbackbones.inference.backends",
    "effbackbones.export",
    "effbackbones.bridges",
    "effbackbones.publishing effbackbones.catalogue effbackbones.pruning",
    "effbackbones.serving",
    "effbackbones.conformance effbackbones.inference",
    "effbackbones.export.record",
    "effbackbones.checkpoint",
    "effbackbones.build",
    "effbackbones.headplan",
    "effbackbones.model",
    "effbackbones.multihead",
    "effbackbones.backbones",
    "effbackbones.weights",
    "effbackbones.backbones.costs",
    "effbackbones.backbones.scaling effbackbones.backbones.convolution effbackbones.backbones.layout",
    "effbackbones.backbones.passes",
    "effbackbones.backbones.recomputing",
    "effbackbones.backbones.convolving",
    "effbackbones.backbones.maps",
    "effbackbones.backbones.padding",
    "effbackbones.contracts",
    "effbackbones.export.operators",
    "effbackbones.weights.pretrained",
    "effbackbones.weights.loading",
    "effbackbones.drawing",
    "effbackbones.images effbackbones.registry effbackbones.optiontypes",
    "effbackbones.pointers effbackbones.numbers effbackbones.logarithms",
    "effbackbones.errors",
)


def modules_of(node: ast.AST) -> list[str]:
    """Dotted names that an import statement, or a call of ``import_module`` on a literal, loads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    if (
        isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return [node.args[0].value] if function in ("import_module", "__import__", "find_spec") else []
    return []


def late(tree: ast.AST) -> set[ast.AST]:
    """Nodes that do not run when the module is imported: bodies of functions, and of ``if TYPE_CHECKING``."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= set(ast.walk(node)) - {node}
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            found |= {inner for child in node.body for inner in ast.walk(child)}
    return found


def type_only(tree: ast.AST) -> set[ast.AST]:
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }


def dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """``a.b.c`` of an expression, the first part as what it was imported as."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, aliases)}.{node.attr}"
    return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def broken_imports(tree: ast.Module, room: str) -> Iterator[str]:
    inside, types = late(tree), type_only(tree)
    for node in ast.walk(tree):
        for name in modules_of(node):
            top = name.partition(".")[0]
            if not top:
                yield f"line {node.lineno}: imports are absolute"
            if top in NEVER.get(room, ()) and (top in ROOMS or node not in types):
                yield f"line {node.lineno}: {room} never imports {top}"
            if top in LATE.get(room, ()) and node not in inside:
                yield f"line {node.lineno}: {room} imports {top} inside functions only"
            if top in RUNS_CODE:
                yield f"line {node.lineno}: {top} runs code of what it reads"


def broken_calls(tree: ast.Module, file: str) -> Iterator[str]:
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom) and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    owner = {
        inner: node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        # A name that is passed on would be called elsewhere, so every mention counts, called or not.
        name = dotted(node, aliases) if isinstance(node, ast.Attribute | ast.Name) else ""
        if name in FORBIDDEN_CALLS or (name in ONLY_IN and ONLY_IN[name] != (file, owner.get(node, ""))):
            yield f"line {node.lineno}: {name}"
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: word.value for word in node.keywords}
        for argument in ("shell", "allow_pickle"):
            if argument in keywords and getattr(keywords[argument], "value", None) is not False:
                yield f"line {node.lineno}: {argument}="
        if dotted(node.func, aliases) == "yaml.load" and not _safe_loader(tree, keywords.get("Loader"), aliases):
            yield f"line {node.lineno}: yaml.load without a safe loader"
        if (
            dotted(node.func, aliases) == "torch.load"
            and getattr(keywords.get("weights_only"), "value", None) is not True
        ):
            yield f"line {node.lineno}: torch.load without weights_only=True"


def _safe_loader(tree: ast.Module, loader: ast.expr | None, aliases: dict[str, str]) -> bool:
    """Whether ``loader`` is PyYAML's safe loader, or a class in the same file that derives from it."""
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    own = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and {dotted(base, aliases) for base in node.bases} & safe
    }
    return loader is not None and dotted(loader, aliases) in safe | own


def broken_bridges(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        for name in modules_of(node):
            top, _, rest = name.partition(".")
            if top in ROOMS and (top != "effbackbones" or (rest and not rest.startswith("bridges"))):
                yield f"line {node.lineno}: bridges import public names of effbackbones alone"
            if top in RUNS_CODE:
                yield f"line {node.lineno}: {top} runs code of what it reads"


def faults(source: str, file: str) -> list[str]:
    tree = ast.parse(source)
    imports = broken_bridges(tree) if file.startswith(BRIDGES) else broken_imports(tree, file.partition("/")[0])
    return [*imports, *broken_calls(tree, file)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_keeps_the_rules(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    ("file", "source", "says"),
    [
        ("effbackbones/x.py", "import heads.classification", "never imports heads"),
        ("effbackbones/x.py", "def f():\n    from tasks import config", "never imports tasks"),
        (
            "effbackbones/x.py",
            "import importlib\nimportlib.import_module('heads.classification')",
            "never imports heads",
        ),
        ("effbackbones/x.py", "def f():\n    import torchvision.ops as ops", "never imports torchvision"),
        ("effbackbones/x.py", "import timm", "inside functions only"),
        ("effbackbones/x.py", "class A:\n    import timm", "inside functions only"),
        ("heads/x.py", "from tasks.data import batch", "never imports tasks"),
        ("tasks/x.py", "import heads", "never imports heads"),
        ("tasks/data/x.py", "from ...heads import classification", "imports are absolute"),
        ("tasks/x.py", "import pickle", "runs code"),
        ("tasks/x.py", "from torch import load as read\nread('x')", "torch.load"),
        ("tasks/x.py", "import torch as t\nt.load('x', weights_only=True)", "torch.load"),
        (READER, "import torch\ndef other(): return torch.load('x', weights_only=True)", "torch.load"),
        (READER, "import torch\ndef read_pickled(): return torch.load('x')", "without weights_only"),
        (READER, "import torch\ndef read_pickled(): return torch.load('x', weights_only=0)", "without weights_only"),
        ("tasks/x.py", "import yaml\nyaml.load('x', Loader=yaml.Loader)", "without a safe loader"),
        ("tasks/x.py", "import yaml\nclass L(yaml.FullLoader): ...\nyaml.load('x', Loader=L)", "without a safe loader"),
        ("tasks/x.py", "from yaml import unsafe_load\nunsafe_load('x')", "yaml.unsafe_load"),
        (BRIDGES + "x.py", "from effbackbones.model import Model", "public names"),
        (BRIDGES + "x.py", "def f():\n    import heads.classification", "public names"),
        (BRIDGES + "x.py", "import pickle", "runs code"),
        ("benchmarks/x.py", "eval('1')", "eval"),
        ("benchmarks/x.py", "f = exec", "exec"),
        ("tasks/x.py", "import subprocess\nsubprocess.run('ls', shell=True)", "shell="),
        ("tasks/x.py", "import os\nos.system('ls')", "os.system"),
        ("tasks/x.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle="),
    ],
)
def test_a_broken_rule_is_seen(file: str, source: str, says: str) -> None:
    assert any(says in fault for fault in faults(source, file)), faults(source, file)


def test_what_is_allowed_passes() -> None:
    assert faults("from effbackbones.errors import UserError\nimport torchvision.ops", "tasks/x.py") == []
    assert faults("def f():\n    import timm\n    return timm", "effbackbones/x.py") == []
    assert faults("import yaml\nclass L(yaml.SafeLoader): ...\nyaml.load('x', Loader=L)", "tasks/x.py") == []
    assert (
        faults(
            "import torch\ndef read_pickled(): return torch.load('x', weights_only=True)",
            READER,
        )
        == []
    )
    assert faults("model.eval()", "tasks/x.py") == []
    assert faults("import torchvision\nfrom effbackbones import Backbone", BRIDGES + "x.py") == []


def test_files_are_named_for_what_they_hold() -> None:
    assert [path.name for path in FILES if path.name in NAMELESS] == []


def test_tests_are_flat_and_prefixed_by_room() -> None:
    tests = ROOT / "tests"
    assert [path for path in tests.rglob("*.py") if path.parent != tests] == []
    assert not (tests / "__init__.py").exists()
    rooms = {part for layer in LAYERS for room in layer.split() for part in room.split(".")} | {
        "core",
        "house",
        "faults",
    }
    prefixes = tuple(f"test_{room}_" for room in rooms)
    helpers = {"conftest.py", "tests_support.py", "scenes.py", "films.py", "weight_files.py"}
    assert [
        path.name for path in tests.glob("*.py") if path.name not in helpers and not path.name.startswith(prefixes)
    ] == []


def imports_of(source: str) -> set[str]:
    """Dotted names of the house that a file imports anywhere: at its head, in functions, for types."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = modules_of(node)
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name for name in names if name.partition(".")[0] in ROOMS}
    return found


def known(name: str, names: Collection[str]) -> str:
    """The longest of ``names`` that ``name`` is, or lies in."""
    parts = name.split(".")
    return next((start for n in range(len(parts), 0, -1) if (start := ".".join(parts[:n])) in names), "")


def house(layers: Sequence[str], sources: Mapping[str, str]) -> tuple[set[str], set[str], list[str]]:
    """Modules without a room, arrows between modules that point upward, and the rooms or modules of a circle (empty if there is
    none), the upward arrows aside."""
    height = {room: -depth for depth, layer in enumerate(layers) for room in layer.split()}
    homeless = {
        module for module in sources if module not in (*ROOMS, "tasks.data") and known(module, height) in ("", *ROOMS)
    }
    upward: set[str] = set()
    below: dict[str, set[str]] = {room: set() for room in height}
    within: dict[str, set[str]] = {}
    for module, source in sources.items():
        for target in {known(name, sources) for name in imports_of(source)} - {module}:
            here, there = known(module, height), known(target, height)
            if here and there and here != there:
                if height[there] > height[here]:
                    upward.add(f"{module} -> {target}")
                else:
                    below[here].add(there)
            elif here and there:
                within.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(below).prepare()
        TopologicalSorter(within).prepare()
    except CycleError as circle:
        return homeless, upward, circle.args[1]
    return homeless, upward, []


def test_imports_point_downward_and_in_no_circle() -> None:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    homeless, upward, circle = house(LAYERS, {name: path.read_text(encoding="utf-8") for path, name in names.items()})
    assert (homeless, circle) == (set(), [])
    assert upward == set()


@pytest.mark.parametrize(
    ("source", "upward", "circle"),
    [
        ("from tasks.engine import loop", set(), False),
        ("def f():\n    from tasks.verbs import check", {"tasks.data.x -> tasks.verbs.check"}, False),
        ("if TYPE_CHECKING:\n    import tasks.verbs.check as c", {"tasks.data.x -> tasks.verbs.check"}, False),
        ("from tasks.report.page import Page", set(), True),
        ("def f():\n    from tasks.report import page", set(), True),
        ("if TYPE_CHECKING:\n    from tasks.report.page import Page", set(), True),
        ("from tasks.data.y import name", set(), False),
        ("def f():\n    from tasks.data.z import name", set(), True),
        ("if TYPE_CHECKING:\n    from tasks.data import z", set(), True),
    ],
)
def test_a_wrong_arrow_is_seen(source: str, upward: set[str], circle: bool) -> None:
    names = dict.fromkeys(("tasks.verbs.check", "tasks.engine.loop"), "") | {
        "tasks.report.page": "from tasks.data import x",
        "tasks.data.y": "",
        "tasks.data.z": "from tasks.data.x import f",
    }
    found = house(("tasks.verbs", "tasks.data tasks.report", "tasks.engine"), {**names, "tasks.data.x": source})
    assert (found[1], bool(found[2])) == (upward, circle)


HEAVY = {
    "torchvision",
    "lightning",
    "albumentations",
    "timm",
    "matplotlib",
    "jinja2",
    "torchmetrics",
    "cv2",
    "scipy",
}


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after ``statement`` in a fresh process."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    return set(printed_by(code).split())


def test_importing_the_core_costs_nothing_beyond_torch() -> None:
    """A sharper form of "at most 0.3 s more than torch" that does not depend on the machine."""
    assert loaded_by("import effbackbones") & {*HEAVY, "torch", "numpy"} == set()
    loaded = loaded_by("from effbackbones import *")
    assert "torch" in loaded
    assert (loaded & HEAVY) - loaded_by("import torch") == set()


def test_commands_reach_their_help_without_torch() -> None:
    for command in ("classify", "detect", "segment", "joint"):
        loaded = loaded_by(
            f"import io, contextlib, tasks.{command}\nwith contextlib.redirect_stdout(io.StringIO()):\n"
            f"    try: tasks.{command}.main(['--help'])\n    except SystemExit: pass"
        )
        assert loaded & {*HEAVY, "torch", "numpy"} == set()
