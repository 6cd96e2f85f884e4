"""The files of deploy/redis: servers run on them, and each rule of each user is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import servers
from faults.control import Server, free_port, until

from clusterports.abc import Ask, Finding, Granted, Holder, Opened, Queued, Renewal, Request, SpaceView, Wait, Watch
from clusterports.errors import BackendError, NotReplicated
from clusterports_redis import RedisBackend, _doctor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "redis"
SPACE = "host:a"
TTL = 30_000_000
FILES = ["data", "passwords", "redis.conf", "replicated.conf", "sentinel.conf", "users.acl"]


def rules_of(user: str) -> list[str]:
    """The rules of a user, as the file has them."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "users.acl").read_text("utf-8"), flags=re.MULTILINE)
    rules = re.search(rf"^user {user} (.*?)(?=^user|\Z)", text, re.MULTILINE | re.DOTALL)
    assert rules is not None
    return re.findall(r"#@[^@]*@|\S+", rules[1])


def commands_of(user: str) -> set[str]:
    return {rule[1:].upper() for rule in rules_of(user) if rule.startswith("+")}


def install(folder: Path, *arguments: str) -> dict[str, str]:
    """Fill in the files as an operator does; the passwords by user."""
    subprocess.run(["sh", str(FOLDER / "install.sh"), str(folder), *arguments], check=True)
    return dict(line.split() for line in (folder / "passwords").read_text().splitlines())


class Deployed(Server):
    """A server on a file of deploy/redis as it was filled in, but for the port."""

    def __init__(self, binary: str, folder: Path, file: str, *arguments: str) -> None:
        super().__init__(binary, folder, *arguments, port=free_port())
        path = folder / file
        for name in ("redis.conf", "sentinel.conf"):
            path_of = folder / name
            path_of.write_text(re.sub(r"^port \d+$", f"port {self.port}", path_of.read_text(), flags=re.MULTILINE))
        self._command = [binary, str(path), *arguments]
        self.passwords = dict(line.split() for line in (folder / "passwords").read_text().splitlines())

    def _spawn(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def client(self, **options: Any) -> redis.Redis:
        login = {} if "--sentinel" in self._command else {"username": "admin", "password": self.passwords["admin"]}
        return super().client(**login | options)

    def url_of(self, user: str) -> str:
        return f"redis://{user}:{self.passwords[user]}@{self.address}/0"


def binary_of(request: pytest.FixtureRequest, name: str) -> str:
    request.getfixturevalue(f"_{name}")  # skips where there is none
    return servers.find_valkey() if name == "valkey" else servers.find_redis()


@pytest.fixture(scope="module", params=["valkey", "redis7"])
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A server on redis.conf and users.acl."""
    folder = tmp_path_factory.mktemp("deployed")
    install(folder, "127.0.0.1")
    with Deployed(binary_of(request, request.param), folder, "redis.conf") as server:
        yield server


@pytest.fixture
def admin(deployed: Deployed) -> Iterator[redis.Redis]:
    with deployed.client() as client:
        client.flushall()
        yield client
        client.execute_command("ACL LOAD")


# -------------------------------------------------------------------- files


def test_install(tmp_path: Path) -> None:
    """The files are filled in for this account's eyes only, with passwords that nobody had before; not twice."""
    made = install(tmp_path / "one", "192.0.2.1")
    assert FILES == sorted(path.name for path in (tmp_path / "one").iterdir())
    for path in [tmp_path / "one", *(tmp_path / "one").iterdir()]:
        assert 0 == path.stat().st_mode & 0o077
        if path.suffix in (".conf", ".acl"):
            lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
            assert [] == [line for line in lines if re.search(r"@[A-Z]", line)]
    assert 5 == len(set(made.values()) - set(install(tmp_path / "two", "192.0.2.1").values()))
    before = (tmp_path / "one" / "users.acl").read_text()
    with pytest.raises(subprocess.CalledProcessError):
        install(tmp_path / "one", "192.0.2.1")
    assert before == (tmp_path / "one" / "users.acl").read_text()


def test_same_passwords(tmp_path: Path) -> None:
    """Other servers of a service take the passwords of the first."""
    made = install(tmp_path / "one", "192.0.2.1")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "passwords").write_text((tmp_path / "one" / "passwords").read_text())
    assert made == install(tmp_path / "two", "192.0.2.2", "192.0.2.1")
    one, two = ((tmp_path / name / "users.acl").read_text() for name in ("one", "two"))
    assert one == two
    assert "monitor ports 192.0.2.1 6379 2" in (tmp_path / "two" / "sentinel.conf").read_text()


