"""``clusterports gc``: what it says it would do is what it does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import pytest
import typer

from clusterports.abc import Ask, Backend, Holder, LeaseView, Opened, PortView, Request, SpaceView
from clusterports.cli._common import Common
from clusterports.cli.gc import Plan, gc
from clusterports.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import servers

SECOND = 1_000_000
TTL = 30 * SECOND
DRY = "Nothing of this was done: --dry-run"


class OnStore(Common):
    """The shared options, with a store whose time is the test's."""

    store: Any

    def settings(self, **_: object) -> Any:
        return None

    def backend(self, settings: object) -> Any:
        return self.store.connect(virtual=True)


def collected(store: Any, capsys: pytest.CaptureFixture[str], *, dry_run: bool = False, **options: Any) -> list[str]:
    """What it printed."""
    common = OnStore(**options)
    common.store = store
    gc(common, dry_run=dry_run)
    return capsys.readouterr().out.splitlines()


def lease(backend: Backend, space: str, instance: str, ttl: int = TTL) -> Holder:
    opened = backend.open(space, instance, token="aa", ttl=ttl)
    assert isinstance(opened, Opened)
    return Holder(instance, opened.lease, opened.incarnation)


def take(backend: Backend, space: str, holder: Holder, count: int, quarantine: int) -> None:
    ask = Ask("backup", ((10809, 10872),), count, quarantine=quarantine)
    backend.acquire(space, holder, Request(1, 1), [ask])


@pytest.fixture(params=["memory", "valkey", "sqlite"])
def store(request: pytest.FixtureRequest) -> servers.Store:
    """Stores of every kind, on a virtual clock."""
    found: servers.Store = request.getfixturevalue(request.param)
    return found


