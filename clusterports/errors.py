"""Every error that clusterports raises.

::

    ClusterPortsError
    ├── ConfigurationError          a value that can never work: key, value and bound are named
    ├── AllocationError
    │   ├── PortsExhausted          nothing is free now; may succeed later
    │   ├── ImpossibleRequest       can never succeed: not in the range, larger than the range
    │   └── PortInUse               the explicit port is taken; says who has it
    ├── LeaseLost                   the lease is gone, and with it these allocations
    └── BackendError                the store
        ├── BackendUnavailable      not reached, or not able to answer, within the time given
        └── IncompatibleSchema      the server or its data is of a version that this client cannot use
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._lease import HeldPort
    from .abc import PortView

__all__ = [
    "AllocationError",
    "BackendError",
    "BackendUnavailable",
    "ClusterPortsError",
    "ConfigurationError",
    "ImpossibleRequest",
    "IncompatibleSchema",
    "LeaseLost",
    "PortInUse",
    "PortsExhausted",
]


class ClusterPortsError(Exception):
    """The root of all errors of this library."""


class ConfigurationError(ClusterPortsError):
    """A setting or an argument that can never work. The message names the key, the value and the bound."""


class AllocationError(ClusterPortsError):
    """A request for ports that was not met. Nothing was changed."""


class PortsExhausted(AllocationError):
    """Too few ports are free now; the same request may succeed later."""

    def __init__(self, range: str, first: int, last: int, count: int = 1) -> None:
        what = "an unused port" if count == 1 else f"{count} unused ports"
        super().__init__(f"Unable to find {what} in range '{range}' ({first}-{last})")
        self.range = range
        self.first = first
        self.last = last
        self.count = count


class ImpossibleRequest(AllocationError):
    """The request can never succeed, however long one waits."""


class PortInUse(AllocationError):
    """The port that was asked for by number is taken.

    ``holder`` is what the store knows of it: state, owner, instance, fence.
    """

    def __init__(self, host: str, holder: PortView) -> None:
        who = f"held by instance {holder.instance!r}" if holder.state == "held" else holder.state
        if holder.free_in is not None:
            seconds = max(0, holder.free_in) / 1e6
            who = f"{holder.state} for another {seconds:.1f} s, last held by instance {holder.instance!r}"
        owner = f", owner {holder.owner!r}" if holder.owner else ""
        super().__init__(
            f"Port {holder.number}/{holder.protocol} on host {host!r} is {who}{owner} (range '{holder.range}')"
        )
        self.host = host
        self.holder = holder


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


class IncompatibleSchema(BackendError):
    """The server, or the data in it, is of a version that this client cannot use."""
