"""A space with something of everything in it, and managers who know what they can rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from clusterports.abc import (
    Ask,
    Claim,
    Closed,
    Gone,
    Granted,
    Holder,
    Opened,
    Port,
    Protocol4,
    Queued,
    Recovering,
    Renewal,
    Renewed,
    Request,
    SpaceView,
    Wait,
)
from clusterports.errors import BackendError
from clusterports_redis._wire import keys

if TYPE_CHECKING:
    import servers

    from clusterports_redis import RedisBackend

SPACE = "host:a"
SECOND = 1_000_000
TTL = 30 * SECOND
QUARANTINE = 15 * SECOND
STATE, DUE, PORTS, TCP, UDP = keys(SPACE)
HELD: tuple[tuple[int, Protocol4], ...] = (10, "tcp"), (20, "both"), (30, "udp")
FENCE = 1_750_000_000_000_000
"""Of the first: the virtual clock's time."""


class Manager:
    """One that renews, and knows when it can no longer rely on its lease."""

    def __init__(self, backend: Any, clock: servers.VirtualClock, instance: str) -> None:
        self.backend = backend
        self.clock = clock
        self.instance = instance
        self.number = 0
        self.held: dict[Port, Ask] = {}
        self.ended: int | None = None
        """When it was told, or gave up."""
        self.open()

    def open(self, knew: int = 0) -> None:
        reply = self.backend.open(SPACE, self.instance, token="ab", ttl=TTL, knew=knew)
        assert isinstance(reply, Opened)
        self.holder = Holder(self.instance, reply.lease, reply.incarnation)
        self.valid = self.clock.now + TTL * 9 // 10

    def request(self) -> Request:
        self.number += 1
        return Request(self.number, self.number)

    def acquire(self, *asks: Ask) -> tuple[Port, ...]:
        reply = self.backend.acquire(SPACE, self.holder, self.request(), asks)
        assert isinstance(reply, Granted), reply
        for port in reply.ports:
            self.held[port] = next(ask for ask in asks if ask.protocol == port.protocol)
        return reply.ports

    def take_all(self) -> set[tuple[str, int]]:
        """What it is given of ports that may be free, as many as there are: kinds and numbers."""
        taken: set[tuple[str, int]] = set()
        both: tuple[Protocol4, ...] = ("tcp", "udp", "both")
        tries = [Ask("r", ((1, 70),), protocol=protocol, quarantine=QUARANTINE) for protocol in both]
        tries += [Ask("r", ((at, at),), protocol=protocol) for at, _ in HELD for protocol in both]
        tries.append(Ask("r", ((20, 21),), 2, protocol="both", align=1))
        tries += [Ask("r", ((at, at),), 1, kind, explicit=True) for at, kind in HELD]
        for ask in tries:
            try:
                reply = self.backend.acquire(SPACE, self.holder, self.request(), [ask])
                if isinstance(reply, Granted):
                    taken |= {(kind, port.number) for port in reply.ports for kind in kinds(port)}
                    self.backend.release(SPACE, self.holder, reply.ports)
            except BackendError:
                pass
        return taken

    def beat(self) -> None:
        """A heartbeat, as an allocator does it: what the store does not know is claimed."""
        if self.ended is None and self.clock.now > self.valid + TTL // 10:
            self.ended = self.clock.now
        if self.ended is not None:
            return
        began = self.clock.now
        try:
            (reply,) = self.backend.renew([Renewal(SPACE, self.holder, ports=len(self.held))])
            if isinstance(reply, BaseException):
                return
            if reply == Gone("unknown"):
                self.open(max((port.fence for port in self.held), default=self.holder.lease))
            elif isinstance(reply, Gone):
                self.ended = began
                return
            else:
                assert isinstance(reply, Renewed)
                self.valid = began + TTL * 9 // 10
                if not (reply.doubt or reply.revoked):
                    return
                for port in reply.revoked:
                    self.held.pop(port, None)
            claims = [Claim(port, ask) for port, ask in self.held.items()]
            for port in self.backend.claim(SPACE, self.holder, self.request(), claims).refused:
                self.held.pop(port)
        except BackendError:
            pass

    def relies_on(self) -> set[tuple[str, int]]:
        if self.ended is not None or self.clock.now > self.valid:
            return set()
        return {(kind, port.number) for port in self.held for kind in kinds(port)}


