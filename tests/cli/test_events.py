"""``clusterports events``: the story of a port, told in lines and in JSON."""

from __future__ import annotations

import json
import os
import re
import signal
from datetime import UTC, datetime, timedelta, timezone
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, cast, get_args

import pytest

from clusterports import PortAllocator
from clusterports.abc import Backend, EventKind
from clusterports.cli import events as command_events
from clusterports.cli._table import cells
from clusterports.cli.events import STYLES, WORDS, Story, parse_since
from clusterports.errors import BackendUnavailable, ConfigurationError
from clusterports.events import PortEvent
from clusterports_redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    import servers
    from cli.conftest import Command, Look, Main

NOW = datetime(2026, 3, 1, 3, 0, 0, tzinfo=UTC)
HOSTILE = "\x1b[31m\n\u202e;'"


def event(kind: EventKind = "acquired", **changes: Any) -> PortEvent:
    made = PortEvent(NOW, kind, "kvm-07", 10809, "tcp", "backup", "vm-42", {}, "manager-a", 7, 9)
    return made._replace(**changes)


def told(*found: PortEvent, width: int | None = None, color: bool = False) -> list[str]:
    return list(Story(color, width).lines(found, NOW))


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_story(command: Command, look: Look, valkey: servers.ServerStore) -> None:
    """Taken, killed, cooled, taken by another, forced: each is a line, in the order in which it happened."""
    command.environment["CLUSTERPORTS_RANGES__BACKUP__QUARANTINE"] = "0.2"
    first, _ = command.holding("--owner", "vm-42", "--instance", "manager-a", "--ttl", "0.5")
    os.killpg(first.pid, signal.SIGKILL)
    with valkey.connect() as backend:
        while look().ports:
            backend.reclaim("host:h")
    command.holding("--owner", "vm-43", "--instance", "manager-b", "--on-lost", "warn")
    assert 0 == command("release", "--force", "--yes", "h", "10809").returncode

    story = command("events", "--port", "10809", "--host", "h")
    today = r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"
    lines = [re.sub(rf"^ *{today}", "TIME", line) for line in story.stdout.splitlines()]
    one, another = (re.findall(r"fence (\d+)$", line)[0] for line in (lines[0], lines[-1]))

    assert (0, "") == (story.returncode, story.stderr)
    assert [
        f"TIME  h  10809/tcp  acquired   by vm-42 (manager-a)  backup  fence {one}",
        f"TIME  h  10809/tcp  expired    lease of vm-42 (manager-a) ended; cools  backup  fence {one}",
        f"TIME  h  10809/tcp  reclaimed  free again after vm-42 (manager-a)  backup  fence {one}",
        f"TIME  h  10809/tcp  acquired   by vm-43 (manager-b)  backup  fence {another}",
        f"TIME  h  10809/tcp  forced     taken from vm-43 (manager-b)  backup  fence {another}",
    ] == lines


def test_every_kind_has_words() -> None:
    """Whatever can happen is told with whose port it was."""
    assert set(get_args(EventKind)) == WORDS.keys()
    assert STYLES.keys() <= WORDS.keys()
    assert all("vm-42 (manager-a)" in told(event(kind))[0] for kind in get_args(EventKind))


def test_lines() -> None:
    """Columns are as wide as what came so far; what is not known is left out, and another day has its date."""
    story = Story()
    first = list(story.lines([event(owner=""), event("refused", number=None, protocol="udp", fence=0)], NOW))
    later = event("foreign", at=NOW - timedelta(hours=4), host="", owner="", range=None)
    second = list(story.lines([later], NOW))

    assert [
        "03:00:00  kvm-07  10809/tcp  acquired   by manager-a  backup  fence 9",
        "03:00:00  kvm-07  -/udp      refused    no port for vm-42 (manager-a)  backup",
        "2026-02-28 23:00:00  (cluster)  10809/tcp  foreign    something outside has it, as manager-a found  fence 9",
    ] == first + second
    assert ["           03:00:00  kvm-07     10809/tcp"] == [line[:41] for line in story.lines([event()], NOW)]


