"""What has to be in memory for torch's logarithms to be quick on a processor."""

import torch


def ready_logarithms(device: torch.device) -> None:
    """On a processor, read the constants that ``log1p``, ``expm1``, ``softplus`` and ``logsigmoid`` need, in some microseconds.

    With AVX-512 these choose constants for special values by masked loads, from a page of torch's library. As long as nobody has read
    that page for good (a mask without a lane does not) each vector of 16 numbers costs the processor a suppressed page fault: 9 ns a number
    instead of 1 (``python -m benchmarks logarithms``). log1p(-0.0) is such a special value. The system may take the page out of
    memory again, so this is for every step, not for the first alone.
    """
    if device.type == "cpu" and not torch.compiler.is_compiling():
        torch.full((32,), -0.0, dtype=torch.float32, device="cpu").log1p_()
