"""``clusterports release``: what ``acquire`` gave is given back; or, for operators, a port is taken from anybody."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast, get_args

import typer

from clusterports._names import CLUSTER_SPACE, check_name, where
from clusterports._requests import Ranges, check_port, overlap
from clusterports._text import printable, show
from clusterports.abc import Gone, Port, Protocol4
from clusterports.errors import ConfigurationError, LeaseLost, PortInUse
from clusterports.ranges import PORT_BOUND

from ._common import Common, say
from ._lease import Found, check_positive, find, named, views
from ._taking import check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterports.abc import Backend, LeaseView, PortView

__all__ = ["release"]


def release(
    common: Common,
    lease: Annotated[str, typer.Argument(metavar="LEASE", help="As `acquire` printed it. With --force: the host.")],
    fence: Annotated[
        list[str] | None, typer.Argument(metavar="FENCE", help="The same. With --force: PORT or PORT/PROTOCOL.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="For operators: take this port of this host from whoever has it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --force: do not ask.")] = False,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Some other program has these ports: pass them over for 30 s.")
    ] = False,
) -> None:
    """Give back what `acquire` gave: all of it, and the lease, or only the ports with these fences.

    Exits with 4 for what is gone: it ran out, was released before, or never was. On another host than the one where the
    ports are, name that with --host.

    With --foreign for ports that the job found in use, on another host or after the probe: they are given to nobody
    for a while. Of a range at most half are marked so at a time; others, and those taken without a range, become free.

    With --force it is for operators: shows who has a port, asks, and takes it away. A held port cools, for the
    quarantine of its range or until its lease would have run out, in which time its holder, who is told with its next
    heartbeat, has to stop using it. A port that cools, or that is marked as foreign, is free at once.

    \b
    Examples:
      clusterports release "$lease"
      clusterports release "$lease" "$fence"
      clusterports release --foreign "$lease"
      clusterports release --force kvm-07 10809
      clusterports release --force --yes kvm-07 5060/udp
    """
    if not force:
        if yes:
            raise ConfigurationError("yes: must be given together with --force")
        fences = [check_positive("fence", word) for word in fence or ()]
        _release(common, check_positive("lease", lease), fences, foreign=foreign)
    elif foreign:
        raise ConfigurationError("foreign: must not be given together with --force")
    elif fence is None or len(fence) != 1:
        words = " ".join((lease, *(fence or ())))
        raise ConfigurationError(f"force: must be given with HOST and PORT, got {show(words)}")
    else:
        _force(common, Target.parse(common, lease, fence[0]), yes=yes)


# ---------------------------------------------------------------- by the lease


def _release(common: Common, number: int, fences: Sequence[int], *, foreign: bool) -> None:
    settings = common.settings()
    with common.backend(settings) as backend:
        found = find(common, backend, settings, number)
        ports = [port for port in found.ports if not fences or port.fence in fences]
        marked = _mark(backend, found, ports, Ranges(settings.port_ranges().values())) if foreign else 0
        if not fences:
            _end(backend, found)
        elif not foreign:
            _free(backend, found, ports)
    if common.json:
        common.print_json(
            {
                "host": found.host,
                "lease": number,
                "instance": found.lease.instance,
                "ports": [port.number for port in ports],
                "fence": [port.fence for port in ports],
                "foreign": marked,
                "ended": not fences,
            }
        )
    if common.verbose:
        what = f"gave back {named(ports)} {where(found.space)}{'' if fences else f', and lease {number}'}"
        say(f"{what}; {marked} marked as foreign" if foreign else what)
    missing = sorted(set(fences) - {port.fence for port in ports})
    if missing:
        which = ", ".join(map(str, missing))
        raise LeaseLost(
            f"Lease {number} {where(found.space)} holds no port with fence {which}: it was released before, taken by "
            "force, or never was"
        )


def _free(backend: Backend, found: Found, ports: Sequence[PortView]) -> None:
    reply = backend.release(found.space, found.holder, [Port(port.number, port.protocol, port.fence) for port in ports])
    if isinstance(reply, Gone):
        raise found.lost(reply)


def _mark(backend: Backend, found: Found, ports: Sequence[PortView], ranges: Ranges) -> int:
    """Frees them all, and gives how many are passed over for a while."""
    from clusterports._sync.acquire import FOREIGN

    marked = 0
    alike: dict[tuple[str, str], list[Port]] = {}
    for port in ports:
        alike.setdefault((port.range, port.host), []).append(Port(port.number, port.protocol, port.fence))
    for (range, host), several in alike.items():
        reply = backend.mark_foreign(
            found.space,
            found.holder,
            several,
            range=range,
            duration=round(FOREIGN * 1e6),
            most=ranges.marks(range),
            host=host,
        )
        if isinstance(reply, Gone):
            raise found.lost(reply)
        marked += reply.count
    return marked


def _end(backend: Backend, found: Found) -> None:
    live = found.lease.expires_in > 0 or found.lease.grace
    more = True
    while more:
        reply = backend.close_lease(found.space, found.holder)
        if not isinstance(reply, Gone):
            more = reply.more
        elif live and reply.reason == "expired":  # by us: the reply to the call that ended it was lost
            return
        else:
            raise found.lost(reply)


# ---------------------------------------------------------------- by force


class Target(NamedTuple):
    """``protocol``: None when it was not said."""

    host: str
    number: int
    protocol: Protocol4 | None

    @classmethod
    def parse(cls, common: Common, host: str, port: str) -> Target:
        """:raises ConfigurationError: this is no host and port, or contradicts --host."""
        check_name("host", host)
        if common.host not in (None, host):
            raise ConfigurationError(
                f"host: must be {show(host)}, as before the port, or left out; got {show(common.host)}"
            )
        digits, slash, protocol = port.partition("/")
        number = check_number("port", digits, PORT_BOUND)
        check_port(number, protocol if slash else get_args(Protocol4)[0])
        return cls(host, number, cast("Protocol4", protocol) if slash else None)

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}" if self.protocol else str(self.number)


class Seen(NamedTuple):
    """A port that is not free. ``lease``: under which it is held."""

    space: str
    port: PortView
    lease: LeaseView | None


def _look(backend: Backend, target: Target) -> tuple[list[Seen], str | None]:
    """What the target can mean; and the host that has the number, if that is another one's in the whole cluster."""
    seen: list[Seen] = []
    elsewhere = None
    for view in views(backend, target.host):
        for port in view.ports:
            if port.number != target.number or not overlap(port.protocol, target.protocol or port.protocol):
                continue
            if view.space == CLUSTER_SPACE and port.host != target.host:
                elsewhere = port.host
                continue
            held = [lease for lease in view.leases if port.state == "held" and lease.lease == port.lease]
            seen.append(Seen(view.space, port, held[0] if held else None))
    return seen, elsewhere


