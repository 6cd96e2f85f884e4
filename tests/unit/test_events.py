"""Events: how logs become one story, what is written where, and that nothing depends on it."""

from __future__ import annotations

import gc
import itertools
import json
import sqlite3
import time
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from clusterports import PortAllocator, PortRange, Settings
from clusterports._events import readable
from clusterports._names import CLUSTER_SPACE, host_space
from clusterports._sync.events import EventLog
from clusterports.abc import Ask, Event, Events, Granted, Holder, Opened, Port, PortView, Request
from clusterports.errors import BackendError, ConfigurationError
from clusterports.events import MOST, EventFilter, PortEvent, check_limit
from clusterports_memory import MemoryBackend
from clusterports_memory import Store as MemorySpaces
from clusterports_redis import RedisBackend
from clusterports_redis import _scripts as scripts
from clusterports_redis._wire import all_keys
from clusterports_sqlite import _log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import servers

    from clusterports.abc import Backend

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = 1_000_000
SPACE = "host:h"
LOG = all_keys(SPACE)[-1]


class Client:
    """A holder in a space."""

    def __init__(self, backend: Backend, space: str = SPACE, instance: str = "one") -> None:
        self.backend, self.space, self.number = backend, space, 0
        opened = backend.open(space, instance, token=instance.encode().hex(), ttl=3600 * SECOND)
        assert isinstance(opened, Opened)
        self.holder = Holder(instance, opened.lease, opened.incarnation)

    def ask(self, ask: Ask) -> Any:
        self.number += 1
        return self.backend.acquire(self.space, self.holder, Request(self.number, self.number), [ask])

    def take(self, number: int = 10, count: int = 1, **more: Any) -> tuple[Port, ...]:
        reply = self.ask(Ask("backup", ((number, number + count - 1),), count, **more))
        assert isinstance(reply, Granted)
        return reply.ports

    def give_back(self, *ports: Port) -> None:
        self.backend.release(self.space, self.holder, ports)


def log(backend: Backend, space: str = SPACE, cursor: str = "", limit: int = MOST) -> Events:
    (found,) = backend.events({space: cursor}, limit)
    assert isinstance(found, Events), found
    return found


def sqlite_does(store: servers.SqliteStore, *statements: str) -> Any:
    """What the last of them finds."""
    with closing(sqlite3.connect(store.path)) as db:
        found = [db.execute(statement).fetchone() for statement in statements]
        db.commit()
    return found[-1] and found[-1][0]


def every_step(backend: Backend) -> None:
    """Each of them once, and each does what it is for."""
    one, two = Client(backend), Client(backend, instance="two")
    first, second, third = one.take(10, 3)
    (view,) = backend.read([SPACE])
    assert not isinstance(view, BackendError)
    seen: dict[int, PortView] = {port.number: port for port in view.ports}
    assert backend.force(SPACE, seen[second.number])
    one.give_back(first)
    one.ask(Ask("backup", ((11, 11),), explicit=True))
    one.ask(Ask("backup", ((11, 11),)))
    backend.mark_foreign(SPACE, one.holder, [third], range="backup", duration=SECOND, most=1)
    two.take(20, 2, align=1)
    backend.reclaim(SPACE)
    assert not backend.close_lease(SPACE, two.holder).more  # type: ignore[union-attr]


# -------------------------------------------------------------------- filters


EVENT = PortEvent(NOW, "acquired", "kvm-07", 10809, "tcp", "backup", "vm-42", {"b": "1", "a": "2"}, "one", 7, 9)


def test_to_dict() -> None:
    """An event is JSON as it stands, with labels in order and the time in UTC."""
    assert (
        '{"at": "2026-03-01T12:00:00.000+00:00", "kind": "acquired", "host": "kvm-07", "number": 10809, '
        '"protocol": "tcp", "range": "backup", "owner": "vm-42", "labels": {"a": "2", "b": "1"}, '
        '"instance": "one", "lease": 7, "fence": 9}'
    ) == json.dumps(EVENT.to_dict())


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (EventFilter(), True),
        (EventFilter("kvm-07", "backup", 10809, "vm-42", NOW), True),
        (EventFilter(host="kvm-08"), False),
        (EventFilter(range="display"), False),
        (EventFilter(port=10810), False),
        (EventFilter(owner=""), False),
        (EventFilter(since=NOW + timedelta(microseconds=1)), False),
    ],
)
def test_filter(wanted: EventFilter, matches: bool) -> None:
    """An event has to fit all that is asked for."""
    assert matches is wanted.matches(EVENT)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"host": ""}, "host: must be 1 to 255 bytes .*, got ''"),
        ({"port": 0}, "port: .*0"),
        ({"port": 65536}, "port: .*65536"),
        ({"port": True}, "port: .*True"),
        ({"since": NOW.replace(tzinfo=None)}, "since: must be a time with a time zone, got '2026-03-01 12:00:00'"),
    ],
)
def test_filter_bounds(arguments: dict[str, Any], said: str) -> None:
    """What cannot be asked for is refused with its key."""
    with pytest.raises(ConfigurationError, match=f"^{said}"):
        EventFilter(**arguments)


