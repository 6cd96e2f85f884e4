"""Reads what the processes of a fault run wrote down, and says which guarantees they saw broken.

Where the two ends of an event differ, the end is taken that can only hide a breach, never invent one. Each rule is a
function of the history alone, and gives a breach a name that stays the same when events are left out that have no
part in it. So the story of a breach is what is left when nothing more can be left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from itertools import zip_longest
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeAlias

from faults.story import shortest
from faults.uses import GRAIN, KINDS, SHARE, Breach, History, Use, until_deadlines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from faults.history import Event

__all__ = ["breaches", "overtakings"]

STORIES: Final = 20
"""For so many breaches the story is sought; it takes a while."""

Rule: TypeAlias = "Callable[[History], Iterator[Breach]]"


# -------------------------------------------------------------------- safety


def shared(history: History) -> Iterator[Breach]:
    """S1: at no moment do two hold one port. S7: where the store lost who has it, one of the two is told in time."""
    by_port: dict[tuple[str, str, int], list[Use]] = defaultdict(list)
    for use in (part for parts in history.reliances.values() for part in parts):
        for kind in KINDS[use.granted.protocol]:
            by_port[use.granted.host, kind, use.granted.number].append(use)
    for (host, protocol, number), port_uses in sorted(by_port.items()):
        open_uses: list[Use] = []
        for use in sorted(port_uses, key=attrgetter("since")):
            open_uses = [other for other in open_uses if use.since < other.until]
            for other in open_uses:
                one, two = other.granted, use.granted
                if one == two or (one.fence == two.fence and one.instance == two.instance):
                    continue
                port, key = f"{number}/{protocol} on {host}", (one.fence, other.since, two.fence, use.since)
                losses = history.losses(one.asked, use.since)
                if not losses:
                    text = f"{port} was held twice: by {other}, and by {use}"
                    yield history.breach("S1", text, (host, *key), one, two)
                    continue
                latest = _answers_for_a_ttl(history, max(use.since, *(loss.answered for loss in losses)))
                if min(use.until, other.until) > latest:
                    text = (
                        f"{port} was held twice after a loss, and nobody was told by {latest:.3f}: {other}, and {use}"
                    )
                    yield history.breach("S7", text, (host, *key, latest), one, two)
            open_uses.append(use)


def _answers_for_a_ttl(history: History, since: float) -> float:
    """When the store has been there for a whole TTL, from then on."""
    end = since + history.ttl
    for outage in history.by_kind["down"]:
        if outage.asked < end and outage.answered > since:
            end = max(end, outage.answered + history.ttl)
    return end + history.slack


def early_after_a_loss(history: History) -> Iterator[Breach]:
    """S7: who knew the space takes nothing new there until the others have had a TTL to say what they hold."""
    for loss in history.by_kind["emptied"]:
        end = loss.asked + history.ttl - GRAIN
        for grant in history.by_kind["granted"]:
            if not (loss.answered <= grant.asked and grant.answered < end):
                continue
            known = [beat for beat in history.beats_of(grant.client, grant.host) if beat.answered < loss.asked]
            known += [
                other
                for other in history.by_kind["granted"]
                if (other.client, other.host) == (grant.client, grant.host) and other.answered < loss.asked
            ]
            if known:
                early = end - grant.answered
                text = f"{grant.client} knew {grant.host}, and was given a port {early:.3f} s too early after a loss"
                yield history.breach("S7", text, (grant.host, grant.fence, loss.asked), grant)


def fences(history: History) -> Iterator[Breach]:
    """S3: who asked after another's answer was there has a higher fence, and no two have the same."""
    by_host: dict[str, list[Event]] = defaultdict(list)
    for grant in history.by_kind["granted"]:
        by_host[grant.host].append(grant)
    for host, grants in sorted(by_host.items()):
        seen: dict[int, Event] = {}
        for grant in grants:
            other = seen.setdefault(grant.fence, grant)
            if other is not grant:
                text = f"fence {grant.fence} on {host} was given to {other.client} and to {grant.client}"
                yield history.breach("S3", text, (host, grant.fence), other, grant)
        answered = sorted(grants, key=attrgetter("answered"))
        highest, index = answered[0], 0
        for grant in grants:
            while index < len(answered) and answered[index].answered < grant.asked:
                highest = max(highest, answered[index], key=attrgetter("fence"))
                index += 1
            if index and grant.fence < highest.fence:
                text = f"fences on {host} went back: {grant.client} got {grant.fence} after {highest.fence} was given"
                yield history.breach("S3", text, (host, grant.fence, highest.fence), grant, highest)


