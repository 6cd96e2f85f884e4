"""What is served where, and to whom."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, parse_qsl

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from clusterports._names import check_name, check_text
from clusterports._text import show
from clusterports.cli._listen import is_loopback_name
from clusterports.errors import BackendError, ConfigurationError
from clusterports.ranges import MAX_PORT

from ._access import SESSION, Access
from ._cluster import Body, Busy, Cluster, in_thread
from ._map import SCHEMA, as_json, search

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from clusterports._sync.allocator import PortAllocator
    from clusterports.abc import Backend
    from clusterports.ranges import PortRange

__all__ = ["application"]

POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    "img-src 'self'; "
    "connect-src 'self'; "
    "form-action 'self'; "
    "base-uri 'none'; "
    "frame-ancestors 'none'"
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer."""

HEALTH = ("/healthz", "/readyz")

OPEN = ("/login", "/static/style.css", "/static/icon.svg", *HEALTH)
"""What anybody may have who reaches us."""

AGAIN = '<meta http-equiv="refresh" content="0">\n'

LONGEST_PATH = 1024
LONGEST_FORM = 4096
LONGEST_SEARCH = 200

HITS = 50
"""Hosts, and ports, that a search finds at most."""

EVENTS = 1000
"""The most events that are told at once."""

LIVE = 64
"""Those who follow at the same time."""

LIFE = 3600.0
"""Seconds after which a browser that follows has to come again, with a session that is still good."""

BEAT = 15.0
"""Seconds between signs of life, when nothing happens."""

SLOW = 20.0
"""Seconds in which a form has to come."""

RETRY = 3000
"""Milliseconds after which a browser comes again."""

PACKED = 1024
"""Bytes below which compressing is not worth it."""


def application(
    backend: Backend,
    ranges: Iterable[PortRange],
    *,
    allocator: PortAllocator,
    host: str | None = None,
    token: str | None = None,
    names: Iterable[str] = (),
    every: float = 10.0,
) -> tuple[ASGIApp, Callable[[], None]]:
    """The page, and what to call when it is to end: those who follow it are told to go.

    ``backend``, which is not closed, and ``allocator``, of which only events are asked. ``ranges``: all that are
    configured. ``host``: this one only, and the whole cluster's ports. ``token``: who does not know it sees nothing;
    without one, everybody does who asks for this machine by a name that can mean no other, or by one of ``names``.
    ``every``: seconds between two reads of the whole store.
    """
    page = _Page(Cluster(backend, ranges, allocator=allocator, only=host, every=every), Access(token))
    return _Gate(page.application(), page.access, names), page.cluster.close


class _Refused(Exception):
    """What is wrong with a request, with its status."""

    def __init__(self, status: HTTPStatus, error: str) -> None:
        super().__init__(error)
        self.status = status