@pytest.mark.parametrize("limit", [0, -1, MOST + 1, True, 1.0, "5", None])
def test_limit_bounds(limit: Any) -> None:
    """A limit is a whole number from 1 to a million."""
    with pytest.raises(ConfigurationError, match="limit: must be a whole number from 1 to 1000000, got"):
        check_limit(limit)


@pytest.mark.parametrize("limit", [1, MOST])
def test_limit(limit: int) -> None:
    """Both ends are within the bounds."""
    assert limit == check_limit(limit)


def test_pick() -> None:
    """Of a host's log the host is that of the space, of the cluster's that of the event; 0 and "" stand for none."""
    refused = Event("refused", 0, "udp", "", "", {}, "one", 7, 0, 5 * SECOND, "other")
    shown = PortEvent(NOW - timedelta(seconds=5), "refused", "other", None, "udp", None, "", {}, "one", 7, 0)

    assert [shown] == EventFilter().pick(Events(CLUSTER_SPACE, (refused,), ""), NOW)
    assert [shown._replace(host="kvm 07")] == EventFilter().pick(Events(host_space("kvm 07"), (refused,), ""), NOW)
    assert [] == EventFilter(host="kvm-07").pick(Events(CLUSTER_SPACE, (refused,), ""), NOW)


def test_pick_where_the_clock_went_back() -> None:
    """In one log no event is later than the one after it, so that those of several logs can be put in order."""
    events = tuple(told(number, age * SECOND) for number, age in enumerate((50, 10, 40, 30, 30, 35, 0), 1))
    picked = EventFilter().pick(Events(SPACE, events, ""), NOW)

    assert [50, 40, 40, 35, 35, 35, 0] == [(NOW - event.at).total_seconds() for event in picked]
    assert [1, 2, 3, 4, 5, 6, 7] == [event.number for event in picked]
    recent = EventFilter(since=NOW - timedelta(seconds=36)).pick(Events(SPACE, events, ""), NOW)
    assert picked[3:] == recent


def told(number: int, age: int = 0) -> Event:
    return Event("acquired", number, "tcp", "backup", "vm-1", {"k": "v"}, "one", 7, 9, age, "kvm-07")


# -------------------------------------------------------------------- what is an event


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("kind", "stolen"), ("kind", None), ("kind", ["acquired"]), ("number", -1), ("number", 65536)),
        *(
            ("number", "10"),
            ("number", 10.0),
            ("number", True),
            ("number", None),
            ("protocol", "sctp"),
            ("protocol", 6),
        ),
        *(("range", None), ("range", 5), ("owner", ["vm"]), ("owner", b"vm"), ("owner", "\ud800"), ("labels", None)),
        *(
            ("labels", []),
            ("labels", {"k": 1}),
            ("labels", {1: "v"}),
            ("labels", {"k": "\udfff"}),
            ("labels", {"k": {}}),
        ),
        *(("instance", 1), ("lease", "7"), ("lease", -7), ("fence", 9.5), ("fence", False), ("fence", None)),
        *(("age", -1), ("age", "0"), ("age", 11 * 366 * 86400 * SECOND), ("age", 10**30), ("host", None), ("host", {})),
    ],
)
def test_no_event(field: str, value: Any) -> None:
    """What has a field that is none of an event's is no event."""
    assert told(10) == readable(**told(10)._asdict())
    assert readable(**told(10)._asdict() | {field: value}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 0, "kind": "refused", "fence": 0},
        {"number": 65535, "protocol": "both", "age": 10 * 365 * 86400 * SECOND},
        {"owner": "\U0001f6a2\x1b\0", "range": "", "labels": {}, "instance": "", "host": "", "fence": 2**62},
    ],
)
def test_an_event(changes: dict[str, Any]) -> None:
    """Whatever a step can have written is an event."""
    event = told(10)._replace(**changes)
    assert event == readable(**event._asdict())


