"""One request of a call to acquire, from asking to ports or to an error. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ._text import show
from .abc import Ask, Full, PortView
from .errors import AllocationError, BindError, ConfigurationError, PortInUse, PortsExhausted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._lease import HeldPort
    from ._requests import Plan, Ranges
    from .probe import Verdict

__all__ = ["MAX_WAIT", "Want", "check_wait"]

MAX_WAIT: Final = 31_536_000.0
"""Seconds; a year."""


def check_wait(wait: object, name: str = "wait") -> float:
    """:raises ConfigurationError: when it is not a number of seconds, or out of its bounds."""
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= MAX_WAIT:  # false for NaN too
        raise ConfigurationError(f"{name}: must be a number of seconds from 0 to {MAX_WAIT:.0f}, got {show(wait)}")
    return float(wait)


class Want:
    """What one request wants, where to look for it now, and what was given.

    Numbers that this machine refused are not asked for again in this call: ``fault`` says why, if it was for another
    reason than somebody having the port.
    """

    def __init__(self, ranges: Ranges, range: str | None, *, host: str, **asked: Any) -> None:
        self._ranges = ranges
        self._range = range
        self._asked = {"host": host, **asked}
        self.refused: set[int] = set()
        self.fault: Verdict | None = None
        self.plan: Plan = ranges.plan(range, host=host, **asked)
        self.given: Sequence[HeldPort] = ()

    @property
    def ask(self) -> Ask:
        return self.plan.ask

    def run_already(self) -> None:
        """The port is that of a job that runs on it."""
        self.plan = self.plan._replace(ask=self.plan.ask._replace(running=True))

    def look_elsewhere(self, numbers: Iterable[int]) -> None:
        """Leave these out from now on."""
        self.refused.update(numbers)
        self.plan = self._ranges.plan(self._range, **self._asked, skip=frozenset(self.refused))

    def look_again(self) -> None:
        """Some time has passed: what was refused may be free now."""
        if self.refused:
            self.refused.clear()
            self.fault = None
            self.look_elsewhere(())

    def most_marks(self) -> int:
        """How many ports of its range may be marked as foreign."""
        return self._ranges.marks(self.ask.range)

    def refusal(self, full: Full, waited: float) -> AllocationError:
        """The error for a store that has too little."""
        ask, host = self.ask, self.plan.host
        if ask.explicit and full.holder is not None and full.why != "limit":
            return PortInUse(host, full.holder)
        if self.fault is not None and full.why == "taken":
            return BindError(self.fault)
        first, last = self._ranges.extent(ask.range) if ask.range else ask.spans[0]
        return PortsExhausted(
            ask.range,
            first,
            last,
            ask.count,
            contiguous=ask.align > 0 and ask.count > 1,
            why=full.why,
            limit=ask.limit or None,
            owner=ask.owner,
            waited=waited,
        )

    def none_free(self, waited: float) -> AllocationError:
        """The error for one whom this machine refused everything that was tried."""
        return self.refusal(Full(0, None, False), waited)

    def in_use(self, number: int) -> PortInUse:
        """The error for an explicit port that something outside has."""
        ask = self.ask
        view = PortView(number, ask.protocol, "foreign", ask.range, "", {}, "", 0, 0, 0, None, ask.host)
        return PortInUse(self.plan.host, view)
