"""What is held for the jobs of a host, and when it is given back: the rules, and a host where anything may be late."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clusterports.libvirt._ledger import LONGEST_BEGIN, Job, Ledger

if TYPE_CHECKING:
    from clusterports import Allocation
    from clusterports.libvirt._ledger import Using


def held(number: int, fence: int = 0) -> Allocation:
    return cast("Allocation", SimpleNamespace(number=number, fence=fence or number, labels={}))


def job(*numbers: int, uuid: str = "d", busy: bool = False, seen: bool = True) -> Job:
    """Of the domain "d", on these ports."""
    made = Job(uuid, f"vm-{uuid}", "h1", busy=busy)
    made._seen = seen
    for number in numbers:
        made._take(held(number))
    return made


def ledger(*jobs: Job) -> Ledger[Job]:
    made: Ledger[Job] = Ledger()
    for one in jobs:
        made.enter(one)
    return made


def using(*numbers: int) -> Using:
    return dict.fromkeys(numbers, "")


def looked(book: Ledger[Job], now: Using, uuid: str = "d") -> list[Job]:
    """What is over, by a look at the domain that nothing comes between."""
    return book.over(book.begun_of(uuid), now)


# -------------------------------------------------------------------- a look at one domain


def test_ended() -> None:
    """A domain without a job has none that is not over."""
    a, b = job(1), job(2, uuid="e")
    assert [a] == looked(ledger(a, b), None)


def test_goes_on() -> None:
    """What a domain still does on a port of the job is the job."""
    assert [] == looked(ledger(job(1)), using(1))
    assert [] == looked(ledger(job(1, 2)), using(2, 3))
    assert [] == looked(ledger(job()), using())


def test_another_job() -> None:
    """A domain that works on other ports does something else by now."""
    a = job(1)
    assert [a] == looked(ledger(a), using(2))
    assert [a] == looked(ledger(a), using())
    without = job()
    assert [without] == looked(ledger(without), using(2))


def test_begun_after_the_question() -> None:
    """What libvirt said before a job was begun says nothing of it, however late it is heard."""
    book = ledger()
    asked = book.begun_of("d")
    late = job(1)
    book.enter(late)
    assert [] == book.over(asked, None)

    beginning = job(2, uuid="e", busy=True)
    book.enter(beginning)
    asked = book.begun_of("e")
    assert book.begun(beginning)
    assert [] == book.over(asked, None)


def test_ended_while_another_begins() -> None:
    """One that is being begun is left alone, and looked at when its begin has come to an end."""
    a, b = job(1), job(2, busy=True)
    book = ledger(a, b)
    assert [a] == looked(book, using(2))
    assert book.begun(b)


def test_begun_in_peace() -> None:
    """Nobody has to look after a begin that nothing came between."""
    a, other = job(1, busy=True), job(2, uuid="e")
    assert not ledger(a, other).begun(a)


def test_begun_beside_another() -> None:
    """A domain has one job: if another was known, somebody has to look which it is."""
    a, b = job(1), job(2, busy=True)
    assert ledger(a, b).begun(b)


def test_not_seen_yet() -> None:
    """What ended was not a job that nobody has seen yet: that one may still be begun."""
    a = job(1, seen=False)
    book = ledger(a)
    assert [] == looked(book, None)
    assert [] == looked(book, using(1))
    assert [a] == looked(book, None)


def test_struck_once() -> None:
    """Of several who find that a job is over, one gives its ports back."""
    a = job(1)
    book = ledger(a)
    assert ([True, False], []) == ([book.strike(a), book.strike(a)], list(book))
    assert [] == book.over([a], None)


# -------------------------------------------------------------------- comparing


def test_missing_twice() -> None:
    """A job is over when libvirt does not have it twice in a row: the list may be older than the job."""
    a = job(1)
    book = ledger(a)
    assert [] == book.compare({}, (), 0.0)
    assert [] == book.compare({"d": using(1)}, (), 1.0)
    assert [] == book.compare({"d": None}, (), 2.0)
    assert [a] == book.compare({"d": using(7)}, (), 3.0)


def test_could_not_be_asked() -> None:
    """A domain that could not be asked is not one without a job, and does not stand between two that say so."""
    a = job(1)
    book = ledger(a)
    assert [] == book.compare({}, (), 0.0)
    assert [] == book.compare({}, {"d"}, 1.0)
    assert [a] == book.compare({}, (), 2.0)


def test_compare_while_it_begins() -> None:
    """Nothing is counted against a job that is being begun."""
    a = job(1, busy=True)
    book = ledger(a)
    assert [] == [found for now in range(3) for found in book.compare({}, (), float(now))]
    book.begun(a)
    assert [] == book.compare({}, (), 3.0)
    assert [a] == book.compare({}, (), 4.0)


def test_longest_begin() -> None:
    """One that nobody has seen is kept as long as a daemon may still begin it, from the first time it was missing."""
    a = job(1, seen=False)
    book = ledger(a)
    start = 1000.0
    assert [] == book.compare({}, (), start)
    assert [] == book.compare({}, (), start + LONGEST_BEGIN - 0.1)
    assert [a] == book.compare({}, (), start + LONGEST_BEGIN)


def test_due() -> None:
    """When the next comparison may find something over is known after one that missed it."""
    a, b = job(1), job(2, uuid="e", seen=False)
    book = ledger(a, b)
    assert inf == book.due
    dues = []
    for now, (using_a, using_b) in enumerate([(1, 2), (None, 2), (1, None), (1, None), (None, None)]):
        b._seen = False
        lists = {uuid: using(number) if number else None for uuid, number in (("d", using_a), ("e", using_b))}
        book.compare(lists, (), float(now))
        dues.append(book.due)
    assert [inf, 1.0, 2.0 + LONGEST_BEGIN, 2.0 + LONGEST_BEGIN, 4.0] == dues
    book.compare({}, {"d", "e"}, 5.0)
    assert inf == book.due, "who cannot be asked is not asked again sooner"


def test_begun_in_the_end() -> None:
    """One that was begun after all is over as soon as any other."""
    a = job(1, seen=False)
    book = ledger(a)
    found = [book.compare({"d": now}, (), float(at)) for at, now in enumerate([None, None, using(1), None, None])]
    assert [[], [], [], [], [a]] == found


# -------------------------------------------------------------------- ports that nobody holds


def test_lacking() -> None:
    """A port that a domain uses and nobody here holds is lacking, with the job that it belongs to."""
    book = ledger()
    assert (None, [1, 2]) == book.lacking("d", {2: "", 1: ""}, ())
    a = job(1, 2)
    book.enter(a)
    assert (a, [2]) == book.lacking("d", {1: "", 2: ""}, {1})
    assert (a, []) == book.lacking("d", {1: "", 2: ""}, {1, 2})
    assert (a, [1]) == book.lacking("d", {1: ""}, ()), "its lease was lost"


def test_lacking_of_another_job() -> None:
    """What a domain uses now does not belong to a job of its that is over."""
    assert (None, [2]) == ledger(job(1)).lacking("d", {2: ""}, {1})


def test_lacking_of_another_domain() -> None:
    """A port that is held for another domain's job is not held for this one."""
    assert (None, [1]) == ledger(job(1, uuid="e")).lacking("d", {1: ""}, {1})


