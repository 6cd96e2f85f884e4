"""What those are asked who take ports, and how they say what they got."""

from __future__ import annotations

import contextlib
import re
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterports._names import check_labels, where
from clusterports._text import show
from clusterports._wants import check_wait
from clusterports.errors import ConfigurationError
from clusterports.probe import ephemeral_overlap, is_local

from ._common import Common, as_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterports import Allocation, Settings

__all__ = [
    "DryRun",
    "Labels",
    "Owner",
    "Protocol",
    "Wait",
    "check_number",
    "check_pairs",
    "check_seconds",
    "in_words",
    "say_json",
    "to_dict",
    "warn_ephemeral",
]


class Protocol(StrEnum):
    """Layer 4; both: one number for the two."""

    tcp = "tcp"
    udp = "udp"
    both = "both"


Owner = Annotated[str, typer.Option(help="Whom it is for; free text.")]
Labels = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="More about it; repeatable.")]
Wait = Annotated[
    str, typer.Option(metavar="SECONDS", help="How long to wait, in order of arrival, for ports to be free.")
]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be given, and take nothing.")]


def check_number(key: str, text: str, bound: str) -> int:
    """The integer that an option says; whether it is within the bound is for others to judge.

    :raises ConfigurationError: when it is none.
    """
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise ConfigurationError(f"{key}: must be {bound}, got {show(text)}")
    return int(text)


def check_seconds(text: str) -> float:
    """How long to wait.

    :raises ConfigurationError: when it is no number, or out of its bounds.
    """
    with contextlib.suppress(ValueError):
        return check_wait(float(text))
    return check_wait(text)


def check_pairs(pairs: Sequence[str] | None) -> dict[str, str]:
    """The labels.

    :raises ConfigurationError: when one is not KEY=VALUE, or too long, a key is there twice, or is one that marks the
        port of a job that may outlive us.
    """
    labels: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigurationError(f"label: must be KEY=VALUE, got {show(pair)}")
        if key in labels:
            raise ConfigurationError(f"label: {show(key, 40)[1:-1]} is given twice")
        if key.startswith("libvirt."):
            from clusterports.libvirt._jobs import OWN_LABELS

            if key in OWN_LABELS:
                raise ConfigurationError(f"label: must not be one that clusterports sets itself, got {show(key)}")
        labels[key] = value
    return check_labels(labels)


def warn_ephemeral(common: Common, settings: Settings, name: str) -> None:
    """Tell a person at a terminal that the kernel may take ports of this range; a thousand jobs would fill a log."""
    span = settings.port_ranges().get(name)
    if sys.stderr.isatty() and span is not None and (settings.host is None or is_local(settings.host)):
        overlap = ephemeral_overlap(span.first, span.last)
        if overlap is not None:
            common.warn(f"warning: range {name!r} ({span.first}-{span.last}): {overlap}")


def to_dict(given: Sequence[Allocation], instance: str | None, expires_in: float | None) -> dict[str, Any]:
    """What was taken, in the layout of ``acquire --json``. Without an instance nothing was: it is what would be."""
    first = given[0]
    return {
        "host": first.host,
        "range": first.range,
        "protocol": first.protocol,
        "ports": [port.number for port in given],
        "lease": None if instance is None else first.lease,
        "fence": [] if instance is None else [port.fence for port in given],
        "owner": first.owner,
        "expires_in_s": None if expires_in is None else round(expires_in, 3),
        "instance": instance,
    }


def in_words(given: Sequence[Allocation], instance: str, expires_in: float) -> str:
    """The same for a person."""
    ports = ", ".join(f"{port.number}/{port.protocol} (fence {port.fence})" for port in given)
    lease = f"lease {given[0].lease} of instance {instance!r}"
    return f"took {ports} {where(given[0]._lease.space)} under {lease}, for {expires_in:.1f} s unless renewed"


def say_json(document: dict[str, Any]) -> None:
    """One line on stderr, without any character that a terminal might obey."""
    with contextlib.suppress(OSError):
        print(as_json(document), file=sys.stderr, flush=True)