def test_hostile_names() -> None:
    """No character of a name is obeyed by a terminal, whichever field it is in."""
    names = dict.fromkeys(("host", "range", "owner", "instance"), HOSTILE)
    lines = [line for kind in get_args(EventKind) for line in told(event(kind, **names), width=None)]

    assert all(line.isprintable() for line in lines)
    assert all("\\x1b[31m\\n\\u202e;'" in line for line in lines)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (None, "03:00:00  kvm-07  10809/tcp  expired    lease of vm-42 (manager-a) ended; cools  backup  fence 9"),
        (96, "03:00:00  kvm-07  10809/tcp  expired    lease of vm-42 (manager-a) ended; cools  backup  fence 9"),
        (95, "03:00:00  kvm-07  10809/tcp  expired    lease of vm-42 (manager-a) ended; cools  backup"),
        (80, "03:00:00  kvm-07  10809/tcp  expired    lease of vm-42 (manager-a) ended; cools"),
        (60, "03:00:00  kvm-07  10809/tcp  expired    lease of vm-42 (man…"),
    ],
)
def test_narrow(width: int | None, expected: str) -> None:
    """On a narrow screen the fence goes first, then the range, and then the end."""
    assert [expected] == told(event("expired"), width=width)


def test_long_names() -> None:
    """A name is cut so that the others can be read; elsewhere than on a screen it is whole."""
    long = event(owner="vm-" + "4" * 100, instance="中" * 100)

    assert (long.owner in told(long)[0], long.instance in told(long)[0]) == (True, True)
    assert f"by vm-{'4' * 20}… ({'中' * 11} …)" in told(long, width=120)[0]
    assert all(cells(told(long, width=width)[0]) <= width for width in range(20, 200))


def test_color() -> None:
    """Only the kind has a colour."""
    assert [
        "03:00:00  kvm-07  10809/tcp  \x1b[31mforced     \x1b[mtaken from vm-42 (manager-a)  backup  fence 9"
    ] == told(event("forced"), color=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", NOW - timedelta(seconds=30)),
        ("10m", NOW - timedelta(minutes=10)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("3d", NOW - timedelta(days=3)),
        ("1w", NOW - timedelta(weeks=1)),
        ("2026-02-28T23:30:00+01:00", datetime(2026, 2, 28, 22, 30, tzinfo=UTC)),
        ("2026-02-28T22:30", datetime(2026, 2, 28, 22, 30, tzinfo=UTC)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=UTC)),
    ],
)
def test_since(text: str, expected: datetime) -> None:
    """A time ago, or one of ISO 8601; without a zone it is in that of this machine."""
    assert expected == parse_since(text, NOW.astimezone(timezone(timedelta(hours=5))))


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-5m", "10 m", "yesterday", "10M", "999999999w", "9999-99-99", "\u0661m"]
)
def test_since_what(text: str) -> None:
    """Anything else is refused, with what it could be."""
    with pytest.raises(ConfigurationError, match=r"^since: must be how long ago, such as 30s, .*; got "):
        parse_since(text, NOW)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "x\x1b"), r"since: must be how long ago, .*; got 'x\\x1b'"),
        (("--limit", "0"), "limit: must be a whole number from 1 to 1000000, got 0"),
        (("--limit", "1000001"), "limit: must be a whole number from 1 to 1000000, got 1000001"),
        (("--limit", "1e3"), "limit: must be a whole number from 1 to 1000000, got '1e3'"),
        (("--port", "70000"), "port: must be a number from 1 to 65535, .*; got '70000'"),
        (("--range", "backups"), "range: .*'backups'.*"),
        (("--host", ""), "host: must .*"),
    ],
)
def test_wrong_values(arguments: tuple[str, ...], said: str, main: Main) -> None:
    """What cannot be asked for is refused with the key and the bound, before the store is looked for."""
    code, out, err = main("events", *arguments, CLUSTERPORTS_URL="redis://127.0.0.1:1/0")

    assert (2, "") == (code, out)
    assert re.fullmatch(f"clusterports: {said}\n", err), err


@pytest.fixture
def past(valkey: servers.ServerStore) -> None:
    """Some ports that were taken, on two hosts."""
    with valkey.connect() as backend:
        for host, instance in (("h", "manager-a"), ("i", "manager-b")):
            with PortAllocator(backend=backend, host=host, instance=instance, probe=False) as ports:
                ports.acquire("backup", owner="vm-42", labels={"job": "nightly"})
                ports.acquire("backup", owner="vm-43", protocol="udp")
                ports.acquire("display", owner="db")


@pytest.mark.usefixtures("past")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), 12),
        (("--host", "h"), 6),
        (("--port", "10809"), 8),
        (("--port", "10809/udp"), 4),
        (("--port", "10809/both"), 8),
        (("--owner", "vm-42"), 4),
        (("--owner", "vm-*"), 8),
        (("--instance", "manager-b"), 6),
        (("--range", "display"), 4),
        (("--since", "1h"), 12),
        (("--since", "2999-01-01"), 0),
        (("--owner", "vm-*", "--port", "10809/tcp", "--limit", "3"), 3),
        (("--limit", "5"), 5),
    ],
)
def test_filters(arguments: tuple[str, ...], expected: int, script: Main) -> None:
    """What fits all of the filters is told, and of that the last events."""
    code, out, _ = script("events", "--json", *arguments)
    document = json.loads(out)
    times = [one["at"] for one in document["events"]]

    assert (0, 1, expected) == (code, document["schema"], len(times))
    assert sorted(times) == times


