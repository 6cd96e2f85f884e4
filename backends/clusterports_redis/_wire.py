"""What goes over the wire: keys and arguments of the scripts, and their replies. Pure."""

from __future__ import annotations

import json
from abc import abstractmethod
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from clusterports._events import readable
from clusterports._space import member, parse_member
from clusterports.abc import (
    Ask,
    Claimed,
    Closed,
    Event,
    Events,
    Full,
    Gone,
    Granted,
    Held,
    LeaseView,
    Marked,
    Occupied,
    Opened,
    Port,
    PortView,
    Queued,
    Reclaimed,
    Recovering,
    Released,
    Renewed,
    SpaceView,
    Stale,
)
from clusterports.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from clusterports.abc import Claim, Holder, Renewal, Request, Wait

__all__ = ["PREFIX", "SPACES", "keys"]

PREFIX: Final = "clusterports:1:"
"""The layout of the keys has a version of its own: another layout is another set of keys."""

SPACES: Final = f"{PREFIX}spaces"
"""The names of all spaces; best effort, so that `status` needs no SCAN."""

PAGE: Final = 1000
EVENTS_AT_ONCE: Final = 200
RELEASE_AT_ONCE: Final = 500
CLAIM_AT_ONCE: Final = 250

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


@lru_cache(maxsize=4096)
def keys(space: str) -> tuple[str, ...]:
    """The keys of a space. They share one hash tag, so they lie in one slot of a cluster."""
    return tuple(f"{PREFIX}{{{space}}}:{part}" for part in ("state", "due", "ports", "tcp", "udp"))


def keys_for(space: str, asks: Sequence[Ask]) -> tuple[str, ...]:
    """The keys for picking: with room to calculate, where a look at one bitmap is not enough."""
    return all_keys(space)[:-1] if any(ask.align or ask.protocol == "both" for ask in asks) else keys(space)


def all_keys(space: str) -> tuple[str, ...]:
    """The keys of a space, those of the room to calculate, and that of the log."""
    return (*keys(space), *(f"{PREFIX}{{{space}}}:{part}" for part in ("scratch", "mask", "halves", "events")))


@lru_cache(maxsize=4096)
def log_beside(state: str) -> str:
    """The key of the log, by that of the state."""
    return f"{state.removesuffix('state')}events"


def wake_channel(space: str, ticket: int) -> str:
    """Where the holder of a ticket is told that its turn may have come."""
    return f"{PREFIX}{{{space}}}:wake:{ticket:016d}"


@lru_cache(maxsize=4096)
def owner_tag(range: str, owner: str) -> str:
    """Under which the ports of an owner in a range are counted."""
    return blake2b(f"{range}\0{owner}".encode(), digest_size=16).hexdigest()


def instance_text(instance: str) -> str:
    """How an instance is written in the store: ASCII, whatever it is."""
    return _encode(instance)


def info(reply: Any) -> dict[str, Any]:
    """The answer to INFO, which redis-py has parsed or not."""
    if isinstance(reply, dict):
        return reply
    return {key: value for key, _, value in (line.partition(":") for line in text(reply).splitlines())}


if find_spec("hiredis") is None:

    def pack(connection: Any, command: tuple[Any, ...]) -> Any:
        """A command as it goes over the wire."""
        return connection.pack_command(*command)

else:
    from hiredis import pack_command

    def pack(connection: Any, command: tuple[Any, ...]) -> Any:
        """A command as it goes over the wire. Ours are of str and int only, so they need no look at each argument."""
        return [pack_command(command)]


def old_version(version: str) -> str:
    """What to call a server of this version if it is older than 7; else nothing."""
    major = version.partition(".")[0]
    return f"Redis {version}" if major.isdigit() and int(major) < 7 else ""


# -------------------------------------------------------------------- requests


def open_args(instance: str, token: str, ttl: int, supersede: int, knew: int) -> list[Any]:
    return [instance_text(instance), token, ttl, supersede, knew]


