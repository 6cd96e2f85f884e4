"""The public API as a type checker sees it. Checked by mypy and pyright, never run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, assert_type

from clusterports import (
    Allocation,
    AsyncAllocation,
    AsyncPortAllocator,
    BackendRecovering,
    ClusterStatus,
    LeaseLost,
    PortAllocator,
    PortEvent,
    PortRange,
    PortRequest,
    Settings,
)
from clusterports.abc import EventKind
from clusterports.libvirt import Backup, BackupPorts, Display, DisplayPorts, settle_migrations

if TYPE_CHECKING:
    from collections.abc import Mapping


def recovering(error: BackendRecovering) -> float:
    return error.left


def lost(loss: LeaseLost) -> None:
    assert_type(loss.reason == "revoked", bool)


def jeopardy(allocations: list[Allocation]) -> None:
    assert_type([item.number for item in allocations], list[int])


def threads(count: int, client: Any) -> None:
    with PortAllocator("memory://", host="kvm-07", ttl=30, on_lost=lost, on_jeopardy=jeopardy, strict=True) as ports:
        assert_type(ports, PortAllocator)
        assert_type(ports.acquire("backup"), Allocation)
        assert_type(ports.acquire("backup", count=1), Allocation)
        assert_type(ports.acquire("backup", count=2), Allocation | list[Allocation])
        assert_type(ports.acquire("backup", count=count), Allocation | list[Allocation])
        assert_type(ports.acquire("backup", port=10810, protocol="udp", owner="vm", labels={"a": "b"}), Allocation)
        assert_type(ports.allocations(), list[Allocation])
        assert_type(ports.status(), ClusterStatus)
        assert_type(ports.events(host="kvm-07", port=10809, owner="vm", limit=10), list[PortEvent])
        assert_type(ports.event_log(range="backup", since=datetime.now(UTC)).read(), list[PortEvent])
        event = ports.events()[0]
        assert_type((event.at, event.kind, event.number), tuple[datetime, EventKind, int | None])
        assert_type(event.to_dict(), dict[str, Any])
        assert_type(ports.force_release("kvm-07", 10809, "udp", fence=1), bool)
        assert_type(ports.status(host="kvm-07", range="backup").to_dict(), dict[str, Any])
        assert_type((ports.host, ports.instance, ports.ttl), tuple[str, str, float])
        with ports.acquire("backup") as port:
            assert_type(port, Allocation)
            assert_type((port.number, int(port), port.fence, port.lease), tuple[int, int, int, int])
            assert_type((port.host, port.range, port.owner), tuple[str, str | None, str])
            assert_type(port.acquired_at, datetime)
            assert_type(port.valid, bool)
            assert_type(port.expires_in, float)
            labels: Mapping[str, str] = port.labels
            assert labels == {}
            port.release()
            ports.release(port)
        adopted = ports.adopt(None, port=8080, host="kvm-07", owner="vm")
        assert_type(adopted, Allocation)
        adopted.mark_foreign(seconds=5)
        ports.mark_foreign(adopted)
        ports.acquire("backup", protocol="sctp")  # type: ignore[call-overload]
        ports.acquire("backup", count="2")  # type: ignore[call-overload]
        ports.detach()
    PortAllocator(client=client, ranges=[PortRange("web", 8000, 8999, quarantine=5)]).close(release=False)
    PortAllocator(settings=Settings(url="memory://"))


def ranges() -> None:
    web = PortRange("web", 8000, 8999, scope="cluster", strategy="next", exclude=[8080, "8443-8444", (8500, 8509)])
    assert_type(web.exclude, tuple[tuple[int, int], ...])
    assert_type((web.static_band, web.cooldown, web.quarantine), tuple[int, float, float])
    assert_type(web.limit, int | None)
    assert_type(web.scope == "host", bool)
    PortRange("web", 8000, 8999, strategy="best")  # type: ignore[arg-type]
    PortRange("web", 8000, 8999, exclude=[8080.5])  # type: ignore[list-item]
    web.limit = 5  # type: ignore[misc]
    request = PortRequest(None, host="kvm-07", port=8080, protocol="both", labels={"job": "7"})
    assert_type((request.range, request.host, request.port), tuple[str | None, str | None, int | None])
    PortRequest("web", protocol="sctp")  # type: ignore[arg-type]


async def tasks(count: int) -> None:
    async with AsyncPortAllocator("memory://") as ports:
        assert_type(ports, AsyncPortAllocator)
        assert_type(await ports.acquire("backup"), AsyncAllocation)
        assert_type(await ports.acquire("backup", count=2), AsyncAllocation | list[AsyncAllocation])
        assert_type(await ports.acquire("backup", count=count), AsyncAllocation | list[AsyncAllocation])
        assert_type(await ports.allocations(), list[AsyncAllocation])
        assert_type(await ports.status(), ClusterStatus)
        assert_type(await ports.events(), list[PortEvent])
        log = ports.event_log(host="kvm-07")
        assert_type(await log.read(), list[PortEvent])
        await ports.events(port="10809")  # type: ignore[arg-type]
        assert_type(await ports.force_release("kvm-07", 10809), bool)
        async with await ports.acquire("backup") as port:
            assert_type(port, AsyncAllocation)
            assert_type(int(port), int)
            await port.release()
            await ports.release(port)
        assert_type(await ports.adopt("backup", port=10810), AsyncAllocation)
        await ports.detach()
    await AsyncPortAllocator("memory://").close(release=False)


def libvirt(ports: PortAllocator, domain: Any) -> None:
    with BackupPorts(ports, "qemu+ssh://kvm-08/system", host="kvm-08", interval=5) as backups:
        with backups.begin(domain, "<domainbackup/>", owner="vm", labels={"a": "b"}, wait=5) as backup:
            assert_type(backup, Backup)
            assert_type((backup.port, backup.ports), tuple[Allocation, list[Allocation]])
            assert_type((backup.domain, backup.uuid, backup.host, backup.done), tuple[str, str, str, bool])
            assert_type(backup.wait(1.5), bool)
        assert_type(backups.jobs(), list[Backup])
    with DisplayPorts(ports) as displays:
        assert_type(displays.create("<domain/>"), Display)
        assert_type(displays.jobs(), list[Display])
        assert_type(displays.jobs()[0].vnc, int | None)
    assert_type(settle_migrations(ports, domain, host="kvm-08"), list[Allocation])
    BackupPorts(AsyncPortAllocator("memory://"))  # type: ignore[arg-type]