def kinds(port: Port) -> tuple[str, ...]:
    return ("tcp", "udp") if port.protocol == "both" else (port.protocol,)


class Scene:
    """A space with something of everything: held, cooling and marked ports, a limit, a queue, a circle."""

    def __init__(self, store: servers.RedisStore) -> None:
        self.store = store
        self.client = store.client
        self.backend = cast("RedisBackend", store.connect(virtual=True))
        self.one, self.two, self.other = (self.manager(name) for name in ("one", "two", "other"))
        self.one.acquire(Ask("r", ((10, 10),), quarantine=QUARANTINE))
        self.one.acquire(Ask("r", ((20, 29),), 2, "both", quarantine=QUARANTINE, align=2))
        self.one.acquire(Ask("r", ((30, 39),), 2, "udp", QUARANTINE, "o", limit=5, cooldown=SECOND, rotate=1))
        self.two.acquire(Ask("r", ((11, 11),), quarantine=QUARANTINE))
        cools = self.two.acquire(Ask("r", ((40, 40),), quarantine=QUARANTINE, cooldown=600 * SECOND))
        marked = self.two.acquire(Ask("r", ((50, 50),), quarantine=QUARANTINE))
        taken = self.two.acquire(Ask("r", ((60, 60),), quarantine=600 * SECOND))
        self.backend.release(SPACE, self.two.holder, cools)
        self.backend.mark_foreign(SPACE, self.two.holder, marked, range="r", duration=600 * SECOND, most=9)
        view = self.view()
        assert self.backend.force(SPACE, next(port for port in view.ports if port.number == 60))
        for port in (*cools, *marked, *taken):
            del self.two.held[port]
        asks = [Ask("r", ((12000, 12000),), quarantine=QUARANTINE)]
        assert isinstance(self.backend.acquire(SPACE, self.one.holder, self.one.request(), asks), Granted)
        queued = self.backend.acquire(SPACE, self.two.holder, self.two.request(), asks, Wait(3000 * SECOND))
        assert isinstance(queued, Queued)
        self.ticket = queued.ticket
        self.one.held[Port(12000, "tcp", self.view().fence - 1)] = asks[0]
        self.pass_time(2)
        self.going = self.running()
        self.ports = {port.state: port for port in self.view().ports}

    def manager(self, name: str) -> Manager:
        return Manager(self.backend, self.store.clock, name)

    def view(self) -> SpaceView:
        (view,) = self.backend.read([SPACE])
        assert isinstance(view, SpaceView), view
        return view

    def running(self) -> set[Port]:
        return {Port(port.number, port.protocol, port.fence) for port in self.view().ports if port.state == "held"}

    def pass_time(self, rounds: int) -> None:
        """6 s each, with heartbeats; nobody is given what another relies on."""
        for _ in range(rounds):
            self.store.clock.advance(6)
            for manager in (self.one, self.two):
                manager.beat()
            if self.other.ended is not None:
                try:
                    self.other = self.manager("third")
                except BackendError:
                    continue
            self.other.beat()
            taken = self.other.take_all()
            assert set() == taken & (self.one.relies_on() | self.two.relies_on())

    def quiet(self) -> None:
        """Without a queue, and with nothing that is due soon: then most operations take a shorter way."""
        self.backend.renew([Renewal(SPACE, self.two.holder, left=(self.ticket,))])
        self.backend.reclaim(SPACE)
        assert self.view().waiting == 0

    def serves(self) -> None:
        """Every operation works, at the latest when holders have had their time to claim."""
        manager = self.manager("new")
        ask = Ask("r", ((61, 64),), 2, "both", quarantine=QUARANTINE, align=1)
        reply: object = Recovering(0)
        for _ in range(60):
            if not isinstance(reply, Recovering):
                break
            self.pass_time(1)
            manager.beat()
            reply = self.backend.acquire(SPACE, manager.holder, manager.request(), [ask])
        assert isinstance(reply, Granted), reply
        self.backend.release(SPACE, manager.holder, reply.ports[:1])
        self.backend.held(SPACE, manager.holder)
        self.backend.preview(SPACE, [ask])
        assert Closed(False) == self.backend.close_lease(SPACE, manager.holder)
