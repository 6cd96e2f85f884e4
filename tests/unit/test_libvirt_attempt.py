"""Which port is in use on a host, by what libvirt 9.0 with QEMU 7.2 says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from clusterports import PortAllocator, PortInUse, PortRequest
from clusterports.libvirt._attempt import attempt, in_use, take
from clusterports.libvirt.migration import _Asked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from clusterports import Allocation

EXITED: Final = "internal error: process exited while connecting to monitor: 2026-11-23T17:40:45.524954Z "
CLOSED: Final = "internal error: qemu unexpectedly closed the monitor: 2026-11-23T17:40:50.009846Z "
COMMAND: Final = "internal error: unable to execute QEMU command "
BUSY: Final = "Failed to find an available port: Address already in use"
NOT_HERE: Final = "Failed to bind socket: Cannot assign requested address"

VNC: Final = f"{EXITED}qemu-system-x86_64: -vnc 127.0.0.1:0,audiodev=audio1: {BUSY}"
VNC_BY_NAME: Final = f"{CLOSED}qemu-system-x86_64: -vnc h1:3,audiodev=audio1: {BUSY}"
VNC_IPV6: Final = f"{EXITED}qemu-system-x86_64: -vnc [::1]:3,audiodev=audio1: {BUSY}"
VNC_ALONE: Final = f"{EXITED}qemu-system-x86_64: -vnc 0.0.0.0:3: {BUSY}"
WEBSOCKET: Final = f"{CLOSED}qemu-system-x86_64: -vnc [::1]:3,websocket=5706,password=on,audiodev=audio1: {BUSY}"
VNC_ELSEWHERE: Final = f"{EXITED}qemu-system-x86_64: -vnc 192.0.2.1:0,audiodev=audio1: {NOT_HERE}"
SPICE: Final = (
    f"{EXITED}qemu-system-x86_64: warning: Spice: ../server/reds.cpp:2585:reds_init_socket: binding socket to"
    " 127.0.0.1:5903 failed\n2026-11-23T17:40:50.637559Z qemu-system-x86_64: warning: Spice:"
    " ../server/reds.cpp:3442:do_spice_init: Failed to open SPICE sockets\n2026-11-23T17:40:50.637585Z"
    " qemu-system-x86_64: failed to initialize spice server"
)
RESERVED: Final = "internal error: Failed to reserve port 5903"
SERIAL: Final = (
    f"{EXITED}qemu-system-x86_64: -chardev socket,id=charserial0,host=0.0.0.0,port=5903,server=on,wait=off: {BUSY}"
)
MONITOR: Final = f"{EXITED}qemu-system-x86_64: -qmp tcp:0.0.0.0:5903,server,wait=off: {BUSY}"
NETWORK: Final = (
    f'{EXITED}qemu-system-x86_64: -netdev {{"type":"socket","listen":"0.0.0.0:5903","id":"hostnet0"}}:'
    " can't bind ip=0.0.0.0 to socket: Address already in use"
)
NBD: Final = f"{COMMAND}'nbd-server-start': {BUSY}"
MIGRATION: Final = f"{COMMAND}'migrate-incoming': {BUSY}"
INCOMING: Final = f"{EXITED}qemu-system-x86_64: -incoming tcp:[::]:5903: {BUSY}"
NBD_ELSEWHERE: Final = f"{COMMAND}'nbd-server-start': {NOT_HERE}"


@pytest.fixture
def ports() -> Iterator[PortAllocator]:
    with PortAllocator("memory://", probe=False) as allocator:
        yield allocator


@pytest.fixture
def given(ports: PortAllocator) -> list[Allocation]:
    """One that each text could mean, and some that it could be taken to mean."""
    return [ports.acquire(None, port=number) for number in (5900, 5903, 5901, 5706)]


@pytest.mark.parametrize(
    ("text", "numbers", "certain"),
    [
        (VNC, {5900}, True),
        (VNC_BY_NAME, {5903}, True),
        (VNC_IPV6, {5903}, True),
        (VNC_ALONE, {5903}, True),
        (WEBSOCKET, {5903, 5706}, True),
        (SPICE, {5903}, False),
        (RESERVED, {5903}, True),
        (INCOMING, {5903}, True),
        (NBD, {5900, 5903, 5901, 5706}, True),
        (MIGRATION, {5900, 5903, 5901, 5706}, True),
        (SERIAL, set(), True),
        (MONITOR, set(), True),
        (NETWORK, set(), True),
        (VNC_ELSEWHERE, set(), True),
        (NBD_ELSEWHERE, set(), True),
        (VNC.replace("127.0.0.1:0", "127.0.0.1:7"), set(), True),
        (RESERVED.replace("5903", "5999"), set(), True),
    ],
)
def test_blamed(given: list[Allocation], text: str, numbers: set[int], certain: bool) -> None:
    """The port that the text names, if it is one of ours; each of ours where it names the step, and no number."""
    busy, is_certain = in_use(Exception(text), given)
    assert (numbers, certain) == ({port.number for port in busy}, is_certain)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [(MIGRATION, {49152}), (NBD, {49153}), (INCOMING.replace("5903", "49152"), {49152}), (VNC, set()), (SERIAL, set())],
)
def test_blamed_for_a_migration(ports: PortAllocator, text: str, numbers: set[int]) -> None:
    """The command says whether it is the migration's own port, or that of its disks."""
    given = [ports.acquire("migration"), ports.acquire("migration")]
    busy, _ = _Asked({}, 64, "10.0.0.1").in_use(Exception(text), given)
    assert numbers == {port.number for port in busy}


