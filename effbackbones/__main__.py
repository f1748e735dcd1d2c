"""``python -m effbackbones``: the command that the distribution installs as ``effbackbones``.

The command line lies in ``tasks``, which this package never imports. So it is looked up as the built-in tasks are: by its import
string, in the registry's one door to what lies above, which also says when another package of that name stands in front of ours.
(The entry point says the same, but a checkout that runs in place has none.)
"""

import sys

from effbackbones.errors import UserError
from effbackbones.registry import COMMAND, import_built_in


def main() -> int:
    """Run the line that Python was started with; returns the exit code."""
    try:
        command = import_built_in(COMMAND)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(command())


if __name__ == "__main__":
    sys.exit(main())
