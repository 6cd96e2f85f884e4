"""Start something on ports that were just taken, and take others where the host has a port in use already."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from clusterports.abc import PortView
from clusterports.errors import ClusterPortsError, PortInUse, PortsExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clusterports import Allocation, PortAllocator, PortRequest

__all__ = ["attempt", "give_back", "in_use"]

logger = logging.getLogger("clusterports")

TRIES: Final = 32
"""How often one call lets itself be refused by the host."""

_RESERVED: Final = re.compile(r"Failed to reserve port (\d+)")

T = TypeVar("T")


def attempt(
    ports: PortAllocator,
    take: Callable[[], Sequence[Allocation]],
    requests: Sequence[PortRequest],
    start: Callable[[Sequence[Allocation]], T],
    began: Callable[[], bool | None],
) -> T:
    """What ``start`` returns, on ports that ``take`` took for these requests.

    ``began``: after ``start`` has failed, whether it runs all the same; None when that cannot be found out. Then its
    ports stay held.

    :raises PortInUse: a port that was asked for by number is in use on the host.
    :raises PortsExhausted: so is everything that was tried.
    :raises: what ``take`` or ``start`` raise.
    """
    refused: Exception | None = None
    for _ in range(TRIES):
        given = take()
        try:
            return start(given)
        except Exception as error:
            runs = began()
            if runs is None or runs:
                error.add_note(_kept(given))
                raise
            busy = in_use(error, given)
            explicit = [port for port, asked in zip(given, requests, strict=True) if asked.port is not None]
            for port in given:
                give_back(port, foreign=port in busy and port not in explicit)
            if not busy:
                raise
            if busy <= set(explicit):
                raise _refusal(next(iter(busy))) from error
            logger.warning(
                "in use on host %r, as libvirt says: %s",
                given[0].host,
                ", ".join(str(port.number) for port in given if port in busy),
            )
            refused = error
    asked = next(asked for asked in requests if asked.port is None)
    raise PortsExhausted(asked.range or "", *ports._ranges.extent(asked.range or "")) from refused


def in_use(error: Exception, given: Sequence[Allocation]) -> set[Allocation]:
    """Which of the ports are in use on the host, if that is what the error says: all, where it does not say which."""
    text = str(error)
    reserved = {int(number) for number in _RESERVED.findall(text)}
    if reserved:
        return {port for port in given if port.number in reserved}
    return set(given) if "Address already in use" in text else set()


def give_back(port: Allocation, *, foreign: bool = False) -> None:
    """A release that says in the log what is in its way: nobody waits for it."""
    try:
        if foreign:
            port.mark_foreign()
        else:
            port.release()
    except ClusterPortsError as error:
        logger.warning("%s", error)


def _refusal(port: Allocation) -> PortInUse:
    view = PortView(port.number, port.protocol, "foreign", port.range or "", "", {}, "", 0, 0, 0, None, port.host)
    return PortInUse(port.host, view)


def _kept(given: Sequence[Any]) -> str:
    numbers = ", ".join(str(port.number) for port in given) or "none"
    return f"It may have begun all the same. Its ports stay held until libvirt says that it has not: {numbers}"
