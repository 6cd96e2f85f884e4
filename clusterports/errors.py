"""Every error that clusterports raises.

::

    ClusterPortsError
    ├── ConfigurationError          a value that can never work: key, value and bound are named
    ├── AllocationError
    │   ├── PortsExhausted          nothing is free now; may succeed later
    │   ├── ImpossibleRequest       can never succeed: not in the range, larger than the range
    │   ├── PortInUse               the explicit port is taken; says who has it
    │   └── BindError               this machine refuses the port: a privileged number, no descriptors left
    │       └── PortBusy            something on this machine has it
    ├── LeaseLost                   the lease is gone, and with it these allocations
    └── BackendError                the store
        ├── BackendRecovering       the store lost what it knew; holders get time to say what they hold
        ├── BackendUnavailable      not reached, or not able to answer, within the time given
        ├── IncompatibleSchema      the server or its data is of a version that this client cannot use
        └── NotReplicated           fewer copies than asked for have what was granted, so it was undone
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._lease import HeldPort
    from .abc import PortView
    from .probe import Verdict

__all__ = [
    "AllocationError",
    "BackendError",
    "BackendRecovering",
    "BackendUnavailable",
    "BindError",
    "ClusterPortsError",
    "ConfigurationError",
    "ImpossibleRequest",
    "IncompatibleSchema",
    "LeaseLost",
    "NotReplicated",
    "PortBusy",
    "PortInUse",
    "PortsExhausted",
]


LONGEST_SHOWN = 255
"""Characters of one name: all of a host's or an instance's; an owner may have ten thousand."""


class ClusterPortsError(Exception):
    """The root of all errors of this library."""

    def __reduce__(self) -> tuple[object, ...]:  # a worker of a process pool raises it, its parent is to see it
        return _remade, (type(self), self.args), self.__dict__


class ConfigurationError(ClusterPortsError):
    """A setting or an argument that can never work. The message names the key, the value and the bound."""


class AllocationError(ClusterPortsError):
    """A request for ports that was not met. Nothing was changed."""


class PortsExhausted(AllocationError):
    """Too few ports are free now; the same request may succeed later.

    ``range`` is "" where no range was asked for, only the port ``first``. ``count`` ports were wanted, as one block
    if ``contiguous``. ``why``: so many are not free; or ``owner`` may hold no more than ``limit`` of this range; or
    others wait for what is free. ``waited``: seconds. ``host``: where, if the message is to say so.
    """

    def __init__(
        self,
        range: str,
        first: int,
        last: int,
        count: int = 1,
        *,
        contiguous: bool = False,
        why: Literal["taken", "limit", "queue"] = "taken",
        limit: int | None = None,
        owner: str = "",
        waited: float = 0.0,
        host: str | None = None,
    ) -> None:
        what = "an unused port"
        if count > 1:
            what = f"a block of {count} unused ports" if contiguous else f"{count} unused ports"
        message = f"Unable to find {what} in range {_quoted(range)} ({first}-{last})"
        if not range:
            message = f"Unable to take port {first}"
        if host is not None:
            message += f" on host {_quoted(host)}"
        if waited > 0:
            message += f" within {waited:g} s"
        if why == "limit":
            message += f": owner {_quoted(owner)} may hold at most {limit} here"
        elif why == "queue":
            message += ": others wait for them already" if range else ": others wait for it already"
        super().__init__(message)
        self.range = range
        self.first = first
        self.last = last
        self.count = count
        self.contiguous = contiguous
        self.why = why
        self.limit = limit
        self.owner = owner
        self.waited = waited
        self.host = host


class ImpossibleRequest(AllocationError):
    """The request can never succeed, however long one waits."""


class PortInUse(AllocationError):
    """The port that was asked for by number is taken.

    ``holder`` is what is known of it: state, owner, instance, fence. One in the state ``foreign`` without an
    instance was found just now: something outside clusterports has it on the host.
    """

    def __init__(self, host: str, holder: PortView) -> None:
        instance = f"instance {_quoted(holder.instance)}"
        left = f"for another {max(0, holder.free_in or 0) / 1e6:.1f} s"
        if holder.state == "held":
            state = f"held by {instance}"
        elif holder.state == "cooling":
            state = f"cooling {left}, last held by {instance}"
        elif holder.instance:
            state = f"marked as foreign {left}, seen by {instance}"
        else:
            state = "in use by a process outside clusterports"
        owner = f", owner {_quoted(holder.owner)}" if holder.owner else ""
        range = f" (range {_quoted(holder.range)})" if holder.range else ""
        super().__init__(f"Port {holder.number}/{holder.protocol} on host {_quoted(host)} is {state}{owner}{range}")
        self.host = host
        self.holder = holder


class BindError(AllocationError):
    """This machine refuses the port; ``verdict`` is what :mod:`clusterports.probe` says of it.

    An allocation whose socket could not be had is held all the same.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"Unable to bind port {verdict.reason}")
        self.verdict = verdict


class PortBusy(BindError):
    """Something on this machine has the port, and nothing was bound."""


class LeaseLost(ClusterPortsError):
    """The lease is gone, and its ports may be given to others after their quarantine.

    ``allocations`` are those that were held; ``reason`` is ``"revoked"`` when the store said so (the lease
    expired there, or a newer process runs under the same instance name) and ``"deadline"`` when a strict
    allocator gave it up because it could not renew in time.
    """

    def __init__(
        self,
        message: str,
        *,
        allocations: Sequence[HeldPort] = (),
        reason: Literal["revoked", "deadline"] = "revoked",
    ) -> None:
        super().__init__(message)
        self.allocations = list(allocations)
        self.reason = reason


class BackendError(ClusterPortsError):
    """The store failed in a way that a repetition does not cure.

    ``unknown`` is True when the request may have been carried out all the same.
    """

    unknown: bool = False


class BackendUnavailable(BackendError):
    """The store was not reached, or could not answer, within the time given."""

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown


class BackendRecovering(BackendError):
    """The store lost what it knew of a host. Holders say what they hold with their next heartbeat; until they have had
    the time to, nothing is given out there.

    ``left``: seconds after which it is, unless more is found missing.
    """

    def __init__(self, where: str, left: float) -> None:
        super().__init__(
            f"The store lost what it knew {where}; no port is given out there for another {max(0.0, left):.1f} s,"
            " so that those who hold some can say so"
        )
        self.left = left


class NotReplicated(BackendError):
    """What was granted did not reach as many replicas, or disks, as was asked for, and was undone.

    ``unknown`` is True when it could not be undone yet; then the next heartbeat does.
    """


class IncompatibleSchema(BackendError):
    """The server, or the data in it, is of a version that this client cannot use."""


def _remade(kind: type[ClusterPortsError], args: tuple[object, ...]) -> ClusterPortsError:
    return kind.__new__(kind, *args)


def _quoted(text: str) -> str:
    """A name or an owner, on one line of a terminal."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}...")
