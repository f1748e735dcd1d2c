"""What a command changes in the process that it runs in, put back: a notebook goes on as if it had not been called."""

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from tasks.engine import processes

_VARIABLES = (
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"),  # Lightning's launcher
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"),
)
_LOGGERS = ("lightning.fabric", "lightning.pytorch")


@contextmanager
def put_back() -> Iterator[None]:
    """Afterwards random states, deterministic algorithms, flags of cuDNN, threads, log levels, warning filters and environment are
    what they were before, and this process is nobody's rank."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for name in _LOGGERS:
            stack.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
        for name in _VARIABLES:
            stack.callback(_set_variable, name, os.environ.get(name))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch does not say its types
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(_deterministic(), torch.are_deterministic_algorithms_enabled())
        cudnn = torch.backends.cudnn
        for name in ("benchmark", "deterministic"):
            stack.callback(setattr, cudnn, name, getattr(cudnn, name))
        stack.callback(processes.forget)
        yield


def _deterministic() -> Callable[[bool], None]:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return lambda enabled: torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
