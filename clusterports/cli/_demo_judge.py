"""What happened in ``clusterports demo``, and whether it is what was promised. Pure.

Times are seconds of the monotonic clock, which all processes of a machine share. Where a moment is known only
as a span (a request took effect between its sending and its answer), a check takes the end of the span that
cannot accuse the wrong one; a bound on the early side has no tolerance beyond that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any, Final, NamedTuple

__all__ = ["SLACK", "Answer", "Beat", "Grant", "History", "Promise", "Refusal", "Release", "judge"]

SLACK: Final = 2.0
"""Seconds that a busy machine may be late with what is due. It is never allowed to be early."""


class Grant(NamedTuple):
    """A manager asked for a port and got it."""

    manager: str
    host: str
    number: int
    fence: int
    asked: float
    answered: float


class Refusal(NamedTuple):
    """It asked for a port by number and did not get it. ``state``: of the port, ``held`` or ``cooling``."""

    manager: str
    host: str
    number: int
    state: str
    asked: float
    answered: float


class Beat(NamedTuple):
    """A lease was opened or renewed; ``answered`` is None as long as nobody knows whether it was."""

    manager: str
    host: str
    sent: float
    answered: float | None


class Release(NamedTuple):
    """A manager is about to give a port back."""

    fence: int
    sent: float


class Answer(NamedTuple):
    """A client connected. ``served``: the fence that the port's server named; ``stored``: the one in the status."""

    host: str
    number: int
    at: float
    served: int | None
    stored: int | None


@dataclass
class History:
    """Seconds: ``ttl``, ``quarantine``, ``heartbeat`` (the interval), ``killed`` (dead by then).

    ``told``: how many ports the managers were told to take before anyone was killed. ``lost``: who was told that
    its lease is gone. ``left``: what was found in the store at the end; None when nobody could look.
    """

    ttl: float
    quarantine: float
    heartbeat: float
    victim: str
    told: int
    killed: float | None = None
    grants: list[Grant] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    beats: list[Beat] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] | None = None

    def note(self, manager: str, host: str, kind: str, it: dict[str, Any]) -> None:
        """What a manager reported. Kinds that nothing here is judged by are passed over."""
        match kind:
            case "grant":
                self.grants.append(Grant(manager, host, it["number"], it["fence"], it["asked"], it["answered"]))
            case "refusal":
                self.refusals.append(Refusal(manager, host, it["number"], it["state"], it["asked"], it["answered"]))
            case "sending":
                self.beats.append(Beat(manager, host, it["sent"], None))
            case "beat":
                self.beats.remove(Beat(manager, host, it["sent"], None))
                self.beats.append(Beat(manager, host, it["sent"], it["answered"]))
            case "release":
                self.releases.append(Release(it["fence"], it["sent"]))
            case "lost":
                self.lost.append(manager)

    def end(self, grant: Grant) -> float:
        """When its holder was no more: gave it back, or was dead."""
        if grant.manager == self.victim and self.killed is not None:
            return self.killed
        return min((release.sent for release in self.releases if release.fence == grant.fence), default=float("inf"))

    def of_the_dead(self) -> list[Grant]:
        """What the victim held when it was killed."""
        return [one for one in self.grants if one.manager == self.victim]

    def again(self, dead: Grant) -> Grant | None:
        """Who first got a port of the dead."""
        later = (
            one
            for one in self.grants
            if (one.host, one.number) == (dead.host, dead.number) and one.manager != self.victim
        )
        return min(later, key=lambda one: one.answered, default=None)

    def last_beat(self) -> tuple[float, float] | None:
        """The victim's last heartbeat took effect not before the first time and not after the second."""
        beats = [beat for beat in self.beats if beat.manager == self.victim]
        sure = max((beat for beat in beats if beat.answered is not None), default=None, key=lambda beat: beat.sent)
        if sure is None or sure.answered is None or self.killed is None:
            return None
        in_doubt = any(beat.answered is None and beat.sent > sure.sent for beat in beats)
        return sure.sent, self.killed if in_doubt else sure.answered

    def silence(self, since: float) -> float:
        """The longest time that nobody may have visited the dead one's host."""
        host = next((one.host for one in self.of_the_dead()), None)
        calls: list[tuple[float, float | None]] = [(since, since)]
        calls += [(one.asked, one.answered) for one in self.grants if one.host == host]
        calls += [(one.asked, one.answered) for one in self.refusals if one.host == host]
        calls += [(beat.sent, beat.answered) for beat in self.beats if beat.host == host]
        visits = sorted((sent, answered) for sent, answered in calls if answered is not None and sent >= since)
        return max((answered - sent for (sent, _), (_, answered) in pairwise(visits)), default=0.0)


class Promise(NamedTuple):
    """``figure``: what was measured."""

    text: str
    kept: bool
    figure: str


def judge(history: History) -> list[Promise]:
    """Every promise, kept or not. One that was not put to the test is not kept."""
    return [
        _one_holder(history),
        _every_host(history),
        _clients(history),
        _survivors(history),
        _not_early(history),
        _not_late(history),
        _fences(history),
        _nothing_left(history),
    ]


def _one_holder(history: History) -> Promise:
    grants = history.grants
    twice = [
        f"{a.number} on {a.host} by {a.manager} and {b.manager}"
        for a, b in combinations(grants, 2)
        if (a.host, a.number) == (b.host, b.number)
        and max(a.answered, b.answered) < min(history.end(a), history.end(b))
    ]
    figure = f"{len(grants)} ports given, up to {_most_at_once(grants)} asks at the same moment"
    if twice:
        figure = f"given twice: {_some(twice)}"
    elif len(grants) < history.told:
        figure = f"only {len(grants)} of {history.told} ports were given"
    kept = not twice and len(grants) >= history.told > 0
    return Promise("On one host no number is held twice, however many ask at once", kept, figure)


