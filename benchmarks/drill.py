"""Everything that a machine with a GPU can tell about this project in ten minutes, in stages; the most telling first.

    make gpu                                                   # or, where no environment can be made:
    python3 benchmarks/drill.py --out results --jobs 6 --seconds 540
    python3 benchmarks/drill.py --device cpu --dry             # does it run through?

Needs the repository, PyTorch and the packages of pyproject.toml. Real data are looked for in the folder `--data`:
`cifar10.tar.xz`, `bccd/`, `camvid/`. A stage is a process of its own with at most `--limit` seconds; what fails stops no
other. `drill.json` in the folder `--out` gets each result as it comes, `drill.log` what the stages print.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where it is run as a file

from benchmarks.drill_stages import ACCURACY, CHECKS, COMPILED, ROOT, SPEED, STAGES


class Drill:
    """Runs stages as processes and keeps what they find."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + options.seconds
        self.lock = threading.Lock()
        self.results: dict[str, Any] = {}
        (self.out / "drill.log").write_text("", encoding="utf-8")

    def group(self, names: list[str], jobs: int) -> None:
        """Run stages, ``jobs`` at once."""
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self.stage, names))

    def stage(self, name: str) -> None:
        """Run one stage; whatever becomes of it is a result."""
        left = min(self.options.limit, self.end - time.monotonic())
        if left < 5:
            return self._keep(name, {"status": "no time was left"}, "", 0.0)
        found = self.out / f".{name}.json"
        found.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.drill_stages",
            name,
            "--device",
            self.options.device,
            "--found",
            str(found),
        ]
        command += ["--data", str(self.options.data), "--seconds", str(int(left))] + (
            ["--dry"] if self.options.dry else []
        )
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_WAIT_POLICY": "passive"}
        start = time.monotonic()
        with open(self.out / f".{name}.log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
            )
            try:
                status = f"exit {process.wait(left)}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                status = f"stopped after {left:.0f} s"
            log.seek(0)
            text = log.read()
        lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
        self._keep(
            name, {"status": status, "found": [json.loads(line) for line in lines]}, text, time.monotonic() - start
        )
        for path in (found, self.out / f".{name}.log"):
            path.unlink(missing_ok=True)
        return None

    def _keep(self, name: str, result: dict[str, Any], text: str, seconds: float) -> None:
        with self.lock:
            self.results[name] = result | {"seconds": round(seconds, 1)}
            (self.out / "drill.json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")
            with (self.out / "drill.log").open("a", encoding="utf-8") as file:
                file.write(f"\n===== {name}: {result['status']}, {seconds:.0f} s\n{text}")
            print(f"== {name}: {result['status']}, {seconds:.0f} s", flush=True)
            for line in result.get("found", []):
                print("  ", json.dumps(line), flush=True)
            if result["status"] != "exit 0" and text:
                print("   | " + "\n   | ".join(text.strip().splitlines()[-12:]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--dry", action="store_true", help="the smallest sizes: to see that it runs through, not what it measures"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/drill")))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("EFFBACKBONES_DATA") or ".drill"))
    parser.add_argument("--seconds", type=int, default=3600, help="for everything")
    parser.add_argument("--limit", type=int, default=240, help="seconds for one stage")
    parser.add_argument("--jobs", type=int, default=1, help="stages at once, but for the timed ones")
    parser.add_argument("--stages", default="", help=f"some of {','.join(STAGES)}; default: all")
    options = parser.parse_args()
    drill = Drill(options)
    chosen = options.stages.split(",") if options.stages else list(STAGES)
    for name in chosen:
        if name not in STAGES:
            parser.error(f"no stage {name!r}; there are {', '.join(STAGES)}")
    for names, jobs in ((["device"], 1), (CHECKS, options.jobs), (SPEED, 1), (ACCURACY + COMPILED, options.jobs)):
        drill.group([name for name in names if name in chosen], jobs)
    bad = [name for name, result in drill.results.items() if result["status"] != "exit 0"]
    print(
        f"{len(drill.results) - len(bad)} of {len(drill.results)} stages passed"
        + (f"; not: {', '.join(bad)}" if bad else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
