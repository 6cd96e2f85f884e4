"""Random histories: the Redis backend and the state machine get the same calls at the same times.

After each step the replies, all that `read` shows, and the raw keys must agree. A step is a plain tuple that
refers to what there is by number, so any part of a history is a history too: a failing one is cut down before it
is shown, and it can be pasted into `play` as it is.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
import servers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from clusterports._space import GRAIN, MAX_GAP, Space
from clusterports.abc import (
    Ask,
    Closed,
    Full,
    Gone,
    Granted,
    Held,
    Holder,
    Occupied,
    Opened,
    Port,
    Reclaimed,
    Released,
    Renewal,
    Renewed,
    Request,
    Stale,
)
from clusterports.errors import BackendError
from clusterports_memory import MemoryBackend
from clusterports_memory import Store as MemorySpaces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clusterports.abc import Backend

CI: Final = os.environ.get("CI") == "true"
STEPS: Final = 1000 if CI else 500
SEEDS: Final = range(3 if CI else 2)
SPACES: Final = ("host:a", "host:b%7D")
INSTANCES: Final = ("one", "}x{ \n\x1b[0m", "drei\u4e2d")
SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
TTLS: Final = (3 * SECOND, 30 * SECOND, 31 * SECOND)
TIMES: Final = (
    *(0, 1, GRAIN - 1, GRAIN, 50_000, 50_000, SECOND, SECOND, SECOND, 5 * SECOND, 5 * SECOND, -SECOND),
    *(TTLS[1] // 3, TTLS[1] // 3 + 1, TTLS[0] - 1, TTLS[0], TTLS[1], TTLS[2] + 15 * SECOND),
    *(100 * SECOND, MAX_GAP, MAX_GAP + SECOND, DAY, -1, -DAY),
)

Step = tuple[Any, ...]


class Model(MemorySpaces):
    """The state machine as a server runs it."""

    def space(self, name: str) -> Space:
        return self.spaces.get(name) or Space(name, max_gap=MAX_GAP)


def generate(seed: int, steps: int) -> list[Step]:
    rng = random.Random(seed)

    def number() -> int:
        return rng.randrange(1 << 20)

    def some(most: int) -> tuple[int, ...]:
        return tuple(number() for _ in range(rng.randrange(most + 1)))

    def asks() -> tuple[Ask, ...]:
        made = []
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
            first = rng.randrange(1, 12)
            spans: tuple[tuple[int, int], ...] = ((first, first + rng.choice((0, 0, 3, 8))),)
            count = rng.choice((1, 1, 1, 2, 5))
            kind = rng.random()
            if kind < 0.07:
                spans, count = ((1000, 1199),), rng.choice((65, 130, 190))
            elif kind < 0.2:
                spans = (*spans, (rng.randrange(1, 20), 20), (65534, 65535))
            made.append(
                Ask(
                    rng.choice(("backup", "display")),
                    spans,
                    count,
                    "udp" if rng.random() < 0.3 else "tcp",
                    rng.choice((0, 0, GRAIN, 15 * SECOND, 40 * SECOND)),
                    rng.choice(("", "vm-1", "a;b c\x00\n")),
                    rng.choice(({}, {"k": "v"}, {";1 ": "}é"})),
                )
            )
        return tuple(made)

    def open_lease() -> list[Step]:
        return [("open", number(), number(), rng.randrange(3), rng.choice("001"), rng.choice("nnps"))]

    def acquire(asked: tuple[Ask, ...]) -> list[Step]:
        return [("acquire", number(), rng.choice("nnnnnnrrf"), number(), rng.choice("aaat"), asked)]

    def renewal() -> tuple[int, str, tuple[int, ...]]:
        return number(), rng.choice("aaat"), some(2)

    def death() -> list[Step]:
        """A holder of many ports that does not renew, beside one that is still there when it runs out.

        Then its name is used again, or there is a silence, while most of its ports are still to be reclaimed.
        """
        many = Ask("backup", ((2000, 2399),), rng.choice((130, 190)), quarantine=rng.choice((0, 15 * SECOND)))
        dying: Step = ("open", number(), number(), rng.randrange(3, 99), "0", "p")
        late = tuple((4 * back, "t", ()) for back in range(3))
        rest: list[Step] = [
            ("time", 10 * SECOND),
            ("reclaim", 1, 1),
            ("time", 10 * SECOND),
            *open_lease(),
            ("reclaim", 1, 1),
        ]
        end: list[Step] = [
            ("time", 10 * SECOND + rng.choice((0, GRAIN))),
            *acquire((many._replace(count=401),)),
            ("renew", late),
        ]
        then: list[Step] = rng.choice(([dying, ("reclaim", 1, 3)], [("time", 20 * SECOND), ("reclaim", 1, 1)]))
        return [dying, ("acquire", 1, "n", 0, "a", (many,)), *rest, *end, *then]

    makers: list[tuple[int, Callable[[], list[Step]]]] = [
        (10, open_lease),
        (30, lambda: acquire(asks())),
        (16, lambda: [("release", number(), rng.choice("mmmmx"), some(4), rng.choice((0, 0, 0, 0, 1, -1)))]),
        (16, lambda: [("renew", tuple(renewal() for _ in range(rng.choice((0, 1, 1, 1, 2)))))]),
        (5, lambda: [("close", number(), rng.random() < 0.4, rng.choice((1, 1, 2, 9)))]),
        (6, lambda: [("reclaim", number(), rng.choice((1, 1, 3, 12)))]),
        (3, lambda: [("held", number(), number())]),
        (1, lambda: [("spaces", number())]),
        (25, lambda: [("time", rng.choice(TIMES[: rng.choice((12,) * 10 + (18, len(TIMES)))]))]),
        (2, death),
    ]
    weights = [weight for weight, _ in makers]
    made: list[Step] = []
    while len(made) < steps:
        made += rng.choices(makers, weights)[0][1]()
    return made


class Different(AssertionError):
    """The two disagree, at this step."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(what)
        self.step = step