def test_nothing_lacks_while_one_begins() -> None:
    """The port of a job that is being begun is taken already, or will be given up."""
    assert (None, []) == ledger(job(1), job(busy=True)).lacking("d", {1: "", 2: ""}, ())


def test_taken_again() -> None:
    """A port that was lost and taken again is held once, by its new fence."""
    a = job(1, 2)
    a._take(held(1, 77))
    assert [(2, 2), (1, 77)] == [(port.number, port.fence) for port in a.ports]


def test_shown() -> None:
    """A job says of which domain it is, where, on which ports, and how it stands."""
    a = job(10810, 10809, busy=True)
    assert "<Job of 'vm-d' on 'h1': 10809, 10810, beginning>" == repr(a)
    assert "<Job of 'vm-d' on 'h1': no port, running>" == repr(job())
    assert (False, False) == (a.done, a.wait(0))
    a._end_of_watch(done=True)
    assert (True, True) == (a.done, a.wait())
    assert repr(a).endswith("over>")


# -------------------------------------------------------------------- a host on which anything may be late

DOMAINS = ("a", "b")
PORTS = (1, 2, 3)


class Manager:
    """One process of a manager: what it knows is lost when it dies. What it holds is in the store."""

    def __init__(self) -> None:
        self.book: Ledger[Job] = Ledger()
        self.asked: tuple[list[Job], str, Using] | None = None  # a look, between question and answer
        self.list: tuple[set[int], dict[str, Using]] | None = None  # the same of a comparison


