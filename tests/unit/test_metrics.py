"""Figures for Prometheus: what they count, what they are called, and that nothing unbounded is a label."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from clusterports import AsyncPortAllocator, LeaseLost, PortAllocator, PortInUse, PortsExhausted
from clusterports.abc import Finding, LeaseView, PortView, SpaceView
from clusterports.errors import BackendError, BackendUnavailable, IncompatibleSchema
from clusterports.metrics import FAILURES, STEPS, ClusterCollector, instrument
from clusterports.ranges import PortRange
from clusterports_memory import AsyncMemoryBackend, MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import servers
    from prometheus_client import Metric

    from clusterports.abc import Gone, Holder, Port, Released, Request, Wait

PATIENCE = 30
BACKUP = PortRange("backup", 10809, 10812, exclude=(10812,))
WIDE = PortRange("wide", 10000, 10999)
GATEWAY = PortRange("gateway", 30000, 30009, scope="cluster")
RANGES = (BACKUP, WIDE, GATEWAY)

HOSTILE = 'a"b\\c{owner="x"} 1 é\u202e#'
"""A name that a host may have."""


class Fixed(MemoryBackend):
    """A store that shows these spaces, or fails."""

    def __init__(self, *views: SpaceView) -> None:
        super().__init__()
        self.shown: dict[str, SpaceView | BackendError] = {view.space: view for view in views}
        self.away: BackendError | None = None

    def spaces(self, instance: str | None = None) -> list[str]:
        return sorted(self.shown)

    def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        if self.away is not None:
            raise self.away
        return [self.shown[space] for space in spaces]


def lease(number: int = 1, expires_in: int = 20_000_000, *, grace: bool = False) -> LeaseView:
    return LeaseView(number, f"i{number}", 1, 30_000_000, expires_in, grace)


def port(number: int, state: Any = "held", free_in: int | None = None, **other: Any) -> PortView:
    fields: dict[str, Any] = {
        "range": "backup",
        "owner": "vm",
        "labels": {},
        "instance": "i1",
        "lease": 1,
        "fence": number,
        "age": 0,
    }
    return PortView(number=number, protocol="tcp", state=state, free_in=free_in, **fields | other)


def registered(backend: MemoryBackend, ranges: Sequence[PortRange] = RANGES, **other: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ClusterCollector(backend, ranges, **other))
    return registry


Samples = dict[tuple[str, ...], float]


def samples(registry: CollectorRegistry, name: str, *labels: str) -> Samples:
    """As a scrape parses them: the values of these labels, and the sample's."""
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for one in family.samples:
            if one.name == name:
                assert set(one.labels) <= set(labels)
                found[tuple(one.labels.get(label, "") for label in labels)] = one.value
    return found


def test_ports_by_state() -> None:
    """The states of a range on a host add up to its size, and those of the whole cluster have no host."""
    registry = registered(
        Fixed(
            SpaceView("host:a", 9, (lease(),), (port(10809), port(10810, "cooling", 5), port(10900, "foreign", 5))),
            SpaceView("cluster", 9, (), (port(30000, range="gateway", host="a"),)),
        )
    )
    states = ("held", "cooling", "foreign", "free", "excluded")
    expected = {("a", "backup"): (1, 1, 0, 1, 1), ("a", "wide"): (1, 1, 1, 997, 0), ("", "gateway"): (1, 0, 0, 9, 0)}

    assert {
        (*where, state): count
        for where, counts in expected.items()
        for state, count in zip(states, counts, strict=True)
    } == samples(registry, "clusterports_ports", "host", "range", "state")
    assert {("backup",): 4, ("wide",): 1000, ("gateway",): 10} == samples(registry, "clusterports_range_size", "range")


def test_ports_of_no_range() -> None:
    """A port that was claimed without a range counts for its host."""
    registry = registered(Fixed(SpaceView("host:a", 9, (lease(),), (port(22, range=""), port(10809)))))

    assert {("a", "held"): 2, ("a", "cooling"): 0, ("a", "foreign"): 0} == samples(
        registry, "clusterports_host_ports", "host", "state"
    )


