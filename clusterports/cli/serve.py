"""``clusterports serve``: a page with the map of ports."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clusterports._text import show
from clusterports.errors import ConfigurationError

from ._common import Common, log_to_stderr, say
from ._listen import Address

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from starlette.types import ASGIApp

__all__ = ["serve"]

PORT = 9810
TOKEN = "CLUSTERPORTS_WEB_TOKEN"  # the name of a variable

LEAVE = 2
"""Seconds that those who are being answered have at the end."""


def serve(
    common: Common,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where to serve; port 0: any that is free.")
    ] = f"127.0.0.1:{PORT}",
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=f"The token that gives access is in there. Also {TOKEN}, the token itself."),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS", help="How often to read the whole store, 1 to 3600; 10 by default. Changes show at once."
        ),
    ] = None,
) -> None:
    """Serve a page with the map of ports: hosts by ranges, who holds what, and what happened. It only looks.

    At /api/map, /api/status (the layout of `status --json`), /api/search, /api/events and /api/stream it is for
    programs, at /metrics for Prometheus, at /healthz and /readyz for whoever keeps it running. Needs clusterports[web].

    By default only this machine reaches it, and needs no token. For any other address there must be one: who has it
    sees everything, a browser asks for it, a program sends `Authorization: Bearer TOKEN`. Have a proxy speak TLS in
    front of it. Ends with code 0 on SIGTERM, SIGHUP and Ctrl-C.

    \b
    Examples:
      clusterports serve
      clusterports serve --listen 10.0.0.7:9810 --token-file /etc/clusterports/web-token
    """
    address = Address.parse(listen, PORT)
    pause = parse_every(every)
    token = read_token(token_file)
    from clusterports import PortAllocator
    from clusterports.web import application, check_token  # it says what is missing

    if token is not None:
        check_token(token)
    place = address.find()
    if token is None and not place.is_loopback:
        raise ConfigurationError(
            f"listen: must be an address of this machine alone where there is no token (--token-file, {TOKEN});"
            f" got {show(str(address))}"
        )
    settings = common.settings()
    if not common.quiet and not common.verbose:
        log_to_stderr(logging.WARNING)
    _end_at_once()
    with common.backend(settings) as backend, address.listening(place) as server:
        # Never entered: of an instance with a name, it would take over the leases.
        allocator = PortAllocator(settings=settings, backend=backend, probe=False)
        bound = address._replace(port=server.getsockname()[1])
        page, close = application(
            backend,
            settings.port_ranges().values(),
            allocator=allocator,
            host=common.host,
            token=token,
            names=[str(bound)],
            every=pause,
        )

        def ready() -> None:
            url = f"http://{bound}/"
            if common.json:
                common.print_json({"url": url})
            elif not common.quiet:
                print(f"Serving {url}")
            sys.stdout.flush()

        asyncio.run(_serve(page, close, server, ready))


def parse_every(text: str | None) -> float:
    """In seconds.

    :raises ConfigurationError: it is none that can be.
    """
    try:
        seconds = 10.0 if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise ConfigurationError(f"every: must be a number of seconds from 1 to 3600, got {show(text)}")
    return seconds


def read_token(file: str | None) -> str | None:
    """What is in the file without the end of its line, else in the variable; None: there is none.

    :raises ConfigurationError: the file cannot be read.
    """
    if file is None:
        return os.environ.get(TOKEN)
    try:
        with Path(file).open("rb") as opened:
            return opened.read(4096).decode("ascii", "replace").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not the path of a file"
        raise ConfigurationError(f"token-file: {show(file, 300)} cannot be read: {reason}") from error


def _end_at_once() -> None:
    """Until it serves, and after."""
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _end)


def _end(*_: object) -> None:
    sys.exit(0)


async def _serve(page: ASGIApp, close: Callable[[], None], listening: socket.socket, ready: Callable[[], None]) -> None:
    """Until a signal comes."""
    import uvicorn

    from clusterports.web._http import IDLE, LONGEST_HEADERS, Protocol, limited

    logger = logging.getLogger("uvicorn")
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    logger.addHandler(_Trouble())

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        def handle_exit(self, sig: int, frame: object) -> None:
            loop.call_soon_threadsafe(close)
            self.should_exit = True

    config = uvicorn.Config(
        limited(page, lambda: len(server.server_state.connections)),
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=LONGEST_HEADERS,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=LEAVE,
    )
    loop = asyncio.get_running_loop()
    server = Server(config)
    if signal.getsignal(signal.SIGHUP) is _end:
        signal.signal(signal.SIGHUP, server.handle_exit)
    await server.serve([listening])
    signal.signal(signal.SIGHUP, _end)


class _Trouble(logging.Handler):
    """What goes wrong in the server, in a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:  # the rest tells of clients that go away or are slow, which is no event
            say(f"error: {record.getMessage().strip()}: {type(error).__name__}: {error}")