class Player:
    """Turns steps into calls, by what the model has answered so far."""

    def __init__(self, store: servers.RedisStore | None) -> None:
        self.store = store
        self.clock = servers.VirtualClock()
        if store is not None:
            store.flush()
            self.clock = store.clock
        self.modelled = Model(clock=lambda: self.clock.now)
        self.model = MemoryBackend(self.modelled)
        self.holders: list[tuple[str, Holder]] = []
        self.numbers: dict[Holder, int] = {}
        self.ports: list[tuple[int, Port]] = []
        self.incarnations: list[int] = [1]
        self.seen: set[str] = set()
        self.log: list[str] = []

    def play(self, steps: Sequence[Step]) -> None:
        subject = self.store.connect(virtual=True) if self.store is not None else None
        try:
            for index, step in enumerate(steps):
                try:
                    self.step(subject, step)
                except (AssertionError, BackendError) as error:
                    raise Different(index, f"{error}\n" + "\n".join(self.log[-6:])) from None
        finally:
            if subject is not None:
                subject.close()

    def step(self, subject: Backend | None, step: Step) -> None:
        if step[0] == "time":
            self.log.append(f"time {step[1]}")
            self.clock.set(self.clock.now + step[1])
            return
        for method, args, kwargs in getattr(self, step[0])(*step[1:]):
            self.log.append(f"{method}{args}{kwargs or ''} at {self.clock.now}")
            expected = getattr(self.model, method)(*args, **kwargs)
            self.log.append(f"    -> {expected}")
            self.learn(method, args, expected)
            if subject is not None:
                actual = getattr(subject, method)(*args, **kwargs)
                assert repr(expected) == repr(actual), f"reply: {actual}"
        if subject is not None:
            shown, expected = subject.read(SPACES), self.model.read(SPACES)
            assert repr(expected) == repr(shown), f"read: {expected} != {shown}"
            self.check_keys()

    def learn(self, method: str, args: tuple[Any, ...], reply: Any) -> None:
        for one in reply if method == "renew" else [reply]:
            if not isinstance(one, list):
                self.seen.add(_kind(one))
        if isinstance(reply, Opened):
            holder = (args[0], Holder(args[1], reply.lease, reply.incarnation))
            if holder not in self.holders:
                self.holders.append(holder)
            self.incarnations.append(reply.incarnation)
        elif isinstance(reply, Granted):
            index = self.holders.index((args[0], args[1]))
            self.ports += [(index, port) for port in reply.ports[:3]]

    def pick(self, number: int) -> int | None:
        """A holder: mostly one with a lease, at times any of before."""
        live = [i for i, (space, proof) in enumerate(self.holders) if self.alive(space, proof)]
        choice = live if live and number % 4 else range(len(self.holders))
        return choice[-1 - number // 4 % len(choice)] if choice else None

    def alive(self, space: str, holder: Holder) -> bool:
        return not isinstance(self.modelled.space(space)._live(holder), Gone)

    def open(self, space: int, instance: int, token: int, ttl: str, supersede: str) -> Any:
        name, who = SPACES[space % 8 == 0], INSTANCES[instance % len(INSTANCES)]
        incarnation = 0
        if supersede == "p":
            leases = [lease for lease in self.model.read([name])[0].leases if lease.instance == who]
            incarnation = leases[-1].incarnation if leases else 0
        elif supersede == "s":
            incarnation = self.incarnations[instance % len(self.incarnations)]
        duration = TTLS[instance % 3 if ttl == "1" else 1]
        yield "open", (name, who), {"token": f"{token:02x}", "ttl": duration, "supersede": incarnation}

    def acquire(self, holder: int, which: str, older: int, floor: str, asks: tuple[Ask, ...]) -> Any:
        if (index := self.pick(holder)) is None:
            return
        space, proof = self.holders[index]
        last = self.numbers.get(proof, 0)
        number = {"n": last + 1, "r": max(1, last - older % 4), "f": last + 3}[which]
        self.numbers[proof] = max(last, number)
        lowest = max(1, number - older % 4) if floor == "a" else number
        yield "acquire", (space, proof, Request(number, lowest), asks), {}

    def release(self, holder: int, whose: str, which: tuple[int, ...], delta: int) -> Any:
        if (index := self.pick(holder)) is None:
            return
        mine = [port for owner, port in self.ports if owner == index or whose == "x"] or [Port(1, "tcp", 1)]
        ports = [mine[-1 - number % min(len(mine), 8)] for number in which]
        space, proof = self.holders[index]
        yield "release", (space, proof, [port._replace(fence=port.fence + delta) for port in ports]), {}

    def renew(self, parts: tuple[tuple[int, str, tuple[int, ...]], ...]) -> Any:
        renewals = []
        for holder, floor, abandoned in parts:
            if (index := self.pick(holder)) is not None:
                space, proof = self.holders[index]
                last = self.numbers.get(proof, 0)
                lowest = max(1, last - 3) if floor == "a" else last + 1
                gone = tuple(max(1, last + 1 - number % 5) for number in abandoned)
                renewals.append(Renewal(space, proof, lowest, gone))
        yield "renew", (renewals,), {}

    def close(self, holder: int, quarantine: bool, times: int) -> Any:
        if (index := self.pick(holder)) is not None:
            for _ in range(times):
                yield "close_lease", self.holders[index], {"quarantine": quarantine}

    def reclaim(self, space: int, times: int) -> Any:
        for _ in range(times):
            yield "reclaim", (SPACES[space % 4 == 0],), {}

    def held(self, holder: int, after: int) -> Any:
        if (index := self.pick(holder)) is not None:
            port = Port(after % 20, "udp" if after % 3 else "tcp", 0) if after % 2 else None
            yield "held", (*self.holders[index], port), {}

    def spaces(self, instance: int) -> Any:
        yield "spaces", ((*INSTANCES, None)[instance % 4],), {}

    def check_keys(self) -> None:
        """The raw keys of each space hold what the model holds, and nothing else."""
        assert self.store is not None
        client = self.store.client
        expected_keys = {servers.NOW}
        for name, model in self.modelled.spaces.items():
            state, due, ports, tcp, udp = (
                f"clusterports:1:{{{name}}}:{part}" for part in ("state", "due", "ports", "tcp", "udp")
            )
            expected_keys |= {"clusterports:1:spaces", state, tcp, udp}
            expected_keys |= ({due} if model._due else set()) | ({ports} if model._leases else set())
            pipe = client.pipeline(transaction=False)
            pipe.hgetall(state)
            pipe.zrange(due, 0, -1, withscores=True)
            pipe.zrange(ports, 0, -1)
            pipe.get(tcp)
            pipe.get(udp)
            fields, its_due, members, *bits = pipe.execute()
            assert model._due == {item.decode(): int(at) for item, at in its_due}, "due"
            held = {f"{port.lease.id}/{name}" for name, port in model._ports.items() if port.until is None}
            leases = {f"lease/{id}" for id in model._leases}
            assert held | leases == {item.decode() for item in members}, "ports"
            for protocol, bitmap in zip(("tcp", "udp"), bits, strict=True):
                assert _bitmap(model, protocol) == bitmap, protocol
            self.check_state({field.decode(): value.decode() for field, value in fields.items()}, model, leases)
        keys = {key.decode() for key in client.scan_iter()}
        assert expected_keys == keys, "keys"
        pipe = client.pipeline(transaction=False)
        for key in sorted(keys):
            pipe.ttl(key)
        assert {-1} == set(pipe.execute()), "a key with a TTL"

    def check_state(self, fields: dict[str, str], model: Space, leases: set[str]) -> None:
        own = {name: int(fields.pop(name)) for name in ("schema", "clock", "seen", "fence", "min_ttl", "next")}
        expected = {"schema": 1, "clock": model._clock, "seen": model._seen, "fence": model._fence}
        assert expected == {name: own[name] for name in expected}, "state"
        assert own["next"] <= min(model._due.values(), default=own["next"]), "next: too late"
        live = [lease.ttl for lease in model._leases.values() if lease.expires > model._clock]
        assert not live or 0 < own["min_ttl"] <= min(live), "min_ttl"
        names = {f"name/{json.dumps(instance)}": str(id) for instance, id in model._names.items()}
        assert names == {name: value for name, value in fields.items() if name.startswith("name/")}, "names"
        done = {f"done/{id}": [lease.floor, *sorted(lease.done)] for id, lease in model._leases.items()}
        actual = {name: _done(value) for name, value in fields.items() if name.startswith("done/")}
        assert done == actual, "done"
        assert {*names, *done, *leases, *model._ports} == set(fields), "fields"


def _kind(reply: Any) -> str:
    match reply:
        case Full(_, holder, backlog):
            return f"Full {holder and holder.state} {'backlog' if backlog else ''}".rstrip()
        case Gone(reason):
            return f"Gone {reason}"
        case Renewed(flag) | Reclaimed(flag) | Closed(flag):
            return f"{type(reply).__name__} {flag}"
        case Released(count) | Opened(_, _, count):
            return f"{type(reply).__name__} {'some' if count else 'none'}"
        case Granted() | Stale() | Occupied() | Held():
            return type(reply).__name__
    return "list"


def _bitmap(model: Space, protocol: str) -> bytes:
    bits = bytearray(8192)
    for name in model._ports:
        if name.startswith(protocol):
            number = int(name[4:])
            bits[number >> 3] |= 0x80 >> (number & 7)
    return bytes(bits)


def _done(record: str) -> list[int]:
    head, *entries = record.split(";")
    return [int(head.split()[0]), *sorted(int(entry.split()[0]) for entry in entries)]


def shortest(
    steps: list[Step], store: servers.RedisStore, seconds: float = 30.0
) -> tuple[list[Step], Different | None]:
    """Leave out what the failure does not need, as long as there is time."""
    deadline = time.monotonic() + seconds
    found: Different | None = None
    size = len(steps)
    while size:
        at = 0
        while at < len(steps):
            if time.monotonic() > deadline:
                return steps, found
            fewer = steps[:at] + steps[at + size :]
            try:
                Player(store).play(fewer)
                at += size
            except Different as error:
                steps, found = fewer[: error.step + 1], error
        size //= 2
    return steps, found


@pytest.mark.parametrize("seed", SEEDS)
def test_same_as_the_state_machine(redis_store: servers.RedisStore, seed: int) -> None:
    """Every reply, everything visible and every key are those of the state machine, step by step."""
    steps = generate(seed, STEPS)
    found = None
    try:
        Player(redis_store).play(steps)
    except Different as error:
        found = error
    if found is not None:
        few, shown = shortest(steps[: found.step + 1], redis_store)
        pytest.fail(f"seed {seed}, step {found.step}: {shown or found}\nplay({few!r})", pytrace=False)


class Histories(RuleBasedStateMachine):
    """Hypothesis puts short histories one behind the other, and takes away those that a failure does not need."""

    store: servers.RedisStore

    def __init__(self) -> None:
        super().__init__()
        self.player = Player(self.store)

    @rule(seed=st.integers(0, 2**32 - 1))
    def ten_steps(self, seed: int) -> None:
        self.player.play(generate(seed, 10))


def test_stateful(redis_store: servers.RedisStore) -> None:
    """The same with Hypothesis choosing: runs of at least 500 steps."""

    class Here(Histories):
        store = redis_store

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=3 if CI else 2,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
        ),
    )


def test_histories_reach_everything() -> None:
    """Every kind of reply occurs in the histories, so none goes uncompared."""
    seen: set[str] = set()
    for seed in range(4):
        player = Player(None)
        player.play(generate(seed, 700))
        seen |= player.seen
    assert {
        *("Opened none", "Opened some", "Occupied", "Granted", "Stale", "Held", "Gone expired", "Gone superseded"),
        *("Full None", "Full held", "Full cooling", "Full None backlog", "Released none", "Released some"),
        *("Renewed False", "Renewed True", "Reclaimed False", "Reclaimed True", "Closed False", "Closed True"),
    } <= seen
