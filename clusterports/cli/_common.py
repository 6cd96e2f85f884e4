"""What the commands share: options, settings, and words on stderr."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterports._text import printable, show
from clusterports.abc import Capability
from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from clusterports.abc import Backend
    from clusterports.settings import Settings

__all__ = ["Config", "Host", "Instance", "Ttl", "Url", "connect", "load", "say"]

Url = Annotated[
    str | None,
    typer.Option(help="The store, such as redis://host:6379/0. Also CLUSTERPORTS_URL, which `ps` does not show."),
]
Host = Annotated[str | None, typer.Option(help="The host whose port it is. Default: this machine's name.")]
Instance = Annotated[str | None, typer.Option(help="The name to hold the lease under. Default: one of its own.")]
# Text here: the settings say what is wrong with a number, and which bounds it has.
Ttl = Annotated[
    str | None, typer.Option(metavar="SECONDS", help="How long the lease outlives its last heartbeat, 0.1 to 3600.")
]
Config = Annotated[str | None, typer.Option(metavar="FILE", help="Read this file, not clusterports.toml.")]


def say(message: object) -> None:
    """One line on stderr, whatever the message contains."""
    with contextlib.suppress(OSError):  # a closed stderr is no reason to leave the command alone
        print(f"clusterports: {printable(str(message))}", file=sys.stderr, flush=True)


def load(config: str | None, **overrides: Any) -> Settings:
    """The settings, and a URL among them.

    :raises ConfigurationError: also when there is no URL.
    """
    from clusterports.settings import Settings

    settings = Settings.load(config, **overrides)
    if settings.url is None:
        raise ConfigurationError(
            "url: there is no store to use; give --url redis://host:6379/0, or set CLUSTERPORTS_URL, "
            "or url in clusterports.toml"
        )
    return settings


def connect(settings: Settings) -> Backend:
    """The store's backend; nothing is contacted yet.

    :raises ConfigurationError: also for a store that only one process sees: of no use to a command.
    """
    from clusterports import _backends

    backend = _backends.connect(settings.url, timeout=settings.timeout)
    if Capability.PROCESSES not in backend.capabilities:
        raise ConfigurationError(
            "url: must be a store that several processes share, such as redis://host:6379/0; "
            f"got {show(settings.url)}, which one process has to itself"
        )
    return backend
