"""What is held for the jobs of one host, and what is to be done about it. No I/O; time is passed in."""

from __future__ import annotations

import threading
from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from clusterports._wants import check_wait

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from clusterports import Allocation

__all__ = ["LABEL_USE", "LONGEST_BEGIN", "Job", "Ledger", "Using"]

LABEL_USE: Final = "libvirt.port"
"""A label of a port that is held for a job which may have several: what it is for."""

LONGEST_BEGIN: Final = 60.0
"""Seconds for which a daemon may still carry out what a manager asked of it before it died: it waits up to 30 s for the
job before, whether or not anybody is there to hear of it."""

Using: TypeAlias = "Mapping[int, str] | None"
"""The ports that a domain uses for jobs of this kind, perhaps none, and what for ("" where there is but one use); None:
it has no such job.
"""


class Job:
    """Something that a domain does on ports of ours, until it is over."""

    domain: str
    """The domain's name, for people."""
    uuid: str
    host: str
    ports: list[Allocation]
    """What is held for it now. Empty where no port is needed."""

    def __init__(self, uuid: str, domain: str, host: str, *, busy: bool = False) -> None:
        self.uuid, self.domain, self.host = uuid, domain, host
        self.ports = []
        self._numbers: frozenset[int] = frozenset()
        self._busy = busy  # it is being begun
        self._seen = False  # libvirt has it, or had it
        self._missed: float | None = None  # since when libvirt has not had it, each time that it was asked
        self._heard = False  # something ended while it was being begun
        self._done = False
        self._ended = threading.Event()

    @property
    def done(self) -> bool:
        """Whether it is over, and its ports are given back."""
        return self._done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, or nobody watches its host any more, at most so many seconds; whether it is over.

        :raises ConfigurationError: ``timeout`` is no number, or more than a year.
        """
        past = isinstance(timeout, int | float) and timeout < 0
        self._ended.wait(timeout if timeout is None else check_wait(0.0 if past else timeout, "timeout"))
        return self._done

    def _end_of_watch(self, *, done: bool) -> None:
        self._done = self._done or done
        self._ended.set()

    def _has(self, use: str) -> bool:
        """Whether it has a port for this already."""
        return any(port.labels.get(LABEL_USE, "") == use for port in self.ports)

    def __repr__(self) -> str:
        numbers = ", ".join(str(number) for number in sorted(self._numbers)) or "no port"
        state = "over" if self.done else "beginning" if self._busy else "running"
        return f"<{type(self).__name__} of {self.domain!r} on {self.host!r}: {numbers}, {state}>"

    def _is_over(self, using: Using) -> bool:
        """A domain has one job at a time: one on other ports is another one."""
        return using is None or (self._numbers != using.keys() and self._numbers.isdisjoint(using))

    def _over_at(self, missed: float) -> float:
        """When it is over, missing since then. One that nobody has seen yet may still be begun, on behalf of a manager
        that died, or over a connection that broke; when it was asked for says nothing of a daemon that hung since.
        """
        return missed if self._seen else missed + LONGEST_BEGIN

    def _take(self, port: Allocation) -> None:
        self.ports = [*(other for other in self.ports if other.number != port.number), port]
        self._numbers |= {port.number}


J = TypeVar("J", bound=Job)


class Ledger(list[J]):
    """The jobs that are not over. Used by several threads; each call is short."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.due = inf
        """When a job that was missing in the last comparison is over, should the next one miss it too."""

    def enter(self, job: J) -> None:
        with self._lock:
            self.append(job)

    def strike(self, job: J) -> bool:
        """Whether it was there: of several who find that it is over, one gives its ports back."""
        with self._lock:
            if job not in self:
                return False
            self.remove(job)
            return True

    def of(self, uuid: str) -> list[J]:
        with self._lock:
            return self._of(uuid)

    def _of(self, uuid: str) -> list[J]:
        return [job for job in self if job.uuid == uuid]

    def begun(self, job: J) -> bool:
        """Its begin has come to an end, well or not; whether somebody should look what became of it, or of others."""
        with self._lock:
            job._busy = False
            return job._heard or any(other is not job for other in self._of(job.uuid))

    def begun_of(self, uuid: str) -> list[J]:
        """This domain's jobs, but for those that are being begun: :meth:`begun` says that these must be looked at."""
        with self._lock:
            jobs = self._of(uuid)
            for job in jobs:
                job._heard = job._heard or job._busy
            return [job for job in jobs if not job._busy]

    def over(self, jobs: Iterable[J], using: Using) -> list[J]:
        """Of these, which had been begun before libvirt was asked what their domain uses: those that are over.

        One that nobody has seen yet may still be begun: what ended was another.
        """
        with self._lock:
            found = []
            for job in jobs:
                if not job._is_over(using):
                    job._seen, job._missed = True, None
                elif job._seen and job in self:
                    found.append(job)
            return found

    def compare(self, using: Mapping[str, Using], unread: Collection[str], now: float) -> list[J]:
        """What all domains of the host use, but for those that could not be asked: the jobs that are over.

        The list may be older than a job that began meanwhile, so one must be missing twice in a row.
        """
        with self._lock:
            found = []
            self.due = inf
            for job in self:
                if job._busy or job.uuid in unread:
                    continue
                if not job._is_over(using.get(job.uuid)):
                    job._seen, job._missed = True, None
                elif job._missed is not None and now >= job._over_at(job._missed):
                    found.append(job)
                else:
                    missed = job._missed = now if job._missed is None else job._missed
                    self.due = min(self.due, job._over_at(missed))
            return found

    def lacking(self, uuid: str, using: Mapping[int, str], held: Collection[int]) -> tuple[J | None, list[int]]:
        """Which of the ports that a domain uses nobody here holds, and the job that they belong to, if it is known.

        ``held``: fences of what we hold. Nothing is lacking while a job is being begun.
        """
        with self._lock:
            jobs = self._of(uuid)
            if any(job._busy for job in jobs):
                return None, []
            ours = {port.number for job in jobs for port in job.ports if port.fence in held}
            numbers = sorted(set(using) - ours)
            known = (job for job in jobs if not job._is_over(using))
            return next(known, None), numbers
