"""A graph traced by ``torch.export``: the one from which files of every format are made."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from effbackbones.errors import UserError
from effbackbones.export.graph import WITHOUT_SIZES, Example, Graph, output_ports
from effbackbones.export.record import Port


@dataclass(frozen=True)
class Traced:
    """A ``graph`` with what it was traced with: the ``example``, and the names of its outputs."""

    graph: Graph
    example: Example
    outputs: tuple[str, ...]
    dynamic_size: bool

    @classmethod
    @torch.no_grad()
    def of(cls, graph: Graph, *, dynamic_size: bool) -> "Traced":
        """Ask the graph once, which names its outputs."""
        example = Example.of(graph, dynamic_size=dynamic_size or graph.preprocessing == "resize")
        return cls(graph, example, tuple(graph.named(**example.inputs)), dynamic_size)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return tuple(self.example.inputs.values())

    def dynamic_shapes(self) -> dict[str, Any]:
        """The free sides, as ``torch.export`` takes them."""
        return {
            name: {place: Dim.DYNAMIC for place in self.example.free[name]} if name in self.example.inputs else None
            for name in ("images", "valid")
            if name in self.example.inputs
        }

    def ports(self, program: ExportedProgram) -> tuple[Port, ...]:
        """The outputs of the traced ``program``, with the names of its free sides."""
        nodes = list(program.graph.nodes)
        sides = {}
        for node in nodes:
            if node.op == "placeholder" and node.name == "images":
                sides = {
                    str(side): self.example.free["images"].get(place, "")
                    for place, side in enumerate(node.meta["val"].shape)
                    if not isinstance(side, int)
                }
        return output_ports(self.outputs, [node.meta["val"] for node in nodes[-1].args[0]], sides)


def may_be_free(graph: Graph, wanted: bool | None) -> bool:
    """Whether height and width are free: as ``wanted``, or where the head allows it. One that does not raises :class:`UserError` where
    they were asked for. A graph that resizes takes any size and shows the network one."""
    allowed = all(word in WITHOUT_SIZES for word in graph.heads)
    if wanted and not allowed and graph.preprocessing != "resize":
        what = "boxes are decoded at the anchors of one image size"
        raise UserError("dynamic_size", what, "leave it out, or export with preprocessing resize")
    return (allowed if wanted is None else wanted) and graph.preprocessing != "resize"


def export_program(found: Traced) -> ExportedProgram:
    """The traced program, in tensor operations alone."""
    with torch.no_grad():
        return torch.export.export(found.graph, found.arguments, dynamic_shapes=found.dynamic_shapes(), strict=False)
