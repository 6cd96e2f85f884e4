"""What the logs of all stores have in common: what an event keeps, which refusals are told, and what is one. Pure."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast, get_args

from .abc import Event, EventKind, Protocol4

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["LATEST", "brief_labels", "brief_owner", "is_repeated", "readable"]

MOST_BYTES: Final = 512
"""Of an owner, and of all labels together."""

LATEST: Final = 16
"""Among so many events of a log a refusal is not told again."""

_SOON: Final = 60_000_000
"""Before so many microseconds are over."""

_KINDS: Final = frozenset(get_args(EventKind))
_PROTOCOLS: Final = frozenset(get_args(Protocol4))
_OLDEST: Final = 10 * 366 * 86_400 * 1_000_000


def brief_owner(owner: str) -> str:
    """As much of it as an event keeps: whole characters."""
    if len(owner) <= MOST_BYTES // 4:
        return owner
    return owner.encode()[:MOST_BYTES].decode(errors="ignore")


def brief_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """A copy, or nothing if they are too long for an event."""
    if labels and sum(len(key.encode()) + len(value.encode()) for key, value in labels.items()) > MOST_BYTES:
        return {}
    return dict(labels)


def is_repeated(refusal: Event, latest: Iterable[tuple[int, Event | None]], now: int) -> bool:
    """Whether a log has told this refusal a short while ago, whoever was refused. ``latest``: its events, with their
    times, the last one first; None: not an event.
    """
    about = _refusal(refusal)
    return any(
        one is not None and one.kind == "refused" and now - at < _SOON and _refusal(one) == about
        for at, one in islice(latest, LATEST)
    )


def _refusal(event: Event) -> tuple[object, ...]:
    return event.number, event.protocol, event.range, event.owner, event.labels, event.host


def readable(
    kind: Any,
    number: Any,
    protocol: Any,
    range: Any,
    owner: Any,
    labels: Any,
    instance: Any,
    lease: Any,
    fence: Any,
    age: Any,
    host: Any,
) -> Event | None:
    """The event, if it is one."""
    if not _are_texts(kind, protocol, range, owner, instance, host) or not _are_labels(labels):
        return None
    if not all(type(value) is int and value >= 0 for value in (number, lease, fence, age)):
        return None
    if kind not in _KINDS or protocol not in _PROTOCOLS or number > 65535 or age > _OLDEST:
        return None
    about = range, owner, labels, instance, lease, fence, age, host
    return Event(cast("EventKind", kind), number, cast("Protocol4", protocol), *about)


def _are_texts(*values: object) -> bool:
    """Such as can be printed: a damaged one may have half a character."""
    return all(isinstance(value, str) and (value.isascii() or _is_unicode(value)) for value in values)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_labels(value: object) -> TypeGuard[Mapping[str, str]]:
    return isinstance(value, dict) and _are_texts(*value, *value.values())
