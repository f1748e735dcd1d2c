"""The verb ``push``: a trained model into a repository of the Hugging Face Hub."""

from effbackbones.errors import UserError
from tasks.settings.commandline import Extras


def push(extras: Extras) -> int:
    """Push the run or model file ``--checkpoint`` to the repository that is named, and print its address. The token is that of ``hf auth
    login``, or ``HF_TOKEN``: none is taken from the line, which shells keep."""
    if len(extras.inputs) != 1:
        named = ", ".join(extras.inputs) or "none"
        raise UserError("push", f"expected one repository, got {named}", "write push --checkpoint RUN USER/NAME")
    if extras.checkpoint is None:
        raise UserError("--checkpoint", "no trained model is named", "give --checkpoint FILE|RUN")
    from effbackbones.publishing import push_to_hub  # torch comes in here

    print(push_to_hub(extras.checkpoint, extras.inputs[0], **extras.own))
    return 0
