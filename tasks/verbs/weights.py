"""The verb ``weights``: what a file of weights is; published ones, listed and fetched."""

import json
from pathlib import Path

from effbackbones.catalogue import weight_rows
from effbackbones.errors import UserError
from effbackbones.weights import hub
from tasks.settings.commandline import Extras
from tasks.verbs.inventory import rows_of, table_of


def weights(extras: Extras) -> int:
    """Describe the files, run folders or repositories that are named. Unless they are files, ``list`` is ``list weights``, and ``fetch``
    that of ``effbackbones-weights``."""
    first = extras.inputs[0] if extras.inputs else ""
    asked = {name: extras.own[name] for name in ("backbone", "cache") if extras.own[name]}
    if first == "fetch" and not Path(first).exists():
        if extras.own["json"] or len(extras.inputs) == 1:
            what = "prints paths" if extras.own["json"] else "nothing is named"
            raise UserError("weights fetch", what, "write weights fetch NAME; list weights has their names")
        return hub.main([*extras.inputs, *(word for name, value in asked.items() for word in (f"--{name}", value))])
    if asked:
        raise UserError(f"--{min(asked)}", "is for weights fetch", "leave it out")
    if first == "list" and not Path(first).exists():
        rows = rows_of("weights", extras.inputs[1:])
        print(json.dumps(rows, indent=1) if extras.own["json"] else table_of("weights", rows))
        return 0
    if not first:
        raise UserError(
            "weights", "nothing is named", "name files or run folders, or write weights list, weights fetch NAME"
        )
    for name in extras.inputs:
        if not Path(name).exists() and any(name in (source["name"], source["backbone"]) for source in weight_rows()):
            raise UserError(
                f"weights {name}", "is published, and no file here", "write list weights, or weights fetch NAME"
            )
    from effbackbones.describing import describe_file, lines_of  # torch comes in here

    found = [describe_file(name) for name in extras.inputs]
    if extras.own["json"]:
        print(json.dumps(found, indent=1))
    else:
        print("\n\n".join("\n".join(lines_of(facts)) for facts in found))
    return 0
