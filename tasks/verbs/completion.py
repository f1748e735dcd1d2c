"""The verb ``completion``: the script by which a shell completes the command."""

from effbackbones.errors import UserError
from effbackbones.registry import BACKBONES
from tasks.settings.commandline import Extras
from tasks.settings.completion import SHELLS, script
from tasks.settings.onecommand import task_words
from tasks.verbs.inventory import KINDS


def completion(extras: Extras) -> int:
    """Print the script for the shell that is named."""
    if len(extras.inputs) != 1:
        named = ", ".join(extras.inputs) or "none"
        raise UserError("completion", f"expected one shell, got {named}", f"known: {', '.join(SHELLS)}")
    names = {"backbones": BACKBONES.names(), "tasks": task_words()}
    positions = {f"list {kind}": names[each.words] for kind, each in KINDS.items() if each.words}
    own = {"list": list(KINDS), "completion": list(SHELLS), "weights fetch": names["backbones"]}
    print(script(extras.inputs[0], {**own, **positions}), end="")
    return 0