class _Asset(NamedTuple):
    body: Body
    kind: str
    tag: str

    @classmethod
    def load(cls, name: str) -> _Asset:
        content = files("clusterports.web").joinpath("static", name).read_bytes()
        return cls(Body(content), KINDS[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:16]}"')

    async def answer(self, request: Request) -> Response:
        headers = {"ETag": self.tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(self.body.plain, media_type=self.kind, headers=headers)


KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class _Page:
    def __init__(self, cluster: Cluster, access: Access) -> None:
        self.cluster = cluster
        self.access = access
        self._live = 0
        self._scrape: asyncio.Task[tuple[Body, str]] | None = None

    def application(self) -> ASGIApp:
        index = _html("index.html").replace("{logout}", "" if self.access.token else "hidden")
        assets = {name: _Asset.load(name) for name in ("app.js", "style.css", "icon.svg")}

        def static(name: str) -> Route:
            return Route(f"/static/{name}", assets[name].answer)

        async def page(_: Request) -> Response:
            return Response(index, media_type=KINDS["html"])

        application = Starlette(
            routes=[
                Route("/", page),
                *map(static, assets),
                Route("/login", self._login, methods=["GET", "POST"]),
                Route("/logout", self._logout, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/api/map", self._map),
                Route("/api/status", self._status),
                Route("/api/search", self._search),
                Route("/api/events", self._events),
                Route("/api/stream", self._stream),
            ],
            exception_handlers={
                _Refused: _refused,
                HTTPException: _no_such_thing,
                ConfigurationError: _bad_value,
                BackendError: _unavailable,
                Busy: _busy,
            },
            lifespan=self._lifespan,
        )
        application.router.redirect_slashes = False
        return application

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        from clusterports.metrics import ClusterCollector

        self._collector = ClusterCollector(self.cluster.backend, self.cluster.ranges, self.cluster.only)
        reader = asyncio.create_task(self.cluster.follow())
        yield
        self.cluster.close()
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader

    # ------------------------------------------------------------------ who comes

    async def _login(self, request: Request) -> Response:
        if request.method != "POST" or self.access.token is None:
            return RedirectResponse("/", HTTPStatus.SEE_OTHER)
        form = parse_qs((await _content(request)).decode("ascii", "replace"))
        if not self.access.is_token(form.get("token", [""])[0].encode()):
            if not await self.access.penalty():
                return login_page("Too many try to log in at the moment.", HTTPStatus.TOO_MANY_REQUESTS)
            return login_page("That is not the token.")
        answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        self._set_cookie(answer, request, self.access.session(), SESSION)
        return answer

    async def _logout(self, request: Request) -> Response:
        answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        self._set_cookie(answer, request, "", 0)
        return answer

    def _set_cookie(self, answer: Response, request: Request, value: str, seconds: int) -> None:
        # A proxy that speaks TLS says so. Who says so without one only keeps the cookie from being sent.
        secure = request.scope["scheme"] == "https" or request.headers.get("x-forwarded-proto", "").lower() == "https"
        answer.set_cookie(
            self.access.cookie, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="strict"
        )

    # ------------------------------------------------------------------ health

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, _: Request) -> Response:
        if self.cluster.ready:
            return PlainTextResponse("ok\n")
        return PlainTextResponse("unavailable\n", HTTPStatus.SERVICE_UNAVAILABLE)

    async def _metrics(self, request: Request) -> Response:
        if self._scrape is None or self._scrape.done():  # those who ask meanwhile share it
            self._scrape = asyncio.create_task(in_thread(self._collect))
        return await self._answer(request, *await asyncio.shield(self._scrape))

    def _collect(self) -> tuple[Body, str]:
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        registry = CollectorRegistry()
        registry.register(self._collector)
        ProcessCollector(registry=registry)
        return Body(generate_latest(registry)), CONTENT_TYPE_LATEST

    # ------------------------------------------------------------------ data

    async def _map(self, request: Request) -> Response:
        _query(request)
        return await self._answer(request, self.cluster.map())

    async def _status(self, request: Request) -> Response:
        query = _query(request, "host", "range")
        host, range = query.get("host", self.cluster.only), query.get("range")
        if host is not None:
            body = await self.cluster.ask(partial(self._part, host, range))
        elif range is not None:
            body = await self.cluster.of_range(range)
        else:
            body = await self.cluster.status()
        return await self._answer(request, body)

    # ``host=``, with nothing after it: the ports that are unique in the whole cluster.
    def _part(self, host: str, range: str | None) -> Body:
        only = self.cluster.only
        if host:
            check_name("host", host)
        if only is not None and host not in ("", only):
            raise ConfigurationError(f"host: must be {show(only)}, the only one that is served; got {show(host)}")
        return Body(as_json(self.cluster.part(host, range).to_dict()))

    async def _search(self, request: Request) -> Response:
        wanted = _query(request, "q").get("q", "").strip()
        if not 1 <= len(wanted) <= LONGEST_SEARCH:
            raise ConfigurationError(f"q: must be text of 1 to {LONGEST_SEARCH} characters; got {len(wanted)}")
        found = await self.cluster.work(partial(search, self.cluster.hosts(), wanted, HITS))
        return await self._answer(request, Body(as_json(found)))

    async def _events(self, request: Request) -> Response:
        query = _query(request, "host", "range", "port", "owner", "since", "limit")
        given: dict[str, Any] = {"host": self.cluster.only, "limit": whole("limit", query.get("limit", "100"), EVENTS)}
        if "host" in query:
            given["host"] = check_name("host", query["host"])
        if self.cluster.only not in (None, given["host"]):
            only, got = show(self.cluster.only), show(given["host"])
            raise ConfigurationError(f"host: must be {only}, the only one that is served; got {got}")
        if "range" in query:
            given["range"] = check_name("range", query["range"])
        if "port" in query:
            given["port"] = whole("port", query["port"], MAX_PORT)
        if "owner" in query:
            given["owner"] = check_text("owner", query["owner"])
        if "since" in query:
            given["since"] = moment("since", query["since"])
        events = await self.cluster.events(**given)
        body = as_json({"schema": SCHEMA, "events": [event.to_dict() for event in events]})
        return await self._answer(request, Body(body))

    async def _answer(self, request: Request, body: Body, kind: str = "application/json") -> Response:
        headers = {"Vary": "Accept-Encoding"}
        content = body.plain
        if len(content) >= PACKED and _takes_gzip(request):
            content = await self.cluster.work(body.packed)
            headers["Content-Encoding"] = "gzip"
        return Response(content, media_type=kind, headers=headers)

    # ------------------------------------------------------------------ live

    async def _stream(self, request: Request) -> Response:
        query = _query(request, "id")
        if self._live >= LIVE:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"stream: at most {LIVE} may follow at the same time")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        id = request.headers.get("last-event-id", query.get("id", ""))
        self._live += 1
        return _Live(self._news(id), self._leaves)

    def _leaves(self) -> None:
        self._live -= 1

    async def _news(self, id: str) -> AsyncIterator[str]:
        """Who is slow gets less often, but all of, what changed: there is no queue that could grow."""
        ends = asyncio.get_running_loop().time() + LIFE
        yield f"retry: {RETRY}\n\n"
        while not self.cluster.closed and asyncio.get_running_loop().time() < ends:
            now = self.cluster.id
            changes, events = self.cluster.since(id)
            for event in events:
                yield _sse("event", event)
            if changes is not None:
                yield _sse("map", changes, now)
                id = now
            elif not await self.cluster.news(BEAT):
                yield _sse("beat", {})


