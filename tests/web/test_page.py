"""What the page answers to whom, without a network between."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from web.conftest import PATIENCE, TOKEN, Site, site

from clusterports.cli._common import as_json
from clusterports.cli._listen import is_loopback_name
from clusterports.errors import BackendUnavailable, ConfigurationError
from clusterports.web import check_token
from clusterports.web._access import Access
from clusterports.web._app import BEAT

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2
    import servers

    from clusterports.abc import Backend

DATA = ("/api/map", "/api/status", "/api/search?q=x", "/api/events", "/metrics")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def until(look: Callable[[], Any]) -> Any:
    """What is seen as soon as there is something to see."""
    deadline = time.monotonic() + PATIENCE
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return seen


def row(page: Site, host: str = "h") -> dict[str, Any] | None:
    rows = page.client.get("/api/map").json()["hosts"]
    return next((one for one in rows if one["host"] == host), None)


def holds(page: Site, host: str = "h") -> bool:
    """Whether the map shows a port of the host as held; a lease alone makes a row."""
    one = row(page, host)
    return one is not None and one["ranges"]["backup"][0] > 0


def problem(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


# ---------------------------------------------------------------------- data


def test_map(page: Site) -> None:
    """The map has each host's counts by range, its leases, and the ports of the whole cluster apart."""
    page.ports.acquire("gateway")
    until(lambda: (one := row(page, "")) and one["ranges"] == {"gateway": [1, 0, 0, 3, 0]})
    page.ports.acquire("backup", count=3)
    (held,) = until(lambda: (one := row(page)) and one["ranges"].get("backup") == [3, 0, 0, 5, 0] and [one])
    document = page.client.get("/api/map").json()
    (wide,) = [one for one in document["hosts"] if one["host"] == ""]

    assert {"backup": [3, 0, 0, 5, 0], "spare": [0, 0, 0, 3, 1]} == held["ranges"]
    assert (1, 0, 0, 0, 0) == tuple(held[key] for key in ("live", "expired", "jeopardy", "waiting", "recovering_s"))
    assert {"gateway": [1, 0, 0, 3, 0]} == wide["ranges"]
    assert ["held", "cooling", "foreign", "free", "excluded"] == document["columns"]
    assert ["backup", "gateway", "spare"] == [one["name"] for one in document["ranges"]]
    assert {"readable": True, "error": ""} == {key: document["store"][key] for key in ("readable", "error")}


def test_status_is_that_of_the_command(page: Site) -> None:
    """It has the layout of ``status --json`` to the byte, of everything, of a host, of a range, and of the cluster."""
    taken = page.ports.acquire("backup", owner="vm-\x7f-é", labels={"b": "1", "a": "2"})
    page.ports.acquire("gateway")
    page.ports.acquire("backup", host="other")
    page.ports.release(taken)

    def still(document: dict[str, Any]) -> dict[str, Any]:
        text = re.sub(r'"(generated_at|since)": "[^"]*"|"\w+_s": [-0-9.]+', "", json.dumps(document))
        return {"text": text}

    for query, expected in (
        ({}, page.ports.status()),
        ({"host": "h"}, page.ports.status(host="h")),
        ({"range": "backup"}, page.ports.status(range="backup")),
        ({"host": "h", "range": "gateway"}, page.ports.status(host="h", range="gateway")),
    ):
        answer = page.client.get("/api/status", params=query)
        assert as_json(answer.json()) + "\n" == answer.text
        assert still(expected.to_dict()) == still(answer.json())
    whole = page.client.get("/api/status", params={"host": ""}).json()
    assert [("", 1)] == [(one["host"], len(one["ports"])) for one in whole["hosts"]]


def test_figures_agree(page: Site) -> None:
    """Map and metrics count the same."""
    page.ports.acquire("backup", count=2)
    page.ports.force_release("h", 10810)
    until(lambda: (one := row(page)) and one["ranges"]["backup"] == [1, 1, 0, 6, 0])
    text = page.client.get("/metrics").text
    (ports,) = [one for one in text_string_to_metric_families(text) if one.name == "clusterports_ports"]
    counted = {(one.labels["range"], one.labels["state"]): one.value for one in ports.samples if one.labels["host"]}
    document = page.client.get("/api/map").json()
    (there,) = [one for one in document["hosts"] if one["host"] == "h"]

    assert counted == {
        (name, state): count
        for name, counts in there["ranges"].items()
        for state, count in zip(document["columns"], counts, strict=True)
    }


