"""What a running process has used so far, by /proc."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that still run, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children(pid)))


def megabytes(pid: int, line: str = "VmRSS") -> float:
    """Resident memory of a process and its children, MiB: now (VmRSS) or at the most (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (kilobytes,) = [int(each.split()[1]) for each in status.splitlines() if each.startswith(f"{line}:")]
    return kilobytes / 1024 + sum(megabytes(child, line) for child in children(pid))


def children(pid: int) -> list[int]:
    """The processes that a process has started, by any of its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text(encoding="utf-8").split()]
