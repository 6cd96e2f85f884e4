"""From a URL to a backend: by scheme, through the entry points that ours and anybody's use alike."""

from __future__ import annotations

import contextlib
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from .abc import EVENTS
from .errors import BackendError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._sources import Origin
    from .abc import AsyncBackend, Backend, Driver, SpaceView

__all__ = ["GROUP", "connect", "connect_async", "intact", "set_in"]

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


@contextlib.contextmanager
def set_in(origin: Origin | None) -> Iterator[None]:
    """What is wrong with the URL is told with the place where it was set, as the settings tell it of other values."""
    try:
        yield
    except ConfigurationError as error:
        text = str(error)
        if origin is None or not origin.where or not text.startswith("url: "):
            raise
        raise ConfigurationError(f"url ({origin}): {text.removeprefix('url: ')}") from error.__cause__


def connect(
    url: str | None, *, timeout: float, events: int = EVENTS, client: Any = None, origin: Origin | None = None
) -> Backend:
    with set_in(origin):
        return driver(url, client).connect(url or "", timeout=timeout, client=client, events=events)


def connect_async(
    url: str | None, *, timeout: float, events: int = EVENTS, client: Any = None, origin: Origin | None = None
) -> AsyncBackend:
    with set_in(origin):
        return driver(url, client).connect_async(url or "", timeout=timeout, client=client, events=events)


def intact(views: Iterable[SpaceView | BackendError]) -> list[SpaceView]:
    """What was read of some spaces, for those who cannot do without any of it.

    :raises BackendError: one of them cannot be read.
    """
    found = []
    for view in views:
        if isinstance(view, BackendError):
            raise view
        found.append(view)
    return found