# -------------------------------------------------------------------- refusals


def refusals(backend: Backend, cursor: str = "") -> int:
    return [event.kind for event in log(backend, cursor=cursor).events].count("refused")


def test_refused_again_and_again(store: servers.Store) -> None:
    """The same refusal is told once a minute; one from before the clock went back counts as well."""
    backend, asked = store.connect(virtual=True), Ask("backup", ((10, 10),))
    one = Client(backend)
    one.take(10)
    counts = []
    for seconds in (0, 0.001, 59.998, 0.001, 59.999, -600, 1, 599.001):
        store.clock.advance(seconds)
        one.ask(asked)
        counts.append(refusals(backend))
    assert [1, 1, 1, 2, 2, 2, 2, 3] == counts
    backend.close()


# -------------------------------------------------------------------- reading several logs


class Broken(MemoryBackend):
    """Of these spaces the log cannot be read; ``asked``: how many at once."""

    def __init__(self, store: MemorySpaces) -> None:
        super().__init__(store)
        self.broken: set[str] = set()
        self.asked: list[int] = []

    def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        self.asked.append(len(cursors))
        read = zip(cursors, super().events(cursors, limit), strict=True)
        return [BackendError(f"{name} is damaged") if name in self.broken else found for name, found in read]


class Past:
    """Hosts in memory, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0
        self.backend = Broken(MemorySpaces(clock=lambda: self.now))
        self.clients: dict[str, Client] = {}

    def take(self, space: str, number: int, **more: Any) -> None:
        """A second later than the one before."""
        self.now += SECOND
        if space not in self.clients:
            self.clients[space] = Client(self.backend, space)
        self.clients[space].take(number, **more)

    def log(self, limit: int = 1000, **wanted: Any) -> EventLog:
        return EventLog(self.backend, EventFilter(**wanted), limit)

    def numbers(self, log: EventLog) -> list[int | None]:
        return [event.number for event in log.read()]


@pytest.fixture
def past() -> Past:
    made = Past()
    for number, space in enumerate(("host:b", "host:a", CLUSTER_SPACE, "host:b", "host:a"), 1):
        made.take(space, number, host="a" if space == CLUSTER_SPACE else "")
    return made


def test_order(past: Past) -> None:
    """The events of all hosts come in the order in which they happened."""
    events = past.log().read()

    assert [1, 2, 3, 4, 5] == [event.number for event in events]
    assert ["b", "a", "a", "b", "a"] == [event.host for event in events]
    assert timedelta(seconds=3) == events[3].at - events[0].at


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"host": "a"}, [2, 3, 5]),
        ({"host": "b"}, [1, 4]),
        ({"host": "c"}, []),
        ({"port": 3}, [3]),
        ({"port": 3, "host": "b"}, []),
        ({"limit": 2}, [4, 5]),
        ({"limit": 2, "host": "a"}, [3, 5]),
        ({"limit": 1, "port": 1}, [1]),
        ({"limit": 1, "range": "backup"}, [5]),
        ({"since": datetime(2999, 1, 1, tzinfo=UTC)}, []),
    ],
)
def test_wanted(wanted: dict[str, Any], expected: list[int], past: Past) -> None:
    """The last that fit, of the host in question wherever they are written down."""
    assert expected == past.numbers(past.log(**wanted))


def test_goes_on(past: Past) -> None:
    """After the first read, which is limited, comes all that is new, also on hosts that are new."""
    log = past.log(limit=1)
    reads = [past.numbers(log), past.numbers(log)]
    past.take("host:b", 6)
    past.take("host:new", 7)
    past.take("host:a", 8)

    assert [[5], [], [6, 7, 8], []] == [*reads, past.numbers(log), past.numbers(log)]


def test_many_hosts(past: Past) -> None:
    """However many there are, they are read in parts."""
    for number in range(120):
        past.take(f"host:x{number:03d}", 100 + number)
    events = past.log().read()

    assert 125 == len(events)
    assert events == sorted(events, key=lambda event: event.number or 0)
    assert max(past.backend.asked) <= 50


def test_unreadable(past: Past, caplog: pytest.LogCaptureFixture) -> None:
    """A log that cannot be read is passed over, with one warning; when it can be again, nothing is missing."""
    past.backend.broken = {"host:a"}
    log = past.log()

    assert [1, 3, 4] == past.numbers(log)
    assert [] == past.numbers(log)
    assert ["the events on host 'a' cannot be read: host:a is damaged"] == [record.message for record in caplog.records]
    assert not log.is_whole
    past.backend.broken = set()
    assert [2, 5] == past.numbers(log)
    assert past.log().is_whole


def test_host_and_limit(past: Past) -> None:
    """Of one host the last so many are told, however many others there are in the cluster's log after them."""
    for number in range(20, 30):
        past.take(CLUSTER_SPACE, number, host="b")

    assert [3, 5] == past.numbers(past.log(host="a", limit=2))
    assert [28, 29] == past.numbers(past.log(host="b", limit=2))


