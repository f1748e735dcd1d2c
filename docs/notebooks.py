"""A notebook as a page: its cells, and what they printed and drew when they were executed (``docs/execute.py``).

A line that begins with ``!`` is a command of a shell, and shown as one. Nothing but the standard library is needed: a notebook is JSON.
"""

import json
from pathlib import Path
from typing import Any


def as_markdown(path: Path) -> str:
    """The cells of a notebook, one after the other."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return "\n\n".join(_cell(cell).strip("\n") for cell in notebook["cells"])


def commands(source: str) -> bool:
    """Whether a cell is lines for a shell."""
    return source.lstrip().startswith("!")


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    lines = [line.removeprefix("!") for line in source.splitlines()] if commands(source) else source.splitlines()
    parts = [_fenced("bash" if commands(source) else "python", "\n".join(lines))]
    return "\n\n".join([*parts, *(_output(output) for output in cell["outputs"])])


def _output(output: dict[str, Any]) -> str:
    if "text" in output:
        return _fenced("text", "".join(output["text"]).strip("\n"))
    data = output["data"]
    for kind in ("image/jpeg", "image/png"):
        if kind in data:
            return f"![What the cell above shows](data:{kind};base64,{''.join(data[kind]).replace(chr(10), '')})"
    return _fenced("text", "".join(data["text/plain"]))


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