def test_leases() -> None:
    """Live and expired ones, the first that will run out, and those whose holders do not rely on them any more."""
    registry = registered(
        Fixed(
            SpaceView("host:a", 9, (lease(1), lease(2, 2_999_000), lease(3, 3_000_000), lease(4, 0), lease(5, -1)), ()),
            SpaceView("host:b", 9, (), ()),
        )
    )

    assert {("a", "live"): 3, ("a", "expired"): 2, ("b", "live"): 0, ("b", "expired"): 0} == samples(
        registry, "clusterports_leases", "host", "state"
    )
    assert {("a",): 2.999} == samples(registry, "clusterports_lease_min_remaining_seconds", "host")
    assert {("a",): 1, ("b",): 0} == samples(registry, "clusterports_leases_in_jeopardy", "host")


def test_backlog() -> None:
    """Expired leases that get no time to renew any more, and ports whose time is over."""
    leases = (lease(1), lease(2, 0), lease(3, -1, grace=True))
    ports = (port(10809), port(10810, "cooling", 0), port(10811, "foreign", -1), port(10900, "cooling", 1))
    registry = registered(Fixed(SpaceView("host:a", 9, leases, ports)))

    assert {("a", "leases"): 1, ("a", "ports"): 2} == samples(registry, "clusterports_reclaim_backlog", "host", "kind")


def test_health_of_hosts() -> None:
    """Who waits, what recovers, and what is damaged; the damaged host is in no other figure."""
    backend = Fixed(SpaceView("host:a", 9, (), (), 3, recovering=1_500_000), SpaceView("host:b", 9, (), ()))
    backend.shown["host:c"] = IncompatibleSchema("damaged: secret")
    registry = registered(backend)

    assert {("a",): 3, ("b",): 0} == samples(registry, "clusterports_waiting_callers", "host")
    assert {("a",): 1.5, ("b",): 0} == samples(registry, "clusterports_recovering_seconds", "host")
    assert {("a",): 1, ("b",): 1, ("c",): 0} == samples(registry, "clusterports_host_readable", "host")
    assert {(): 1} == samples(registry, "clusterports_up")
    assert b"secret" not in generate_latest(registry)


def test_store_away_and_back(caplog: pytest.LogCaptureFixture) -> None:
    """A store that is away is a figure and one line in the log, not an error; the ranges are known all the same."""
    backend = Fixed(SpaceView("host:a", 9, (), ()))
    registry = registered(backend)
    seen = []
    with caplog.at_level(logging.INFO, "clusterports"):
        for away in (None, BackendUnavailable("no route"), BackendError("refused"), None, None):
            backend.away = away
            hosts = samples(registry, "clusterports_host_readable", "host")
            seen.append((samples(registry, "clusterports_up")[()], len(hosts)))

    assert [(1, 1), (0, 0), (0, 0), (1, 1), (1, 1)] == seen
    assert ["the store cannot be read: no route", "the store can be read again"] == caplog.messages
    assert 3 == len(samples(registry, "clusterports_range_size", "range"))
    assert 1 == len(samples(registry, "clusterports_read_duration_seconds"))


def test_one_host(store: servers.Store) -> None:
    """With a host, figures are of it and of the whole cluster's ports only."""
    with store.connect() as backend, PortAllocator(backend=backend, ranges=RANGES, probe=False, host="a") as ports:
        ports.acquire("backup")
        ports.acquire("backup", host="b")
        ports.acquire("gateway")
        registry = CollectorRegistry()
        registry.register(ClusterCollector(backend, RANGES, "a"))

        assert {("a",): 1, ("",): 1} == samples(registry, "clusterports_host_readable", "host")


