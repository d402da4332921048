"""CPU seconds of a command and of every process that it starts, daemons included; for Linux.

On a machine that does other work as well, wall-clock times say little, and the CPU seconds of the first process miss
those of Ray's daemons and workers, which are nobody's children once their parents have ended. So this process adopts
them (``PR_SET_CHILD_SUBREAPER``) and reads the CPU seconds of all below it from ``/proc`` ten times a second: short of
what each process uses after the last reading.
"""

import contextlib
import ctypes
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.1
_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_ROLES = (  # the first that matches the command line
    ("workers of Ray", r"ray::|default_worker|setup_worker"),
    ("daemons of Ray", r"gcs_server|/raylet|log_monitor|ray/dashboard|runtime_env|ray-dashboard"),
    ("verification", r" -I -W ignore -c "),
)
_OTHER = "command"


@dataclass(slots=True)
class Usage:
    """What a command used.

    Args:
        seconds: Wall-clock time until the command itself ended.
        samples: Unix time, and the CPU seconds until then by what the processes are for.
    """

    seconds: float = 0.0
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    @property
    def by_role(self) -> dict[str, float]:
        """CPU seconds in all."""
        return self.samples[-1][1] if self.samples else {}

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.by_role.values())

    def until(self, moment: float) -> dict[str, float]:
        """Return the CPU seconds until a moment in Unix time."""
        return next((roles for when, roles in reversed(self.samples) if when <= moment), {})


def measured(command: Sequence[str], environment: Mapping[str, str]) -> Usage:
    """Run a command to its end and return what it and all its descendants used.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    usage, began = Usage(), time.perf_counter()
    used: dict[tuple[int, str], tuple[str, float]] = {}  # by process and its start: its role and CPU seconds
    process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL)
    while True:
        if process.poll() is not None and not usage.seconds:
            usage.seconds = time.perf_counter() - began
        found = _descendants(os.getpid())
        for pid, (start, seconds) in found.items():
            known = used.get((pid, start))
            # A worker of Ray gets its name after its start, so that a role is final only where it says something.
            role = known[0] if known is not None and known[0] != _OTHER else _role(pid)
            used[pid, start] = role, seconds
        roles: dict[str, float] = {}
        for role, seconds in used.values():
            roles[role] = roles.get(role, 0.0) + seconds
        usage.samples.append((time.time(), roles))
        if process.returncode is not None and not found:
            break
        if process.returncode is not None:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage


def _descendants(root: int) -> dict[int, tuple[str, float]]:
    """Return the start and the CPU seconds of every process below one."""
    parents: dict[int, int] = {}
    found: dict[int, tuple[str, float]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        found[pid] = fields[19], (int(fields[11]) + int(fields[12])) / _TICKS

    def is_below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return {pid: value for pid, value in found.items() if pid != root and is_below(pid)}


def _role(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return _OTHER
    return next((role for role, pattern in _ROLES if re.search(pattern, line)), _OTHER)
