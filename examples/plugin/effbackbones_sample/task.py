"""A task: classes that have an order. All but its name and its head is classification's; examples/counting.py is one from nothing."""

from effbackbones_sample.head import TwoScales
from tasks.classification.task import Classification


class GradeHead(TwoScales):
    """A head says which task it is for."""

    task = "grade"


class Grade(Classification):
    """``effbackbones train grade --config FILE``."""

    name = "grade"
    command = "grade"

    def monitor(self, config):
        return "macro_f1"


GRADE = Grade()
