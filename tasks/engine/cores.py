"""Processor cores that this process may use: fewer than the machine has where it is pinned, or a container has a quota."""

import math
import os
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """Cores by the affinity of this process and the quota of its control group (Linux, version 1 or 2), at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min((_quota(folder) for folder in _groups(root)), default=math.inf)
    return max(1, min(count, math.ceil(quota))) if quota < math.inf else count


def _groups(root: Path) -> list[Path]:
    """The folders of this process's control groups that may limit its processors, and of those around them."""
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []
    found = [mounted, mounted / "cpu", mounted / "cpu,cpuacct"]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers or "cpu" in controllers.split(","):
            for place in (mounted, mounted / "cpu", mounted / "cpu,cpuacct") if controllers else (mounted,):
                inner = place / path.strip("/")
                found += [inner, *[outer for outer in inner.parents if outer.is_relative_to(place)]]
    return found


def _quota(folder: Path) -> float:
    """Processors that a control group may use at a time; infinite where it says nothing."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{word}_us").read_text(encoding="ascii") for word in ("quota", "period")
            )
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
