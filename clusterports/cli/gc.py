"""``clusterports gc``: take back what is due in every space, and remove spaces in which nothing is left.

All of this happens by itself wherever somebody works; it is for hosts that nobody visits any more.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from clusterports._backends import intact
from clusterports._names import check_name, host_space, is_cluster_space, is_host_space, space_host
from clusterports._text import printable
from clusterports.errors import BackendError

from ._common import CLUSTER, Common, say
from ._lease import named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterports.abc import Backend, LeaseView, PortView, SpaceView

__all__ = ["Plan", "gc"]

AT_ONCE = 250
"""Spaces that are read together."""


class Plan(NamedTuple):
    """What is to do in a space. ``ended``: leases, each with how many ports are taken back. ``freed``: ports whose
    cooling or mark is over. ``graced``: leases that are given time first, since nobody looked for long. ``remove``:
    nothing is left then.
    """

    space: str
    ended: tuple[tuple[LeaseView, int], ...]
    freed: tuple[PortView, ...]
    graced: tuple[LeaseView, ...]
    remove: bool

    @classmethod
    def of(cls, view: SpaceView) -> Plan:
        over = [lease for lease in view.leases if lease.expires_in <= 0 and not lease.grace]
        held = Counter(port.lease for port in view.ports if port.state == "held")
        ended = tuple((lease, held[lease.lease]) for lease in over)
        freed = tuple(port for port in view.ports if port.free_in is not None and port.free_in <= 0)
        # A port that is taken back cools first, so its space cannot be removed now.
        remove = len(over) == len(view.leases) and len(freed) == len(view.ports)
        return cls(view.space, ended, freed, tuple(lease for lease in view.leases if lease.grace), remove)

    @property
    def host(self) -> str:
        """The host's name; "" for the cluster's space."""
        return space_host(self.space) if is_host_space(self.space) else ""

    def carry_out(self, backend: Backend) -> Plan:
        """What was done of it: somebody may have come in between."""
        if self.ended or self.freed or self.graced:
            while backend.reclaim(self.space).backlog:
                pass
        removed = self.remove and backend.drop(self.space)
        (now,) = intact(backend.read([self.space]))
        leases = {lease.lease: lease for lease in now.leases}
        ports = {(port.fence, port.state) for port in now.ports}
        return self._replace(
            ended=tuple((lease, count) for lease, count in self.ended if lease.lease not in leases),
            freed=tuple(port for port in self.freed if (port.fence, port.state) not in ports),
            graced=tuple(lease for lease in self.graced if lease.lease in leases),
            remove=removed,
        )

    def lines(self) -> Iterator[str]:
        """What is done, for people."""
        where = self.host or CLUSTER
        for lease, ports in self.ended:
            yield f"{where}: lease {lease.lease} of {lease.instance} has run out: {_ports(ports)} taken back"
        if self.freed:
            yield f"{where}: free again: {named(self.freed)}"
        for lease in self.graced:
            yield (
                f"{where}: lease {lease.lease} of {lease.instance} has run out, but nobody looked for long: "
                f"it gets {lease.ttl / 1e6:g} s to renew"
            )
        if self.remove:
            yield f"{where}: nothing is left there, removed"

    def to_dict(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "ended": [{"lease": one.lease, "instance": one.instance, "ports": ports} for one, ports in self.ended],
            "freed": [{"number": port.number, "protocol": port.protocol, "was": port.state} for port in self.freed],
            "given_time": [
                {"lease": one.lease, "instance": one.instance, "ttl_s": one.ttl / 1e6} for one in self.graced
            ],
            "removed": self.remove,
        }


def gc(
    common: Common,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Take back what is due on all hosts, or on one, and remove hosts where nothing is left.

    That happens by itself on every host that somebody uses. A lease that ran out while nobody looked is given time to
    renew first, once: the store itself may have been away. Run gc again after that time.

    \b
    Examples:
      clusterports gc --dry-run
      clusterports gc --host kvm-07
    """
    done, failed = [], []
    with common.backend(common.settings()) as backend:
        spaces = _spaces(common, backend)
        for plan in common.progress(_plans(backend, spaces), "Collecting", len(spaces)):
            if isinstance(plan, BackendError):
                failed.append(plan)
            elif any(plan.lines()):
                done.append(plan if dry_run else plan.carry_out(backend))
    if common.json:
        common.print_json({"dry_run": dry_run, "hosts": [plan.to_dict() for plan in done]})
    else:
        for plan in done:
            print(*map(printable, plan.lines()), sep="\n")
        if dry_run and done:
            print("Nothing of this was done: --dry-run")
        elif not done and not failed:
            print("Nothing to do")
    for fault in failed:
        say(fault)
    if failed:
        raise typer.Exit(5)


def _spaces(common: Common, backend: Backend) -> list[str]:
    known = [space for space in backend.spaces() if is_host_space(space) or is_cluster_space(space)]
    if common.host is None:
        return known
    return [space for space in known if space == host_space(check_name("host", common.host))]


def _plans(backend: Backend, spaces: list[str]) -> Iterator[Plan | BackendError]:
    for start in range(0, len(spaces), AT_ONCE):
        for view in backend.read(spaces[start : start + AT_ONCE]):
            yield view if isinstance(view, BackendError) else Plan.of(view)


def _ports(count: int) -> str:
    return "1 port" if count == 1 else f"{count} ports"