@pytest.mark.parametrize("file", ["redis.conf", "replicated.conf", "sentinel.conf", "users.acl"])
def test_each_line_has_its_reason(file: str) -> None:
    """Each line, or lines that belong together, come after a comment."""
    blocks = (FOLDER / file).read_text("utf-8").split("\n\n")
    said = [block for block in blocks if any(line and line[0] != "#" for line in block.splitlines())]
    exempt = re.compile(r"\A(port \d+|dir @FOLDER@/data)\Z")
    assert [] == [block for block in said if not block.startswith("#") and not exempt.match(block.strip())]


@pytest.mark.parametrize("name", ["valkey", "redis7"])
@pytest.mark.parametrize("file", ["redis.conf", "users.acl"])
def test_not_filled_in(request: pytest.FixtureRequest, tmp_path: Path, name: str, file: str) -> None:
    """A server does not start on a file that was not filled in."""
    install(tmp_path, "127.0.0.1")
    (tmp_path / file).write_text((FOLDER / file).read_text("utf-8"))
    server = Deployed(binary_of(request, name), tmp_path, "redis.conf")
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()


def test_configured(deployed: Deployed, admin: redis.Redis) -> None:
    """A server has what redis.conf says, and lets nobody in without a password."""
    text = (deployed.folder / "redis.conf").read_text()
    said = {key: value.strip('"') for key, value in re.findall(r"^([a-z-]+) (.+)$", text, re.MULTILINE)}
    said["maxmemory"] = str(512 << 20)
    assert said == {key: admin.config_get(key)[key] for key in said}
    with deployed.client(username=None, password=None) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


# -------------------------------------------------------------------- managers


def opened(backend: Any, space: str, instance: str = "one") -> Holder:
    reply = backend.open(space, instance, token="a", ttl=TTL)
    assert isinstance(reply, Opened)
    return Holder(instance, reply.lease, reply.incarnation)


def steps(backend: RedisBackend) -> None:
    """Every operation of a backend; an error when something does not work."""
    one = opened(backend, SPACE)
    two = opened(backend, SPACE, "two")
    assert [SPACE] == backend.spaces("one"), "the index may not lack it: +sadd"
    asks = [Ask("r", ((10, 40),), 8, "both", align=1), Ask("r", ((50, 50),), explicit=True)]
    granted = backend.acquire(SPACE, one, Request(1, 1), asks)
    assert isinstance(granted, Granted)
    last = [Ask("r", ((60, 60),))]
    holds = backend.acquire(SPACE, one, Request(2, 1), last)
    assert isinstance(holds, Granted)
    queued = backend.acquire(SPACE, two, Request(1, 1), last, Wait(TTL))
    assert isinstance(queued, Queued)
    watch = backend.watch(SPACE, queued.ticket)
    try:
        assert type(watch) is not Watch, "nobody is woken: +subscribe"
        backend.release(SPACE, one, holds.ports)
        message = watch._pubsub.get_message(ignore_subscribe_messages=True, timeout=0.5)  # type: ignore[attr-defined]
        assert message is not None, "nobody is woken: +publish"
    finally:
        watch.close()
    assert isinstance(backend.acquire(SPACE, two, Request(1, 1), last, Wait(TTL, queued.ticket)), object)
    (view,) = backend.read([SPACE])
    assert isinstance(view, SpaceView), view
    assert backend.force(SPACE, view.ports[0])
    backend.mark_foreign(SPACE, one, granted.ports[1:2], range="r", duration=TTL, most=1)
    (renewed,) = backend.renew([Renewal(SPACE, one, 1, (1,), (), (granted.ports[0].fence,))])
    if isinstance(renewed, BaseException):
        raise renewed
    backend.preview(SPACE, asks)
    backend.held(SPACE, two)
    backend.reclaim(SPACE)
    (log,) = backend.events({SPACE: ""}, 1)
    if isinstance(log, BackendError):
        raise log
    assert 1 == len(log.events), "nothing is told: may not +xadd"
    for holder in (one, two):
        backend.close_lease(SPACE, holder)
    assert not backend.drop(SPACE)  # something cools
    assert backend.drop("host:none")


def copied(url: str) -> None:
    """With a wait for a replica, of which there is none."""
    with RedisBackend.connect(f"{url}?min_replicas=1", timeout=1.0) as backend:
        one = opened(backend, "host:b")
        with pytest.raises(NotReplicated, match="0 of the 1 replicas"):
            backend.acquire("host:b", one, Request(1, 1), [Ask("r", ((10, 40),))])


def complaints(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != "ok"]


def everything(url: str) -> None:
    """All that the user clusterports is for."""
    with RedisBackend.connect(url, timeout=2.0) as backend:
        steps(backend)
        found = complaints(list(backend.diagnose(repair=True)))
    if found:
        raise BackendError(found[0].text)