def acquire_args(holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None) -> list[Any]:
    count: Any = len(asks)
    if wait is not None:
        count = f"1 {wait.window} {wait.ticket} {wait.keep:d}"
    args: list[Any] = [holder.lease, holder.incarnation, request.number, request.floor, count]
    _add_asks(args, holder.instance, asks)
    args.append(request.knew)
    return args


def preview_args(asks: Sequence[Ask]) -> list[Any]:
    return _add_asks([len(asks)], "", asks)


def _add_asks(args: list[Any], instance: str, asks: Sequence[Ask]) -> list[Any]:
    for ask in asks:
        args += (ask.protocol, ask.count, _hold(ask), _note(instance, ask), _more(ask), len(ask.spans))
        for span in ask.spans:
            args += span
    return args


def _hold(ask: Ask) -> int | str:
    """What the record of a held port says of its end: how long it cools, and how it is counted."""
    if not ask.cooldown and not ask.limit:
        return ask.quarantine
    return f"{ask.quarantine},{ask.cooldown},{owner_tag(ask.range, ask.owner) if ask.limit else '-'}"


def _note(instance: str, ask: Ask) -> str:
    labels = ask.labels
    if len(labels) > 1:  # the same text for the same labels
        labels = dict(sorted(labels.items()))
    note = {"i": instance, "l": labels, "o": ask.owner, "r": ask.range}
    if ask.host:
        note["h"] = ask.host
    return _encode(note)


def _more(ask: Ask) -> str:
    """What most asks have not."""
    if not (ask.align or ask.rotate or ask.limit or ask.explicit):
        return ""
    tag = owner_tag(ask.range, ask.owner) if ask.limit else "-"
    return f"{ask.align} {ask.rotate} {ask.limit} {ask.explicit + ask.running} {tag} {ask.range}"


def claim_args(holder: Holder, request: Request, claims: Iterable[Claim]) -> list[Any]:
    args: list[Any] = [holder.lease, holder.incarnation, request.number, request.floor]
    for (number, protocol, fence), ask in claims:
        counter = f"owned/{owner_tag(ask.range, ask.owner)}" if ask.limit else ""
        args += (member(protocol, number), fence, _hold(ask), _note(holder.instance, ask), counter)
    return args


def renew_args(renewal: Renewal) -> list[Any]:
    args: list[Any] = [renewal.holder.lease, renewal.holder.incarnation, renewal.floor, *renewal.abandoned]
    if renewal.left or renewal.heard:
        args += [*(f"w{ticket}" for ticket in renewal.left), *(f"f{fence}" for fence in renewal.heard)]
    if renewal.ports >= 0:
        args.append(f"n{renewal.ports}")
    if renewal.knew:
        args.append(f"k{renewal.knew}")
    return args


def release_args(holder: Holder, ports: Iterable[Port]) -> list[Any]:
    return _add_ports([holder.lease, holder.incarnation], ports)


def foreign_args(holder: Holder, ports: Iterable[Port], host: str, range: str, duration: int, most: int) -> list[Any]:
    note = _note(holder.instance, Ask(range, (), host=host))
    return _add_ports([holder.lease, holder.incarnation, range, duration, most, note], ports)


def _add_ports(args: list[Any], ports: Iterable[Port]) -> list[Any]:
    for number, protocol, fence in ports:
        args += (member(protocol, number), fence)
    return args


def force_args(port: PortView) -> list[Any]:
    return [member(port.protocol, port.number), port.fence, port.state[0]]


def close_args(holder: Holder, quarantine: bool) -> list[Any]:
    return [holder.lease, holder.incarnation, "cool" if quarantine else "free"]


def held_args(holder: Holder, after: Port | None) -> list[Any]:
    return [holder.lease, holder.incarnation, member(after.protocol, after.number) if after else "", PAGE]


# -------------------------------------------------------------------- replies


def text(reply: Any) -> Any:
    """A reply as str and int, whether or not the client decodes."""
    if isinstance(reply, bytes):
        return reply.decode(errors="backslashreplace")  # of a damaged record, and no JSON then
    return [text(item) for item in reply] if isinstance(reply, list) else reply