class Host(RuleBasedStateMachine):
    """Domains with one job each at most, a daemon that takes its time, and a manager that may die at any moment.

    ``held``: the store: allocations by fence. ``pending``: begins that the daemon has yet to carry out, with the time
    when it gives up at the latest. ``told``: events on their way.
    """

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.fence = 0
        self.held: dict[int, Any] = {}
        self.running: dict[str, int] = {}
        self.pending: list[tuple[str, int, float, Job | None]] = []
        self.told: list[str] = []
        self.manager = Manager()

    # ------------------------------------------------ the daemon

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 9), reply_lost=st.booleans())
    def carry_out(self, which: int, reply_lost: bool) -> None:
        """A begin that was sent is carried out, or refused because of a job that runs."""
        domain, number, _, job = self.pending.pop(which % len(self.pending))
        began = domain not in self.running and number not in self.running.values()
        if began:
            self.running[domain] = number
        if job is None or job not in self.manager.book:
            return
        if reply_lost:  # the connection broke, so the outcome is not known
            self.begun(job)
        elif began:
            job._seen = True
            self.begun(job)
        else:
            self.refused(job)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 9))
    def connection_breaks(self, which: int) -> None:
        """The manager hears that its connection broke; the daemon may carry the begin out yet."""
        which %= len(self.pending)
        domain, number, until, job = self.pending[which]
        self.pending[which] = (domain, number, until, None)
        if job is not None and job in self.manager.book:
            self.begun(job)

    @precondition(lambda self: self.running)
    @rule(domain=st.sampled_from(DOMAINS), tell=st.integers(0, 2))
    def job_ends(self, domain: str, tell: int) -> None:
        """Of which the manager hears once, twice or not at all, and perhaps much later."""
        if self.running.pop(domain, None) is not None:
            self.told += [domain] * tell

    @precondition(lambda self: len(self.told) < 3)
    @rule(domain=st.sampled_from(DOMAINS))
    def something_ends(self, domain: str) -> None:
        """A job of another kind, of which events say no more."""
        self.told.append(domain)

    @rule(domain=st.sampled_from(DOMAINS), number=st.sampled_from(PORTS))
    def somebody_else_begins(self, domain: str, number: int) -> None:
        """A job that no manager was asked for, on a port that is not held for the one before it."""
        taken = {*self.running.values(), *(port.number for port in self.held.values())}
        if domain not in self.running and number not in taken:
            self.running[domain] = number

    @rule(seconds=st.sampled_from([1.0, 10.0, LONGEST_BEGIN / 2 - 1, LONGEST_BEGIN]))
    def time_passes(self, seconds: float) -> None:
        """The daemon gives up what it could not begin in half of the longest time."""
        for at in (self.now + seconds / 2, self.now + seconds):
            self.now = at
            for domain, number, until, job in list(self.pending):
                if until <= at:
                    self.pending.remove((domain, number, until, job))
                    if job is not None and job in self.manager.book:
                        self.refused(job)

    @precondition(lambda self: self.manager.list is None and all(job._missed is None for job in self.manager.book))
    @rule(seconds=st.sampled_from([10.0, LONGEST_BEGIN]))
    def daemon_hangs(self, seconds: float) -> None:
        """What it was asked to begin waits with it. That it hangs once more while that is missed, nobody can know."""
        self.now += seconds
        self.pending = [(domain, number, until + seconds, job) for domain, number, until, job in self.pending]

    # ------------------------------------------------ the manager

    @rule(domain=st.sampled_from(DOMAINS))
    def take_and_ask(self, domain: str) -> None:
        """A port is taken, and the daemon asked to begin on it."""
        free = [number for number in PORTS if number not in {port.number for port in self.held.values()}]
        if free:
            job = Job(domain, domain, "h1", busy=True)
            self.manager.book.enter(job)
            job._take(self.take(domain, free[0]))
            self.pending.append((domain, free[0], self.now + LONGEST_BEGIN / 2, job))

    @rule()
    def manager_dies(self) -> None:
        """Its requests go on without it, and its next process finds what it held."""
        self.manager = Manager()
        self.told.clear()
        self.pending = [(domain, number, until, None) for domain, number, until, _ in self.pending]

    @precondition(lambda self: self.told and self.manager.asked is None)
    @rule(which=st.integers(0, 9))
    def ask(self, which: int) -> None:
        """An event is heard, and libvirt asked what the domain does."""
        domain = self.told.pop(which % len(self.told))
        self.manager.asked = self.manager.book.begun_of(domain), domain, self.using(domain)

    @precondition(lambda self: self.manager.asked)
    @rule()
    def hear(self) -> None:
        """Its answer arrives."""
        assert self.manager.asked
        jobs, _, now = self.manager.asked
        self.manager.asked = None
        self.finish(self.manager.book.over(jobs, now))

    @precondition(lambda self: self.manager.list is None)
    @rule()
    def read_list(self) -> None:
        before = {port.fence for job in self.manager.book for port in job.ports}
        self.manager.list = before, {domain: self.using(domain) for domain in DOMAINS}

    @precondition(lambda self: self.manager.list)
    @rule(unread=st.sets(st.sampled_from(DOMAINS), max_size=1))
    def compare(self, unread: set[str]) -> None:
        assert self.manager.list
        before, lists = self.manager.list
        self.manager.list = None
        book, held = self.manager.book, dict(self.held)
        for port in held.values():
            jobs = book.of(port.domain)
            if port.fence in before or any(one._busy for one in jobs):
                continue
            known = next((one for one in jobs if port.number in one._numbers), None)
            if known is None:
                known = Job(port.domain, port.domain, "h1")
                book.enter(known)
            known._take(port)
        lists = {domain: now for domain, now in lists.items() if domain not in unread}
        self.finish(book.compare(lists, unread, self.now))
        for domain, now in lists.items():
            known, lacking = book.lacking(domain, now or {}, held)
            for number in lacking:
                if number in {port.number for port in self.held.values()}:
                    continue
                if known is None:
                    known = Job(domain, domain, "h1")
                    book.enter(known)
                known._take(self.take(domain, number))
                known._seen = True
                self.told.append(domain)

    # ------------------------------------------------ what all that is for

    def using(self, domain: str) -> Using:
        return {self.running[domain]: ""} if domain in self.running else None

    def take(self, domain: str, number: int) -> Any:
        self.fence += 1
        self.held[self.fence] = port = SimpleNamespace(number=number, fence=self.fence, domain=domain, labels={})
        return port

    def begun(self, job: Job) -> None:
        if self.manager.book.begun(job):
            self.told.append(job.uuid)

    def refused(self, job: Job) -> None:
        """Its port goes back, unless the domain has somebody else's job on it."""
        if job._is_over(self.using(job.uuid)):
            self.manager.book.strike(job)
            self.give_back(job)
        self.begun(job)

    def finish(self, jobs: list[Job]) -> None:
        for job in jobs:
            assert not job._busy
            if self.manager.book.strike(job):
                self.give_back(job)

    def give_back(self, job: Job) -> None:
        """A port goes back only when its domain does not use it, nor may be about to."""
        for port in job.ports:
            mine = [other for other in self.held.values() if other.number == port.number and other is not port]
            assert mine or self.running.get(job.uuid) != port.number, "a port of a running job was given back"
            assert (job.uuid, port.number) not in {(domain, number) for domain, number, _, _ in self.pending}
            self.held.pop(port.fence, None)

    @invariant()
    def one_each(self) -> None:
        """Nobody holds a number twice."""
        numbers = [port.number for port in self.held.values()]
        assert sorted(set(numbers)) == sorted(numbers)

    def teardown(self) -> None:
        """When all has ended, everything is given back, though not one event comes; and what runs is held before."""
        if not hasattr(self, "manager"):
            return
        self.manager.asked = self.manager.list = None
        self.told.clear()
        for _ in range(2):
            self.time_passes(LONGEST_BEGIN)
            for _ in range(2):
                self.read_list()
                self.compare(set())
        assert set(self.running.values()) <= {port.number for port in self.held.values()}
        self.running.clear()
        for _ in range(3):
            self.time_passes(LONGEST_BEGIN)
            self.read_list()
            self.compare(set())
        assert ({}, []) == (self.held, list(self.manager.book))


TestHost = Host.TestCase
