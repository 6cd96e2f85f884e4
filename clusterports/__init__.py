"""A network port for every job of a cluster, and back again when the job, its manager or its host dies.

>>> from clusterports import PortAllocator
>>> with PortAllocator("memory://", host="kvm-07") as ports, ports.acquire("backup", owner="vm-42") as port:
...     port.number
10809
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    AllocationError,
    BackendError,
    BackendRecovering,
    BackendUnavailable,
    BindError,
    ClusterPortsError,
    ConfigurationError,
    ImpossibleRequest,
    IncompatibleSchema,
    LeaseLost,
    NotReplicated,
    PortBusy,
    PortInUse,
    PortsExhausted,
)

if TYPE_CHECKING:
    from ._async.allocator import AsyncAllocation, AsyncPortAllocator
    from ._sync.allocator import Allocation, PortAllocator
    from .events import PortEvent
    from .ranges import PortRange, PortRequest
    from .settings import Settings
    from .status import ClusterStatus

__all__ = [
    "Allocation",
    "AllocationError",
    "AsyncAllocation",
    "AsyncPortAllocator",
    "BackendError",
    "BackendRecovering",
    "BackendUnavailable",
    "BindError",
    "ClusterPortsError",
    "ClusterStatus",
    "ConfigurationError",
    "ImpossibleRequest",
    "IncompatibleSchema",
    "LeaseLost",
    "NotReplicated",
    "PortAllocator",
    "PortBusy",
    "PortEvent",
    "PortInUse",
    "PortRange",
    "PortRequest",
    "PortsExhausted",
    "Settings",
]

_LATER = {
    "Allocation": "._sync.allocator",
    "AsyncAllocation": "._async.allocator",
    "AsyncPortAllocator": "._async.allocator",
    "ClusterStatus": ".status",
    "PortAllocator": "._sync.allocator",
    "PortEvent": ".events",
    "PortRange": ".ranges",
    "PortRequest": ".ranges",
    "Settings": ".settings",
}
"""Loaded when first used, so that the import itself stays light."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LATER[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
