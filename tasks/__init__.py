"""Task runners: data, training, evaluation, command line. They import effbackbones, never heads."""

import importlib.util
import sys

if sys.argv[:1] == ["-m"] and importlib.util.find_spec("yaml") is None:  # `python -m tasks.detect` by another Python
    print(
        f"error: {sys.executable}: the packages that this project needs are not installed here; "
        "run `. .venv/bin/activate` (after `make demo`), or `pip install .`",
        file=sys.stderr,
    )
    sys.exit(2)