def test_test(past: Past) -> None:
    """Those only of which the test is true, the last so many of them."""
    wanted = EventFilter(test=lambda event: event.number in (1, 2, 3))

    assert [2, 3] == [event.number for event in EventLog(past.backend, wanted, 2).read()]
    assert [3] == [event.number for event in EventLog(past.backend, wanted, 1).read()]
    assert [1] == past.numbers(past.log(limit=1, test=lambda event: event.number == 1))


def test_clock_that_went_back(past: Past) -> None:
    """What a host's log tells is in the order in which it happened, and the others' events are where they belong."""
    past.take("host:b", 6)
    past.now -= 3 * SECOND
    past.take("host:b", 7)
    past.take("host:a", 8)

    assert [1, 2, 3] == past.numbers(past.log())[:3]
    assert [1, 4, 6, 7] == past.numbers(past.log(host="b"))
    times = [event.at for event in past.log().read()]
    assert sorted(times) == times


def test_not_listed_for_a_moment(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space that is not in the index for a while is not told again from its beginning."""
    log = past.log()
    log.read()
    with monkeypatch.context() as patch:
        patch.setattr(past.backend, "spaces", lambda: ["host:b"])
        past.take("host:a", 6)
        assert [] == past.numbers(log)

    assert [6] == past.numbers(log)


def test_no_more_than_wanted_is_kept() -> None:
    """Of very many events no more are in memory than are wanted, and those of some hosts."""

    class Many(MemoryBackend):
        """Every log has a hundred events, and says how many there are in all now."""

        most = 0

        def spaces(self, instance: str | None = None) -> list[str]:
            return [f"host:{number:04d}" for number in range(200)]

        def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
            Many.most = max(Many.most, sum(type(one) is PortEvent for one in gc.get_objects()))
            made = tuple(told(number, (200 - number) * 1000 * SECOND) for number in range(1, 101))
            return [Events(space, made, "") for space in cursors]

    before = sum(type(one) is PortEvent for one in gc.get_objects())
    for wanted in (EventFilter(), EventFilter(test=lambda event: event.number != 5)):
        found = EventLog(Many(), wanted, 1000).read()
        assert {96, 97, 98, 99, 100} == {event.number for event in found}
        assert 1000 == len(found)
    assert Many.most - before <= 5_000


def test_refused_when_it_may_not_be_read(past: Past) -> None:
    """A log asks first whether the store may be used still."""

    def check() -> None:
        raise ConfigurationError("closed")

    log = EventLog(past.backend, EventFilter(), 10, check)
    with pytest.raises(ConfigurationError, match="closed"):
        log.read()
    assert [] == past.backend.asked


def test_unreadable_log_of_the_cluster(past: Past, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged log of the cluster does not hide what happened on the host that was asked for."""
    past.backend.broken = {CLUSTER_SPACE}
    log = past.log(host="a")

    assert [2, 5] == past.numbers(log)
    assert not log.is_whole
    assert [f"the events on the whole cluster cannot be read: {CLUSTER_SPACE} is damaged"] == [
        record.message for record in caplog.records
    ]


def test_unreadable_and_asked_for(past: Past, caplog: pytest.LogCaptureFixture) -> None:
    """Of the host that was asked for the error is raised."""
    past.backend.broken = {"host:a"}

    assert [1, 4] == past.numbers(past.log(host="b"))
    with pytest.raises(BackendError, match="host:a is damaged"):
        past.log(host="a").read()
    assert [] == caplog.records


def test_failed_read_loses_nothing(past: Past) -> None:
    """What a read that failed would have given, the next one gives."""
    log = past.log(host="a")
    past.backend.broken = {"host:a"}
    with pytest.raises(BackendError):
        log.read()
    past.backend.broken = set()

    assert [2, 3, 5] == past.numbers(log)


# -------------------------------------------------------------------- none are kept


def test_scripts_without_events() -> None:
    """Where none are kept the scripts do not name the command that writes one; they differ in nothing but that."""
    silent, telling = scripts.Scripts(kept=0), scripts.Scripts(kept=7)
    writers = set()
    for name in scripts._NAMES:
        without, source = getattr(silent, name).source, getattr(telling, name).source
        assert not {"XADD", "$events"} & set(without.replace("'", " ").split())
        assert "$events" not in source
        assert without == source or name != "events"
        writers |= {name} if "XADD" in source else set()

    assert scripts.keeping(7) is scripts.keeping(7)
    assert {"acquire", "claim", "close", "force", "foreign", "open", "reclaim", "release", "renew"} <= writers


def test_none_in_memory() -> None:
    """Nothing is kept in memory."""
    store = MemorySpaces(events=0)
    every_step(MemoryBackend(store))

    assert {} == store.logs
    assert () == log(MemoryBackend(store)).events


def test_a_log_in_memory_is_its_own() -> None:
    """Who changes the labels of an event that it has read changes nobody else's."""
    backend = MemoryBackend(MemorySpaces())
    Client(backend).take(labels={"k": "v"})
    for _ in range(2):
        (event,) = log(backend).events
        assert {"k": "v"} == event.labels
        dict.clear(event.labels)  # type: ignore[arg-type]


def test_none_in_a_file(sqlite: servers.SqliteStore) -> None:
    """No row is written, nor is there a table for it."""
    with sqlite.connect(events=0) as backend:
        every_step(backend)
        assert () == log(backend).events
    with closing(sqlite3.connect(sqlite.path)) as db:
        assert [] == db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%event%'").fetchall()


def silent(store: servers.RedisStore) -> RedisBackend:
    return RedisBackend.connect(client=store.client, scripts=scripts.Scripts(kept=0))


def test_none_in_redis(redis_store: servers.RedisStore) -> None:
    """No key is written; what others left is shown still."""
    with silent(redis_store) as backend:
        every_step(backend)
        assert () == log(backend).events
        assert not redis_store.client.exists(LOG)
        with redis_store.connect() as other:
            Client(other, instance="three").take(30)
        assert ["acquired"] == [event.kind for event in log(backend).events]


def test_setting(tmp_path: Any) -> None:
    """The setting says how many are kept, 0: none."""
    for kept in (0, 5):
        settings = Settings(url=f"sqlite:///{tmp_path}/{kept}.db", host="h", events=kept)
        with PortAllocator(settings=settings, probe=False) as ports:
            for _ in range(50):
                ports.acquire("backup").release()
            assert (kept == 0) is (ports.events() == [])
            assert kept <= len(ports.events()) <= kept + 32 * (kept > 0)


# -------------------------------------------------------------------- bounds


@pytest.mark.parametrize("kept", [1, 5])
def test_a_step_of_more_than_are_kept(kept: int, redis_store: servers.RedisStore) -> None:
    """A step tells of as many ports as the log may keep, and no more."""
    made = RedisBackend.connect(client=redis_store.client, scripts=scripts.Scripts(kept=kept))
    with made as backend:
        one = Client(backend)
        for _ in range(3):
            one.give_back(*one.take(100, 60))
        numbers = [event.number for event in log(backend).events]

    assert kept <= len(numbers) <= kept + 100
    assert max(numbers) == 159
    assert numbers[-1] in range(160 - kept, 160)


def test_pages(redis_store: servers.RedisStore) -> None:
    """A log that is longer than one reply is read in several, from its end back to the limit or the cursor."""
    with RedisBackend.connect(client=redis_store.client, scripts=scripts.Scripts(kept=10_000)) as backend:
        one = Client(backend)
        one.take(1000, 1)
        begin = log(backend).cursor
        one.take(2000, 1200)
        one.take(4000, 1100)
        every, last = log(backend, cursor=begin), log(backend, limit=2050)

    assert [*range(2000, 3200), *range(4000, 5100)] == [event.number for event in every.events]
    assert [*range(3050 - 800, 3200), *range(4000, 5100)][-2050:] == [event.number for event in last.events]
    assert every.cursor == last.cursor


def test_logs_in_one_file(sqlite: servers.SqliteStore) -> None:
    """Each log of a file is cut, however the steps on several spaces come one after the other."""
    with sqlite.connect(events=10) as backend:
        clients = [Client(backend, f"host:{name}") for name in "abc"]
        for _ in range(20):
            for client in clients:
                client.give_back(*client.take(count=3))
        assert all(10 <= len(log(backend, client.space).events) <= 42 for client in clients)


# -------------------------------------------------------------------- nothing depends on them


@pytest.fixture
def porter(server: servers.ServerStore) -> Iterator[Any]:
    """Makes a user who may do all but this, and connects as that."""
    made: list[RedisBackend] = []

    def make(*less: str) -> RedisBackend:
        rules = [f"-{command}" for command in less]
        client: Any = server.client
        client.execute_command("ACL", "SETUSER", "porter", "reset", "on", ">pw", "~*", "&*", "+@all", *rules)
        made.append(RedisBackend.connect(server.url.replace("redis://", "redis://porter:pw@")))
        return made[-1]

    yield make
    for backend in made:
        backend.close()
    server.client.acl_deluser("porter")


@pytest.mark.parametrize("less", [("xadd",), ("xrevrange",), ("xadd", "xrevrange")])
def test_a_user_who_may_not_write_them(less: tuple[str, ...], porter: Any, server: servers.ServerStore) -> None:
    """Every step stands all the same, and only what cannot be read is an error."""
    backend = porter(*less)
    every_step(backend)

    assert ("xadd" not in less) == server.client.exists(LOG)
    if "xrevrange" in less:
        with pytest.raises(BackendError, match="forbids this user what is needed"):
            backend.events({SPACE: ""}, 10)
    else:
        assert () == log(backend).events


def test_key_of_a_wrong_type(redis_store: servers.RedisStore) -> None:
    """Whatever lies at the key of the log, every step works; who reads hears of that log alone."""
    redis_store.client.set(LOG, "x")
    with redis_store.connect() as backend:
        every_step(backend)
        Client(backend, "host:i").take()
        wrong, other = backend.events({SPACE: "", "host:i": ""}, 10)
        assert b"x" == redis_store.client.get(LOG)
        with PortAllocator(backend=backend) as ports, pytest.raises(BackendError, match="WRONGTYPE"):
            ports.events(host="h")

    assert isinstance(wrong, BackendError)
    assert isinstance(other, Events)
    assert ["acquired"] == [event.kind for event in other.events]


GOOD = 'acquired NOW tcp/00010 h 7 9 5 0 {"i":"one","l":{},"o":"","r":"backup"}'


def at_now(entry: Any) -> Any:
    return entry.replace("NOW", str(time.time_ns() // 1000)) if isinstance(entry, str) else entry


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "",
            "x",
            b"\xff\xfe",
            "acquired",
            GOOD.replace("acquired", "stolen"),
            GOOD.replace("NOW", "x"),
            GOOD.replace("NOW", "5"),
        ),
        *(GOOD.replace("tcp/00010", "tcp"), GOOD.replace("h 7", "h x"), GOOD.replace('"o":"",', ""), GOOD[:-1]),
    ],
)
def test_entry_that_cannot_be_read(entry: Any, redis_store: servers.RedisStore) -> None:
    """It is passed over by who reads, and by every step."""
    with redis_store.connect() as backend:
        every_step(backend)
        begin = log(backend).cursor
        redis_store.client.xadd(LOG, {"e": at_now(entry)})
        one = Client(backend, instance="three")
        one.ask(Ask("backup", ((11, 11),), owner="vm-3"))
        one.give_back(*one.take(40))
        found = log(backend, cursor=begin)

    assert [("refused", 0), ("acquired", 40), ("released", 40)] == [
        (event.kind, event.number) for event in found.events
    ]


