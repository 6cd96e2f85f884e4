"""``clusterports exporter``: figures of the cluster for Prometheus."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from concurrent.futures import Future
from contextlib import suppress
from io import BufferedReader, RawIOBase
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock, Semaphore
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import typer

from clusterports._text import show

from ._common import Common, log_to_stderr
from ._listen import Address, is_loopback_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import Metric
    from prometheus_client.registry import Collector

    from clusterports.metrics import ClusterCollector

    from ._listen import Place

__all__ = ["exporter"]

PORT = 9809

CONNECTIONS = 32
"""Clients at the same time."""
ASKING = 5.0
"""Seconds that a client has for the whole of its request."""
TAKING = 10.0
"""Seconds that it has to take what it is sent at once."""


def exporter(
    common: Common,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where to serve; port 0: any that is free.")
    ] = f"127.0.0.1:{PORT}",
) -> None:
    """Serve figures of the whole cluster to Prometheus, at /metrics.

    How full each range is on each host, leases, what is due, who waits, and whether the store can be read: that is
    clusterports_up, and the exporter goes on while it is 0. Each scrape reads the whole store once, for all
    who ask meanwhile; /healthz, for whoever keeps the exporter running, does not. Needs clusterports[metrics].

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

    place = address.find()
    with common.backend(settings) as backend:
        registry = CollectorRegistry()
        collector = ClusterCollector(backend, settings.port_ranges().values(), common.host)
        registry.register(cast("Collector", _Shared(collector)))
        ProcessCollector(registry=registry)
        with _Server(address, place) as server:
            bound = str(address._replace(port=server.server_port))
            server.set_app(_Gate(make_wsgi_app(registry), bound if place.is_loopback else None))
            if common.json:
                common.print_json({"url": f"http://{bound}/metrics"})
            elif not common.quiet:
                print(f"Serving http://{bound}/metrics")
            sys.stdout.flush()
            server.serve_forever()


def _end(*_: object) -> None:
    sys.exit(0)


class _Shared:
    """A collector whose figures are read once for all who ask meanwhile."""

    def __init__(self, collector: ClusterCollector) -> None:
        self.describe = collector.describe
        self._collect = collector.collect
        self._lock = Lock()
        self._running: Future[list[Metric]] | None = None

    def collect(self) -> list[Metric]:
        with self._lock:
            mine, running = self._running is None, self._running or Future()
            self._running = running
        if mine:
            try:
                running.set_result(list(self._collect()))
            except BaseException as error:
                running.set_exception(error)
                raise
            finally:
                with self._lock:
                    self._running = None
        return running.result()


class _Gate:
    """Figures at /metrics alone, and at /healthz an answer that costs nothing.

    ``only``: this machine alone is asked, under this name or one that means it wherever it is used.
    """

    def __init__(self, figures: Callable[..., Iterable[bytes]], only: str | None) -> None:
        self._figures = figures
        self._only = only

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, asked = environ["PATH_INFO"], environ.get("HTTP_HOST")
        if path == "/healthz":
            status, said = "200 OK", "ok"
        elif path != "/metrics":
            status, said = "404 Not Found", "path: must be /metrics or /healthz"
        elif self._is_foreign(asked):
            # a name of somebody else's that leads here: what is read under it would be theirs to read
            status = "421 Misdirected Request"
            said = f"host: must be localhost or a loopback address; got {show(asked)}"
        else:
            return self._figures(environ, start_response)
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{said}\n".encode()]

    def _is_foreign(self, asked: str | None) -> bool:
        """Browsers always say whom they ask."""
        if self._only is None or asked is None:
            return False
        return not is_loopback_name(asked) and asked.lower() != self._only.lower()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each client, and no more than there is room for.

    :raises ConfigurationError: there is no such address here, or it may not be used.
    :raises AllocationError: something else has it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: Address, place: Place) -> None:
        self.address_family = place.family
        self._host = address.host
        self._room = Semaphore(CONNECTIONS)
        self._lock = Lock()
        self._asking: dict[socket.socket, None] = {}  # the oldest first
        with address.usable():
            super().__init__((place.host, address.port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # past one that asks the DNS for a name, and waits for it
        self.server_name, self.server_port = self._host, self.socket.getsockname()[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False) and not self._make_room():
            self.shutdown_request(request)
            return
        with self._lock:
            self._asking[request] = None
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def has_asked(self, client: socket.socket) -> None:
        """Its request is there as a whole, so that it is not sent away for another."""
        with self._lock:
            self._asking.pop(client, None)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is no event."""

    def _make_room(self) -> bool:
        """Whether there is some, once who has been asking for longest was sent away."""
        with self._lock:
            oldest = next(iter(self._asking), None)
            if oldest is None:
                return False
            del self._asking[oldest]
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        return self._room.acquire(timeout=1)

    def _leave(self, client: socket.socket) -> None:
        self.has_asked(client)
        self._room.release()


class _Handler(WSGIRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.rfile.close()  # as a file it would keep the socket open for the other end
        client = _Client(self.connection)
        self.rfile, self.wfile = BufferedReader(client), cast("Any", client)

    def parse_request(self) -> bool:
        is_request = super().parse_request()
        cast("_Server", self.server).has_asked(self.connection)
        return is_request

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no events."""


class _Client(RawIOBase):
    """What it says, until its time is over, and what it is told."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._until = monotonic() + ASKING

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._client.settimeout(max(self._until - monotonic(), 0.001))
        return self._client.recv_into(buffer)

    def write(self, data: Any) -> int:
        self._client.settimeout(TAKING)
        try:
            self._client.sendall(data)
        except TimeoutError as error:
            raise BrokenPipeError from error  # for those who write it is one that went away
        return len(data)
