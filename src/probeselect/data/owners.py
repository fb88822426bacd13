"""Which process something belongs to, and whether that one is surely dead.

Knows this machine only: of a process on another one it can't tell.
"""

import hashlib
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process: the machine since its last boot, the process id, and when the process began (ids are used again)."""

    machine: str
    pid: int
    began: int

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.began}"

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        machine, _, rest = text.partition("-")
        pid, _, began = rest.partition("-")
        return cls(machine, int(pid), int(began)) if pid.isdecimal() and began.isdecimal() else None

    @classmethod
    def this_process(cls) -> "Owner":
        return cls(_machine(), os.getpid(), _began(os.getpid()) or 0)

    def is_dead(self) -> bool:
        """Whether the process has surely ended. False for one that is stopped, and for one on another machine."""
        return self.machine == _machine() and _began(self.pid) != self.began


@lru_cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")  # containers of one machine count their processes apart
    about = [
        platform.node(),
        boot.read_text() if boot.exists() else "",
        os.readlink(namespace) if boot.exists() else "",
    ]
    return hashlib.sha256("\0".join(about).encode()).hexdigest()[:8]


def _began(pid: int) -> int | None:
    """Clock ticks since boot at which a process began; None for one that is not, or has ended and is not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self").exists() else _began_without_proc(pid)
    except (ProcessLookupError, PermissionError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _began_without_proc(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