def reply_of(reply: Any) -> Any:
    """The reply of any operation but `read`, whose pages are joined by :class:`SpaceReader`.

    :raises BackendError: where it has a record that no script has written.
    """
    if isinstance(reply[0], bytes):
        reply = text(reply)
    try:
        return _REPLIES[reply[0]](reply)
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(
            "The data in the store is damaged, so nothing is allocated there: a record is none"
        ) from error


def _granted(reply: list[Any]) -> Granted:
    since, first, *names = reply[1].split()
    fence = int(first)
    if len(names) == 1:
        protocol, number = parse_member(names[0])
        return Granted((Port(number, protocol, fence),), int(since))
    ports = [Port(int(name[-5:]), name[:-6], number) for number, name in enumerate(names, fence)]
    return Granted(tuple(ports), int(since))


def _full(reply: list[Any]) -> Full:
    _, ask, why, backlog, clock, now, name, record = reply
    return Full(ask, port_view(name, record, int(clock), int(now)) if record else None, bool(backlog), why)


def _preview(reply: list[Any]) -> Granted:
    ports = []
    for name in reply[1].split():
        protocol, number = parse_member(name)
        ports.append(Port(number, protocol, 0))
    return Granted(tuple(ports), 0)


def _held(reply: list[Any]) -> Held:
    clock, now = int(reply[1]), int(reply[2])
    ports = tuple(port_view(reply[i], reply[i + 1], clock, now) for i in range(3, len(reply), 2))
    return Held(ports, len(ports) == PAGE)


def _ports(text: str) -> tuple[Port, ...]:
    ports = []
    for entry in text.split(";") if text else ():
        fence, _, name = entry.partition(" ")
        protocol, number = parse_member(name)
        ports.append(Port(number, protocol, int(fence)))
    return tuple(ports)


_STATES: Final[dict[str, Literal["held", "cooling", "foreign"]]] = {"h": "held", "c": "cooling", "f": "foreign"}


def port_view(name: str, record: str, clock: int, now: int) -> PortView:
    state, lease, fence, since, until, note = record.split(" ", 5)
    about: Mapping[str, Any] = json.loads(note)
    protocol, number = parse_member(name)
    return PortView(
        number=number,
        protocol=protocol,
        state=_STATES[state],
        range=about["r"],
        owner=about["o"],
        labels=about["l"],
        instance=about["i"],
        lease=int(lease),
        fence=int(fence),
        age=max(0, now - int(since)),
        free_in=None if state == "h" else int(until.partition(",")[0]) - clock,
        host=about.get("h", ""),
    )


_REPLIES: Final = {
    "GRANTED": _granted,
    "RELEASED": lambda reply: Released(int(reply[1]), _ports("".join(reply[2:]))),
    "CLAIMED": lambda reply: Claimed(_ports(reply[1])),
    "RENEWED": lambda reply: Renewed(bool(reply[1]), _ports(reply[2]), bool(reply[3])),
    "RECOVERING": lambda reply: Recovering(int(reply[1])),
    "RECLAIMED": lambda reply: Reclaimed(bool(reply[1])),
    "CLOSED": lambda reply: Closed(bool(reply[1])),
    "FORCED": lambda reply: bool(reply[1]),
    "DROPPED": lambda reply: bool(reply[1]),
    "FULL": _full,
    "QUEUED": lambda reply: Queued(int(reply[1]), bool(reply[2]), int(reply[3])),
    "PREVIEW": _preview,
    "MARKED": lambda reply: Marked(int(reply[1])),
    "GONE": lambda reply: Gone(reply[1], forgotten=bool(reply[2])),
    "STALE": lambda reply: Stale(int(reply[1])),
    "OPENED": lambda reply: Opened(int(reply[1]), int(reply[2]), int(reply[3])),
    "OCCUPIED": lambda reply: Occupied(int(reply[1]), reply[2]),
    "HELD": _held,
}