class _Live(StreamingResponse):
    """``ended`` is called when nobody follows any more, also when it never came to that."""

    def __init__(self, news: AsyncIterator[str], ended: Callable[[], None]) -> None:
        super().__init__(news, media_type="text/event-stream")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def _sse(kind: str, document: dict[str, Any], id: str = "") -> str:
    named = f"id: {id}\n" if id else ""
    return f"event: {kind}\n{named}data: {json.dumps(document, ensure_ascii=True, separators=(',', ':'))}\n\n"


# ---------------------------------------------------------------------- requests and answers


def _query(request: Request, *known: str) -> dict[str, str]:
    """What is asked for, each once at most. Not by way of ``request.url``, which a header can spoil.

    :raises ConfigurationError: something else is.
    """
    found: dict[str, str] = {}
    for key, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if key not in known:
            only = f" but {', '.join(known)}" if known else ""
            raise ConfigurationError(f"query: must have no key{only}; got {show(key)}")
        if key in found:
            raise ConfigurationError(f"{key}: must be given once; got it more than once")
        found[key] = value
    return found


def whole(key: str, text: str, most: int) -> int:
    """A whole number from 1.

    :raises ConfigurationError: it is none.
    """
    if text.isascii() and text.isdecimal() and len(text) <= 7 and 1 <= int(text) <= most:
        return int(text)
    raise ConfigurationError(f"{key}: must be a whole number from 1 to {most}; got {show(text)}")


def moment(key: str, text: str) -> datetime:
    """A time, in UTC unless it says another zone.

    :raises ConfigurationError: it is none.
    """
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{key}: must be a time such as 2026-01-31T12:00:00Z, got {show(text)}") from None


def _takes_gzip(request: Request) -> bool:
    codings = [one.strip().lower() for one in request.headers.get("accept-encoding", "").split(",")]
    return any(one == "gzip" or (one.startswith("gzip;") and not one.endswith("q=0")) for one in codings)


