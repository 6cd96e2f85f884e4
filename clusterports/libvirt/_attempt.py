"""Start something on ports that were just taken, and take others where the host has a port in use already."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from clusterports._lease import monotonic
from clusterports.abc import PortView
from clusterports.errors import ClusterPortsError, PortInUse, PortsExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from clusterports import Allocation, PortAllocator, PortRequest

__all__ = ["attempt", "give_back", "in_use", "take"]

logger = logging.getLogger("clusterports")

TRIES: Final = 32
"""How often one call lets itself be refused by the host."""

GUESSES: Final = 3
"""How often, where the host only says that it cannot bind."""

VNC_FIRST: Final = 5900
"""The port of VNC's display 0."""

_RESERVED: Final = re.compile(r"Failed to reserve port (\d+)")
_SPICE: Final = re.compile(r"Spice: .*binding socket to .*:(\d+) failed")
_VNC: Final = re.compile(r": -vnc (?:\[[^\]\s]*\]|[^\s:\[]*):(\d+)((?:,\S*)?): .*Address already in use")
_WEBSOCKET: Final = re.compile(r",websocket=(\d+)")
_INCOMING: Final = re.compile(r": -incoming \S*:(\d+)(?:,\S*)?: .*Address already in use")
_COMMAND: Final = re.compile(r"(?:nbd-server-start|migrate-incoming)\b.*Address already in use")

T = TypeVar("T")


def attempt(
    ports: PortAllocator,
    taken: Callable[[Collection[int]], Sequence[Allocation]],
    requests: Sequence[PortRequest],
    start: Callable[[Sequence[Allocation]], T],
    began: Callable[[], bool | None],
    blame: Callable[[Exception, Sequence[Allocation]], tuple[set[Allocation], bool]] | None = None,
) -> T:
    """What ``start`` returns, on ports that ``taken`` took for these requests, but for the numbers that it is told.

    ``began``: after ``start`` has failed, whether it runs all the same; None when that cannot be found out. Then its
    ports stay held. ``blame``: instead of :func:`in_use`.

    :raises PortInUse: a port that was asked for by number is in use on the host.
    :raises PortsExhausted: so is everything that was tried.
    :raises: what ``taken`` or ``start`` raise.
    """
    refused: Exception | None = None
    skip: set[int] = set()
    for tried in range(TRIES):
        try:
            given = taken(skip)
        except PortsExhausted as error:
            raise error from refused
        try:
            return start(given)
        except Exception as error:
            runs = began()
            if runs is None or runs:
                if given:
                    error.add_note(_kept(given))
                raise
            busy, certain = (blame or in_use)(error, given)
            named = {port for port, asked in zip(given, requests, strict=True) if asked.port is not None}
            hopeless = not busy or (not certain and (busy <= named or tried + 1 >= GUESSES))
            # It may be the one that is named, or another; once others were tried with it, it is taken to be that one.
            blamed = busy & named if busy <= named or tried + 1 >= GUESSES else set()
            for port in given:
                give_back(port, foreign=port in busy - named and not hopeless and not blamed)
            if hopeless:
                raise
            if blamed:
                raise _refusal(next(iter(blamed))) from error
            logger.warning(
                "in use on host %r, as libvirt says: %s",
                given[0].host,
                ", ".join(str(port.number) for port in given if port in busy),
            )
            refused = error
            skip.update(port.number for port in busy - named)
    asked = next(asked for asked in requests if asked.port is None)
    raise PortsExhausted(asked.range or "", *ports._ranges.extent(asked.range or "")) from refused


def in_use(error: Exception, given: Sequence[Allocation]) -> tuple[set[Allocation], bool]:
    """Which of the ports are in use on the host, if that is what the error says, and whether that is certain: spice
    does not say why it cannot bind a port.

    QEMU names the option or the command that failed. An option has the number with it; a command has not, and then it
    may be any of the ports. What else a domain listens on, a serial console perhaps, is on ports that are not ours.
    """
    text = str(error)
    named = {int(number) for pattern in (_RESERVED, _INCOMING) for number in pattern.findall(text)}
    for display, options in _VNC.findall(text):
        named |= {VNC_FIRST + int(display), *map(int, _WEBSOCKET.findall(options))}
    spice = set(map(int, _SPICE.findall(text)))
    if named or spice:
        return {port for port in given if port.number in (named or spice)}, bool(named)
    return set(given) if _COMMAND.search(text) else set(), True


def take(
    ports: PortAllocator, requests: Sequence[PortRequest], wait: float = 0.0, skip: Collection[int] = ()
) -> list[Allocation]:
    """The ports that all of them ask for, or none. ``skip``: numbers that none is to get, but who names one.

    What the allocator's probe keeps of them is let go: it is QEMU that is to bind them.

    :raises: what :meth:`PortAllocator.acquire` raises.
    """
    given = _taken(ports, requests, wait, skip)
    for port in given:
        ports._discard_socket(port)
    return given


def _taken(
    ports: PortAllocator, requests: Sequence[PortRequest], wait: float, skip: Collection[int]
) -> list[Allocation]:
    if len(requests) <= 1 or not wait:
        return ports._acquire_all(requests, skip=skip, wait=wait)
    until = monotonic() + wait
    given: list[Allocation] = []
    try:
        for asked in requests:
            given += ports._acquire_all([asked], skip=skip, wait=max(0.0, until - monotonic()))
    except BaseException:
        for port in given:
            give_back(port)
        raise
    return given


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
    numbers = ", ".join(str(port.number) for port in given)
    return f"It may have begun all the same. Its ports stay held until libvirt says that it has not: {numbers}"