def _force(common: Common, target: Target, *, yes: bool) -> None:
    with common.backend(common.settings()) as backend:
        seen, elsewhere = _look(backend, target)
        if not seen:
            _show_free(common, target, elsewhere)
            return
        if len({one.port.protocol for one in seen}) > 1:
            choice = " or ".join(sorted(f"{one.port.number}/{one.port.protocol}" for one in seen))
            raise ConfigurationError(f"port: must be {choice}, which are taken each for itself; got {target}")
        space, port, _ = seen[0]
        if not yes and not _confirmed(seen[0], target.host):
            say("nothing was done")
            raise typer.Exit(1)
        done = backend.force(space, port)
        present = {one.port.fence: one.port for one in _look(backend, target)[0] if one.space == space}
    now = present.get(port.fence)
    # A holder that ended meanwhile, or a reply that was lost, leaves it as it was to be.
    if not done and (now.state == port.state if now else present):
        raise PortInUse(target.host, now or next(iter(present.values())))
    _show_taken(common, target.host, port, (now.free_in or 0) / 1e6 if now else 0.0)


def _confirmed(seen: Seen, host: str) -> bool:
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigurationError(f"yes: must be given where nobody can be asked; {PortInUse(host, seen.port)}")
    from .status import span

    say(PortInUse(host, seen.port))
    if seen.lease is not None:
        left = span(seen.lease.expires_in / 1e6)
        say(f"given {span(seen.port.age / 1e6)} ago; lease {seen.lease.lease} runs for another {left} unless renewed")
    print("Take it away? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def _show_taken(common: Common, host: str, port: PortView, free_in: float) -> None:
    name = f"Port {port.number}/{port.protocol} on host {host!r}"
    whose = f"instance {port.instance!r}" + (f", owner {show(port.owner)}" if port.owner else "")
    if port.state != "held":
        text = (
            f"{name} is free now: it was {port.state}, {'seen' if port.state == 'foreign' else 'last held'} by {whose}"
        )
    elif free_in > 0:
        text = f"{name} was taken from {whose}: it is free in {free_in:.1f} s, when its holder has heard of it"
    else:
        text = f"{name} was taken from {whose}: it is free now"
    known = {"owner": port.owner, "instance": port.instance, "fence": port.fence, "free_in_s": round(free_in, 3)}
    _answer(common, text, host=host, number=port.number, protocol=port.protocol, was=port.state, **known)


def _show_free(common: Common, target: Target, elsewhere: str | None) -> None:
    text = f"Port {target} on host {target.host!r} is free"
    if elsewhere is not None:
        text = f"Port {target} is not held on host {target.host!r}; in the whole cluster host {elsewhere!r} has it"
    unknown = {"owner": None, "instance": None, "fence": None, "free_in_s": 0.0}
    _answer(common, text, **target._asdict(), was="free", **unknown)


def _answer(common: Common, text: str, **document: Any) -> None:
    if common.json:
        common.print_json(document)
    else:
        print(printable(text))
