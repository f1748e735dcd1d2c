"""The verb ``list``: what there is, as tables or JSON."""

import json

from effbackbones.errors import UserError
from tasks.settings.commandline import Extras
from tasks.verbs.inventory import KINDS, overview, rows_of, table_of


def list(extras: Extras) -> int:  # the name of the verb
    """Print the kind that is named first, of the names behind it; without any, how much there is of each."""
    kind, *names = extras.inputs or ("",)
    on = extras.own["on"]
    if on and kind != "heads":
        raise UserError("--on", "is for list heads", "leave it out")
    rows = rows_of(kind, names, on) if kind else {each: rows_of(each) for each in KINDS}
    if extras.own["json"]:
        print(json.dumps(rows, indent=1))
    else:
        print(overview() if isinstance(rows, dict) else table_of(kind, rows))
    return 0