@pytest.mark.usefixtures("past")
def test_json(script: Main) -> None:
    """An event has its fields, whatever was asked for."""
    _, out, _ = script("events", "--json", "--host", "h", "--owner", "vm-42", "--limit", "1")
    (one,) = json.loads(out)["events"]

    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(one.pop("at")) < timedelta(minutes=1)
    assert one.pop("fence") > one.pop("lease") > 0
    assert {
        "kind": "released",
        "host": "h",
        "number": 10809,
        "protocol": "tcp",
        "range": "backup",
        "owner": "vm-42",
        "labels": {"job": "nightly"},
        "instance": "manager-a",
    } == one


def test_nothing(script: Main, valkey: servers.ServerStore) -> None:
    """An empty story is no error; that there is none is said beside the output."""
    said = f"clusterports: No event is as asked for (store: {valkey.url}).\n"

    assert (0, "", said) == script("events")
    assert (0, "", "") == script("events", "--quiet")
    assert (0, '{"schema": 1, "events": []}\n', said) == script("events", "--json")


def test_a_store_without_events(script: Main, valkey: servers.ServerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that keeps none is said to, and cannot be followed."""
    monkeypatch.setattr(RedisBackend, "capabilities", RedisBackend.capabilities - {"events"})
    monkeypatch.setattr(RedisBackend, "events", Backend.events)

    assert (0, "", f"clusterports: The store keeps no events: {valkey.url}\n") == script("events")
    told = f"clusterports: follow: a store of this kind keeps no events ({valkey.url})\n"
    assert (2, "", told) == script("events", "--follow")


@pytest.mark.usefixtures("past")
def test_a_log_that_cannot_be_read(script: Main, valkey: servers.ServerStore) -> None:
    """The others are told, and the code says that one is missing; of that one alone nothing is."""
    valkey.client.set("clusterports:1:{host:h}:events", "x")

    code, out, err = script("events")
    assert (5, 6) == (code, len(out.splitlines()))
    assert re.match("clusterports: warning: the events on host 'h' cannot be read: .*WRONGTYPE", err)
    code, out, err = script("events", "--host", "h")
    assert (5, "") == (code, out)
    assert "WRONGTYPE" in err


@pytest.mark.parametrize("how", ["lines", "json"])
def test_follow(how: str, command: Command, valkey: servers.ServerStore) -> None:
    """What was comes first, then each event as it happens, at once also through a pipe; Ctrl-C ends it with 130."""
    with valkey.connect() as backend, PortAllocator(backend=backend, host="h", probe=False) as ports:
        first = ports.acquire("backup")
        process = command.start("events", "--follow", *(["--json"] if how == "json" else []))
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        second = ports.acquire("backup")
        ports.release(second)
        lines += [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert (130, "", "") == (process.returncode, out, err)
    if how == "json":
        documents = [json.loads(line) for line in lines]
        assert [1, 1, 1] == [document["schema"] for document in documents]
        assert [first.fence, second.fence, second.fence] == [document["fence"] for document in documents]
    else:
        assert ["acquired", "acquired", "released"] == [line.split()[-6] for line in lines]


class Log:
    """What each read gives, or raises."""

    def __init__(self, *answers: list[PortEvent] | BaseException) -> None:
        self.answers = iter(answers)

    def read(self) -> list[PortEvent]:
        answer = next(self.answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_follow_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """While it is away that is told once, and then the story goes on; another error ends it."""
    monkeypatch.setattr(command_events, "PAUSE", 0)
    away, damaged = BackendUnavailable("away"), ConfigurationError("damaged")
    log = Log(away, away, [event("released")], [], away, [event("forced")], damaged)

    def follow() -> NoReturn:
        command_events._follow(cast("Any", log), [event()], Story(), as_lines=False)

    with pytest.raises(ConfigurationError, match="damaged"):
        follow()
    out, err = capsys.readouterr()
    kinds = list(chain.from_iterable(re.findall("acquired|released|forced", line) for line in out.splitlines()))
    assert ["acquired", "released", "forced"] == kinds
    assert "clusterports: away\n" * 2 == err
