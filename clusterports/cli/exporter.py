"""``clusterports exporter``: figures of the cluster for Prometheus."""

from __future__ import annotations

import logging
import signal
import sys
from socketserver import TCPServer
from typing import TYPE_CHECKING, Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import typer

from ._common import Common, log_to_stderr
from ._listen import Address

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.simple_server import WSGIServer

__all__ = ["exporter"]

PORT = 9809


def exporter(
    common: Common,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where to serve; port 0: any that is free.")
    ] = f"127.0.0.1:{PORT}",
) -> None:
    """Serve figures of the whole cluster to Prometheus, at /metrics.

    How full each range is on each host, leases, what is due, who waits, and whether the store can be read: that is
    clusterports_up, and the exporter goes on while it is 0. Each scrape reads the whole store once; /healthz, for
    whoever keeps the exporter running, does not. Needs clusterports[metrics].

    Everybody who reaches the address can read the names of hosts and ranges, but neither owners nor ports: it is this
    machine's alone unless --listen says otherwise. Ends with code 0 on SIGTERM, SIGHUP and Ctrl-C.

    \b
    Examples:
      clusterports exporter
      clusterports exporter --listen 10.0.0.7:9809
    """
    address = Address.parse(listen, PORT)
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
        with _server(address, _with_health(make_wsgi_app(registry))) as server:
            url = f"http://{address._replace(port=server.server_port)}/metrics"
            if common.json:
                common.print_json({"url": url})
            elif not common.quiet:
                print(f"Serving {url}")
            sys.stdout.flush()
            server.serve_forever()


def _end(*_: object) -> None:
    sys.exit(0)


def _with_health(application: Callable[..., Any]) -> Callable[..., Any]:
    """With an answer that costs nothing to whoever only wants to know that this process lives."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] != "/healthz":
            return application(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"ok\n"]

    return answer


def _server(address: Address, application: Callable[..., Any]) -> WSGIServer:
    """Listening.

    :raises ConfigurationError: there is no such address here, or it may not be used.
    :raises AllocationError: something else has it.
    """
    from prometheus_client.exposition import ThreadingWSGIServer

    place = address.find()

    class Server(ThreadingWSGIServer):
        address_family = place.family

        def server_bind(self) -> None:
            TCPServer.server_bind(self)  # past one that asks the DNS for a name, and waits for it
            self.server_name, self.server_port = address.host, self.socket.getsockname()[1]
            self.setup_environ()

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away in the middle is no event."""

    with address.usable():
        return make_server(place.host, address.port, application, Server, _Handler)


class _Handler(WSGIRequestHandler):
    timeout = 30
    """Seconds for which a client may be silent."""

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no events."""
