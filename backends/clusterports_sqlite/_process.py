"""What all processes of one machine share: its clock, its boot, and who of them is still there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Probe", "Process", "boot_id", "monotonic_us", "this_process", "wall_us"]

LOOK_EVERY: Final = 0.1
"""Seconds between two looks at whether a process number was given to another process, or its process is a zombie."""


class Process(NamedTuple):
    """``start``: in clock ticks since the boot; 0: not known. ``where``: the namespaces in which the numbers count.

    ``boot``: names the boot since which it runs; "": not known.
    """

    pid: int
    start: int
    where: str
    boot: str

    def ended_with_boot(self, now: Process) -> bool:
        """Whether the machine was started anew between this process and the one of now.

        Of other namespaces that cannot be told: a container may have been given a boot id of its own.
        """
        return bool(self.boot and now.boot) and self.boot != now.boot and self.where == now.where


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _clock_offset(offsets: str) -> int:
    for line in offsets.splitlines():
        match line.split():
            case ["monotonic" | "1", seconds, nanoseconds]:
                return int(seconds) * 1_000_000 + int(nanoseconds) // 1000
    return 0


_self: Process | None = None

_offset = 0
"""By how much a time namespace moves our clock away from the machine's."""


def _begin() -> None:
    """A child of a fork is another process, and may be in other namespaces, where it may even have the same number."""
    global _offset, _self  # noqa: PLW0603
    _self = None
    _offset = _clock_offset(_read("/proc/self/timens_offsets"))


_begin()
os.register_at_fork(after_in_child=_begin)


def monotonic_us() -> int:
    """The machine's own monotonic clock: one clock for all of its processes, also in containers."""
    return time.monotonic_ns() // 1000 - _offset


def wall_us() -> int:
    return time.time_ns() // 1000


def boot_id() -> str:
    """Names the time since the machine was started; "" when it is not known.

    What a container has mounted there (systemd-nspawn, LXC) names the container's start, not the machine's.
    """
    path = Path("/proc/sys/kernel/random/boot_id")
    try:
        mounted = path.stat().st_dev != path.parent.stat().st_dev
    except OSError:
        return ""
    return "" if mounted else _read(str(path)).strip()


def this_process() -> Process:
    global _self  # noqa: PLW0603
    pid = os.getpid()
    if _self is None or _self.pid != pid:
        own, _, start, _ = _stat("self")
        _self = Process(pid, start if own == pid else 0, " ".join(map(_namespace, ("pid", "time"))), boot_id())
    return _self


def _namespace(kind: str) -> str:
    try:
        return str(Path(f"/proc/self/ns/{kind}").readlink())
    except OSError:
        return ""


def _stat(pid: int | str) -> tuple[int, str, int, int]:
    """Number, state, start and number of threads of a process; zeros when it cannot be seen."""
    number, _, rest = _read(f"/proc/{pid}/stat").partition(" ")
    fields = rest.rpartition(")")[2].split()  # the name before may hold anything
    try:
        return int(number), fields[0], int(fields[19]), int(fields[17])
    except (IndexError, ValueError):
        return 0, "", 0, 0


class Probe:
    """Whether a process is alive: True, False, or None when that cannot be known from here."""

    def __init__(self) -> None:
        self._looked: dict[Process, tuple[float, bool | None]] = {}

    def __call__(self, process: Process) -> bool | None:
        ours = this_process()
        if process.where != ours.where or process.pid <= 0:
            return None
        try:
            os.kill(process.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        if not process.start or not ours.start:
            return None
        now = time.monotonic()
        at, known = self._looked.get(process, (float("-inf"), None))
        if now - at >= LOOK_EVERY:
            known = self._look(process)
            if len(self._looked) > 1000:
                self._looked.clear()
            self._looked[process] = now, known
        return known

    @staticmethod
    def _look(process: Process) -> bool | None:
        _, state, start, threads = _stat(process.pid)
        if not state:
            return None  # hidden, or it ended just now
        if start != process.start:
            return False
        return not (state in "ZX" and threads <= 1)  # of a process whose first thread has ended others may go on
