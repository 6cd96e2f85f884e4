"""``clusterports acquire``: ports for a script, under a lease that nobody renews but the script."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clusterports._names import check_text
from clusterports.ranges import PORT_BOUND

from ._common import DEFAULT_RANGE, Common, Ttl, complete_range, say
from ._script import Taken, script_settings, take
from ._taking import (
    DryRun,
    Labels,
    Owner,
    Protocol,
    Wait,
    check_number,
    check_pairs,
    check_seconds,
    warn_ephemeral,
)

__all__ = ["acquire"]

AT_LEAST_ONE = "an integer of at least 1"


def acquire(
    common: Common,
    range: Annotated[
        str | None, typer.Option(help="The range to take from. Default: backup.", autocompletion=complete_range)
    ] = None,
    port: Annotated[
        str | None, typer.Option(metavar="N", help="This port; without --range any from 1 to 65535 will do.")
    ] = None,
    count: Annotated[str, typer.Option(metavar="N", help="So many ports, or none.")] = "1",
    contiguous: Annotated[bool, typer.Option("--contiguous", help="Adjacent ones.")] = False,
    align: Annotated[str, typer.Option(metavar="N", help="The first is a multiple of this.")] = "1",
    protocol: Annotated[Protocol, typer.Option(help="tcp, udp, or both.")] = Protocol.tcp,
    owner: Owner = "",
    label: Labels = None,
    wait: Wait = "0",
    dry_run: DryRun = False,
    ttl: Ttl = None,
) -> None:
    """Take ports for a script, for a limited time: prints PORT LEASE FENCE, a line for each port.

    Nobody renews the lease: after --ttl seconds the ports are taken back, unless `clusterports renew LEASE` comes
    first. `clusterports release LEASE` gives them back before. On any failure nothing is held. A job that can be run as
    one command is better off with `clusterports run`, which does all of this.

    \b
    Examples:
      taken=$(clusterports acquire --ttl 60 --owner nightly) || exit
      read -r port lease fence <<<"$taken"
      clusterports acquire --count 2 --contiguous --align 2 --json
      clusterports acquire --port 8080 --protocol both --wait 30
    """
    wanted = None if port is None else check_number("port", port, PORT_BOUND)
    so_many, multiple = check_number("count", count, AT_LEAST_ONE), check_number("align", align, AT_LEAST_ONE)
    labels, patience = check_pairs(label), check_seconds(wait)
    check_text("owner", owner)
    if range is None and wanted is None:
        range = DEFAULT_RANGE
    settings = script_settings(common, ttl)
    if range is not None and wanted is None:
        warn_ephemeral(common, settings, range)
    take(
        common,
        settings,
        lambda taken: _show(common, taken),
        range,
        port=wanted,
        count=so_many,
        contiguous=contiguous,
        align=multiple,
        protocol=protocol.value,
        owner=owner,
        labels=labels,
        wait=patience,
        dry_run=dry_run,
    )


def _show(common: Common, taken: Taken) -> None:
    """Returns when it is written."""
    if common.json:
        common.print_json(taken.to_dict())
    else:
        print(taken.lines())
    sys.stdout.flush()
    if common.verbose and taken.expires_in is not None:
        say(taken.in_words())