def test_entry_that_can_be_read(redis_store: servers.RedisStore) -> None:
    """The entry that the others are made from is a good one."""
    redis_store.client.xadd(LOG, {"e": at_now(GOOD)})
    with redis_store.connect() as backend:
        (event,) = log(backend).events

    assert Event("acquired", 10, "tcp", "backup", "", {}, "one", 7, 9, 0) == event._replace(age=0)


def test_file_without_the_table(sqlite: servers.SqliteStore) -> None:
    """A file from before there were events is read, has none, and gets its table with the first."""
    with sqlite.connect() as backend:
        one = Client(backend)
        one.take(10)
    with closing(sqlite3.connect(sqlite.path)) as db:
        db.execute("DROP TABLE event")
        db.commit()
    with sqlite.connect(events=0) as backend:
        assert Events(SPACE, (), "") == log(backend)
        assert Events(SPACE, (), "5") == log(backend, cursor="5")
        assert backend.drop("host:never")
        Client(backend, "host:i")
        assert not backend.drop(SPACE)
    with sqlite.connect() as backend:
        one.backend = backend
        one.take(11)
        assert [11] == [event.number for event in log(backend).events]
        assert {"error"}.isdisjoint(finding.level for finding in backend.diagnose())


@pytest.mark.parametrize(
    "change",
    [
        *("event = 'x'", "event = '[]'", "event = '{}'", "event = 5", "event = x'ff'", "event = CAST(x'ff' AS TEXT)"),
        *("at = 'x'", "at = CAST(x'ff' AS TEXT)", "at = 1.5", "at = 0", "number = 'x'"),
        "event = replace(event, 'refused', 'stolen')",
        "event = '" + "[" * 100_000 + "'",
    ],
)
def test_row_that_cannot_be_read(change: str, sqlite: servers.SqliteStore) -> None:
    """It is passed over by who reads, and by every step; as if it were not there."""
    with sqlite.connect() as backend:
        one = Client(backend)
        one.take(10)
        one.ask(Ask("backup", ((10, 10),)))
    sqlite_does(sqlite, f"UPDATE event SET {change} WHERE event LIKE '%refused%'")  # noqa: S608
    with sqlite.connect() as backend:
        one.backend = backend
        one.ask(Ask("backup", ((10, 10),)))
        one.ask(Ask("backup", ((10, 10),)))
        assert [("acquired", 10), ("refused", 0)] == [(event.kind, event.number) for event in log(backend).events]
        assert [] == [finding for finding in backend.diagnose() if finding.check == "events"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("ALTER TABLE event RENAME COLUMN at TO moment",), "no such column: at"),
        (("DROP TABLE event", "CREATE TABLE event (number)"), "no such column: space"),
        (("ALTER TABLE event RENAME TO x", "CREATE VIEW event AS SELECT * FROM x"), ""),
        (("UPDATE event SET number = 9223372036854775807",), ""),
    ],
    ids=["column", "columns", "view", "last number"],
)
def test_table_that_cannot_be_used(change: tuple[str, ...], said: str, sqlite: servers.SqliteStore) -> None:
    """Every step stands all the same; who reads hears of the log alone, and a repair begins it anew."""
    with sqlite.connect() as backend:
        Client(backend, instance="three").take(60)
    sqlite_does(sqlite, *change)
    with sqlite.connect() as backend:
        every_step(backend)
        (found,) = backend.events({SPACE: ""}, 10)
        if said:
            assert str(found) == (
                f"The log of events in '{sqlite.path}' cannot be read: {said}; see `clusterports doctor`"
            )
        else:
            assert isinstance(found, Events)
            assert 1 == len(found.events)
        (wrong,) = [finding for finding in backend.diagnose() if finding.check == "events"]
        assert ("warning", "clusterports doctor --repair") == (wrong.level, wrong.cure)
        (mended,) = [finding for finding in backend.diagnose(repair=True) if finding.check == "events"]
        assert mended.mended
        assert [] == [finding for finding in backend.diagnose() if finding.check == "events"]
        assert () == log(backend).events
        Client(backend, instance="four").take(70)
        assert ["acquired"] == [event.kind for event in log(backend).events]


