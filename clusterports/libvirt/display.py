"""Displays: QEMU serves a domain's screen by VNC or spice, on ports of the host, for as long as the domain runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from clusterports.ranges import PortRequest

from ._binding import binding, code
from ._graphics_xml import GraphicsXml
from ._jobs import GONE, HostJobs
from ._ledger import LABEL_USE, Job, Using

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clusterports import Allocation, PortAllocator

    from ._connection import Connect

__all__ = ["Display", "DisplayPorts"]

WEBSOCKET: Final = "websocket"


class Display(Job):
    """The ports of a domain that runs."""

    @property
    def vnc(self) -> int | None:
        """The number of this port, None: there is none, or not held here. So with the others."""
        return self._number("vnc")

    @property
    def websocket(self) -> int | None:
        """VNC's."""
        return self._number(WEBSOCKET)

    @property
    def spice(self) -> int | None:
        return self._number("spice")

    @property
    def spice_tls(self) -> int | None:
        return self._number("spice-tls")

    def _number(self, use: str) -> int | None:
        return next((port.number for port in self.ports if port.labels.get(LABEL_USE) == use), None)


class DisplayPorts(HostJobs[Display]):
    """Gives the displays of a host's domains ports of their own, from a domain's start until libvirt says it has ended.

    Ports that libvirt gave out itself, by ``autoport``, are claimed by the comparison with what runs, unless another
    manager has claimed them. Until then libvirt refuses them to others, which costs another try.

    ``range`` and ``websocket_range``: where ports come from, those for VNC's websockets from the latter. ``spice_tls``:
    the host's ``qemu.conf`` has it, so that an automatic spice needs a port for TLS too. The other arguments are those
    of :class:`BackupPorts`.

    :raises ConfigurationError: for a value out of its bounds.
    """

    kind = "display"

    def __init__(
        self,
        ports: PortAllocator,
        connect: Connect = "qemu:///system",
        *,
        host: str | None = None,
        range: str = "display",
        websocket_range: str = "websocket",
        spice_tls: bool = False,
        interval: float = 10.0,
        events: bool = True,
    ) -> None:
        for name in (range, websocket_range):
            ports._ranges.check(name)
        self._range = range
        self._websocket_range = websocket_range
        self._spice_tls = spice_tls
        super().__init__(ports, connect, host=host, interval=interval, events=events)

    def create(
        self, xml: str, flags: int = 0, *, owner: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Display:
        """Start a domain, as libvirt's ``createXML`` does, with ports for its display.

        ``xml``: the ``<domain>``. Where libvirt would choose a port for VNC, its websocket or spice, one of the range
        is filled in; a port that is named is claimed, and not changed; a display without a TCP port is left alone. A
        domain without a UUID gets one, by which its ports are found again. Where QEMU or libvirt says that something
        else has a port, it is marked as foreign and the next one tried. ``owner``: default the domain's name.

        If the outcome of a start is not known, since the connection broke, its ports stay held until libvirt can be
        asked.

        :raises PortInUse: a port that is named is held, or something else has it. libvirt was not asked, or refused.
        :raises PortsExhausted: no port of the range is free.
        :raises ConfigurationError: the XML is none, or a port is no port.
        :raises libvirtError: libvirt does not start the domain. Nothing stays held.
        :raises: what :meth:`PortAllocator.acquire_many` raises.
        """
        asked = GraphicsXml(xml, spice_tls=self._spice_tls)
        self.start()
        uuid = asked.uuid or str(uuid4())
        requests = [
            PortRequest(
                self._range_of(use) if number is None else self._home(number, use),
                host=self.host,
                port=number,
                owner=asked.name if owner is None else owner,
                labels=self._labels(uuid, labels, use),
            )
            for use, number in asked.slots
        ]
        job = self._job(uuid, asked.name, busy=True)

        def start(given: Sequence[Allocation]) -> object:
            text = asked.with_ports([port.number for port in given], uuid)
            return self._connection.get().createXML(text, flags)

        def using() -> Using:
            try:
                return self._using(self._connection.get().lookupByUUIDString(uuid))
            except binding().libvirtError as error:
                if code(error) in GONE:
                    return None
                raise

        self._begin(job, requests, start, using)
        return job

    def _using(self, domain: Any) -> Using:
        try:
            found = GraphicsXml(domain.XMLDesc())
        except binding().libvirtError as error:
            if code(error) in GONE:
                return None
            raise
        return found.used if found.running else None

    def _job(self, uuid: str, name: str, *, busy: bool = False) -> Display:
        return Display(uuid, name, self.host, busy=busy)

    def _range_of(self, use: str) -> str:
        return self._websocket_range if use == WEBSOCKET else self._range

    def _home(self, number: int, use: str = "") -> str | None:
        return self._ports._ranges.home(self._range_of(use), number)
