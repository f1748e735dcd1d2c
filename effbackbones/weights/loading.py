"""Copying a state dict into a module by name and shape, with a report of what became of each entry."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effbackbones.errors import UserError

LEAST_MATCH = 0.9
"""Share of a module's entries that a state dict must fill; below it is another network's."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the entries of a state dict: names loaded; of the module, left as they were; not used, since they do not fit or
    nobody knows them; and ``spare``, known and not wanted by this module, such as a published tail beside another head."""

    what: str
    loaded: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """What of the module starts at random, in a sentence; empty if all was loaded."""
        if not self.reinitialised:
            return ""
        names = ", ".join(self.reinitialised[:3]) + (", ..." if len(self.reinitialised) > 3 else "")
        return f"{self.what}: {len(self.reinitialised)} of its entries start at random ({names}); train before use"

    def table(self) -> str:
        """This report as a table of one row."""
        return load_table([self])


def load_table(reports: Sequence[LoadReport]) -> str:
    """One table of all ``reports``: counts, and the first names of what was not simply loaded."""
    rows = [("part", "loaded", "re-initialised", "unused", "for example")]
    for report in reports:
        groups = (
            ("re-initialised", report.reinitialised),
            ("unused", report.unused),
            (f"{len(report.spare)} not wanted here:", report.spare),
        )
        words = [f"{word} {', '.join(names[:3])}" for word, names in groups if names]
        if report.reinitialised and not report.loaded and not report.unused:
            words[0] = "starts at random, to be trained"  # a head beside a backbone's weights: its entries are all new
        loaded, new, unused = (str(len(names)) for names in (report.loaded, report.reinitialised, report.unused))
        rows.append((report.what, loaded, new, unused, "; ".join(words)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}"
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    what: str,
    allow_missing: bool = False,
    unused: Iterable[str] = (),
    known: Container[str] = (),
) -> LoadReport:
    """Copy into ``module`` the entries of ``state`` that fit by name and shape; leave the rest as it is, and report it.

    Unless ``allow_missing``, less than 90 % of the module's entries raise :class:`UserError`. ``unused`` adds names to that
    group of the report; of the ``known`` ones those that the module does not have are ``spare``.
    A missing batch counter (``num_batches_tracked``) is no fault.
    """
    own = module.state_dict()
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    missing = [name for name in needed if name not in fitting]
    if not allow_missing and len(missing) > (1 - LEAST_MATCH) * len(needed):
        fault = f"only {len(needed) - len(missing)} of {len(needed)} entries fit; {_misfit(missing[0], own, state)}"
        raise UserError(what, fault, "give weights of this network")
    module.load_state_dict(fitting, strict=False)
    left = [name for name in state if name not in fitting]
    spare = [name for name in left if name in known and name not in own]
    unfit = [name for name in left if name not in spare]
    return LoadReport(what, tuple(fitting), tuple(missing), (*unfit, *unused), tuple(spare))


def _misfit(name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    if name not in state:
        return f"{name} is missing"
    return f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Filters [O, C, k, k] for images of ``in_channels`` channels, from those for C (RGB).

    1: the sum over C, so that a grey image gives what its C equal copies gave. Otherwise the filters are repeated in turn
    and scaled by C / in_channels, so that the response to equal channels keeps its size.
    """
    channels = weight.shape[1]
    if in_channels == channels:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(in_channels, device=weight.device) % channels] * (channels / in_channels)
