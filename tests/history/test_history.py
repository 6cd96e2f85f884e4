"""Random histories: the Redis backend and the state machine get the same calls at the same times.

After each step the replies, all that `read` shows, the events that were written, and the raw keys must agree. A step
is a plain tuple that refers to what there is by number, so any part of a history is a history too: a failing one is cut
down before it is shown, and it can be pasted into `play` as it is.
"""

from __future__ import annotations

import copy
import json
import os
import random
import time
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import pytest
import servers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from clusterports._space import _OVER, GRAIN, MAX_GAP, Space, member, parse_member
from clusterports.abc import (
    Ask,
    Claim,
    Claimed,
    Closed,
    Event,
    EventKind,
    Events,
    Full,
    Gone,
    Granted,
    Held,
    Holder,
    Marked,
    Occupied,
    Opened,
    Port,
    PortView,
    Queued,
    Reclaimed,
    Recovering,
    Released,
    Renewal,
    Renewed,
    Request,
    SpaceView,
    Stale,
    Wait,
)
from clusterports.errors import BackendError
from clusterports.ranges import merged
from clusterports_memory import MemoryBackend
from clusterports_memory import Store as MemorySpaces
from clusterports_redis import RedisBackend
from clusterports_redis._scripts import Scripts
from clusterports_redis._wire import owner_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clusterports.abc import Backend