def _most_at_once(grants: list[Grant]) -> int:
    return max((sum(one.asked <= other.asked < one.answered for one in grants) for other in grants), default=0)


def _every_host(history: History) -> Promise:
    served = {(answer.host, answer.number, answer.served) for answer in history.answers}
    spans: dict[int, list[Grant]] = {}
    for grant in history.grants:
        if (grant.host, grant.number, grant.fence) in served:
            spans.setdefault(grant.number, []).append(grant)
    shared = {
        number: sorted({a.host for a in grants})
        for number, grants in spans.items()
        if any(
            a.host != b.host and max(a.answered, b.answered) < min(history.end(a), history.end(b))
            for a, b in combinations(grants, 2)
        )
    }
    best = max(shared, key=lambda number: len(shared[number]), default=None)
    figure = "no number was" if best is None else f"{best} on {', '.join(shared[best])}"
    return Promise("The same number serves on several hosts at once", bool(shared), figure)


def _clients(history: History) -> Promise:
    right = [answer for answer in history.answers if answer.served is not None and answer.served == answer.stored]
    wrong = [
        f"{answer.number} on {answer.host}: served {answer.served}, stored {answer.stored}"
        for answer in history.answers
        if answer not in right
    ]
    figure = f"{len(right)} of {len(history.answers)} connections" + (f"; {_some(wrong)}" if wrong else "")
    return Promise("A client finds the holder that the status names, by its fence", bool(right) and not wrong, figure)


def _survivors(history: History) -> Promise:
    killed = history.killed
    if killed is None:
        return Promise(_SURVIVORS, False, "nobody was killed")
    held = [one for one in history.grants if one.manager != history.victim and one.answered < killed]
    answered = {(a.host, a.number, a.served) for a in history.answers if a.at > killed and a.served == a.stored}
    gone = [f"{one.number} on {one.host}" for one in held if (one.host, one.number, one.fence) not in answered]
    figure = f"{len(held)} ports of {len({one.manager for one in held})} managers, same fences as before"
    if history.lost:
        figure = f"lease lost by {_some(history.lost)}"
    elif gone:
        figure = f"not as before: {_some(gone)}"
    return Promise(_SURVIVORS, bool(held) and not gone and not history.lost, figure)


_SURVIVORS: Final = "Who did not die keeps its ports"


def _not_early(history: History) -> Promise:
    least = history.ttl + history.quarantine
    text = f"No port of the dead is given before TTL + quarantine ({least:g} s) are over"
    beat = history.last_beat()
    again = [grant for dead in history.of_the_dead() if (grant := history.again(dead)) is not None]
    if beat is None or not again:
        return Promise(text, False, "none was given again")
    soonest = min(grant.answered for grant in again) - beat[0]
    refused = Counter(one.state for one in history.refusals)
    figure = (
        f"refused {refused['held']} x while leased, {refused['cooling']} x while cooling; "
        f"given {soonest:.3f} s after the last heartbeat"
    )
    # After a silence the lease itself runs for longer, at the cost of the time that is left to cool.
    seen = refused["held"] and (refused["cooling"] or history.silence(beat[0]) > history.ttl / 3)
    return Promise(text, soonest >= least and bool(seen), figure)


def _not_late(history: History) -> Promise:
    bound = history.ttl + history.quarantine + history.heartbeat
    text = f"All of them are free within TTL + quarantine + one heartbeat ({bound:g} s)"
    beat = history.last_beat()
    dead = history.of_the_dead()
    again = [grant for one in dead if (grant := history.again(one)) is not None]
    if beat is None or not dead or len(again) < len(dead):
        return Promise(text, False, f"{len(again)} of {len(dead)} were given again")
    latest = max(grant.answered for grant in again) - beat[1]
    silence = history.silence(beat[0])
    figure = f"{len(dead)} ports, the last one after {latest:.3f} s"
    allowed = bound + SLACK
    if silence > history.ttl / 3:
        allowed += history.ttl
        figure += f"; nobody visited the host for {silence:.1f} s, which may cost one TTL more"
    elif bound < latest <= allowed:
        figure += f"; late by {latest - bound:.1f} s, as a busy machine may be"
    return Promise(text, latest <= allowed, figure)


def _fences(history: History) -> Promise:
    hosts: dict[str, list[Grant]] = {}
    for grant in history.grants:
        hosts.setdefault(grant.host, []).append(grant)
    back = [
        f"{b.number} on {b.host}: {a.fence}, then {b.fence}"
        for grants in hosts.values()
        for a, b in combinations(sorted(grants, key=lambda grant: grant.asked), 2)
        if a.fence == b.fence or (a.answered < b.asked and a.fence > b.fence)
    ]
    pairs = [(one, again) for one in history.of_the_dead() if (again := history.again(one)) is not None]
    back += [f"{b.number}: {a.fence}, then {b.fence}" for a, b in pairs if a.fence >= b.fence]
    figure = "no port was given again"
    if back:
        figure = _some(back)
    elif pairs:
        first, then = pairs[0]
        figure = f"{first.number}: {first.fence}, then {then.fence}"
    return Promise("Fences only grow", bool(pairs) and not back, figure)


def _nothing_left(history: History) -> Promise:
    figure = "nobody could look"
    if history.left is not None:
        figure = _some(history.left) if history.left else "no port, no lease"
    return Promise("Nothing is left when all have gone", history.left == [], figure)


def _some(items: list[str], limit: int = 3) -> str:
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