def test_agrees_with_status(store: servers.Store) -> None:
    """On each store the figures are those of ``status``."""
    with store.connect() as backend, PortAllocator(backend=backend, ranges=RANGES, probe=False, host="a") as ports:
        ports.acquire("backup", host=HOSTILE)
        ports.acquire("wide", count=3)
        ports.mark_foreign(ports.acquire("wide"))
        ports.acquire("gateway")
        registry = CollectorRegistry()
        registry.register(ClusterCollector(backend, RANGES))
        status = ports.status().to_dict()

        states = ("held", "cooling", "foreign", "free", "excluded")
        assert {
            (there["host"], one["name"], state): there[state]
            for one in status["ranges"]
            for there in one["hosts"]
            for state in states
        } == samples(registry, "clusterports_ports", "host", "range", "state")
        assert {
            (host["host"], state): sum(lease["state"] == state for lease in host["leases"])
            for host in status["hosts"]
            for state in ("live", "expired")
        } == samples(registry, "clusterports_leases", "host", "state")
        assert {("", "a", HOSTILE)} == {tuple(sorted(host["host"] for host in status["hosts"]))}


class Diagnosed(MemoryBackend):
    """A store of which this is found; what is asked for after it fails."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__()
        self.findings = findings
        self.looks = 0

    def diagnose(self, *, repair: bool = False) -> Iterator[Finding]:
        assert not repair
        self.looks += 1
        yield from self.findings
        yield Finding("user", "error", "this is not a figure")
        raise AssertionError("the rest of a diagnosis compares all hosts")


def test_store_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check is 1 when nothing is wrong there, else 0, and missing when nobody knows; looked at once a minute."""
    backend = Diagnosed(
        Finding("store", "ok", "answers"),
        Finding("version", "warning", "is no figure"),
        Finding("persistence", "warning", "none"),
        Finding("eviction", "warning", "not checked", unknown=True),
        Finding("memory", "ok", "1 of 2 used"),
        Finding("replicas", "error", "one is away"),
        Finding("replicas", "ok", "the other"),
    )
    now = 1000.0
    monkeypatch.setattr("clusterports.metrics.monotonic", lambda: now)
    registry = registered(backend)
    expected: Samples = {("persistence",): 0, ("memory",): 1, ("replicas",): 0}
    assert expected == samples(registry, "clusterports_store_healthy", "check")

    backend.findings = ()
    now += 59.9
    assert expected == samples(registry, "clusterports_store_healthy", "check")
    assert 1 == backend.looks
    now += 0.1
    assert {} == samples(registry, "clusterports_store_healthy", "check")


def test_names_for_the_same_host() -> None:
    """Damaged names of spaces make no sample twice, for which a scrape would be refused."""
    spaces = [f"host:{name}" for name in ("a", "%61", "%FE", "%FF", "")]
    registry = registered(Fixed(*(SpaceView(space, 9, (lease(1, 0),), ()) for space in spaces)))
    lines = [line.rpartition(" ")[0] for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]

    assert len(set(lines)) == len(lines)
    assert {("a",): 1, ("\ufffd",): 1} == samples(registry, "clusterports_host_readable", "host")
    assert {("a",): 0, ("\ufffd",): 0} == samples(registry, "clusterports_leases_in_jeopardy", "host")


@pytest.fixture
def families() -> list[Metric]:
    """All metrics that there are, of a store full of names that are not meant for them."""
    backend = MemoryBackend()
    registry = registered(backend)
    evil = "evil\n# TYPE evil gauge\nevil 1\n"
    with PortAllocator(backend=backend, ranges=RANGES, probe=False, instance="evil", host=HOSTILE) as ports:
        instrument(ports, registry)
        ports.acquire("backup", owner=evil, labels={evil: evil})
        text = generate_latest(registry).decode()
    # The client adds when each counter began.
    return [one for one in text_string_to_metric_families(text) if not one.name.endswith("_created")]


def test_conventions(families: list[Metric]) -> None:
    """Prefix, base units, ``_total`` for counters and for nothing else, a help for each."""
    assert 19 == len(families) == len({one.name for one in families})
    for one in families:
        assert re.fullmatch(r"clusterports(_[a-z]+)+", one.name)
        assert not re.search(r"_(ms|us|milliseconds|minutes|percent|gauge|counter|count|sum|bucket|info)$", one.name)
        assert one.name.endswith("_seconds") == bool(re.search(r"duration|remaining|recovering", one.name))
        assert (one.type == "counter") == any(sample.name.endswith("_total") for sample in one.samples)
        assert one.type in ("counter", "gauge", "histogram")
        assert re.fullmatch(r"[A-Z].*\.", one.documentation)