def lease_view(lease: int, record: str, clock: int, before: int, gap: int) -> LeaseView:
    """``before``: the clock at the last visit; ``gap``: the time since."""
    incarnation, expires_text, nominal, ttl_text, _, instance = record.split(" ", 5)
    expires, ttl = int(expires_text), int(ttl_text)
    grace = gap * 3 > ttl and before < expires == int(nominal) and expires <= clock
    return LeaseView(lease, json.loads(instance), int(incarnation), ttl, expires - clock, grace)


class Undecodable(Exception):
    """The record of this name is damaged."""


class Reader(Protocol):
    """Takes the pages of one space."""

    space: str

    def keys(self) -> tuple[str, ...]:
        """For each page."""
        return keys(self.space)

    @abstractmethod
    def args(self) -> list[Any]:
        """For the next page."""

    @abstractmethod
    def feed(self, reply: Any) -> bool:
        """Take a page; True when it was the last.

        :raises Undecodable: for a record that no script has written.
        """


class SpaceReader(Reader):
    """Joins the pages of one space. Feed it until it is done; a field that comes twice counts as last read."""

    def __init__(self, space: str) -> None:
        self.space = space
        self.cursor = "0"
        self._fence = 0
        self._recovering = 0
        self._leases: dict[str, LeaseView] = {}
        self._ports: dict[str, PortView] = {}
        self._waiting: set[str] = set()

    def args(self) -> list[Any]:
        return [self.cursor, PAGE]

    def feed(self, reply: Any) -> bool:
        _, self.cursor, clock_text, now_text, fence, before, gap, left, *fields = text(reply)
        clock, now = int(clock_text), int(now_text)
        self._fence, self._recovering = int(fence), int(left)
        for name, record in zip(fields[::2], fields[1::2], strict=True):
            kind, _, rest = name.partition("/")
            try:
                if kind == "lease":
                    self._leases[name] = lease_view(int(rest), record, clock, int(before), int(gap))
                elif kind == "wait":
                    self._waiting.add(name)
                else:
                    self._ports[name] = port_view(name, record, clock, now)
            except (KeyError, TypeError, ValueError) as error:
                raise Undecodable(name) from error
        return bool(self.cursor == "0")

    def view(self) -> SpaceView:
        leases = sorted(self._leases.values())
        ports = tuple(port for _, port in sorted(self._ports.items()))
        return SpaceView(self.space, self._fence, tuple(leases), ports, len(self._waiting), self._recovering)


def event(text: str, now: int) -> Event | None:
    """An entry of the log, if it is an event: a later version may write others."""
    try:
        kind, at, name, record = text.split(" ", 3)
        _, lease, fence, _, _, note = record.split(" ", 5)
        protocol, number = parse_member(name)
        about: dict[str, Any] = json.loads(note)
        of_ask = about["r"], about["o"], about["l"], about["i"]
        age, host = max(0, now - int(at)), about.get("h", "")
        return readable(kind, number, protocol, *of_ask, int(lease), int(fence), age, host)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


class EventReader(Reader):
    """Joins the pages of one log, from its end back to the cursor, but for no more than ``limit`` entries."""

    def __init__(self, space: str, cursor: str, limit: int) -> None:
        self.space = space
        self._cursor = cursor
        self._earliest = f"({cursor}" if cursor else "-"
        self._left = limit
        self._from = "+"
        self._latest = ""
        self._events: list[Event] = []

    def keys(self) -> tuple[str, ...]:
        return (log_beside(keys(self.space)[0]),)

    def args(self) -> list[Any]:
        return [self._from, self._earliest, min(EVENTS_AT_ONCE, self._left)]

    def feed(self, reply: Any) -> bool:
        _, now, self._earliest, *entries = text(reply)
        for id, entry in zip(entries[::2], entries[1::2], strict=True):
            self._latest = self._latest or id
            self._from = f"({id}"
            found = event(entry, int(now))
            if found is not None:
                self._events.append(found)
        self._left -= EVENTS_AT_ONCE
        return self._left <= 0 or len(entries) < 2 * EVENTS_AT_ONCE

    def view(self) -> Events:
        return Events(self.space, tuple(reversed(self._events)), self._latest or self._cursor)