def test_damage_costs_the_events_of_one_step(sqlite: servers.SqliteStore) -> None:
    """All events of a step are written, or none."""
    with sqlite.connect() as backend:
        one = Client(backend)
        one.take(10)
        sqlite_does(sqlite, "UPDATE event SET number = 9223372036854775806")
        ports = one.take(20, 2)
        assert [10] == [event.number for event in log(backend).events]
        one.give_back(ports[0])
        assert [10, 20] == [event.number for event in log(backend).events]


class Failing:
    """A connection on which this statement fails with this code."""

    def __init__(self, db: sqlite3.Connection, statement: str, code: str) -> None:
        self.db, self.statement, self.code = db, statement, code

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement.lstrip().startswith(self.statement):
            error = sqlite3.OperationalError("it fails")
            error.sqlite_errorname = self.code
            raise error
        return self.db.execute(statement, *arguments)


@pytest.mark.parametrize("statement", ["SELECT", "INSERT", "DELETE"])
@pytest.mark.parametrize(
    ("code", "stands"),
    [
        *(("SQLITE_CORRUPT", True), ("SQLITE_ERROR", True), ("SQLITE_READONLY", True)),
        *(("SQLITE_FULL", False), ("SQLITE_IOERR_WRITE", False), ("SQLITE_BUSY", False)),
    ],
)
def test_what_costs_a_step(code: str, stands: bool, statement: str) -> None:
    """Only where the disk, or somebody else, is in the way the step is told so, and is tried in another way."""
    events = [told(number) for number in range(1, 65)]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        _log.append(db, SPACE, 1, events, 10)
        before = _log.read(db, SPACE, "", MOST, 1)
        failing: Any = Failing(db, statement, code)
        db.execute("BEGIN")
        with nullcontext() if stands else pytest.raises(sqlite3.OperationalError, match="it fails"):
            _log.append(failing, SPACE, 1, events, 10)
        db.execute("COMMIT" if stands else "ROLLBACK")
        assert before == _log.read(db, SPACE, "", MOST, 1)