def strangers(history: History) -> Iterator[Breach]:
    """S2: nobody frees what he does not hold, or frees it twice; nor what is another's by then; nor lives on when
    another process has taken over his name.
    """
    held: dict[tuple[str, str, int], int] = defaultdict(int)
    for kind in ("granted", "found"):
        for event in history.by_kind[kind]:
            held[event.client, event.host, event.fence] += 1
    for event in history.by_kind["released"]:
        port = f"{event.number}/{event.protocol} on {event.host}"
        held[event.client, event.host, event.fence] -= 1
        if held[event.client, event.host, event.fence] < 0:
            key = (event.client, event.host, event.fence)
            yield history.breach("S2", f"{event.client} released {port} that it did not hold", key, event)
        grants = [grant for kind in KINDS[event.protocol] for grant in history.grants[event.host, kind, event.number]]
        mine = next((grant for grant in grants if grant.fence == event.fence), event)
        for other in grants:
            if other.fence <= event.fence or other.answered >= event.asked or history.relied(event, other.answered):
                continue  # while it relied on it, it is S1 that is broken
            if not history.losses(mine.asked, event.asked):
                text = f"{event.client} released {port} with fence {event.fence}, and {other.client} had it by then"
                yield history.breach("S2", text, (event.host, event.fence, other.fence), event, other)
    for event in history.by_kind["found"]:
        for client in history.clients[event.instance]:
            beats = history.beats_of(client, event.host)
            older = history.began[client] < history.began[event.client]
            if older and beats and beats[-1].asked > event.answered:
                text = f"{client} renewed its lease on {event.host} after {event.client} had taken it over"
                yield history.breach("S2", text, (client, event.client, event.host, beats[-1].asked), event)


def resurrected(history: History) -> Iterator[Breach]:
    """S4, S5, S6, L1: what nobody knows of, or was given back, or had its time, is not held."""
    given = {(event.host, event.fence): event for event in history.by_kind["granted"]}
    freed = {(event.host, event.fence): event for event in history.by_kind["released"]}
    for event in [*history.by_kind["found"], *history.by_kind["left"]]:
        port = f"{event.number}/{event.protocol} on {event.host} with fence {event.fence}"
        key = (event.event, event.host, event.fence)
        back = freed.get((event.host, event.fence))
        if back is not None and back.answered < event.asked:
            if not history.losses(back.asked, event.asked, "rolled back"):
                text = f"{port} was released by {back.client}, and is held again"
                yield history.breach("S5", text, key, event, back)
        elif event.event == "left" and (event.host, event.fence) in given:
            text = f"{port} was given to {given[event.host, event.fence].client}, and is held at the end"
            yield history.breach("L1", text, key, event, given[event.host, event.fence])
        elif event.event == "left":
            yield history.breach("S4", f"{port} is held at the end, and nobody was given it", key, event)


# -------------------------------------------------------------------- liveness