FULL: Final = os.environ.get("CLUSTERPORTS_FULL") == "1"
STEPS: Final = 1000 if FULL else 500
SEEDS: Final = range(3 if FULL else 2)
SPACES: Final = ("host:a", "host:b%7D")
INSTANCES: Final = ("one", "}x{ \n\x1b[0m", "drei\u4e2d")
RANGES: Final = ("backup", "backup", "display", "", "a.b-c_d")
OWNERS: Final = ("", "vm-1", "a;b c\x00\n")
SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
TTLS: Final = (3 * SECOND, 30 * SECOND, 31 * SECOND)
TIMES: Final = (
    *(0, 1, GRAIN - 1, GRAIN, 50_000, 50_000, SECOND, SECOND, SECOND, 5 * SECOND, 5 * SECOND, -SECOND),
    *(TTLS[1] // 3, TTLS[1] // 3 + 1, TTLS[0] - 1, TTLS[0], TTLS[1], TTLS[2] + 15 * SECOND),
    *(100 * SECOND, MAX_GAP, MAX_GAP + SECOND, DAY, -1, -DAY),
)
FORCED: Final = ("held", "held", "held", "cooling", "foreign", "fence", "state")
STATES: Final[tuple[Literal["held", "cooling", "foreign"], ...]] = ("held", "cooling", "foreign")
NOBODYS: Final = PortView(1, "tcp", "held", "", "", {}, "", 1, 1, 0, None)
ALL: Final = 100_000
KEEPING_ALL: Final = Scripts(clock=servers.VIRTUAL_CLOCK, kept=ALL)
"""One step of a history may tell more than a log usually keeps."""
WINDOWS: Final = (0, GRAIN, SECOND, 5 * SECOND, 5 * SECOND, 100 * SECOND)

Step = tuple[Any, ...]


class Model(MemorySpaces):
    """The state machine as a server runs it."""

    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__(clock, events=ALL)

    def space(self, name: str) -> Space:
        return self.spaces.get(name) or Space(name, max_gap=MAX_GAP)


def generate(seed: int, steps: int) -> list[Step]:
    rng = random.Random(seed)

    def number() -> int:
        return rng.randrange(1 << 20)

    def some(most: int) -> tuple[int, ...]:
        return tuple(number() for _ in range(rng.randrange(most + 1)))

    def spans_of(kind: str) -> tuple[tuple[int, int], ...]:
        first = rng.randrange(1, 12)
        match kind:
            case "several":
                return ((first, first + rng.choice((0, 3))), (rng.randrange(1, 20), 20), (65534, 65535))
            case "circle":  # two spans and a band
                a, b, c, d = sorted(rng.sample(range(1, 24), 4))
                return ((a, b), (c, d), (rng.randrange(1, 12), 12))
            case "wide":
                return ((1000, 1199),)
            case "area":
                low = 3000 + rng.randrange(40)
                return ((low, low + rng.choice((20, 60, 150))), (3010, 3099))[: rng.choice((1, 1, 2))]
        return ((first, first + rng.choice((0, 0, 3, 8))),)

    def an_ask() -> Ask:
        """Half of them are as plain as most are in practice."""
        kind = rng.choices(("few", "several", "circle", "wide", "area"), (70, 13, 6, 5, 6))[0]
        count = rng.choice((65, 130, 190)) if kind == "wide" else rng.choice((1, 1, 1, 2, 5))
        made = Ask(
            rng.choice(RANGES),
            spans_of(kind),
            count,
            rng.choice(("tcp", "tcp", "tcp", "udp", "both")),
            rng.choice((0, 0, GRAIN, 15 * SECOND, 40 * SECOND)),
            rng.choice(OWNERS),
            rng.choice(({}, {"k": "v"}, {";1 ": "}é"})),
        )
        if rng.random() < 0.5:
            return made
        made = made._replace(
            cooldown=rng.choice((0, 0, GRAIN, SECOND, 40 * SECOND)),
            limit=rng.choice((0, 0, 1, 2, 5, 6)),
            host=rng.choice(("", "", "kvm-07", "}x{\n")),
            rotate={"circle": 2, "few": 1}.get(kind, 0) if rng.random() < 0.5 else 0,
        )
        if rng.random() < 0.3:
            number = made.spans[0][0]
            return made._replace(spans=((number, number),), count=1, rotate=0, explicit=True)
        if kind == "area" or rng.random() < 0.2:
            return block(made)
        return made

    def block(asked: Ask) -> Ask:
        return asked._replace(
            count=rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 20)), align=rng.choice((1, 1, 2, 3, 4, 8))
        )

    def asks() -> tuple[Ask, ...]:
        return tuple(an_ask() for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 3))))

    def open_lease() -> list[Step]:
        knew = rng.choice("0" * 60 + "kkklllbm")
        return [("open", number(), number(), rng.randrange(3), rng.choice("001"), rng.choice("nnps"), knew)]

    def floor() -> str:
        """An older one, or the latest; with the latest fence as what is known (l), or one that is lost (m)."""
        return rng.choice("a" * 150 + "t" * 48 + "l" * 25 + "m")

    def place() -> tuple[int, str, int]:
        """Window, whose ticket, which."""
        return rng.choice(WINDOWS), rng.choice("nnooooxfw"), number()

    def acquire(asked: tuple[Ask, ...], wait: tuple[int, str, int] | None = None) -> list[Step]:
        return [("acquire", number(), rng.choice("nnnnnnrrf"), number(), floor(), asked, wait)]

    def one_acquire() -> list[Step]:
        asked = asks()
        return acquire(asked, place() if len(asked) == 1 and rng.random() < 0.2 else None)

    def release() -> list[Step]:
        return [("release", number(), rng.choice("mmmmx"), some(4), rng.choice((0, 0, 0, 0, 1, -1)))]

    def mark() -> list[Step]:
        how = (
            rng.choice(("backup", "backup", *RANGES)),
            rng.choice((GRAIN, SECOND, 30 * SECOND)),
            rng.choice((0, 1, 2, 50)),
        )
        host = rng.choice(("", "", "kvm-08"))
        return [("mark", number(), rng.choice("mmmx"), some(3), rng.choice((0, 0, 0, 1, -1)), *how, host)]

    def fragments() -> list[Step]:
        """Scattered ports, and blocks between them."""
        scattered = sorted(rng.sample(range(3000, 3200), rng.randrange(5, 40)))
        protocol = rng.choice(("tcp", "udp", "both"))
        taken = Ask("backup", tuple((n, n) for n in scattered), len(scattered) * 4 // 5, protocol)  # type: ignore[arg-type]
        few = [block(Ask("backup", spans_of("area"), protocol=rng.choice(("tcp", "udp", "both")))) for _ in range(3)]
        return [*acquire((taken,)), ("preview", number(), (few[0],)), *acquire((few[1],)), *acquire(tuple(few[1:]))]

    def rounds() -> list[Step]:
        """One range goes round, in single numbers and blocks, most of which are given back at once."""
        low, size, name, circle = rng.randrange(40, 50), rng.choice((3, 4, 6)), rng.choice(RANGES), rng.choice((1, 2))
        spans = ((low, low + size - 1), (low + 8, low + 7 + rng.choice((1, 3))), (low - 4, low - 1))
        made: list[Step] = []
        for _ in range(5):
            asked = Ask(name, spans, rng.choice((1, 1, 2, size)), align=rng.choice((0, 1, 1, 2)), rotate=circle)
            made += [("acquire", 1, "n", 0, "a", (asked,), None), ("preview", 1, (asked,))]
            made += [("release", 1, "m", tuple(range(asked.count)), 0)] if rng.random() < 0.8 else []
        return made

    def contested() -> list[Step]:
        """One number that is held, cools or is foreign, and those who want this very one."""
        asked = an_ask()
        first = asked.spans[0][0]
        asked = asked._replace(spans=((first, first),), count=1, align=0, rotate=0)
        wanted = asked._replace(
            protocol=rng.choice(("tcp", "udp", "both")), explicit=True, running=rng.choice((False, False, True))
        )
        before: Step = ("acquire", 1, "n", 0, "a", (asked._replace(cooldown=rng.choice((0, 40 * SECOND))),), None)
        marked: Step = ("mark", 1, "m", (0,), 0, asked.range, 30 * SECOND, 50, "")
        waits = acquire((asked._replace(spans=((first, first + 3),), count=4, limit=0),), (5 * SECOND, "n", 0))
        ended: list[Step] = rng.choice(
            (
                [],
                [("release", 1, "m", (0,), 0)],
                [marked],
                [marked, ("close", 1, False, 2), *open_lease()],
                [marked, *waits],
                [marked, *waits],
                waits,
            )
        )
        wants = [*acquire((wanted,), place() if rng.random() < 0.3 else None), ("time", rng.choice((0, GRAIN)))]
        made = [before, *ended, ("preview", 1, (wanted,)), *wants, *acquire((an_ask(), wanted))]
        if rng.random() < 0.3:  # and their owner has as many as it may
            two = asked._replace(spans=((first + 1, first + 9),), count=2, limit=2)
            wanted = wanted._replace(limit=1)
            made += [*acquire((two,)), ("preview", 1, (wanted,)), *acquire((wanted._replace(running=True),))]
        return made

    def line() -> list[Step]:
        """Some wait for the same few ports, these are given back, and they come again, with others between them."""
        first = rng.randrange(1, 24)
        all_three = an_ask()._replace(spans=((first, first + 2),), count=3, align=0, rotate=0, explicit=False, limit=0)
        made: list[Step] = [("acquire", 1, "n", 0, "a", (all_three,), None)]
        asked = all_three
        for _ in range(rng.choice((1, 2, 3))):
            asked = all_three._replace(
                count=rng.choice((1, 2, 3)), protocol=rng.choice(("tcp", "udp", "both")), limit=rng.choice((0, 0, 0, 3))
            )
            if rng.random() < 0.3:
                running = rng.choice((False, False, True))
                asked = asked._replace(spans=((first, first),), count=1, explicit=True, running=running)
            made += acquire((asked,), (rng.choice((5 * SECOND, 100 * SECOND)), "n", 0))
        ends: list[Step] = [
            *(("release", 1, "m", (0, 1, 2), 0), ("release", 1, "m", (0,), 0)),
            ("mark", 1, "m", (0, 1, 2), 0, "backup", SECOND, 1, ""),
            ("close", 1, False, 2),
            ("time", TTLS[1] + SECOND),
        ]
        made += [("time", rng.choice((0, 0, GRAIN, SECOND))), rng.choice(ends)]
        for _ in range(4):
            made += acquire((asked,), (rng.choice(WINDOWS), rng.choice("ooox"), number()))
        newcomer = acquire((all_three._replace(count=1),))
        at = rng.randrange(len(made))
        return [*made[:at], *newcomer, ("preview", 1, (asked, all_three)), *made[at:]]

    def renewal() -> tuple[int, str, tuple[int, ...], str]:
        return number(), floor(), some(2), rng.choice("--=!")

    def claim(by: int, number: int) -> list[Step]:
        """Ports of its own instance, of anybody, of those in use now, or many that nobody ever had."""
        whose = rng.choice("mmmmxssw")
        most = 70 if whose == "w" else rng.choice((1, 2, 4))
        which = tuple(rng.randrange(1 << 20) for _ in range(rng.randrange(1, most + 1)))
        delta = rng.choice((0, 0, 0, 0, 0, 1, -1, SECOND, -SECOND))
        return [("claim", by, rng.choice("nnnnnnrrf"), number, rng.choice("aaat"), whose, which, delta, an_ask())]

    def recovery() -> list[Step]:
        """Time passes, with heartbeats, until ports are given out again."""
        beat = tuple((4 * back + 1, "a", (), "=") for back in range(4))
        return [*(("renew", beat), ("time", 9 * SECOND)) * rng.choice((0, 4, 4, 4))]

    def lost() -> list[Step]:
        """The store forgets everything, or what it heard since a while ago. Holders come and claim what they had."""
        taken_over: list[Step] = [("open", 1, number(), rng.randrange(2), "0", "p"), *acquire((an_ask(),))]
        since = rng.choice(([], release(), [("time", SECOND)], open_lease(), by_force(), taken_over, taken_over))
        since = [*acquire((an_ask(),)), *since]
        made: list[Step] = [*acquire((an_ask(),)), ("save",), *since, *rng.choice(([], [("time", 5 * SECOND)]))]
        made += [("lose", rng.choice(("all", "late", "late"))), ("held", 0, 0)]
        made += [("mark", 0, "m", (0,), 0, "", SECOND, 1, "")]
        made += rng.choice(([], one_acquire(), open_lease()))
        for _ in range(rng.choice((1, 2, 3))):
            ttl = rng.choice("001")
            made += [("open", 1, number(), rng.randrange(2), ttl, rng.choice("nnp"), rng.choice("kkkkl0bm"))]
            made += [("renew", ((1, "a", (), rng.choice("-=!")),)), *claim(1, 1)]
            made += rng.choice(([], claim(1, 1), mark()))
            made += [*one_acquire(), ("preview", 1, asks()), ("time", rng.choice((0, GRAIN, SECOND)))]
        made += rng.choice(([], claim(1, number()), [("close", 1, False, 2), ("drop", 1)]))
        return [*made, *recovery(), *one_acquire()]

    def by_force() -> list[Step]:
        """Some are taken from their holder, who hears of it, or goes on, or has a successor."""
        taken: list[Step] = [("force", 1, number(), rng.choice(FORCED)) for _ in range(rng.choice((1, 1, 2, 5)))]
        told: Step = ("renew", tuple((number(), "a", ()) for _ in range(rng.choice((1, 2, 4)))))
        after: list[Step] = rng.choice(([told], [told, told], release(), open_lease(), one_acquire()))
        return [*acquire((an_ask(),)), *taken, *rng.choice(([], [told])), *after, told]

    def ending() -> list[Step]:
        """All run out, and the space is removed, if nothing is left of it."""
        space = rng.choice((1, 1, 4))
        late: list[Step] = [("time", 101 * SECOND), ("reclaim", space, 12)]
        then = [*open_lease(), *one_acquire(), ("drop", space)]
        return [("drop", space), *late, *late, *late, ("drop", space), *rng.choice(([], [("drop", space)], then))]

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
            *acquire((many._replace(count=401),), rng.choice((None, (5 * SECOND, "n", 0)))),
            ("renew", late),
        ]
        back: Step = ("claim", 1, "n", 0, "a", "m", (0, 1, 2, 3), rng.choice((0, 0, 1)), an_ask())
        then: list[Step] = rng.choice(([dying, ("reclaim", 1, 3)], [("time", 20 * SECOND), ("reclaim", 1, 1)]))
        if rng.random() < 0.3:
            end, then = [end[0], dying, back], [*end[1:], ("reclaim", 1, 3)]
        return [dying, ("acquire", 1, "n", 0, "a", (many,)), *rest, *end, *then]

    def conflict() -> list[Step]:
        """Somebody claims one number that is held, cools or is foreign, once or more often."""
        first = rng.randrange(1, 20)
        asked = an_ask()._replace(spans=((first, first),), count=1, align=0, rotate=0, explicit=True, limit=0)
        made: list[Step] = acquire((asked._replace(cooldown=rng.choice((0, 40 * SECOND))),))
        marked: Step = ("mark", 1, "m", (0,), 0, asked.range, 30 * SECOND, 50, "")
        made += rng.choice(([], [("release", 1, "m", (0,), 0)], [marked], [("force", 1, number(), "held")]))
        for _ in range(rng.choice((1, 1, 2, 3))):
            made += rng.choice(([], [], open_lease()))
            delta, by, protocol = rng.choice((0, 1, -1, -1, SECOND)), rng.choice((1, 5, 5, 9)), rng.choice((0, 0, 3))
            made += [("claim", by, "n", protocol, "a", "x", (0,), delta, an_ask())]
        return [*made, *rng.choice(([], release())), *recovery()]

    makers: list[tuple[int, Callable[[], list[Step]]]] = [
        (10, open_lease),
        (30, one_acquire),
        (4, line),
        (2, fragments),
        (4, contested),
        (2, rounds),
        (16, release),
        (6, mark),
        (4, lambda: [("preview", number(), asks())]),
        (16, lambda: [("renew", tuple(renewal() for _ in range(rng.choice((0, 1, 1, 1, 2)))))]),
        (5, lambda: [("close", number(), rng.random() < 0.4, rng.choice((1, 1, 2, 9)))]),
        (6, lambda: [("reclaim", number(), rng.choice((1, 1, 3, 12)))]),
        (3, lambda: [("held", number(), number())]),
        (1, lambda: [("spaces", number())]),
        (4, by_force),
        (2, lambda: [("force", number(), number(), rng.choice(FORCED))]),
        (1, ending),
        (25, lambda: [("time", rng.choice(TIMES[: rng.choice((12,) * 10 + (18, len(TIMES)))]))]),
        (2, death),
        (1, lambda: claim(number(), number())),
        (1, lambda: [("save",)]),
        (2, lost),
        (5, conflict),
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


class Logs:
    """What was told of the spaces, by the model and by what is compared with it: read as far as ``at``."""

    def __init__(self) -> None:
        self.at: list[dict[str, str]] = [{}, {}]
        self.earlier = self.at

    def step(self) -> None:
        """Before a step that may tell something."""
        self.earlier = [dict(cursors) for cursors in self.at]

    def forget(self) -> None:
        """All that was there is no more: whatever is there now counts as read."""
        self.at, self.earlier = [{}, {}], [{}, {}]

    def read(self, *stores: Backend | None) -> list[Event]:
        """What is new, which is the same in both."""
        new = [self._read(store, cursors) for store, cursors in zip(stores, self.at, strict=True) if store is not None]
        return self._compared(new)

    def read_again(self, *stores: Backend | None) -> list[Event]:
        """The same as after the last step, with its age now."""
        both = zip(stores, self.earlier, strict=True)
        return self._compared([self._read(store, dict(cursors)) for store, cursors in both if store is not None])

    @staticmethod
    def _compared(new: list[list[Event]]) -> list[Event]:
        assert new[0] == new[-1], f"told: {new[0]} != {new[-1]}"
        return new[0]

    @staticmethod
    def _read(store: Backend, cursors: dict[str, str]) -> list[Event]:
        """One after the other for each port; in which order a step tells of several does not matter."""
        found: list[Event] = []
        for log in store.events({space: cursors.get(space, "") for space in SPACES}, ALL):
            assert isinstance(log, Events), log
            if log.space in cursors:
                found += sorted(log.events, key=lambda event: member(event.protocol, event.number))
            cursors[log.space] = log.cursor
        return found


class Player:
    """Turns steps into calls, by what the model has answered so far."""

    def __init__(self, store: servers.Store | None) -> None:
        self.store = store
        self.clock = servers.VirtualClock()
        if store is not None:
            store.flush()
            self.clock = store.clock
        self.modelled: MemorySpaces = Model(lambda: self.clock.now)
        self.model = MemoryBackend(self.modelled)
        self.logs = Logs()
        self.holders: list[tuple[str, Holder]] = []
        self.numbers: dict[Holder, int] = {}
        self.ports: list[tuple[int, Port]] = []
        self.tickets: list[tuple[int, int, tuple[Ask, ...]]] = []
        self.incarnations: list[int] = [1]
        self.revoked: list[int] = []
        self.saved: tuple[Any, Any] = (({}, {}), None)
        self.seen: set[str] = set()
        self.log: list[str] = []

    def play(self, steps: Sequence[Step]) -> None:
        subject = self.store.connect(virtual=True) if self.store is not None else None
        if isinstance(subject, RedisBackend) and subject._scripts.kept:
            subject._scripts = KEEPING_ALL
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
            self.check_views(subject)
            self.logs.read_again(self.model, subject)
            return
        self.logs.step()
        for method, args, kwargs in getattr(self, step[0])(*step[1:]):
            if self.mistaken(args):
                continue
            self.log.append(f"{method}{args}{kwargs or ''} at {self.clock.now}")
            marked = self.marked(args[0]) if method == "acquire" else set()
            if method == "claim":
                self.seen |= self.claimed(*args)
            expected = getattr(self.model, method)(*args, **kwargs)
            self.log.append(f"    -> {expected}")
            self.learn(method, (*args, kwargs), expected, marked)
            if subject is not None:
                actual = getattr(subject, method)(*args, **kwargs)
                assert repr(expected) == repr(actual), f"reply: {actual}"
            if method == "drop" and expected:
                self.logs.forget()
        for space in self.modelled.spaces.values():
            self.seen |= {f"port {port.state}" for port in space._ports.values()}
        self.check_views(subject)
        self.seen |= {f"told {event.kind}" for event in self.logs.read(self.model, subject)}
        if isinstance(self.store, servers.RedisStore):
            self.check_keys(self.store)

    def mistaken(self, args: tuple[Any, ...]) -> bool:
        """Whether a lease that was lost has the number of another's, as it can where time stands still or goes back."""
        proofs = [(one.space, one.holder) for one in args[0]] if isinstance(args[0], list) else [args[:2]]
        leases = [
            (self.modelled.space(space)._leases.get(proof.lease), proof)
            for space, proof in (proof for proof in proofs if isinstance(proof[-1], Holder))
        ]
        return any(lease is not None and lease.instance != proof.instance for lease, proof in leases)

    def view(self, space: str) -> SpaceView:
        (view,) = self.model.read([space])
        assert isinstance(view, SpaceView)
        return view

    def check_views(self, subject: Backend | None) -> None:
        expected = [self.view(space) for space in SPACES]
        if any(lease.grace for view in expected for lease in view.leases):
            self.seen.add("grace")
        if subject is not None:
            shown = subject.read(SPACES)
            assert repr(expected) == repr(shown), f"read: {expected} != {shown}"

    def marked(self, space: str) -> set[str]:
        ports = self.modelled.space(space)._ports
        return {name for name, port in ports.items() if port.state == "foreign"}

    def claimed(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> set[str]:
        """In which ways a claim will meet with what is there."""
        lease = self.modelled.space(space)._live(holder)
        if isinstance(lease, Gone):
            return set()
        if request.number in lease.done or request.number < lease.floor:
            return {"claim again"}
        ports, words = self.modelled.space(space)._ports, set()
        for (number, protocol, fence), _ in claims:
            names = [member(kind, number) for kind in _OVER[protocol]]
            words |= {"claim free"} if not any(name in ports for name in names) else set()
            for port, name in ((ports[name], name) for name in names if name in ports):
                whose = port.state if port.lease.id != holder.lease else f"own {port.state}"
                if port.state == "held" and port.lease is not lease and port.lease.instance == holder.instance:
                    whose = "former"
                how = "higher" if port.fence > fence else "lower" if port.fence < fence else "same"
                words.add(f"claim {whose} {how}{'' if name == names[0] else ' other protocol'}")
        return words

    def learn(self, method: str, args: tuple[Any, ...], reply: Any, marked: set[str]) -> None:
        for one in reply if method == "renew" else [reply]:
            if not isinstance(one, list):
                self.seen.add(_kind(one) if method != "preview" else f"preview {_kind(one)}")
            if isinstance(one, Renewed) and one.revoked:
                self.revoked += [port.fence for port in one.revoked]
                self.seen.add("Renewed and told of one" if len(one.revoked) == 1 else "Renewed and told of more")
            if one == Gone("unknown") and method != "renew":
                known = args[1].lease in self.modelled.space(args[0])._leases
                self.seen.add("newer than lease" if known else "no lease")
        if method == "open" and (space := self.modelled.space(args[0]))._recovering > space._clock:
            self.seen.add(f"{type(reply).__name__} knew {'less' if args[2]['knew'] < space._born else 'more'}")
        if method == "drop" and not reply and not self.modelled.space(args[0])._due:
            self.seen.add("drop recovering")
        if method in ("force", "drop"):
            self.seen.add(f"{method} {args[1].state} {reply}" if method == "force" else f"drop {reply}")
            return
        if method == "preview":
            return
        if isinstance(reply, Opened):
            holder = (args[0], Holder(args[1], reply.lease, reply.incarnation))
            if holder not in self.holders:
                self.holders.append(holder)
            self.incarnations.append(reply.incarnation)
        elif isinstance(reply, Granted):
            index = self.holders.index((args[0], args[1]))
            self.ports += [(index, port) for port in (*reply.ports[:5], *reply.ports[5:][-1:])]
            self.seen |= {f"Granted {port.protocol}" for port in reply.ports}
            self.seen |= {
                name
                for ask in args[3]
                for name in ("align", "rotate", "limit", "explicit", "running")
                if getattr(ask, name)
            }
            owned = self.modelled.space(args[0])._owned
            if any(ask.limit and owned.get((ask.range, ask.owner), 0) > ask.limit for ask in args[3]):
                self.seen.add("Granted over a limit")
            if any(member(kind, port.number) in marked for port in reply.ports for kind in _OVER[port.protocol]):
                self.seen.add("Granted over a mark")
            if args[4] is not None and args[4].ticket:
                self.seen.add("Granted with ticket")
        elif isinstance(reply, Queued):
            self.tickets.append((self.holders.index((args[0], args[1])), reply.ticket, args[3]))
        elif isinstance(reply, Released):
            ports = self.modelled.space(args[0])._ports
            if any(
                member(p.protocol, p.number) in ports and ports[member(p.protocol, p.number)].fence == p.fence
                for p in args[2]
            ):
                self.seen.add("Released to cool")

    def pick(self, number: int) -> int | None:
        """A holder: mostly one with a lease, at times any of before."""
        live = [i for i, (space, proof) in enumerate(self.holders) if self.alive(space, proof)]
        choice = live if live and number % 4 else range(len(self.holders))
        return choice[-1 - number // 4 % len(choice)] if choice else None

    def alive(self, space: str, holder: Holder) -> bool:
        return not isinstance(self.modelled.space(space)._live(holder), Gone)

    def open(self, space: int, instance: int, token: int, ttl: str, supersede: str, knew: str = "0") -> Any:
        name, who = SPACES[space % 8 == 0], INSTANCES[instance % len(INSTANCES)]
        incarnation = 0
        if supersede == "p":
            leases = [lease for lease in self.view(name).leases if lease.instance == who]
            incarnation = leases[-1].incarnation if leases else 0
        elif supersede == "s":
            incarnation = self.incarnations[instance % len(self.incarnations)]
        duration = TTLS[instance % 3 if ttl == "1" else 1]
        how = {"token": f"{token:02x}", "ttl": duration, "supersede": incarnation, "knew": self.knew(name, who, knew)}
        yield "open", (name, who), how

    def knew(self, space: str, instance: str, how: str) -> int:
        """k: a fence of its own; b: as before the space; l: its last; m: more than that. 0: none."""
        known = self.modelled.space(space)
        own = [port.fence for _, port in self.own(space, instance)]
        return {
            "k": max(own, default=0),
            "b": max(0, known._born - 1),
            "l": known._fence,
            "m": known._fence + 1 + len(own) * SECOND,
        }.get(how, 0)

    def own(self, space: str, instance: str) -> list[tuple[int, Port]]:
        """What was ever given to this instance."""
        return [
            (owner, port)
            for owner, port in self.ports
            if self.holders[owner][0] == space and self.holders[owner][1].instance == instance
        ]

    def claim(
        self, holder: int, which: str, older: int, floor: str, whose: str, ports: tuple[int, ...], delta: int, ask: Ask
    ) -> Any:
        if (index := self.pick(holder)) is None:
            return
        space, proof = self.holders[index]
        number, lowest = self.request(proof, which, older, floor)
        if whose == "w":
            mine = [Port(4000 + i, ask.protocol, self.modelled.space(space)._fence - i) for i in range(len(ports))]
        elif whose == "s":
            now = (self.view(space).ports or (NOBODYS,))[:40]
            mine = [Port(now[i % len(now)].number, ask.protocol, now[i % len(now)].fence) for i in ports]
        else:
            known = [port for _, port in (self.ports if whose == "x" else self.own(space, proof.instance))]
            known = known or [Port(1, "tcp", 1)]
            mine = [known[-1 - i % min(len(known), 12)] for i in ports]
        if older % 4 == 3:
            mine = [port._replace(protocol=ask.protocol) for port in mine]
        claims = [Claim(port._replace(fence=max(1, port.fence + delta)), ask) for port in mine]
        yield "claim", (space, proof, Request(number, lowest), claims), {}

    def request(self, proof: Holder, which: str, older: int, floor: str) -> tuple[int, int]:
        last = self.numbers.get(proof, 0)
        number = {"n": last + 1, "r": max(1, last - older % 4), "f": last + 3}[which]
        self.numbers[proof] = max(last, number)
        return number, max(1, number - older % 4) if floor == "a" else number

    def save(self) -> Any:
        self.saved = copy.deepcopy((self.modelled.spaces, self.modelled.logs)), self.copied()
        return ()

    def lose(self, what: str) -> Any:
        if what == "all":
            self.saved = ({}, {}), None
        known, stored = self.saved
        self.modelled.spaces, self.modelled.logs = copy.deepcopy(known)
        self.put_back(stored)
        self.logs.forget()
        return ()

    def copied(self) -> Any:
        """All that is in the store."""
        if not isinstance(self.store, servers.RedisStore):
            return None
        client = self.store.client
        return [(key, client.dump(key)) for key in client.scan_iter() if key != servers.NOW.encode()]

    def put_back(self, stored: Any) -> None:
        """The store has only what it had then."""
        if isinstance(self.store, servers.RedisStore):
            client = self.store.client
            client.flushall()
            for key, value in stored or ():
                client.restore(key, 0, value)
            self.clock.set(self.clock.now)

    def acquire(
        self,
        holder: int,
        which: str,
        older: int,
        floor: str,
        asks: tuple[Ask, ...],
        place: tuple[int, str, int] | None = None,
    ) -> Any:
        if (index := self.pick(holder)) is None:
            return
        wait = None
        if place is not None:
            window, whose, ticket = place
            index, asks, ticket = self.ticket(index, asks, whose, ticket)
            wait = Wait(window, ticket, keep=older % 5 == 1)
        space, proof = self.holders[index]
        known = self.knew(space, proof.instance, floor)
        number, lowest = self.request(proof, which, older, "t" if floor == "t" else "a")
        yield "acquire", (space, proof, Request(number, lowest, known), asks, wait), {}

    def ticket(self, index: int, asks: tuple[Ask, ...], whose: str, number: int) -> tuple[int, tuple[Ask, ...], int]:
        """Who comes with which ticket for what: mostly the one that has it, for the same as before."""
        if whose == "n" or not self.tickets:
            return index, asks, 0
        if whose == "f":
            return index, asks, self.modelled.space(self.holders[index][0])._fence + 1 + number % 3
        recent = self.tickets[-8:]
        live = [each for each in recent if self.alive(*self.holders[each[0]])]
        choice = live if live and number % 8 else recent
        owner, ticket, wanted = choice[-1 - number // 8 % len(choice)]
        if whose == "w":
            return owner, wanted, ticket - 1 - number % 2
        if whose == "x":
            space = self.holders[owner][0]
            others = [i for i, one in enumerate(self.holders) if one[0] == space and i != owner and self.alive(*one)]
            return (others[number // 64 % len(others)] if others else index), wanted, ticket
        return owner, wanted if number // 64 % 8 else asks, ticket

    def release(self, holder: int, whose: str, which: tuple[int, ...], delta: int) -> Any:
        if (index := self.pick(holder)) is not None:
            yield "release", (*self.holders[index], self.some_ports(index, whose, which, delta)), {}

    def some_ports(self, index: int, whose: str, which: tuple[int, ...], delta: int) -> list[Port]:
        mine = [port for owner, port in self.ports if owner == index or whose == "x"] or [Port(1, "tcp", 1)]
        ports = [mine[-1 - number % min(len(mine), 8)] for number in which]
        return [port._replace(fence=port.fence + delta) for port in ports]

    def mark(
        self,
        holder: int,
        whose: str,
        which: tuple[int, ...],
        delta: int,
        range: str,
        duration: int,
        most: int,
        host: str,
    ) -> Any:
        if (index := self.pick(holder)) is not None:
            how = {"range": range, "duration": duration, "most": most, "host": host}
            yield "mark_foreign", (*self.holders[index], self.some_ports(index, whose, which, delta)), how

    def force(self, space: int, which: int, how: str) -> Any:
        """Of a port as it is, or was a moment ago, or never was."""
        name = SPACES[space % 4 == 0]
        ports = self.view(name).ports or (NOBODYS,)
        choice = [port for port in ports if port.state == how] or ports
        port = choice[which % len(choice)]
        if how == "fence":
            port = port._replace(fence=port.fence + (1 if which % 2 else -1))
        elif how == "state":
            port = port._replace(state=STATES[STATES.index(port.state) - 1])
        yield "force", (name, port), {}

    def drop(self, space: int) -> Any:
        yield "drop", (SPACES[space % 4 == 0],), {}

    def preview(self, space: int, asks: tuple[Ask, ...]) -> Any:
        yield "preview", (SPACES[space % 4 == 0], asks), {}

    def renew(self, parts: tuple[tuple[Any, ...], ...]) -> Any:
        renewals = []
        for holder, floor, abandoned, *sure in parts:
            if (index := self.pick(holder)) is not None:
                space, proof = self.holders[index]
                last = self.numbers.get(proof, 0)
                lowest = max(1, last - 3) if floor != "t" else last + 1
                gone = tuple(max(1, last + 1 - number % 5) for number in abandoned)
                tickets = [ticket for _, ticket, _ in self.tickets[-4:]]
                left = tuple(ticket for ticket in tickets if (ticket + holder) % 7 == 0)
                heard = tuple(fence for fence in self.revoked[-6:] if (fence + holder) % 3 == 0)
                lease = self.modelled.space(space)._leases.get(proof.lease)
                count = len(lease.ports) if lease is not None else 0
                ports = {"=": count, "!": max(0, count - 1 + holder % 3)}.get("".join(sure), -1)
                known = self.knew(space, proof.instance, floor)
                renewals.append(Renewal(space, proof, lowest, gone, left, heard, ports, known))
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
            port = Port(after % 20, ("tcp", "udp", "both")[after % 3], 0) if after % 2 else None
            yield "held", (*self.holders[index], port), {}

    def spaces(self, instance: int) -> Any:
        yield "spaces", ((*INSTANCES, None)[instance % 4],), {}

    def check_keys(self, store: servers.RedisStore) -> None:
        """The raw keys of each space hold what the model holds, and nothing else but a constant."""
        client = store.client
        expected_keys = {servers.NOW}
        masks = set()
        for name, model in self.modelled.spaces.items():
            state, due, ports, tcp, udp, events, mask = (
                f"clusterports:1:{{{name}}}:{part}"
                for part in ("state", "due", "ports", "tcp", "udp", "events", "mask")
            )
            expected_keys |= {"clusterports:1:spaces", state, tcp, udp}
            expected_keys |= {events} if self.modelled.logs.get(name) else set()
            expected_keys |= ({due} if model._due else set()) | ({ports} if model._leases or model._queue else set())
            masks.add(mask)
            pipe = client.pipeline(transaction=False)
            pipe.hgetall(state)
            pipe.zrange(due, 0, -1, withscores=True)
            pipe.zrange(ports, 0, -1)
            pipe.get(mask)
            pipe.get(tcp)
            pipe.get(udp)
            fields, its_due, members, masking, *bits = pipe.execute()
            assert model._due == {item.decode(): int(at) for item, at in its_due}, "due"
            held = {f"{port.lease.id}/{name}" for name, port in model._ports.items() if port.until is None}
            leases = {f"lease/{id}" for id in model._leases}
            places = {f"wait/{ticket:016d}" for ticket in model._queue}
            assert held | leases | places == {item.decode() for item in members}, "ports"
            assert masking in (None, b"\x0f" * 8192), "mask"
            for protocol, bitmap in zip(("tcp", "udp"), bits, strict=True):
                assert _bitmap(model, protocol) == bitmap, protocol
            self.check_state({field.decode(): value.decode() for field, value in fields.items()}, model, leases)
        keys = {key.decode() for key in client.scan_iter()}
        assert expected_keys == keys - masks, "keys"
        pipe = client.pipeline(transaction=False)
        for key in sorted(keys):
            pipe.ttl(key)
        assert {-1} == set(pipe.execute()), "a key with a TTL"

    def check_state(self, fields: dict[str, str], model: Space, leases: set[str]) -> None:
        own = {name: int(fields.pop(name)) for name in ("schema", "clock", "seen", "fence", "min_ttl", "next")}
        own |= {"born": int(fields.pop("born")), "recover": int(fields.pop("recover", 0))}
        expected = {"schema": 1, "clock": model._clock, "seen": model._seen, "fence": model._fence}
        expected |= {"born": model._born, "recover": model._recovering}
        assert expected == {name: own[name] for name in expected}, "state"
        waits = model._queue or model._clock < model._recovering
        first = 0 if waits else min(model._due.values(), default=own["next"])
        assert own["next"] <= first, "next: too late"
        live = [lease.ttl for lease in model._leases.values() if lease.expires > model._clock]
        assert not live or 0 < own["min_ttl"] <= min(live), "min_ttl"
        done = {f"done/{id}": [lease.floor, *sorted(lease.done)] for id, lease in model._leases.items()}
        actual = {name: _done(value) for name, value in fields.items() if name.startswith("done/")}
        assert done == actual, "done"
        ports = {name: _record(model, name) for name in model._ports}
        recorded = {name: _parsed(value) for name, value in fields.items() if name[:4] in ("tcp/", "udp/", "both")}
        assert ports == recorded, f"ports: {ports} != {recorded}"
        plain = {f"name/{json.dumps(instance)}": str(id) for instance, id in model._names.items()}
        plain |= {f"last/{range}": str(number) for range, number in model._last.items()}
        plain |= {f"owned/{owner_tag(*key)}": str(count) for key, count in model._owned.items()}
        plain |= {f"foreign/{range}": str(count) for range, count in model._foreign.items()}
        plain |= {
            f"revoked/{id}": ";".join(f"{port.fence} {member(port.protocol, port.number)}" for port in told)
            for id, told in ((id, lease.revoked) for id, lease in model._leases.items())
            if told
        }
        plain |= {"ended": ";".join(map(str, model._ended))} if model._ended else {}
        plain |= {f"wait/{ticket:016d}": _place(lease.id, ask) for ticket, (lease, ask) in model._queue.items()}
        rest = {name: value for name, value in fields.items() if name not in {*done, *leases, *ports}}
        assert plain == rest, f"fields: {plain} != {rest}"
        assert leases <= set(fields), "leases"


def _kind(reply: Any) -> str:
    match reply:
        case Full(_, holder, backlog, why):
            words = holder and holder.state, why != "taken" and why, backlog and "backlog"
            return f"Full {' '.join(str(word) for word in words if word is not False)}"
        case Queued(_, first, due_in):
            return f"Queued {'first' if first else 'behind'} {'now' if due_in <= 0 else ''}".rstrip()
        case Gone(reason, _, forgotten):
            return f"Gone {reason} forgotten" if forgotten else f"Gone {reason}"
        case Renewed(doubt=True):
            return "Renewed in doubt"
        case Renewed(flag) | Reclaimed(flag) | Closed(flag):
            return f"{type(reply).__name__} {flag}"
        case Claimed(refused):
            return f"Claimed {'but some' if refused else 'all'}"
        case Released(count) | Marked(count) | Opened(_, _, count):
            return f"{type(reply).__name__} {'some' if count else 'none'}"
        case Granted() | Stale() | Occupied() | Held() | Recovering():
            return type(reply).__name__
    return "list"


def _bitmap(model: Space, protocol: str) -> bytes:
    bits = bytearray(8192)
    for name in model._ports:
        kind, number = parse_member(name)
        if kind in (protocol, "both"):
            bits[number >> 3] |= 0x80 >> (number & 7)
    return bytes(bits)


def _record(model: Space, name: str) -> tuple[Any, ...]:
    """A port as its record has it: state, lease, fence, since, what comes after, and the note."""
    port = model._ports[name]
    ask = port.ask
    note = {"i": port.lease.instance, "l": port.labels, "o": ask.owner, "r": ask.range}
    if ask.host:
        note["h"] = ask.host
    if port.state == "cooling":
        end = str(port.until)
    elif port.state == "foreign":
        end = f"{port.until},{ask.range}"
    elif ask.cooldown or ask.limit:
        end = f"{ask.quarantine},{ask.cooldown},{owner_tag(ask.range, ask.owner) if ask.limit else '-'}"
    else:
        end = str(ask.quarantine)
    return port.state[0], port.lease.id, port.fence, port.since, end, note


def _parsed(record: str) -> tuple[Any, ...]:
    state, lease, fence, since, end, note = record.split(" ", 5)
    return state, int(lease), int(fence), int(since), end, json.loads(note)


def _place(lease: int, ask: Ask) -> str:
    numbers = (number for span in merged(ask.spans) for number in span)
    return " ".join(map(str, (lease, ask.protocol, *numbers)))


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


@pytest.mark.parametrize(
    ("redis_store", "seed"),
    [("fakeredis", 0), *((server, seed) for server in ("valkey", "redis7") for seed in SEEDS)],  # the first is slow
    indirect=["redis_store"],
)
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


@pytest.mark.parametrize("redis_store", ["valkey"], indirect=True)
def test_without_events(redis_store: servers.RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of those who keep no events do the same without them."""
    without = Scripts(clock=servers.VIRTUAL_CLOCK, kept=0)
    monkeypatch.setattr(redis_store, "scripts", lambda virtual: without)
    player = Player(redis_store)
    player.modelled.events = 0
    player.play(generate(7, STEPS))
    assert not any(word.startswith("told") for word in player.seen)


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
            max_examples=1 if redis_store.name == "fakeredis" else 3 if FULL else 2,  # that one is slow
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
    for seed in range(18):
        player = Player(None)
        player.play(generate(seed, 1000))
        seen |= player.seen
    refusals = ("None", "held", "cooling", "None backlog", "None limit", "held limit", "None queue", "held queue")
    assert {
        *("Opened none", "Opened some", "Occupied", "Granted", "Stale", "Held", "Gone expired", "Gone superseded"),
        *(
            "Granted tcp",
            "Granted udp",
            "Granted both",
            "Granted over a limit",
            "Granted over a mark",
            "Granted with ticket",
            "preview Granted",
        ),
        *("align", "rotate", "limit", "explicit", "running", "port held", "port cooling", "port foreign"),
        *(f"Full {refusal}" for refusal in (*refusals, "foreign queue")),
        *(f"preview Full {refusal}" for refusal in refusals),
        *("Queued first", "Queued behind", "Queued first now"),
        *("Released none", "Released some", "Released to cool", "Marked none", "Marked some"),
        *(f"force {state} {done}" for state in ("held", "cooling", "foreign") for done in (True, False)),
        *("Renewed and told of one", "Renewed and told of more", "drop True", "drop False", "grace"),
        *(
            "Gone unknown",
            "Gone expired forgotten",
            "no lease",
            "newer than lease",
            "Renewed in doubt",
            "Recovering",
            "preview Recovering",
        ),
        *(f"{reply} knew {what}" for reply in ("Opened", "Occupied") for what in ("less", "more")),
        *("Claimed all", "Claimed but some", "claim again", "claim free", "claim former same", "drop recovering"),
        *(f"claim {state} {how}" for state in ("held", "cooling", "foreign") for how in ("higher", "same", "lower")),
        *(f"claim own {state} {how}" for state in ("held", "cooling", "foreign") for how in ("higher", "lower")),
        *(f"claim {state} {how} other protocol" for state in ("held", "own held") for how in ("higher", "lower")),
        *(f"told {kind}" for kind in get_args(EventKind)),
        *("Renewed False", "Renewed True", "Reclaimed False", "Reclaimed True", "Closed False", "Closed True"),
    } <= seen
