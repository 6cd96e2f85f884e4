"""A key of another type, or a command that the user may not run: the operation fails, and the space is as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from faults.scene import FENCE, QUARANTINE, SECOND, SPACE, TTL, Scene

from clusterports.abc import Ask, Claim, Port, Renewal, Wait
from clusterports.errors import BackendError
from clusterports_redis import RedisBackend, _doctor
from clusterports_redis._compare import compare
from clusterports_redis._wire import all_keys, keys

if TYPE_CHECKING:
    from collections.abc import Callable

    import servers

INNER = sorted({command[0] for command in _doctor.NEEDED} - {"EVAL", "EVALSHA", "SADD", "SREM", "SMEMBERS", "TIME"})
"""What the scripts run, but for the time, which is the test's own."""


def waiting(scene: Scene, backend: Any) -> None:
    request = scene.two.request()
    backend.acquire(SPACE, scene.two.holder, request, [Ask("r", ((10, 10),))], Wait(TTL))


def renew(scene: Scene, backend: Any, *, plainly: bool = False) -> None:
    renewal = Renewal(SPACE, scene.two.holder, ports=1)
    if not plainly:
        renewal = Renewal(SPACE, scene.two.holder, 1, (1, 99), (scene.ticket,), (FENCE + 11,), 1)
    (outcome,) = backend.renew([renewal])
    if isinstance(outcome, BaseException):
        raise outcome


def reclaim(scene: Scene, backend: Any) -> None:
    scene.store.clock.advance(50)
    backend.reclaim(SPACE)


def read(backend: Any) -> None:
    (view,) = backend.read([SPACE])
    if isinstance(view, BackendError):
        raise view


def acquire(scene: Scene, backend: Any, *asks: Ask) -> None:
    backend.acquire(SPACE, scene.other.holder, scene.other.request(), asks)


BLOCK = Ask("q", ((100, 200),), 9, "both", QUARANTINE, "o", align=1, limit=9, rotate=1)

OPERATIONS: dict[str, Callable[[Scene, Any], object]] = {
    "open": lambda scene, backend: backend.open(SPACE, "fresh", token="ab", ttl=TTL, knew=1),
    "open again": lambda scene, backend: backend.open(SPACE, "one", token="ab", ttl=TTL),
    "take over": lambda scene, backend: backend.open(
        SPACE, "one", token="cd", ttl=TTL, supersede=scene.one.holder.incarnation
    ),
    "acquire": lambda scene, backend: acquire(scene, backend, Ask("r", ((100, 200),))),
    "acquire a block": lambda scene, backend: acquire(scene, backend, BLOCK, Ask("r", ((80, 90),), 3, "udp")),
    "acquire what is marked": lambda scene, backend: acquire(scene, backend, Ask("r", ((50, 50),), explicit=True)),
    "acquire what is held": lambda scene, backend: acquire(scene, backend, Ask("r", ((10, 10),), explicit=True)),
    "acquire a certain one": lambda scene, backend: acquire(scene, backend, Ask("r", ((66, 66),), explicit=True)),
    "wait": waiting,
    "claim": lambda scene, backend: backend.claim(
        SPACE,
        scene.one.holder,
        scene.one.request(),
        [Claim(Port(n, "both", FENCE + 10**9 + n), Ask("r", ((n, n),), 1, "both", limit=5)) for n in (11, 300)],
    ),
    "renew": lambda scene, backend: renew(scene, backend, plainly=True),
    "renew with all": renew,
    "release": lambda scene, backend: backend.release(SPACE, scene.one.holder, list(scene.one.held)[:1]),
    "release all": lambda scene, backend: backend.release(SPACE, scene.one.holder, list(scene.one.held)),
    "mark foreign": lambda scene, backend: backend.mark_foreign(
        SPACE, scene.one.holder, list(scene.one.held), range="r", duration=SECOND, most=3
    ),
    "force a held one": lambda scene, backend: backend.force(SPACE, scene.ports["held"]),
    "force a cooling one": lambda scene, backend: backend.force(SPACE, scene.ports["cooling"]),
    "close": lambda scene, backend: backend.close_lease(SPACE, scene.one.holder),
    "close and let cool": lambda scene, backend: backend.close_lease(SPACE, scene.one.holder, quarantine=True),
    "reclaim": reclaim,
    "drop": lambda scene, backend: backend.drop("host:gone"),
    "preview": lambda scene, backend: backend.preview(SPACE, [BLOCK]),
    "held": lambda scene, backend: backend.held(SPACE, scene.one.holder),
    "read": lambda scene, backend: read(backend),
    "check": lambda scene, backend: compare(backend, [SPACE], mend=False),
    "mend": lambda scene, backend: compare(backend, [SPACE], mend=True),
}


