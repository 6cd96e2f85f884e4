"""From a URL to a backend: by scheme, through the entry points that ours and anybody's use alike."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from .errors import ConfigurationError

if TYPE_CHECKING:
    from .abc import AsyncBackend, Backend, Driver

__all__ = ["GROUP", "connect", "connect_async"]

GROUP = "clusterports.backends"


def driver(url: str | None, client: Any) -> Driver:
    if url is None and client is None:
        raise ConfigurationError(
            'url: no store is configured; pass a URL, set CLUSTERPORTS_URL, or write url = "redis://host/0"'
            " to clusterports.toml"
        )
    scheme = "redis" if url is None else url.partition("://")[0] if "://" in url else ""
    known = entry_points(group=GROUP)
    if scheme not in known.names:
        close = get_close_matches(scheme, known.names, 1)
        raise ConfigurationError(
            f"url: unknown scheme {scheme!r}, must be one of {', '.join(sorted(known.names))}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return cast("Driver", known[scheme].load())


def connect(url: str | None, *, timeout: float, client: Any = None) -> Backend:
    return driver(url, client).connect(url or "", timeout=timeout, client=client)


def connect_async(url: str | None, *, timeout: float, client: Any = None) -> AsyncBackend:
    return driver(url, client).connect_async(url or "", timeout=timeout, client=client)