def test_manager(deployed: Deployed, admin: redis.Redis) -> None:
    """Everything works as the user of managers, and doctor has nothing to complain of."""
    everything(deployed.url_of("clusterports"))
    copied(deployed.url_of("clusterports"))


@pytest.mark.parametrize("lacking", rules_of("clusterports"))
def test_manager_needs(deployed: Deployed, admin: redis.Redis, lacking: str) -> None:
    """With any one rule less something fails, and says so."""
    take_away(deployed, admin, "clusterports", lacking)
    with pytest.raises((BackendError, AssertionError), match=r"login|forbids|may not|nobody is woken|'wait' command"):
        (copied if lacking == "+wait" else everything)(deployed.url_of("clusterports"))


def take_away(deployed: Deployed, admin: Any, user: str, *lacking: str, extra: Sequence[str] = ()) -> None:
    digest = sha256(deployed.passwords[user].encode()).hexdigest()
    rules = [rule.replace(f"@SHA256 {user}@", digest) for rule in rules_of(user) if rule not in lacking]
    admin.execute_command("ACL SETUSER", user, "reset", *rules, *extra)


def test_lists_agree() -> None:
    """The user may run what doctor looks for, what doctor itself asks, the wait for copies, and nothing else."""
    looked_for = {command[0] for command in (*_doctor.NEEDED, *_doctor.USEFUL, *_doctor.TELLING)}
    assert looked_for | {"INFO", "SCAN", "WAIT"} == commands_of("clusterports")


def test_optional_rules() -> None:
    """What only some need is there as a comment."""
    text = (FOLDER / "users.acl").read_text("utf-8")
    assert ["+waitaof", "+cluster|slots", "+asking"] == re.findall(r"^# (\+.*)$", text, re.MULTILINE)


def test_fsync(deployed: Deployed, admin: redis.Redis) -> None:
    """A port is handed out when it is on disk, with the optional rule and a server that can."""
    url = f"{deployed.url_of('clusterports')}?fsync=yes"
    with RedisBackend.connect(url) as backend:
        one = opened(backend, SPACE)
        with pytest.raises(NotReplicated):
            backend.acquire(SPACE, one, Request(1, 1), [Ask("r", ((10, 40),))])
        if "valkey_version" in admin.info("server"):
            take_away(deployed, admin, "clusterports", extra=["+waitaof"])
            assert isinstance(backend.acquire(SPACE, one, Request(2, 2), [Ask("r", ((10, 40),))]), Granted)


def test_command_line(deployed: Deployed, admin: redis.Redis, tmp_path: Path) -> None:
    """The commands work as that user, with a configuration file."""
    (tmp_path / "clusterports.toml").write_text(f'url = "{deployed.url_of("clusterports")}"\nhost = "h"\n')
    environment = {name: text for name, text in os.environ.items() if not name.startswith("CLUSTERPORTS_")}

    def command(*arguments: str, code: int = 0) -> str:
        words = [sys.executable, "-m", "clusterports.cli", *arguments]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert (code, "") == (done.returncode, done.stderr)
        return done.stdout

    assert "10809\n" == command("run", "--", "sh", "-c", "echo {port}")
    _, lease, _ = command("acquire", "--ttl", "60", "--owner", "vm-1").split()
    assert "vm-1" in command("status")
    command("renew", lease)
    command("release", lease)
    command("gc")


def test_status_user(deployed: Deployed, admin: redis.Redis) -> None:
    """The user of dashboards sees everything and changes nothing; with any one rule less it does not see it."""
    with RedisBackend.connect(deployed.url_of("clusterports")) as manager:
        opened(manager, SPACE)

    def look() -> None:
        admin.script_flush()
        with RedisBackend.connect(deployed.url_of("clusterports-status"), timeout=2.0) as backend:
            views = backend.read([*backend.spaces(), "host:none"])
            assert ["one"] == [lease.instance for view in views if isinstance(view, SpaceView) for lease in view.leases]
            (log,) = backend.events({SPACE: ""}, 1)
            if isinstance(log, BackendError):
                raise log
            (persistence,) = [found for found in backend.diagnose() if found.check == "persistence"]
            if persistence.unknown:
                raise BackendError(f"forbids a look at persistence: {persistence.text}")
            for change in (lambda: opened(backend, SPACE), lambda: backend.reclaim(SPACE), lambda: backend.drop(SPACE)):
                with pytest.raises(BackendError, match="forbids"):
                    change()

    look()
    for lacking in rules_of("clusterports-status"):
        take_away(deployed, admin, "clusterports-status", lacking)
        with pytest.raises(BackendError, match=r"login|forbids"):
            look()


# -------------------------------------------------------------------- replicas and sentinels