def test_label_values_are_bounded(families: list[Metric]) -> None:
    """Neither owner, instance, label nor port number is in any figure, and a hostile name of a host is data."""
    values: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    del values["le"]
    steps, outcomes = values.pop("step"), values.pop("outcome")

    assert {
        "host": {HOSTILE},
        "range": {"backup", "wide", "gateway"},
        "state": {"held", "cooling", "foreign", "free", "excluded", "live", "expired"},
        "kind": {"leases", "ports"},
        "reason": {"revoked", "deadline"},
    } == values
    assert set(STEPS) == steps
    assert {*FAILURES, *chain.from_iterable(STEPS.values())} == outcomes


# ------------------------------------------------------------------ an allocator


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def steps(registry: CollectorRegistry) -> Samples:
    """What happened at all."""
    found = samples(registry, "clusterports_steps_total", "step", "outcome")
    return {key: count for key, count in found.items() if count and key[0] not in ("renew", "reclaim")}


STORY = {
    ("open", "opened"): 1,
    ("acquire", "granted"): 2,
    ("acquire", "full"): 2,
    ("release", "released"): 1,
    ("mark_foreign", "marked"): 1,
    ("close_lease", "closed"): 1,
}


def test_outcomes(registry: CollectorRegistry) -> None:
    """Each step is counted by what became of it, and timed; what has not happened yet is 0."""
    backend = MemoryBackend()
    with PortAllocator(backend=backend, ranges=[PortRange("two", 10, 11)], probe=False, host="h") as ports:
        instrument(ports, registry)
        assert {} == steps(registry)
        pair = [ports.acquire("two"), ports.acquire("two")]
        with pytest.raises(PortsExhausted):
            ports.acquire("two")
        with pytest.raises(PortInUse):
            ports.acquire("two", port=10)
        pair[0].release()
        pair[1].mark_foreign()

    counted = samples(registry, "clusterports_steps_total", "step", "outcome")
    timed = samples(registry, "clusterports_step_duration_seconds_count", "step")
    assert STORY == steps(registry)
    assert set(STEPS) == {step for step, _ in counted} == {step for (step,) in timed}
    assert 4 == timed["acquire",]


async def test_outcomes_of_tasks(registry: CollectorRegistry) -> None:
    """The same for an allocator for tasks; a call that was cancelled is no error of the store."""

    class Slow(AsyncMemoryBackend):
        async def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
            if waiting:
                entered.set()
                await asyncio.Event().wait()
            return await super().release(space, holder, ports)

    waiting, entered = False, asyncio.Event()
    ranges = [PortRange("two", 10, 11)]
    async with AsyncPortAllocator(backend=Slow(), ranges=ranges, probe=False, host="h") as ports:
        instrument(ports, registry)
        pair = [await ports.acquire("two"), await ports.acquire("two")]
        for number in (None, 10):
            with pytest.raises((PortsExhausted, PortInUse)):
                await ports.acquire("two", port=number)
        await pair[0].release()
        await pair[1].mark_foreign()
        third = await ports.acquire("two")
        waiting = True
        task = asyncio.create_task(third.release())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waiting = False

    assert {**STORY, ("acquire", "granted"): 3, ("release", "cancelled"): 1} == steps(registry)


def test_failures(registry: CollectorRegistry) -> None:
    """A store that is away is told from one that refuses, and the caller gets the error as it was."""

    class Failing(MemoryBackend):
        def acquire(self, space: str, holder: Holder, request: Request, asks: Any, wait: Wait | None = None) -> Any:
            raise errors.pop()

    errors = [BackendError("refused"), BackendUnavailable("away")]
    with PortAllocator(backend=Failing(), ranges=RANGES, probe=False, host="h") as ports:
        instrument(ports, registry)
        for text in ("away", "refused"):
            with pytest.raises(BackendError, match=text):
                ports.acquire("backup")

    found = samples(registry, "clusterports_steps_total", "step", "outcome")
    assert (1, 1, 0) == tuple(found["acquire", outcome] for outcome in ("unavailable", "error", "granted"))