def test_search(page: Site) -> None:
    """A port is found by number, owner, instance and label, a host by name; case is of no matter; what fits wholly is
    first, and no more than fifty.
    """
    page.ports.acquire("backup", port=10810, owner="VM-421", host="far")
    page.ports.acquire("backup", port=10811, owner="vm-42", labels={"Job": "Nightly"}, host="near")
    until(lambda: holds(page, "near"))

    def found(wanted: str) -> tuple[list[str], list[int]]:
        answer = page.client.get("/api/search", params={"q": wanted}).json()
        return answer["hosts"], [one["number"] for one in answer["ports"]]

    assert ([], [10811, 10810]) == found("vm-42")
    assert ([], [10810]) == found("10810")
    assert ([], [10811]) == found("nightly")
    assert (["far"], []) == found("FAR")
    assert ([], []) == found("nothing")
    assert {"hosts": [], "ports": [], "more": False}.items() <= page.client.get("/api/search?q=zz").json().items()


def test_search_is_bounded(page: Site) -> None:
    """Of more than fifty hits it says that there are more."""
    for i in range(51):
        page.ports.acquire("backup", host=f"kvm-{i}", owner="vm")
    until(lambda: holds(page, "kvm-50"))
    answer = page.client.get("/api/search?q=vm").json()

    assert (50, 50, True) == (len(answer["hosts"]), len(answer["ports"]), answer["more"])


def test_events(page: Site) -> None:
    """Of a host, a port, an owner, a range, since a time; the last ones."""
    page.ports.acquire("backup", owner="a").release()
    page.ports.acquire("spare", owner="b", host="other")

    def told(**query: str) -> list[tuple[str, str, int]]:
        answer = page.client.get("/api/events", params=query).json()
        assert {"schema", "events"} == set(answer)
        return [(one["kind"], one["host"], one["number"]) for one in answer["events"]]

    story = [("acquired", "h", 10809), ("released", "h", 10809), ("acquired", "other", 20000)]
    assert story == told()
    assert story[:2] == told(host="h")
    assert story[2:] == told(port="20000") == told(owner="b") == told(range="spare") == told(limit="1")
    assert story == told(since="2020-01-01T00:00:00")
    assert [] == told(since="2222-01-01T00:00:00Z")


def test_one_host_only(memory: servers.MemoryStore) -> None:
    """A page of one host says nothing of another."""
    with site(memory.connect(), host="h") as page:
        page.ports.acquire("backup")
        page.ports.acquire("backup", host="other", owner="secret")
        until(lambda: row(page))

        assert ["h"] == [one["host"] for one in page.client.get("/api/status").json()["hosts"]]
        assert "secret" not in page.client.get("/api/events").text
        for path in ("/api/status?host=other", "/api/events?host=other"):
            message = "host: must be 'h', the only one that is served; got 'other'"
            assert (400, message) == problem(page.client.get(path))