class Service:
    """A primary and a replica on replicated.conf, and two sentinels on sentinel.conf."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.servers: list[Deployed] = []
        for index, name in enumerate(("one", "two")):
            self._install(folder, name)
            arguments: tuple[str, ...] = ("--repl-diskless-sync-delay", "0")
            if index:
                arguments += ("--replicaof", "127.0.0.1", str(self.servers[0].port))
            self.servers.append(Deployed(binary, folder / name, "replicated.conf", *arguments))
        self.sentinels: list[Deployed] = []
        for name in ("three", "four"):
            self._install(folder, name)
            path = folder / name / "sentinel.conf"
            path.write_text(path.read_text().replace("127.0.0.1 6379", f"127.0.0.1 {self.servers[0].port}"))
            self.sentinels.append(Deployed(binary, folder / name, "sentinel.conf", "--sentinel"))

    def _install(self, folder: Path, name: str) -> None:
        (folder / name).mkdir()
        if self.servers:
            (folder / name / "passwords").write_text((folder / "one" / "passwords").read_text())
        install(folder / name, "127.0.0.1")

    def start(self) -> None:
        for server in (*self.servers, *self.sentinels):
            server.start()
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL", "DEBUG", "info-period", 200, "publish-period", 500, "ping-period", 200)
        # One alone is soon of the opinion that the primary is down, and begins nothing by itself.
        self.sentinels[0].ask("SENTINEL", "SET", "ports", "down-after-milliseconds", 1000)
        until(lambda: all(self.knows(sentinel) for sentinel in self.sentinels), 30, "sentinels that know each other")

    def kill(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.kill()

    def knows(self, sentinel: Deployed) -> bool:
        """A primary with a replica that follows it, and the other sentinel."""
        with sentinel.client() as client:
            state: Any = client.sentinel_master("ports")
            replicas: Any = client.sentinel_slaves("ports")
        following = [replica for replica in replicas if replica["master-link-status"] == "ok"]
        return bool(state["flags"] == "master" and state["num-other-sentinels"] == 1 and len(following) == 1)

    def failover(self) -> None:
        """As an operator orders it; a sentinel refuses until it has seen enough of the replica."""

        def ordered() -> bool:
            try:
                return bool(self.sentinels[0].ask("SENTINEL", "FAILOVER", "ports"))
            except redis.ResponseError:
                return False

        until(ordered, 15, "a sentinel that obeys")

    def denied(self, user: str) -> set[str]:
        """What the user was refused, on any of the servers."""
        entries = [entry for server in self.servers for entry in server.ask("ACL", "LOG", "128")]
        return {entry["object"] for entry in entries if entry["username"] == user}

    def take_away(self, user: str, *lacking: str) -> None:
        for server in self.servers:
            with server.client() as admin:
                take_away(server, admin, user, *lacking)
                admin.execute_command("CLIENT", "KILL", "USER", user)


@pytest.fixture(params=["valkey", "redis7"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    service = Service(binary_of(request, request.param), tmp_path)
    try:
        service.start()
        yield service
    finally:
        service.kill()


def test_service(service: Service) -> None:
    """A failover works under users.acl with nothing refused; each thing that is taken away is missed."""
    one, two = service.servers
    service.failover()
    until(lambda: two.ask("ROLE")[0] == "master" and one.ask("ROLE")[:1] == ["slave"], 15, "another primary")
    until(lambda: all(service.knows(sentinel) for sentinel in service.sentinels), 15, "a replica of the new one")
    with RedisBackend.connect(two.url_of("clusterports")) as backend:
        opened(backend, SPACE)
    assert set() == service.denied("sentinel") | service.denied("replica")

    two.ask("CONFIG", "SET", "busy-reply-threshold", "50")
    with two.client(socket_timeout=30) as client, pytest.raises(redis.ResponseError, match="killed"):
        client.eval("while true do end", 0)  # until a sentinel ends it

    kept = {"+ping", "+info", "+subscribe", "+publish", "&__sentinel__:hello", "+client|setname"}
    lost = {rule for rule in rules_of("sentinel") if rule.startswith("+")} - kept - {"+script|kill"}
    service.take_away("sentinel", *lost)
    service.failover()
    until(lambda: {rule[1:] for rule in lost} <= service.denied("sentinel"), 15, "a failover without rights")
    service.take_away("sentinel", *kept)
    until(lambda: {rule[1:] for rule in kept if rule[0] == "+"} <= service.denied("sentinel"), 15, "no rights")
    service.take_away("sentinel", "&__sentinel__:hello")
    until(lambda: "__sentinel__:hello" in service.denied("sentinel"), 15, "no channel")
    service.take_away("replica", "+replconf", "+psync")
    until(lambda: {"replconf", "psync"} <= service.denied("replica"), 15, "a replica without rights")
