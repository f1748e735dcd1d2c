"""Trials of a model in a process of their own, whose memory is that of nothing else, and which may run out of it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.engine.rehearsal import Limits, rehearse, scaled_config
from tasks.settings.sections import Config
from tasks.settings.tree import from_mapping, to_mapping
from tasks.verbs.command import explain, import_plugins, memory_for

_OUT_OF_MEMORY = "memory: "


def rehearsed(command: str, config: Config, own: str, limits: Limits) -> Generator[dict[str, Any], None, None]:
    """The rows of :func:`tasks.engine.rehearsal.rehearse`, as they come from a new process; the first one is the ``config``, of the
    image size that belongs to its backbone when ``own`` has the size that it says. It ends early where memory does, with a row
    ``memory``; what the model refuses raises :class:`UserError`. Left early, the process is ended."""
    job = {"command": command, "config": to_mapping(config), "own": own, "limits": asdict(limits)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    line = [sys.executable, "-P", "-m", "tasks.verbs.rehearsing"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told,
        subprocess.Popen(
            line,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            encoding="utf-8",
            process_group=0,
        ) as process,
    ):
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin as pipe:
                pipe.write(json.dumps(job))
            for row in map(json.loads, process.stdout):
                if row["of"] == "refused":
                    raise UserError(row["what"])
                yield row
            code = process.wait()
        finally:
            process.kill()
        if code == -9:  # SIGKILL: the system's answer to who takes too much
            yield {"of": "memory"}
        elif code:
            told.seek(0)
            lines = told.read().strip().splitlines() or [f"ended with code {code}"]
            raise RuntimeError(f"trying {config.model.backbone}: {lines[-1]}")


def _main() -> None:
    job = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # a plug-in may print

    def say(row: dict[str, Any]) -> None:
        print(json.dumps(row), file=answers, flush=True)

    try:
        config = from_mapping(job["config"])
        import_plugins(config.plugins)
        task = TASKS.get(job["command"])
        config = scaled_config(task, config, job["own"])
        say({"of": "config", "config": to_mapping(config)})
        limits = Limits(**{**job["limits"], "of": tuple(job["limits"]["of"])})
        with memory_for(config):  # as the run itself will have it
            for row in rehearse(task, config, limits):
                say(row)
    except UserError as error:
        say({"of": "refused", "what": str(error)})
    except (MemoryError, RuntimeError) as error:
        if not explain(error)[0].startswith(_OUT_OF_MEMORY):
            raise
        say({"of": "memory"})


if __name__ == "__main__":
    _main()