async def _content(request: Request) -> bytes:
    content = b""
    try:
        async with asyncio.timeout(SLOW):
            async for chunk in request.stream():
                content += chunk
                if len(content) > LONGEST_FORM:
                    raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"form: must be at most {LONGEST_FORM} bytes")
    except TimeoutError:
        raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"form: must come within {SLOW:g} s") from None
    return content


def _html(name: str) -> str:
    return files("clusterports.web").joinpath("static", name).read_text("utf-8")


def login_page(message: str, status: HTTPStatus = HTTPStatus.UNAUTHORIZED, again: bool = False) -> Response:
    """``message``: ours, nothing from outside. ``again``: have the browser ask once more, as this site's own page."""
    content = _html("login.html").replace("{message}", message).replace("{again}", AGAIN if again else "")
    return Response(content, status, {"WWW-Authenticate": "Bearer"}, KINDS["html"])


def problem(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    """An answer for a program."""
    return Response(as_json({"error": error}), status, headers, "application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)
    return problem(error.status, str(error))


async def _bad_value(_: Request, error: Exception) -> Response:
    return problem(HTTPStatus.BAD_REQUEST, str(error))


async def _unavailable(_: Request, error: Exception) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"store: {error}")


async def _busy(_: Request, __: Exception) -> Response:
    told = "store: is asked for too much at the moment; ask again later"
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, told, {"Retry-After": "2"})


async def _no_such_thing(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "path: there is nothing here", 405: "method: must be another one"}
    headers = dict(error.headers or {})
    return problem(error.status_code, told.get(error.status_code, error.detail), headers)


# ---------------------------------------------------------------------- the gate


class _Gate:
    """Stands before everything: who may come in, and what every answer says."""

    def __init__(self, inner: ASGIApp, access: Access, names: Iterable[str]) -> None:
        self._inner = inner
        self._access = access
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = await self._refusal(Request(scope)) or self._inner
        await answer(scope, receive, sealed)

    async def _refusal(self, request: Request) -> ASGIApp | None:
        path = request.scope["path"]
        if len(path) > LONGEST_PATH:
            return problem(HTTPStatus.REQUEST_URI_TOO_LONG, f"path: must be at most {LONGEST_PATH} characters")
        if request.method not in ("GET", "HEAD", "POST"):
            headers = {"Allow": "GET, HEAD"}
            return problem(HTTPStatus.METHOD_NOT_ALLOWED, "method: must be GET or HEAD", headers)
        if path in HEALTH:
            return None
        asked = request.headers.get("host", "")
        if self._access.token is None and not (is_loopback_name(asked) or asked.lower() in self._names):
            # a name of somebody else's that leads here: what is read under it would be theirs to read
            return problem(
                HTTPStatus.MISDIRECTED_REQUEST, f"host: must be localhost or a loopback address; got {show(asked)}"
            )
        site = request.headers.get("sec-fetch-site", "")
        if site in ("cross-site", "same-site") and (path not in ("/", "/login") or request.method == "POST"):
            return problem(HTTPStatus.FORBIDDEN, "site: must not be asked for by a page of another site")
        if path in OPEN or self._access.allows(request.headers.get("authorization", ""), request.cookies):
            return None
        return await self._stranger(request)

    async def _stranger(self, request: Request) -> Response:
        if "authorization" in request.headers and not await self._access.penalty():
            return problem(HTTPStatus.TOO_MANY_REQUESTS, "token: too many are wrong at the moment")
        if (
            request.method != "POST"
            and request.scope["path"] == "/"
            and "text/html" in request.headers.get("accept", "")
        ):
            # Who follows a link of another site sends no cookie at first.
            site = request.headers.get("sec-fetch-site", "")
            return login_page("", again=site in ("cross-site", "same-site"))
        error = "token: must be given as 'Authorization: Bearer TOKEN'; got none, or another"
        return problem(HTTPStatus.UNAUTHORIZED, error, {"WWW-Authenticate": "Bearer"})