def test_a_file_that_stays_busy(sqlite: servers.SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try, without events, has what is left of the time of the first."""
    with sqlite.connect(timeout=60) as backend:
        one = Client(backend)
        untils = []

        def write(work: object, until: float | None = None) -> None:
            untils.append(until)
            full = sqlite3.OperationalError("full")
            full.sqlite_errorname = "SQLITE_FULL"
            raise BackendError("No space is left") from full

        monkeypatch.setattr(backend.file, "write", write)
        with pytest.raises(BackendError):
            one.take(10)
    assert 2 == len(untils)
    assert untils[0] is not None
    assert untils[0] == untils[1]


def test_a_log_that_is_to_be_shorter(sqlite: servers.SqliteStore) -> None:
    """Where far fewer are to be kept than are, a step lets go of no more than 1,000 at a time."""
    with sqlite.connect() as backend:
        one = Client(backend)
        one.take(10)
    with closing(sqlite3.connect(sqlite.path)) as db:
        db.executemany("INSERT INTO event VALUES (?,?,1,'')", [(SPACE, number) for number in range(5000)])
        db.commit()
    counts = []
    with sqlite.connect(events=10) as backend:
        one.backend = backend
        for _ in range(100):
            one.give_back(*one.take(20))
            counts.append(sqlite_does(sqlite, "SELECT count(*) FROM event"))
    assert max(before - after for before, after in itertools.pairwise([5001, *counts])) in range(900, 1001)
    assert counts[-1] <= 42


def test_a_file_that_is_not_there(sqlite: servers.SqliteStore) -> None:
    """Who looks for events makes no file."""
    with sqlite.connect() as backend:
        assert Events(SPACE, (), "7") == log(backend, cursor="7")

    assert not sqlite.path.exists()


@pytest.mark.parametrize("how", ["dropped", "another file"])
def test_a_log_that_was_begun_anew(how: str, sqlite: servers.SqliteStore) -> None:
    """Whoever follows a log goes on with the one that comes in its place."""
    with sqlite.connect() as backend:
        one = Client(backend)
        one.give_back(*one.take(10))
        cursor = log(backend).cursor
        backend.close_lease(SPACE, one.holder)
        assert backend.drop(SPACE)
    if how == "another file":
        sqlite.path.unlink()
    with sqlite.connect() as backend:
        assert Events(SPACE, (), cursor) == log(backend, cursor=cursor)
        Client(backend).take(11)
        assert [11] == [event.number for event in log(backend, cursor=cursor).events]


def test_a_log_that_was_begun_anew_while_the_clock_was_behind(store: servers.Store) -> None:
    """Whoever follows it is told it from its beginning."""
    backend = store.connect(virtual=True)
    one = Client(backend)
    one.give_back(*one.take(10, 3))
    follower = EventLog(backend, EventFilter(), 10)
    assert 6 == len(follower.read())
    backend.close_lease(SPACE, one.holder)
    store.clock.advance(7200)
    assert backend.drop(SPACE)
    store.clock.advance(-90_000)
    Client(backend).take(11, 2)
    assert [11, 12] == [event.number for event in follower.read()]
    assert [] == follower.read()
    backend.close()


def test_allocator_on_a_store_without_events() -> None:
    """Where a backend tells nothing the story is empty."""

    class Silent(MemoryBackend):
        capabilities = frozenset()

        def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
            return super(MemoryBackend, self).events(cursors, limit)

    with PortAllocator(backend=Silent(), ranges=[PortRange("r", 1, 2)], host="elsewhere") as ports:
        ports.acquire("r")
        assert [] == ports.events()