@pytest.mark.parametrize("text", [SERIAL, MONITOR, NETWORK, VNC_ELSEWHERE])
@pytest.mark.parametrize("port", [None, 5903])
def test_none_of_ours(ports: PortAllocator, text: str, port: int | None) -> None:
    """What is in use and not ours is told as it is, at once: no port of ours is refused, marked or held."""
    with pytest.raises(RuntimeError) as raised:
        started(ports, [PortRequest("display", port=port)], {5903 if port else 5900: text})
    assert (text, {}) == (str(raised.value), states(ports))


def test_the_one_that_is_named(ports: PortAllocator) -> None:
    """Of two ports, the one that the text names is marked as foreign and the other one is free again."""
    assert [5901, 5902] == started(ports, [PortRequest("display"), PortRequest("display")], {5900: VNC})
    assert {5900: "foreign", 5901: "held", 5902: "held"} == states(ports)


def test_one_that_was_asked_for_and_others(ports: PortAllocator) -> None:
    """QEMU does not say which of a display and its websocket is in use. The one that was asked for is taken to be it
    when others were tried with it.
    """
    display, websocket = PortRequest("display", port=5903), PortRequest("websocket")
    refused = {number: WEBSOCKET.replace("5706", str(number)) for number in range(5700, 5703)}
    assert [5903, 5702] == started(ports, [display, websocket], {5700: refused[5700], 5701: refused[5701]})
    with pytest.raises(PortInUse, match="Port 5904/tcp"):
        started(ports, [PortRequest("display", port=5904), websocket], {5904: refused[5702].replace(":3,", ":4,")})


def started(ports: PortAllocator, requests: Sequence[PortRequest], refused: Mapping[int, str]) -> list[int]:
    """The ports on which something was started. ``refused``: by number, what libvirt says then."""

    def start(given: Sequence[Allocation]) -> list[int]:
        numbers = [port.number for port in given]
        for number in refused.keys() & set(numbers):
            raise RuntimeError(refused[number])
        return numbers

    return attempt(ports, lambda skip: take(ports, requests, skip=skip), requests, start, lambda: False)


def states(ports: PortAllocator) -> dict[int, str]:
    return {port.number: port.state for host in ports.status().hosts for port in host.ports}