def test_heartbeats(registry: CollectorRegistry) -> None:
    """A heartbeat is one renewal for each host, and one duration."""
    with PortAllocator(backend=MemoryBackend(), ranges=RANGES, probe=False, host="a") as ports:
        instrument(ports, registry)
        ports.acquire("backup")
        ports.acquire("backup", host="b")
        assert ports._renew_all()

    assert 2 == samples(registry, "clusterports_steps_total", "step", "outcome")["renew", "renewed"]
    assert 1 == samples(registry, "clusterports_step_duration_seconds_count", "step")["renew",]


def test_loss(registry: CollectorRegistry) -> None:
    """A loss is counted with its ports, before the allocator's own callback hears of it."""
    backend = MemoryBackend()
    heard = threading.Event()
    losses: list[float] = []

    def on_lost(loss: LeaseLost) -> None:
        losses.append(samples(registry, "clusterports_lost_ports_total", "reason")["revoked",])
        heard.set()

    with PortAllocator(backend=backend, ranges=RANGES, probe=False, host="h", on_lost=on_lost) as ports:
        instrument(ports, registry)
        taken = ports.acquire("wide", count=2)
        assert isinstance(taken, list)
        assert ports.force_release("h", taken[0].number)
        ports._renew_all()
        assert heard.wait(PATIENCE)

    assert [1] == losses
    assert {("revoked",): 1, ("deadline",): 0} == samples(registry, "clusterports_losses_total", "reason")


@pytest.mark.parametrize("strict", [False, True])
def test_jeopardy(strict: bool, registry: CollectorRegistry) -> None:
    """A lease that is not renewed in time is in jeopardy; where that is a loss, it is counted as one."""

    class Deaf(MemoryBackend):
        def renew(self, renewals: Sequence[Any]) -> Any:
            raise BackendUnavailable("away")

    heard = threading.Event()
    with PortAllocator(
        backend=Deaf(),
        ranges=RANGES,
        probe=False,
        host="h",
        ttl=1.0,
        strict=strict,
        on_lost=lambda _: heard.set(),
        on_jeopardy=lambda _: heard.set(),
    ) as ports:
        instrument(ports, registry)
        ports.acquire("wide", count=2)
        assert heard.wait(PATIENCE)

        assert {(): not strict} == samples(registry, "clusterports_jeopardies_total")
        lost = samples(registry, "clusterports_lost_ports_total", "reason")
        assert {("revoked",): 0, ("deadline",): 2 * strict} == lost


def test_recovery(fake_redis: servers.FakeRedisStore, registry: CollectorRegistry) -> None:
    """Ports that the store had lost and that were claimed again are counted."""
    with fake_redis.connect() as backend, PortAllocator(backend=backend, ranges=RANGES, probe=False, host="h") as ports:
        instrument(ports, registry)
        ports.acquire("wide", count=3)
        fake_redis.client.flushall()
        ports._renew_all()
        ports._mending.all(float("inf"))

        assert {(): 3} == samples(registry, "clusterports_recovered_ports_total")
        assert 1 == samples(registry, "clusterports_steps_total", "step", "outcome")["renew", "gone"]


def test_several_allocators(registry: CollectorRegistry) -> None:
    """Those of one registry are counted together, and each once."""
    backend = MemoryBackend()
    for host in ("a", "b"):
        with PortAllocator(backend=backend, ranges=RANGES, probe=False, host=host) as ports:
            instrument(ports, registry)
            instrument(ports, registry)
            ports.acquire("backup")

    assert 2 == samples(registry, "clusterports_steps_total", "step", "outcome")["acquire", "granted"]


def test_without_the_extra() -> None:
    """The library does without prometheus-client, and the module says what to install."""
    code = (
        "import sys\n"
        "sys.modules['prometheus_client'] = None\n"
        "import clusterports\n"
        "with clusterports.PortAllocator('memory://', host='h', probe=False) as ports: ports.acquire('backup')\n"
        "try: import clusterports.metrics\n"
        "except clusterports.ClusterPortsError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert ("metrics: needs prometheus-client: pip install clusterports[metrics]\n", "") == (done.stdout, done.stderr)
