"""The shortest story that shows a breach, and its words."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from faults.history import Event
    from faults.uses import Breach

__all__ = ["shortest", "told"]


def shortest(breach: Breach, events: Sequence[Event], judge: Callable[[Sequence[Event]], list[Breach]]) -> Breach:
    """The same breach with a story: events of which none can be left out.

    First large parts of the history are left out, then ever smaller ones, then single events.
    """

    def shows(some: Sequence[Event]) -> bool:
        return any(other.key == breach.key for other in judge(some))

    story = [e for e in events if e.client in breach.clients or not e.client if e.concerns(breach.host)]
    if not shows(story):  # others have a part in it
        story = list(events)
    size = max(1, len(story) // 2)
    while True:
        start, shorter = 0, False
        while start < len(story):
            rest = story[:start] + story[start + size :]
            if shows(rest):
                story, shorter = rest, True
            else:
                start += size
        if size > 1:
            size //= 2
        elif not shorter:
            break
    return replace(breach, story=tuple(sorted(story, key=attrgetter("asked", "answered"))))


_WORDS: Final = {
    "granted": "{client} was given {port}",
    "found": "{client} came back and found {port}",
    "releasing": "{client} was about to release {port}",
    "released": "{client} released {port}",
    "refused": "{client} was refused the release of {port}",
    "denied": "{client} was denied {port}",
    "relied": "{client} saw that {port} was valid",
    "queued": "{client} had place {ticket} in the queue of {host}",
    "jeopardy": "{client} was told that {all} is in jeopardy",
    "recovered": "{client} saw that {all} was valid again",
    "lost": "{client} was told that {all} is lost",
    "beat": "{client} had its lease renewed on {host}",
    "returned": "{client} had started",
    "detached": "{client} ended and left its ports",
    "killed": "{client} was killed",
    "stopped": "{client} was stopped",
    "down": "the store was away",
    "stalled": "the network held requests back",
    "emptied": "the store lost everything",
    "rolled back": "the store lost what was written last",
    "clock": "a wall clock was set",
    "left": "the store still had {port}",
}


def told(story: Iterable[Event]) -> Iterator[str]:
    """One line for each event."""
    for event in story:
        port = f"{event.number}/{event.protocol} on {event.host} with fence {event.fence}"
        hosts = event.host.split(" ")
        where = event.host if len(hosts) == 1 else f"{len(hosts)} hosts"
        everything = port if event.fence else f"what it has on {where}" if where else "all that it has"
        words = _WORDS[event.event].format(
            client=event.client, port=port, all=everything, host=where or "all hosts", ticket=event.ticket
        )
        yield f"{event.asked:.3f} to {event.answered:.3f}: {words}"