def test_too_many_ask(page: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is sent away because too many ask is told to come again; the map is there all the same."""
    monkeypatch.setattr("clusterports.web._cluster.ASKING", 0)
    for path in ("/api/events", "/api/status?host=h"):
        answer = page.client.get(path)
        assert (503, "store: is asked for too much at the moment; ask again later") == problem(answer)
        assert "2" == answer.headers["retry-after"]
    assert [200, 200] == [page.client.get(path).status_code for path in ("/api/map", "/api/status")]


def test_compressed(page: Site) -> None:
    """Who takes gzip gets the same, compressed; who does not, does not."""
    page.ports.acquire("backup", count=8)
    packed = page.client.get("/api/status", headers={"Accept-Encoding": "br, gzip"})
    plain = page.client.get("/api/status", headers={"Accept-Encoding": "gzip;q=0"})

    assert ("gzip", "Accept-Encoding") == (packed.headers["content-encoding"], packed.headers["vary"])
    assert "content-encoding" not in plain.headers
    assert {"schema", "hosts"} <= packed.json().keys() == plain.json().keys()


# ---------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/api/map?x=1", "query: must have no key; got 'x'"),
        ("/api/status?hst=a", "query: must have no key but host, range; got 'hst'"),
        ("/api/status?host=a&host=b", "host: must be given once; got it more than once"),
        ("/api/status?host=%0a", "host: must be 1 to 255 bytes of UTF-8 without control characters"),
        ("/api/status?range=none", "range: must be one of backup, gateway, spare; got 'none'"),
        ("/api/search", "q: must be text of 1 to 200 characters; got 0"),
        ("/api/search?q=" + 201 * "x", "q: must be text of 1 to 200 characters; got 201"),
        ("/api/events?port=0", "port: must be a whole number from 1 to 65535; got '0'"),
        ("/api/events?port=10809/tcp", "port: must be a whole number from 1 to 65535; got '10809/tcp'"),
        ("/api/events?limit=1001", "limit: must be a whole number from 1 to 1000; got '1001'"),
        ("/api/events?limit=٣", "limit: must be a whole number from 1 to 1000; got '٣'"),
        ("/api/events?since=soon", "since: must be a time such as 2026-01-31T12:00:00Z, got 'soon'"),
        ("/api/stream?from=1", "query: must have no key but id; got 'from'"),
    ],
)
def test_bad_values(path: str, message: str, page: Site) -> None:
    """A value that cannot be is answered by 400, with key and bound."""
    status, told = problem(page.client.get(path))

    assert (400, message) == (status, told[: len(message)])


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/api", "/api/map/", "/static/", "/static/..%2f_app.py", "/static/%2e%2e/_app.py",
     "/static/index.html", "/%00", "/static/app.js%00.css"],
)  # fmt: skip
def test_no_such_path(path: str, page: Site) -> None:
    """What is not there is answered by 404, whatever tricks the path has."""
    assert (404, "path: there is nothing here") == problem(page.client.get(path))


def test_long_path(page: Site) -> None:
    """A path that is too long is answered by 414."""
    assert (414, "path: must be at most 1024 characters") == problem(page.client.get("/" + 1025 * "x"))


@pytest.mark.parametrize("path", ["/", *DATA, "/healthz", "/static/app.js"])
def test_read_only(path: str, guarded: Site) -> None:
    """Nothing but reading is possible."""
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST"):
        answer = guarded.client.request(method, path, headers=BEARER)
        assert (405, True) == (answer.status_code, "GET" in answer.headers["allow"])


@pytest.mark.parametrize("path", ["/", *DATA, "/api/stream", "/healthz", "/readyz", "/static/app.js"])
def test_head(path: str, page: Site) -> None:
    """HEAD answers as GET does, without the content."""
    until(lambda: 200 == page.client.get("/readyz").status_code)
    answer = page.client.head(path)

    assert (200, b"") == (answer.status_code, answer.content)


@pytest.mark.parametrize("path", ["/", "/api/map", "/nothing", "/login", "/static/app.js", "/healthz", "/api/map?x=1"])
def test_headers_of_every_answer(path: str, guarded: Site) -> None:
    """Every answer keeps scripts, frames and other sites out, whatever it answers, and lets no other site read."""
    for headers in ({}, BEARER):
        answer = guarded.client.get(path, headers=headers)
        assert SECURITY.items() <= answer.headers.items()
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert ("no-cache" if path.startswith("/static") and headers else "no-store") == answer.headers["cache-control"]


def test_assets_are_asked_for_again(page: Site) -> None:
    """What a browser has already is not sent again."""
    tag = page.client.get("/static/app.js").headers["etag"]
    answer = page.client.get("/static/app.js", headers={"If-None-Match": tag})

    assert (304, b"") == (answer.status_code, answer.content)


def test_nothing_inline_and_nothing_of_others(page: Site) -> None:
    """The page has no script or style in it, asks for nothing elsewhere, and makes no elements out of text."""
    html = page.client.get("/").text
    script = page.client.get("/static/app.js").text
    style = page.client.get("/static/style.css").text

    assert [] == re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|style=", html)
    assert [] == re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    assert [] == re.findall(r"(?:https?:)?//[a-z]+\.[a-z]+|@import", html + script + style)


def test_silence_is_longer_than_a_beat(page: Site) -> None:
    """A browser waits for three signs of life before it takes the server for gone."""
    assert f"const SILENCE = {3000 * BEAT:.0f};" in page.client.get("/static/app.js").text


# ---------------------------------------------------------------------- who may look


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/nothing", "/api/stream", *DATA])
def test_no_token(path: str, guarded: Site) -> None:
    """Without the token, with another one or with a session that is none, there is nothing but 401."""
    expected = (401, "token: must be given as 'Authorization: Bearer TOKEN'; got none, or another")
    name = Access(TOKEN).cookie

    assert expected == problem(guarded.client.get(path))
    for headers in (
        {"Cookie": f"{name}=99999999999.{64 * '0'}"},
        {"Cookie": f"{name}={TOKEN}"},
        {"Cookie": f"{name}={Access(TOKEN + 'x').session()}"},
    ):
        assert expected == problem(guarded.client.get(path, headers=headers))


def test_wrong_token(guarded: Site) -> None:
    """Another token waits before it is refused."""
    for given in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", f"Basic {TOKEN}"):
        began = time.monotonic()
        answer = guarded.client.get("/api/map", headers={"Authorization": given})
        assert (401, "Bearer") == (answer.status_code, answer.headers["www-authenticate"])
        assert 0.5 <= time.monotonic() - began


def test_bearer(guarded: Site) -> None:
    """A program that knows the token may read everything."""
    for path in DATA:
        assert 200 == guarded.client.get(path, headers=BEARER).status_code


def test_login_and_logout(guarded: Site) -> None:
    """A browser gets a form, then a session that does not tell the token; logging out ends it there."""
    form = guarded.client.get("/", headers={"Accept": "text/html"})
    wrong = guarded.client.post("/login", data={"token": "guess"})
    right = guarded.client.post("/login", data={"token": TOKEN})
    cookie = right.headers["set-cookie"]
    inside = guarded.client.get("/", headers={"Accept": "text/html"})
    map_ = guarded.client.get("/api/map")
    out = guarded.client.post("/logout")

    assert (401, True) == (form.status_code, 'action="/login"' in form.text)
    assert (401, True) == (wrong.status_code, "That is not the token." in wrong.text)
    assert "set-cookie" not in wrong.headers
    assert "guess" not in wrong.text
    assert (303, "/") == (right.status_code, right.headers["location"])
    assert re.fullmatch(r"clusterports_\w{8}=\d+\.\w{64}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict", cookie)
    assert TOKEN not in cookie
    assert (200, True, 200) == (inside.status_code, 'id="map"' in inside.text, map_.status_code)
    assert (303, "/") == (out.status_code, out.headers["location"])
    assert 401 == guarded.client.get("/api/map").status_code


def test_secure_cookie(guarded: Site) -> None:
    """Behind a proxy that speaks TLS the session is sent by TLS only."""
    headers = {"X-Forwarded-Proto": "https"}
    answer = guarded.client.post("/login", data={"token": TOKEN}, headers=headers)

    assert "; Secure" in answer.headers["set-cookie"]


def test_long_form(guarded: Site) -> None:
    """A form that is too long is not read to its end; one of many fields is only wrong."""
    many = guarded.client.post("/login", content="&".join(f"t{i}=1" for i in range(500)))

    assert 401 == many.status_code
    assert (413, "form: must be at most 4096 bytes") == problem(guarded.client.post("/login", content=5000 * b"x"))


def test_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session is good for twelve hours, and not for another token."""
    access = Access(TOKEN)
    session = access.session()
    seen = [access.is_session(session), Access(TOKEN[::-1]).is_session(session), access.is_session(f"9{session}")]
    now = time.time()
    monkeypatch.setattr("clusterports.web._access.time.time", lambda: now + 12 * 3600 + 1)

    assert [True, False, False, False] == [*seen, access.is_session(session)]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/login", "/static/style.css", "/static/icon.svg"])
def test_open_to_all(path: str, guarded: Site) -> None:
    """Health and what the form looks like need no token."""
    assert 401 != guarded.client.get(path).status_code


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9810", "127.0.0.1.evil.example", "10.0.0.7:9810", "[", ""]
)
def test_rebinding(host: str, page: Site, guarded: Site) -> None:
    """Without a token, a name that may lead elsewhere gets nothing; with one, names do not matter."""
    message = f"host: must be localhost or a loopback address; got {host!r}"

    assert (421, message) == problem(page.client.get("/api/map", headers={"Host": host}))
    assert 200 == guarded.client.get("/api/map", headers={"Host": host} | BEARER).status_code
    assert 401 == guarded.client.get("/api/map", headers={"Host": host}).status_code


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("LOCALHOST:1", True), ("x.localhost:9810", True), ("127.0.0.1:9810", True),
        ("127.9.9.9", True), ("[::1]:9810", True), ("[::1]", True), ("localhost.", True),
        ("localhost.example", False), ("[::2]:1", False), ("[localhost", False), ("0.0.0.0", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_names(host: str, loopback: bool) -> None:
    """Only what can mean no other machine."""
    assert loopback == is_loopback_name(host)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites(site: str, guarded: Site) -> None:
    """A page of another site may lead here, and read nothing; the form then asks again as a page of this site."""
    headers = {"Sec-Fetch-Site": site}
    for path in (*DATA, "/static/app.js"):
        answer = guarded.client.get(path, headers=headers | BEARER)
        assert (403, "site: must not be asked for by a page of another site") == problem(answer)
    assert 403 == guarded.client.post("/login", data={"token": TOKEN}, headers=headers).status_code
    assert 'http-equiv="refresh"' in guarded.client.get("/", headers=headers | {"Accept": "text/html"}).text
    assert 200 == guarded.client.get("/", headers=headers | BEARER).status_code


@pytest.mark.parametrize(
    "token", ["", "short-of-sixteen"[:15], 1025 * "x", "with a blank inside", "umlauts-äöü-äöü-äöü"]
)
def test_no_tokens(token: str) -> None:
    """What can be guessed or not be sent is refused, and not repeated."""
    with pytest.raises(ConfigurationError) as refused:
        check_token(token)

    bound = "token: must be 16 to 1024 printable ASCII characters without blanks, got "
    assert str(refused.value) in {f"{bound}{len(token)} characters", f"{bound}others"}


# ---------------------------------------------------------------------- the store is away


class Flaky:
    """A store that can be put away."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.away: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if self.away and name in {"read", "spaces", "events"}:
            raise self.away
        return getattr(self._backend, name)


def test_store_away_and_back(memory: servers.MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page stays up with what was known, says since when the store is away, and notices that it is back."""
    monkeypatch.setattr("clusterports.web._cluster.AWAY", 0.05)
    monkeypatch.setattr("clusterports.web._cluster.FOLLOW", 0.05)
    flaky: Any = Flaky(memory.connect())
    with site(flaky) as page:
        page.ports.acquire("backup")
        until(lambda: holds(page))
        ready = page.client.get("/readyz").status_code
        flaky.away = BackendUnavailable("redis://:***@store.example: \x1b[31mConnection refused")
        until(lambda: 503 == page.client.get("/readyz").status_code)
        map_ = page.client.get("/api/map").json()
        answers = [page.client.get(path) for path in ("/api/status", "/api/status?host=h", "/api/events")]
        metrics = page.client.get("/metrics").text
        health = page.client.get("/healthz")
        flaky.away = None
        until(lambda: 200 == page.client.get("/readyz").status_code)

        assert 200 == ready
        assert ["h"] == [one["host"] for one in map_["hosts"]]
        assert (False, "redis://:***@store.example: \x1b[31mConnection refused") == (
            map_["store"]["readable"],
            map_["store"]["error"],
        )
        assert [503, 503, 503] == [one.status_code for one in answers]
        assert answers[0].json()["error"].startswith("store: redis://:***@store.example")
        assert "\nclusterports_up 0.0\n" in metrics
        assert (200, "ok\n") == (health.status_code, health.text)
        assert page.client.get("/api/map").json()["store"]["readable"] is True


def test_unexpected_trouble(memory: servers.MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of another kind does not stop the reader."""
    monkeypatch.setattr("clusterports.web._cluster.AWAY", 0.05)
    monkeypatch.setattr("clusterports.web._cluster.FOLLOW", 0.05)
    flaky: Any = Flaky(memory.connect())
    with site(flaky) as page:
        flaky.away = ZeroDivisionError("what nobody thought of")
        until(lambda: not page.client.get("/api/map").json()["store"]["readable"])
        told = page.client.get("/api/map").json()["store"]["error"]
        flaky.away = None
        until(lambda: 200 == page.client.get("/readyz").status_code)

    assert "unexpected ZeroDivisionError: what nobody thought of" == told