OF_HOLDERS = {
    **dict.fromkeys(("acquire", "acquire a block", "acquire what is marked", "acquire what is held"), "other"),
    "acquire a certain one": "other",
    **dict.fromkeys(("wait", "renew", "renew with all"), "two"),
    **dict.fromkeys(("claim", "release", "release all", "mark foreign", "close", "close and let cool"), "one"),
}
"""Whoever has the lease: when it was opened, the user could do everything that these take."""


def free(scene: Scene, holder: str) -> set[tuple[str, int]]:
    """The numbers that somebody would be given of those that others than this holder have."""
    others = {manager.instance: manager.relies_on() for manager in (scene.one, scene.two) if manager.instance != holder}
    return scene.other.take_all() & set().union(*others.values())


class Before:
    """The space as it was, to be compared with and to be brought back."""

    def __init__(self, scene: Scene) -> None:
        self.client: Any = scene.client
        self.clock = scene.store.clock
        self.now = self.clock.now
        self.dumps = {key: self.client.dump(key) for key in keys(SPACE)}
        self.content = self.read()

    def read(self) -> list[Any]:
        return [self._content(key) for key in keys(SPACE)]

    def _content(self, key: str) -> Any:
        match self.client.type(key):
            case b"hash":
                return self.client.hgetall(key)
            case b"zset":
                return self.client.zrange(key, 0, -1, withscores=True)
            case b"list":
                return self.client.lrange(key, 0, -1)
            case b"stream":
                return self.client.xrange(key)
        return self.client.get(key)

    def restore(self) -> None:
        self.clock.set(self.now)
        if self.read() != self.content:
            self.client.delete(*all_keys(SPACE))
            for key, dump in self.dumps.items():
                self.client.restore(key, 0, dump)


def refused(operation: str, scene: Scene, backend: Any) -> bool:
    try:
        OPERATIONS[operation](scene, backend)
    except BackendError:
        return True
    return False


@pytest.fixture
def scene(redis_store: servers.RedisStore) -> Scene:
    return Scene(redis_store)


def test_all_work(valkey: servers.ServerStore) -> None:
    """None of them is refused by itself."""
    scene = Scene(valkey)
    whole = Before(scene)
    for run in OPERATIONS.values():
        run(scene, scene.backend)
        whole.restore()


@pytest.mark.parametrize("quiet", [False, True], ids=["queue", "no queue"])
def test_types(scene: Scene, quiet: bool) -> None:
    """Whichever key is of another type, an operation that fails for it leaves the other keys as they were."""
    if quiet:
        scene.quiet()
    whole = Before(scene)
    failed = set()
    for index, key in enumerate(keys(SPACE)):
        for operation in OPERATIONS:
            scene.client.delete(key)
            scene.client.rpush(key, "text")
            before = Before(scene)
            if refused(operation, scene, scene.backend):
                failed.add((index, operation))
                assert before.read() == before.content, (key, operation)
            whole.restore()
    assert {0, 1, 2, 3, 4} == {index for index, _ in failed}
    assert {"acquire", "release all", "close", "reclaim", "take over"} <= {name for index, name in failed if index == 3}


@pytest.mark.parametrize("server", ["valkey", "redis7"], indirect=True)
def test_commands(server: servers.ServerStore) -> None:
    """Whichever command the user may not run, an operation that fails for it changes nothing; or, if it was taken away
    under a lease, takes no port from anybody else and leaves nothing that cannot be mended."""
    scene = Scene(server)
    whole = Before(scene)
    scripts = server.scripts(virtual=True)
    url = server.url.replace("redis://", "redis://porter:pw@")
    failed: dict[str, set[str]] = {command: set() for command in INNER}
    client: Any = server.client
    try:
        for command in INNER:
            client.execute_command(
                "ACL SETUSER", "porter", "reset", "on", ">pw", "~*", "&*", "+@all", f"-{command.lower()}"
            )
            with RedisBackend.connect(url, scripts=scripts) as backend:
                for operation in OPERATIONS:
                    if refused(operation, scene, backend):
                        failed[command].add(operation)
                        if operation in OF_HOLDERS:
                            assert set() == free(scene, OF_HOLDERS[operation])
                            compare(scene.backend, [SPACE], mend=True)
                            assert [] == compare(scene.backend, [SPACE], mend=False)
                            assert set() == free(scene, OF_HOLDERS[operation])
                        else:
                            assert whole.content == whole.read(), (command, operation)
                    whole.restore()
    finally:
        client.execute_command("ACL DELUSER", "porter")
    assert [] == [command for command, operations in failed.items() if not operations]
    assert set(OPERATIONS) == set().union(*failed.values())
