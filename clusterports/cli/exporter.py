"""``clusterports exporter``: figures of the cluster for Prometheus."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from socketserver import TCPServer
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server

import typer

from clusterports._text import show
from clusterports.errors import AllocationError, ConfigurationError
from clusterports.ranges import MAX_PORT

from ._common import Common, log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.simple_server import WSGIServer

__all__ = ["Address", "exporter"]

LISTEN = "127.0.0.1:9809"


class Address(NamedTuple):
    """Where to listen. ``port`` 0: any that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Of ``ADDRESS:PORT``; an IPv6 address stands in brackets.

        :raises ConfigurationError: it is none.
        """
        host, colon, digits = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 5 else -1
        if colon and bare and (":" in bare) == (bare != host) and 0 <= number <= MAX_PORT:
            return cls(bare, number)
        raise ConfigurationError(
            f"listen: must be ADDRESS:PORT such as {LISTEN} or [::1]:9809, with a port from 0 to {MAX_PORT};"
            f" got {show(text)}"
        )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def exporter(
    common: Common,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where to serve; port 0: any that is free.")
    ] = LISTEN,
) -> None:
    """Serve figures of the whole cluster to Prometheus, at /metrics.

    How full each range is on each host, leases, what is due, who waits, and whether the store can be read: that is
    clusterports_up, and the exporter goes on while it is 0. Each scrape reads the whole store once. Needs
    clusterports[metrics].

    Everybody who reaches the address can read the names of hosts and ranges, but neither owners nor ports: it is this
    machine's alone unless --listen says otherwise. Ends with code 0 on SIGTERM, SIGHUP and Ctrl-C.

    \b
    Examples:
      clusterports exporter
      clusterports exporter --listen 10.0.0.7:9809
    """
    address = Address.parse(listen)
    from clusterports.metrics import ClusterCollector  # first: it says what is missing

    settings = common.settings()
    if not common.quiet and not common.verbose:
        log_to_stderr(logging.WARNING)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _end)
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

    with common.backend(settings) as backend:
        registry = CollectorRegistry()
        registry.register(ClusterCollector(backend, settings.port_ranges().values(), common.host))
        ProcessCollector(registry=registry)
        with _server(address, make_wsgi_app(registry)) as server:
            url = f"http://{address._replace(port=server.server_port)}/metrics"
            if common.json:
                common.print_json({"url": url})
            elif not common.quiet:
                print(f"Serving {url}")
            sys.stdout.flush()
            server.serve_forever()


def _end(*_: object) -> None:
    sys.exit(0)


def _server(address: Address, application: Callable[..., Any]) -> WSGIServer:
    """Listening.

    :raises ConfigurationError: there is no such address here, or it may not be used.
    :raises AllocationError: something else has it.
    """
    from prometheus_client.exposition import ThreadingWSGIServer

    try:
        (known, _, _, _, place), *_ = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)

        class Server(ThreadingWSGIServer):
            address_family = known

            def server_bind(self) -> None:
                TCPServer.server_bind(self)  # past one that asks the DNS for a name, and waits for it
                self.server_name, self.server_port = address.host, self.socket.getsockname()[1]
                self.setup_environ()

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that goes away in the middle is no event."""

        return make_server(str(place[0]), address.port, application, Server, _Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AllocationError(f"listen: {address} is in use by another process") from error
        raise ConfigurationError(f"listen: {show(str(address))} cannot be used: {error.strerror or error}") from error
    except UnicodeError as error:  # a label of a name that is empty or too long
        raise ConfigurationError(f"listen: {show(str(address))} cannot be used: not a name of a host") from error


class _Handler(WSGIRequestHandler):
    timeout = 30
    """Seconds for which a client may be silent."""

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no events."""
