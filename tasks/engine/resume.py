"""What makes a run continue exactly where it stopped: randomness as a function of the step, and the files of its states.

Nothing here is captured and restored but tensors: which samples a step sees (``order.py``), how they are augmented and what dropout
draws are pure functions of (seed, step), so a run that continues at step k cannot differ from one that never stopped.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.weights.tensorfile import pack, read_header, read_tensors, write_atomically
from tasks.engine.muon import Muon, is_matrix

KEEP = 2
"""State files kept: the newest, and one to fall back on if it is damaged."""
FORMAT = 2
"""Version of what a state file holds."""
OTHER_STATE = "remove it to go on from the state before, or start anew with model.init_from"


def seed_step(seed: int, step: int, piece: int = 0, rank: int = 0) -> None:
    """Seed Python, NumPy and PyTorch (all devices) for one forward pass, so that its dropout is a function of the step."""
    state = np.random.SeedSequence((seed, step, piece, rank)).generate_state(2)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))
    random.seed(int(state[1]))


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Write the state after ``step`` steps atomically and delete all but the newest :data:`KEEP`.

    ``record`` is JSON-like. A full disk raises :class:`UserError`, and the older files stay.
    """
    path = folder / f"step-{step:08d}.safetensors"
    whole = {"format": FORMAT, "step": step, "tensors": len(tensors), **record}
    write_atomically(path, pack(tensors, {"record": json.dumps(whole)}))
    for old in state_files(folder)[KEEP:]:
        old.unlink()
    return path


class State(NamedTuple):
    """A state file that was read: its ``tensors`` and ``record``, and where it lies."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]
    path: Path

    def part(self, name: str) -> dict[str, Any]:
        """A table of the record."""
        found = self.record.get(name)
        if not isinstance(found, dict):
            raise UserError(str(self.path), f"is not whole: its record has no {name!r}", OTHER_STATE)
        return found


def load_state(folder: Path, tell: Callable[[str], None]) -> State | None:
    """The newest state in ``folder`` that reads back whole, or None when there is none. A damaged one is told of and passed over;
    when all are damaged, the newest one's :class:`UserError` is raised, and so is that of a file that is whole and of another
    format."""
    error: UserError | None = None
    for path in state_files(folder):
        try:
            tensors, metadata = read_tensors(path)
        except UserError as damaged:
            tell(f"warning: {damaged}; trying the checkpoint before it")
            error = error or damaged
            continue
        return State(tensors, _record(metadata, tensors, path), path)
    if error:
        raise error
    return None


def begun(folder: Path) -> Mapping[str, Any] | None:
    """What the newest state in ``folder`` says of the model before its first step; None where none says it. No tensor is looked at."""
    for path in state_files(folder):
        try:
            record = json.loads(read_header(path)["__metadata__"]["record"])
            found = record["identity"]["beginning"]
        except (UserError, OSError, KeyError, TypeError, ValueError):
            continue  # it is told when the state is read
        return found if isinstance(found, Mapping) else None
    return None


def _record(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The record in a state file, if it is one that this version wrote, of these tensors and under this name."""
    try:
        record: dict[str, Any] = json.loads(metadata["record"])
        version = record.get("format", 1)
    except (KeyError, ValueError, AttributeError):
        raise UserError(str(path), "is a safetensors file and no state of a run", OTHER_STATE) from None
    if version != FORMAT:
        raise UserError(str(path), f"is a state of format {version}, this version reads {FORMAT}", OTHER_STATE)
    missing = [name for name in ("step", "tensors") if not isinstance(record.get(name), int)]
    if missing:
        raise UserError(str(path), f"is not whole: its record has no {missing[0]!r}", OTHER_STATE)
    if path.name != f"step-{record['step']:08d}.safetensors":
        raise UserError(str(path), f"is the state after step {record['step']} by its record", "give it its name back")
    if record["tensors"] != len(tensors):
        what = f"holds {len(tensors)} tensors, and was saved with {record['tensors']}"
        raise UserError(str(path), what, OTHER_STATE)
    return record


def state_files(folder: Path) -> list[Path]:
    """The states in ``folder``, newest first; files of other names, such as copies, are none."""
    return sorted(
        (path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8,}\.safetensors", path.name)),
        key=lambda path: int(path.name[5:].partition(".")[0]),
        reverse=True,
    )


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as plain tensors, ``optimizer.PARAMETER.NAME``. Hyper-parameters belong to the config."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()
    }


def alike(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse the tensors ``found`` in a state file that have other names, shapes or dtypes than ``expected``."""
    for names, what in ((expected.keys() - found.keys(), "lacks"), (found.keys() - expected.keys(), "has besides")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(str(path), f"{what} the tensor {min(names)}{more}", OTHER_STATE)
    for name, value in found.items():
        if (value.shape, value.dtype) != (expected[name].shape, expected[name].dtype):
            had, want = (f"{tuple(one.shape)} {str(one.dtype)[6:]}" for one in (value, expected[name]))
            raise UserError(str(path), f"its tensor {name} is {had}, expected {want}", OTHER_STATE)


def check_optimizer(path: Path, optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """Refuse optimiser tensors, by ``PARAMETER.NAME``, that are not those of such an optimiser: of a parameter that it has, in
    its shape or single numbers, and the same ones of each parameter that was trained (Muon has its own of matrices)."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names: dict[str, set[str]] = {}
    for key, value in found.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise UserError(str(path), f"has besides the tensor optimizer.{key}", OTHER_STATE)
        if value.numel() != 1 and value.shape != parameters[int(index)].shape:
            want = tuple(parameters[int(index)].shape)
            raise UserError(
                str(path), f"its tensor optimizer.{key} is {tuple(value.shape)}, expected {want}", OTHER_STATE
            )
        names.setdefault(index, set()).add(name)
    kinds = {index: isinstance(optimizer, Muon) and is_matrix(parameters[int(index)]) for index in names}
    whole: dict[bool, set[str]] = {}
    for index, some in names.items():
        whole[kinds[index]] = whole.get(kinds[index], set()) | some
    for index, some in names.items():
        if missing := whole[kinds[index]] - some:
            raise UserError(str(path), f"lacks the tensor optimizer.{index}.{min(missing)}", OTHER_STATE)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`flatten_optimizer`.

    Fused kernels walk a parameter and its state side by side in memory, so each state gets its parameter's layout.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        root, _, rest = key.partition(".")
        if root == "optimizer":
            index, _, name = rest.partition(".")
            like = parameters[int(index)]
            laid_out = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            state.setdefault(int(index), {})[name] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