def too_early(history: History) -> Iterator[Breach]:
    """L1, from below: a port whose holder went silent stays closed for TTL + quarantine from its last heartbeat.

    The lease was renewed at the earliest when its last confirmed heartbeat was asked for; the next grant was made
    at the latest when it was answered.
    """
    for use in _last_uses(history):
        port = use.granted
        if port.client not in history.watched:
            continue
        later = [
            grant
            for kind in KINDS[port.protocol]
            for grant in history.grants.get((port.host, kind, port.number), ())
            if grant.fence > port.fence
        ]
        grant = min(later, key=attrgetter("fence"), default=None)
        if grant is None or history.losses(port.asked, grant.answered) or history.relied(port, grant.answered):
            continue
        if use.until <= grant.answered and use.end not in ("killed", "detached"):
            continue
        beats = [beat for beat in history.beats_of(port.client, port.host) if beat.asked < grant.answered]
        if not beats:
            continue
        beat = max(beats, key=attrgetter("asked"))
        early = beat.asked + history.ttl + history.quarantine - grant.answered
        if early > GRAIN:
            fate = {"killed": "was killed", "detached": "left"}.get(str(use.end), "was silent")
            text = (
                f"{port.number}/{port.protocol} on {port.host} of {port.client}, which {fate},"
                f" was given to {grant.client} {early:.3f} s too early"
            )
            yield history.breach("L1", text, (port.host, port.fence, grant.fence, beat.asked), port, grant)


def _last_uses(history: History) -> Iterator[Use]:
    """Of each fence the last use that was not taken over by another process."""
    last = {(use.granted.host, use.granted.fence): use for use in history.uses}
    yield from last.values()


def too_late(history: History) -> Iterator[Breach]:
    """L1, from above: what a dead holder had is free TTL + quarantine after its last heartbeat, or one TTL after the
    first visit that followed its TTL, if that is later.
    """
    last = {(use.granted.host, use.granted.fence): use for use in _last_uses(history)}
    for denial in history.by_kind["denied"]:
        use = last.get((denial.host, denial.fence))
        if use is None or use.end != "killed" or use.until > denial.asked:
            continue
        port = use.granted
        beat = history.last_beat(port.instance, port.host)
        if beat is None:
            continue
        latest = max(beat.answered, use.until)  # one that it sent just before it died may have arrived
        late = (stall.answered for stall in history.by_kind["stalled"] if stall.asked < latest < stall.answered)
        expired = max(latest, *late, 0.0) + history.ttl
        visits = (visit for visit in [*history.by_kind["beat"], denial] if visit.concerns(port.host))
        first = min(visit.answered for visit in visits if visit.asked >= expired or visit is denial)
        bound = max(expired + history.quarantine, first + history.ttl) + GRAIN + history.slack
        if denial.asked > bound and not history.losses(beat.asked, denial.asked, "rolled back"):
            text = (
                f"{port.number}/{port.protocol} on {port.host} of {port.client}, which was killed,"
                f" was denied to {denial.client} {denial.asked - bound:.3f} s too late"
            )
            yield history.breach("L1", text, (port.host, port.fence, denial.asked, bound), port, denial)


def robbed(history: History) -> Iterator[Breach]:
    """S1, L2, L4: no lease ends within a TTL of its last heartbeat, nor of the end of an outage, nor by any clock."""
    for lost in history.by_kind["lost"]:
        beats = history.beats_of(lost.client, lost.host)
        index = bisect_right(beats, lost.asked, key=attrgetter("answered"))
        if not index:
            continue
        beat = beats[index - 1]
        others = [event for event in history.by_kind["found"] if event.instance == lost.instance]
        succeeded = any(event.client != lost.client and event.answered >= beat.asked for event in others)
        if succeeded or history.losses(beat.asked, lost.asked) or _yielded(history, lost):
            continue
        expires, rule, why = beat.asked + history.ttl, "S1", "its last heartbeat"
        for outage in history.by_kind["down"]:
            if outage.answered > beat.asked and outage.asked < expires:
                if outage.answered - outage.asked > history.ttl / 3 + history.slack:
                    expires, rule, why = outage.answered + history.ttl - history.slack, "L2", "the end of an outage"
                break
        if lost.answered < expires - GRAIN:
            if any(beat.asked <= clock.answered and clock.asked <= lost.asked for clock in history.by_kind["clock"]):
                rule = "L4"
            text = (
                f"{lost.client} was told that its lease on {lost.host} is lost {expires - lost.answered:.3f} s before"
                f" a TTL was over since {why}"
            )
            yield history.breach(rule, text, (lost.client, lost.host, lost.fence, expires), lost)


