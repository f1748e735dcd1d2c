"""Execute the notebooks of the tutorials on real data and keep what they print: ``python docs/execute.py DATA [NAME ...]``.

DATA holds ``bccd``, ``camvid`` and ``cifar10``, each as its notebook says; minutes each on two CPU cores. A cell is Python, or lines for a
shell that begin with ``!``, as Jupyter runs them too. Pictures are kept where the notebook says why they may be (``metadata.pictures``:
the licence, or that they are drawings), but for those of cells with the tag ``photograph``.
"""

import ast
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from notebooks import commands

FOLDER = Path(__file__).resolve().parent / "tutorials"


def execute(source: Path, data: Path, folder: Path, more: str = "") -> dict[str, Any]:
    """The notebook ``source`` with the outputs of its cells, run in ``folder`` on ``data``; ``more`` is added to the line that trains.
    Python that raises ends it, and so does a command that fails."""
    notebook: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            text = "".join(cell["source"])
            if "parameters" in cell["metadata"].get("tags", ()):
                names |= {"root": str(data), "more": more}
                cell["outputs"] = []
            elif commands(text):
                cell["outputs"] = [_stream("".join(_in_shell(line[1:], names) for line in text.splitlines()))]
            else:
                cell["outputs"] = _in_python(text, names)
    return notebook


def _stream(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


def _in_shell(line: str, names: dict[str, Any]) -> str:
    """What a command prints; ``effbackbones`` is that of this very Python. A ``$name`` is the variable of the notebook."""
    said = re.sub(r"\$(\w+)", lambda found: str(names[found[1]]), line)
    ours = f'effbackbones() {{ "{sys.executable}" -m effbackbones "$@"; }}; set -o pipefail; {said}'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        ["bash", "-c", ours], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{said}\n{done.stdout}")
    return done.stdout


def _in_python(text: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """What a cell prints, and its last expression, as a picture where it is one."""
    body = ast.parse(text).body
    shown = [body.pop()] if isinstance(body[-1], ast.Expr) else []
    printed, values = io.StringIO(), list[Any]()
    before, sys.displayhook = sys.displayhook, values.append
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
            exec(compile(ast.Interactive(shown), "<cell>", "single"), names)
    finally:
        sys.displayhook = before
    outputs = [_stream(printed.getvalue())] if printed.getvalue() else []
    for value in values:
        if value is None:
            continue
        data: dict[str, Any] = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_jpeg_"):
            picture = base64.b64encode(value._repr_jpeg_()).decode()
            data = {"image/jpeg": picture, "text/plain": ["<a picture>"]}
        outputs.append({"output_type": "execute_result", "execution_count": None, "data": data, "metadata": {}})
    return outputs


def kept(notebook: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """The notebook as it is kept: paths as readers have them, pictures where they may be."""
    may = bool(notebook["metadata"].get("pictures"))
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        shown = may and "photograph" not in cell["metadata"].get("tags", ())
        cell["outputs"] = [one for one in cell["outputs"] if shown or "image/jpeg" not in one.get("data", ())]
        for output in cell["outputs"]:
            if "text" in output:
                text = "".join(output["text"]).replace(str(data), "data").replace(f"{folder}/", "")
                output["text"] = text.splitlines(keepends=True)
    return notebook


def main(data: str, *names: str) -> None:
    """Execute all notebooks, or those named, and write them back."""
    root = Path(data).absolute()
    for source in sorted(FOLDER.glob("*.ipynb")):
        if not names or source.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                done = kept(execute(source, root, Path(folder)), root, Path(folder))
            source.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(source)


if __name__ == "__main__":
    main(*sys.argv[1:])