def test_it_does_what_it_said(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Leases that have run out, cooling that is over, hosts where nothing is left: the same lines before and after."""
    with store.connect(virtual=True) as backend:
        one = lease(backend, "host:a", "one\x1b[31m")
        take(backend, "host:a", one, 2, 40 * SECOND)
        lease(backend, "host:b", "two", ttl=3600 * SECOND)
        lease(backend, "host:c", "three")
        store.clock.advance(9)
        for space in ("host:a", "host:c"):
            backend.reclaim(space)
        for _ in range(2):
            store.clock.advance(10)
            backend.reclaim("host:a")
            backend.reclaim("host:c")
        store.clock.advance(3)

        said = collected(store, capsys, dry_run=True)
        before = backend.read(["host:a", "host:b", "host:c"])
        assert said == [
            f"a: lease {one.lease} of one\\x1b[31m has run out: 2 ports taken back",
            f"c: lease {before[2].leases[0].lease} of three has run out: 0 ports taken back",
            "c: nothing is left there, removed",
            DRY,
        ]
        assert ["host:a", "host:b", "host:c"] == backend.spaces()

        assert said[:-1] == collected(store, capsys)
        a, b = backend.read(["host:a", "host:b"])
        assert ([], ["cooling", "cooling"]) == (list(a.leases), [port.state for port in a.ports])
        assert before[1].leases[0].lease == b.leases[0].lease
        assert ["host:a", "host:b"] == backend.spaces()

        store.clock.advance(39)
        said = collected(store, capsys, dry_run=True)
        assert ["a: free again: 10809/tcp, 10810/tcp", "a: nothing is left there, removed", DRY] == said
        assert said[:-1] == collected(store, capsys)
        assert ["host:b"] == backend.spaces()
        assert ["Nothing to do"] == collected(store, capsys) == collected(store, capsys, dry_run=True)


def test_grace(valkey: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody looked for long, a lease gets a TTL to renew first, and this is said."""
    with valkey.connect(virtual=True) as backend:
        one = lease(backend, "host:a", "one")
        take(backend, "host:a", one, 1, 0)
        valkey.clock.advance(100)
        said = collected(valkey, capsys, dry_run=True)
        assert [
            f"a: lease {one.lease} of one has run out, but nobody looked for long: it gets 30 s to renew",
            DRY,
        ] == said
        assert said[:-1] == collected(valkey, capsys)
        assert 30 * SECOND == backend.read(["host:a"])[0].leases[0].expires_in
        valkey.clock.advance(31)
        said = collected(valkey, capsys, dry_run=True)
        assert [f"a: lease {one.lease} of one has run out: 1 port taken back", DRY] == said
        assert said[:-1] == collected(valkey, capsys)
        assert ["a: nothing is left there, removed"] == collected(valkey, capsys)[-1:]


def test_one_host(memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With --host nothing is touched elsewhere; a host that is not known is nothing to do."""
    with memory.connect(virtual=True) as backend:
        for space in ("host:a", "host:b"):
            lease(backend, space, "one", ttl=SECOND)
        memory.clock.advance(2)
        assert "b: nothing is left there, removed" == collected(memory, capsys, host="b")[-1]
        assert ["host:a"] == backend.spaces()
        assert ["Nothing to do"] == collected(memory, capsys, host="c")


def test_many(memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A lease of thousands of ports is taken back in one go, and more spaces than are read at once are all visited."""
    with memory.connect(virtual=True) as backend:
        for number in range(300):
            lease(backend, f"host:{number:03}", "one", ttl=SECOND)
        opened = lease(backend, "host:000", "two", ttl=SECOND)
        backend.acquire("host:000", opened, Request(1, 1), [Ask("all", ((1, 60000),), 3000)])
        memory.clock.advance(2)
        said = collected(memory, capsys)
        assert 301 + 299 == len(said)
        assert f"000: lease {opened.lease} of two has run out: 3000 ports taken back" in said
        assert ["host:000"] == backend.spaces()
        assert () == backend.read(["host:000"])[0].ports


def test_json(memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for programs, with the layout's version."""
    with memory.connect(virtual=True) as backend:
        one = lease(backend, "host:a", "one", ttl=SECOND)
        memory.clock.advance(2)
        document = json.loads("\n".join(collected(memory, capsys, dry_run=True, json=True)))
    ended = [{"lease": one.lease, "instance": "one", "ports": 0}]
    host = {"host": "a", "ended": ended, "freed": [], "given_time": [], "removed": True}
    assert {"schema": 1, "dry_run": True, "hosts": [host]} == document


def test_somebody_comes_between(memory: Any) -> None:
    """What was not done after all is not said: a host that somebody opened stays, and so does a lease that lives on."""
    with memory.connect(virtual=True) as backend:
        lease(backend, "host:a", "one", ttl=SECOND)
        memory.clock.advance(2)
        plan = Plan.of(backend.read(["host:a"])[0])
        assert 2 == len(list(plan.lines()))
        take(backend, "host:a", lease(backend, "host:a", "two"), 1, 0)
        assert [next(plan.lines())] == list(plan.carry_out(backend).lines())
        seen = backend.read(["host:a"])[0]
        plan = Plan.of(seen._replace(leases=tuple(one._replace(expires_in=0) for one in seen.leases)))
        assert [] == list(plan.carry_out(backend).lines())
        assert 1 == len(backend.read(["host:a"])[0].ports)


class Damaged:
    """A store of two hosts, one of which cannot be read."""

    def connect(self, *, virtual: bool) -> Any:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def spaces(self) -> list[str]:
        return ["host:a", "host:b", "other"]

    def read(self, spaces: Sequence[str]) -> list[Any]:
        views = {"host:a": BackendError("a: its data is damaged"), "host:b": SpaceView("host:b", 1, (), ())}
        return [views[space] for space in spaces]

    def drop(self, space: str) -> bool:
        assert "host:b" == space
        return True


def test_damaged_host(capsys: pytest.CaptureFixture[str]) -> None:
    """A host that cannot be read is told, and does not keep the others from being looked after: code 5."""
    common = OnStore()
    common.store = Damaged()
    with pytest.raises(typer.Exit) as ended:
        gc(common)
    out, err = capsys.readouterr()
    assert (5, "b: nothing is left there, removed\n", "clusterports: a: its data is damaged\n") == (
        ended.value.exit_code,
        out,
        err,
    )


def view(*, expires_in: int, grace: bool = False, ports: Sequence[tuple[str, int | None]] = ()) -> SpaceView:
    shown = tuple(
        PortView(10809 + i, "tcp", state, "backup", "", {}, "one", 7, i, 0, free_in)  # type: ignore[arg-type]
        for i, (state, free_in) in enumerate(ports)
    )
    return SpaceView("cluster", 9, (LeaseView(7, "one", 7, TTL, expires_in, grace),), shown)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (view(expires_in=1), (0, 0, 0, False)),
        (view(expires_in=0), (1, 0, 0, True)),
        (view(expires_in=0, grace=True), (0, 0, 1, False)),
        (view(expires_in=-1, ports=[("held", None)]), (1, 0, 0, False)),
        (view(expires_in=-1, ports=[("cooling", 1)]), (1, 0, 0, False)),
        (view(expires_in=-1, ports=[("cooling", 0), ("foreign", -1)]), (1, 2, 0, True)),
        (view(expires_in=1, ports=[("cooling", 0)]), (0, 1, 0, False)),
    ],
)
def test_plan(seen: SpaceView, expected: tuple[int, int, int, bool]) -> None:
    """What is due is taken back, and only where nothing stays is a space removed."""
    plan = Plan.of(seen)
    assert expected == (len(plan.ended), len(plan.freed), len(plan.graced), plan.remove)
    assert "" == plan.host
