"""Execute the notebooks of the tutorials on real data and keep what they print: ``python docs/execute.py DATA [NAME ...]``.

DATA holds ``bccd``, ``camvid`` and ``cifar10``, each as its notebook says. Minutes to a quarter of an hour each on two CPU cores; needs
``nbclient`` and ``ipykernel``. Pictures are kept where the notebook names a licence (``metadata.pictures``) that allows it.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "tutorials"
_PICTURES = {"image/png", "image/jpeg"}


def execute(source: Path, data: Path, folder: Path, more: str = "") -> dict[str, Any]:
    """The notebook ``source`` with the outputs of its cells, run in ``folder`` on ``data``; ``more`` is added to the line that trains.
    A cell that fails raises, and so does a command of a cell."""
    import nbformat  # needed here alone
    from nbclient import NotebookClient

    notebook = nbformat.read(source, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    written, parameters.source = parameters.source, f"root, more = {str(data)!r}, {more!r}"
    client = NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    try:
        client.execute(env=_environment(folder))
    finally:
        parameters.source = written
        found: dict[str, Any] = json.loads(nbformat.writes(notebook))
        failed = [line for cell in found["cells"] for line in _printed(cell) if re.match("error: |.* not found$", line)]
        if failed:  # of a command, by which no cell fails
            raise RuntimeError(f"{source.name}: {failed[0]}")
    return found


def _environment(folder: Path) -> dict[str, str]:
    """In which ``effbackbones`` is that of this very Python, wherever it was installed from."""
    command = folder / "bin" / "effbackbones"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m effbackbones "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **paths, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path)])}


def _printed(cell: dict[str, Any]) -> list[str]:
    return [line for output in cell.get("outputs", ()) for line in "".join(output.get("text", "")).splitlines()]


def stripped(notebook: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """The notebook as it is kept: paths as readers have them, no counters and times of execution, pictures where they may be."""
    keep = bool(notebook["metadata"].get("pictures"))
    names = {str(data): "data", f"{folder}/": "", str(folder): "."}
    for cell in notebook["cells"]:
        cell["metadata"] = {"tags": tags} if (tags := cell["metadata"].get("tags")) else {}
        if cell["cell_type"] != "code":
            continue
        cell["execution_count"], outputs = None, []
        for output in cell["outputs"]:
            output.pop("execution_count", None) if output["output_type"] != "execute_result" else output.update(
                execution_count=None
            )
            if _PICTURES & set(output.get("data", ())) and not keep:
                continue
            if "text" in output:
                text = "".join(output["text"])
                for path, name in names.items():
                    text = text.replace(path, name)
                output["text"] = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines(keepends=True)
            outputs.append(output)
        cell["outputs"] = _joined(outputs)
    notebook["metadata"]["language_info"] = {"name": "python"}
    return notebook


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs in which lines that follow each other are one."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        if found and output["output_type"] == found[-1]["output_type"] == "stream":
            found[-1]["text"] += output["text"]
        else:
            found.append(output)
    return found


def main(data: str, *names: str) -> None:
    """Execute all notebooks, or those named, and write them back."""
    for source in sorted(FOLDER.glob("*.ipynb")):
        if not names or source.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                done = execute(source, Path(data).resolve(), Path(folder))
                text = json.dumps(stripped(done, Path(data).resolve(), Path(folder)), indent=1, ensure_ascii=False)
            source.write_text(f"{text}\n", encoding="utf-8")
            print(source)


if __name__ == "__main__":
    main(*sys.argv[1:])