def _yielded(history: History, lost: Event) -> bool:
    """Whether this one port may have gone to another after the store lost who had it."""
    if not lost.fence:
        return False
    grants = history.grants.get((lost.host, KINDS[lost.protocol][0], lost.number), [])
    mine = next((grant for grant in grants if grant.fence == lost.fence), lost)
    return any(history.losses(mine.asked, grant.answered) for grant in grants if grant.fence > lost.fence) or any(
        history.losses(grant.asked, mine.answered) for grant in grants if grant.fence < lost.fence
    )


def slow(history: History) -> Iterator[Breach]:
    """L3: no call takes long when nothing is wrong, whatever else is to be reclaimed."""
    faults = [*history.by_kind["down"], *history.by_kind["stopped"]]
    for kind in ("granted", "released", "denied"):
        for event in history.by_kind[kind]:
            took = event.answered - event.asked
            if took <= history.patience or event.ticket:
                continue
            excused = (fault for fault in faults if fault.client in ("", event.client))
            if not any(fault.asked < event.answered and event.asked < fault.answered for fault in excused):
                text = f"{event.client} waited {took:.3f} s for an answer on {event.host}"
                yield history.breach("L3", text, (event.client, event.asked), event)


# -------------------------------------------------------------------- the holder's side


def trusting(history: History) -> Iterator[Breach]:
    """H1: what is said to be valid is so by a heartbeat."""
    for event in history.by_kind["relied"]:
        beats = history.beats_of(event.client, event.host)
        known = [beat.asked for beat in beats if beat.answered <= event.answered]
        deadline = max(known, default=0.0) + history.ttl * SHARE
        if beats and deadline < event.asked:
            text = (
                f"{event.number}/{event.protocol} on {event.host} was valid for {event.client}"
                f" {event.asked - deadline:.3f} s after its deadline"
            )
            yield history.breach("H1", text, (event.client, event.host, event.asked, deadline), event)


def unwarned(history: History) -> Iterator[Breach]:
    """H1: whoever is alive when its deadline passes is told."""
    words: dict[str, list[Event]] = defaultdict(list)
    for kind in ("jeopardy", "lost", "refused", "stopped", "killed"):
        for event in history.by_kind[kind]:
            words[event.client].append(event)
    end = max((event.answered for event in history.events), default=0.0)
    for use in history.uses:
        port, parts = use.granted, list(until_deadlines(history, use))
        for part, then in zip_longest(parts, parts[1:]):
            latest = part.until + history.slack
            if part.end != "deadline" or min(use.until, end, then.since if then else end) <= latest:
                continue
            heard = any(
                word.concerns(port.host) and word.asked <= latest and word.answered >= part.until - history.ttl * SHARE
                for word in words[port.client]
            )
            if not heard:
                text = f"{port.client} was not told by {latest:.3f} that its deadline on {port.host} was over"
                yield history.breach("H1", text, (port.client, port.host, port.fence, part.until), port)


def hasty(history: History) -> Iterator[Breach]:
    """H1: nobody is warned whose lease was renewed in time."""
    for event in history.by_kind["jeopardy"]:
        beats = history.beats_of(event.client, event.host)
        index = bisect_right(beats, event.asked - history.slack, key=attrgetter("answered"))
        known = max(beats[:index], default=None, key=attrgetter("asked"))
        if known is None:
            continue
        pauses = (pause for pause in history.by_kind["stopped"] if pause.client == event.client)
        if any(pause.asked < event.asked and pause.answered > known.answered for pause in pauses):
            continue
        early = known.asked + history.ttl * SHARE - event.asked
        if early > GRAIN:
            text = f"{event.client} was told of jeopardy on {event.host} {early:.3f} s before its deadline"
            yield history.breach("H1", text, (event.client, event.host, event.asked, known.asked), event)


