"""What it takes to begin: importing the package, and the help of the command, each in processes of its own."""

import os
import subprocess
import sys
import time

from benchmarks.row import Found, Setting, Side
from benchmarks.turns import Spread

LINES = {
    "import effbackbones": ["-c", "import effbackbones"],
    "effbackbones --help": ["-m", "tasks.run", "--help"],
    "detect --help": ["-m", "tasks.detect", "--help"],
}
NOTHING = "python alone"


def seconds(setting: Setting) -> Found:
    """Seconds beyond those of an interpreter that does nothing, of at least five runs in turns."""
    times: dict[str, list[float]] = {name: [] for name in (NOTHING, *LINES)}
    for _ in range(2 if setting.dry else max(5, setting.rounds)):
        for name, row in times.items():
            start = time.perf_counter()
            line = [sys.executable, *LINES.get(name, ["-c", "pass"])]
            subprocess.run(line, stdout=subprocess.DEVNULL, check=True, env=os.environ)
            row.append(time.perf_counter() - start)
    nothing = Spread.of(times.pop(NOTHING)).median
    found = Found("s", proof="the interpreter's own start is taken off")
    for name, seconds in times.items():
        spread = Spread.of([value - nothing for value in seconds])
        found.sides.append(Side(name, True, spread.median, spread.low, spread.high, spread.count))
    return found
