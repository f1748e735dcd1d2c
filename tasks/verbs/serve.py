"""The verb ``serve``: a trained model over HTTP."""

import signal
import sys
from collections.abc import Callable
from contextlib import closing

from effbackbones.errors import UserError
from effbackbones.inference.predictor import Predictor
from effbackbones.serving.limits import Limits
from effbackbones.serving.running import bound, require_packages, run
from effbackbones.serving.service import Service
from effbackbones.serving.web import Page
from tasks.engine.signals import StoppedError
from tasks.settings.commandline import Extras
from tasks.verbs.limits import count_of, share_of


def serve(extras: Extras) -> int:
    """Answer requests until a signal stops it; what was taken by then is answered. Raises :class:`StoppedError` then."""
    return served(extras)


def served(
    extras: Extras,
    page: Page | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> int:
    """The same with more paths, which ``page`` adds; ``started`` is called with the address."""
    require_packages()
    if extras.checkpoint is None:
        raise UserError("--checkpoint", "no trained model is named", "give --checkpoint FILE|RUN")
    own = extras.own
    if own["wait_ms"] < 0:
        raise UserError("--wait-ms", f"expected 0 or more, got {own['wait_ms']:g}", "correct it")
    limits = Limits(max_bytes=own["max_bytes"], max_files=own["max_files"], queue=own["queue"])
    with closing(bound(own["host"], own["port"])) as listening:  # before the model is loaded, which takes longer
        predictor = Predictor(
            extras.checkpoint,
            device=own["device"],
            threshold=share_of("--threshold", extras.threshold),
            top_k=count_of("--top-k", extras.top_k),
            batch_size=own["batch_size"],
            max_pixels=own["max_pixels"],
            tta=extras.tta,
            slices=extras.slices,
            backend=extras.backend,
            dtype=extras.dtype,
            on_error="return",
        )
        service = Service(predictor, limits=limits, wait=own["wait_ms"] / 1000)
        stopped = run(service, listening, lambda line: print(line, file=sys.stderr, flush=True), page, started)
    if stopped is not None:
        raise StoppedError(stopped if stopped == signal.SIGINT else signal.SIGTERM)
    return 0