def forgotten(history: History) -> Iterator[Breach]:
    """H3: who comes back under its name within the TTL finds what it had."""
    for event in history.by_kind["returned"]:
        found = {
            (port.host, port.fence)
            for port in history.by_kind["found"]
            if port.client == event.client and port.answered <= event.answered
        }
        for use in history.uses:
            port = use.granted
            before = port.instance == event.instance and port.client != event.client and use.until <= event.asked
            if not before or use.end not in ("killed", "detached") or (port.host, port.fence) in found:
                continue
            beats = [beat for beat in history.beats_of(port.client, port.host) if beat.asked < event.asked]
            if not beats or event.answered >= max(beat.asked for beat in beats) + history.ttl - GRAIN:
                continue
            if any(
                beat.asked > use.until
                for name in history.clients[event.instance]
                if name not in (port.client, event.client)
                for beat in history.beats_of(name, port.host)
            ):
                continue  # another process came in between, and may have given it back
            if not history.losses(port.asked, event.answered):
                text = (
                    f"{event.client} came back in time, and did not find {port.number}/{port.protocol} on {port.host}"
                )
                yield history.breach("H3", text, (event.client, port.host, port.fence), port, event)


_RULES: Final[tuple[Rule, ...]] = (
    *(shared, early_after_a_loss, fences, strangers, resurrected),
    *(too_early, too_late, robbed, slow),
    *(trusting, unwarned, hasty, forgotten),
)


def breaches(
    events: Iterable[Event], *, ttl: float, quarantine: float, slack: float = 1.0, patience: float = float("inf")
) -> list[Breach]:
    """What was seen of broken guarantees; empty when all held.

    ``ttl`` and ``quarantine`` are those of all clients, in seconds; ``slack``, ``patience``: as in `History`.
    """

    def judge(rule: Rule, events: Sequence[Event]) -> list[Breach]:
        return list(rule(History(events, ttl, quarantine, slack, patience)))

    events = list(events)
    whole = History(events, ttl, quarantine, slack, patience)
    found: list[Breach] = []
    for rule in _RULES:
        for breach in {breach.key: breach for breach in rule(whole)}.values():
            if len(found) < STORIES:
                found.append(shortest(breach, events, lambda some, rule=rule: judge(rule, some)))  # type: ignore[misc]
            else:
                found.append(breach)
    return found


# -------------------------------------------------------------------- the queue


def overtakings(events: Iterable[Event], window: float) -> list[str]:
    """Those who got a port before somebody who had come earlier, and whose place was still kept; ``window``: seconds.

    Tickets are given out in the order of arrival, fences in the order of giving. All want the same ports.
    """
    kept: dict[int, list[Event]] = defaultdict(list)
    given: dict[int, Event] = {}
    for event in events:
        if event.event == "queued":
            kept[event.ticket].append(event)
        elif event.event == "granted" and event.ticket:
            given[event.ticket] = event
    found = []
    waiting: list[int] = sorted(kept)
    for late in sorted(given.values(), key=attrgetter("fence")):
        for ticket in waiting:
            if ticket >= late.ticket:
                break
            # One that was killed may have been served before, and could not say so.
            places = kept[ticket]
            after = given[ticket].fence > late.fence if ticket in given else places[-1].asked > late.answered
            if after and any(place.answered < late.asked and late.answered < place.asked + window for place in places):
                found.append(f"ticket {late.ticket} of {late.client} was served before ticket {ticket}")
    return found
