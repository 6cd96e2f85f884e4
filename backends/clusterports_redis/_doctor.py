"""What an operator should know of the server, and of the spaces in it."""

from __future__ import annotations

import ipaddress
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError

from clusterports._names import is_host_space, space_host
from clusterports._text import printable, show
from clusterports.abc import Finding, SpaceView
from clusterports.errors import BackendError, BackendUnavailable, IncompatibleSchema

from . import _wire as wire
from ._compare import compare
from ._failures import Unreached, code, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ._sync import RedisBackend

__all__ = ["NEEDED", "TELLING", "USEFUL", "diagnose"]

CLOCK_OFFSET: Final = 5.0
"""Seconds. Nothing depends on it, but times that are shown to people are off by so much."""

FULL: Final = 0.9
"""Of the memory that the server may use."""

LAG: Final = 10
"""Seconds since a replica was heard of; a healthy one reports each second."""

AT_ONCE: Final = 250
"""Spaces that are read together."""

MOST_NAMES: Final = 5

PROBE: Final = "doctor"
"""A space that is never opened: hosts' spaces begin with ``host:``."""

_STATE, _BITS, _OTHER, _EVENTS = (f"{wire.PREFIX}{{{PROBE}}}:{part}" for part in ("state", "tcp", "scratch", "events"))

NEEDED: Final[tuple[tuple[str, ...], ...]] = (
    ("EVAL", "return 1", "1", _STATE),
    ("EVALSHA", "0" * 40, "1", _STATE),
    ("TIME",),
    ("HMGET", _STATE, "f"),
    ("HGET", _STATE, "f"),
    ("HSET", _STATE, "f", "v"),
    ("HDEL", _STATE, "f"),
    ("HEXISTS", _STATE, "f"),
    ("HSCAN", _STATE, "0"),
    ("ZADD", _STATE, "0", "m"),
    ("ZREM", _STATE, "m"),
    ("ZRANGE", _STATE, "0", "0"),
    ("ZCARD", _STATE),
    ("ZSCORE", _STATE, "m"),
    ("ZLEXCOUNT", _STATE, "-", "+"),
    ("SETBIT", _BITS, "0", "0"),
    ("GETBIT", _BITS, "0"),
    ("BITPOS", _BITS, "0"),
    ("BITFIELD", _BITS, "SET", "u1", "0", "0"),
    ("BITOP", "OR", _OTHER, _BITS, _BITS),
    ("STRLEN", _BITS),
    ("GETRANGE", _BITS, "0", "0"),
    ("SET", _OTHER, "v"),
    ("EXISTS", _STATE),
    ("DEL", _STATE),
    ("SADD", wire.SPACES, PROBE),
    ("SREM", wire.SPACES, PROBE),
    ("SMEMBERS", wire.SPACES),
)
"""What the scripts and the client run, each once, on keys like ours."""

USEFUL: Final = (("PUBLISH", wire.wake_channel(PROBE, 0), ""), ("SUBSCRIBE", wire.wake_channel(PROBE, 0)))
"""What wakes those who wait; without it, they look again after a second."""

TELLING: Final = (("XADD", _EVENTS, "*", "e", ""), ("XREVRANGE", _EVENTS, "+", "-"))
"""What writes down what happens to ports, and reads it. Nothing else depends on it."""

# Which of these commands the user may not run: their places in the list. Needs no permission but EVAL.
_REFUSED: Final = """
if not redis.acl_check_cmd then return false end
local refused, at, index = {}, 1, 0
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  local known, allowed = pcall(redis.acl_check_cmd, unpack(ARGV, at + 1, at + words))
  if not (known and allowed) then refused[#refused + 1] = index end
  at, index = at + words + 1, index + 1
end
return refused
"""

_KEY_OF_SPACE: Final = re.compile(
    re.escape(wire.PREFIX) + r"\{(.+)\}:(?:state|due|ports|tcp|udp|events|scratch|mask|halves)", re.DOTALL
)

_LOG: Final = "look into the server's log; most often its disk is full or not writable"


class _Refused(BackendError):
    """The server does not let this user look. ``permission``: the ACL rule that would; "" if none would."""

    def __init__(self, message: str, permission: str = "") -> None:
        super().__init__(message)
        self.permission = permission


def diagnose(backend: RedisBackend, *, repair: bool) -> Iterator[Finding]:
    doctor = _Doctor(backend)
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("version", doctor.version),
        ("clock", doctor.clock),
        ("persistence", doctor.persistence),
        ("eviction", doctor.eviction),
        ("replicas", doctor.replicas),
        ("user", doctor.permissions),
        ("password", doctor.password),
        ("TLS", doctor.tls),
        ("scripts", doctor.scripts),
        ("spaces", lambda: doctor.spaces(repair)),
    )
    try:
        yield doctor.reach()
        for check, look in checks:
            try:
                yield from look()
            except _Refused as error:
                cure = f"ACL SETUSER {doctor.user} {error.permission}" if error.permission else ""
                cure = cure or "look at the server itself"
                yield Finding(check, "warning", f"not checked: {error}", cure, unknown=True)
            except BackendUnavailable:
                raise
            except BackendError as error:
                yield Finding(check, "error", str(error), "see what is said of the user, and the server's log")
    except IncompatibleSchema as error:
        yield Finding("version", "error", str(error), "install a newer server")
    except BackendError as error:
        yield Finding("store", "error", str(error), _how_to_reach(error))


def _how_to_reach(error: BackendError) -> str:
    if isinstance(error, BackendUnavailable):
        return "see that the server runs, and that its address, port and firewall are right"
    if "refuses the login" in str(error):
        return "give the user and the password in the URL: redis://user:password@host:port/0"
    return "look at the URL, and at the server itself"


class _Doctor:
    def __init__(self, backend: RedisBackend) -> None:
        self.backend = backend
        self.link: Any = backend._link
        self.user = "default"
        self.writable = False
        self._known: dict[str, str] = {}

    # ---------------------------------------------------------------- asking

    def ask(self, *command: str, of: Any = None) -> Any:
        """The reply, in str and int; ``of``: a link to one server of several.

        :raises BackendUnavailable: when there is none.
        :raises _Refused: for a user who may not ask, or a server that does not know.
        """
        (reply,) = self.backend._repeat([command], (of or self.link).calls)
        if not isinstance(reply, BackendError):
            return _plain(reply)
        cause = reply.__cause__
        if cause is None or isinstance(cause, Unreached) or isinstance(reply, BackendUnavailable):
            raise reply
        name = " ".join(command[:2]) if command[0] in ("ACL", "CONFIG") else command[0]
        if code(cause) == "NOPERM":
            rule = name.lower().replace(" ", "|")
            raise _Refused(f"this user may not run {name}", f"+{rule}") from cause
        if "unknown command" in str(cause).lower():
            raise _Refused(f"the server does not know {name}") from cause
        if code(cause) in ("NOAUTH", "WRONGPASS"):
            raise reply
        raise _Refused(f"the server answers {name} with {show(str(cause))}") from cause

    def info(self) -> dict[str, str]:
        if not self._known:
            self._known = {key: _joined(value) for key, value in wire.info(self.ask("INFO")).items()}
        return self._known

    def number(self, key: str) -> int:
        value = self.info().get(key, "")
        return int(value) if value.isdigit() else 0

    def configured(self, name: str) -> str:
        return str(_mapping(self.ask("CONFIG", "GET", name)).get(name, ""))

    # ---------------------------------------------------------------- the server

    def reach(self) -> Finding:
        times = []
        for _ in range(3):  # the first makes the connection
            began = time.perf_counter()
            with suppress(_Refused):  # that is an answer too
                self.ask("PING")
            times.append(time.perf_counter() - began)
        try:
            self.user = str(self.ask("ACL", "WHOAMI"))
        except _Refused:
            self.user = str(self.parts()[1].get("username") or "default")
        self.user = printable(self.user)
        return Finding("store", "ok", f"{printable(self.link.where)} answers in {min(times) * 1000:.1f} ms")

    def version(self) -> Iterator[Finding]:
        info = self.info()
        valkey, version = info.get("valkey_version"), info.get("redis_version", "")
        if old := wire.old_version(version):
            yield Finding("version", "error", old, "install Redis 7.0 or Valkey 7.2, or newer")
        else:
            yield Finding("version", "ok", f"Valkey {valkey}" if valkey else f"Redis {version or 'unknown'}")

    def clock(self) -> Iterator[Finding]:
        began, start = time.time(), time.perf_counter()
        seconds, micros = self.ask("TIME")
        passed = time.perf_counter() - start
        offset = int(seconds) + int(micros) / 1e6 - (began + passed / 2)
        text = f"the server's is {abs(offset):.3f} s {'ahead of' if offset > 0 else 'behind'} this machine's"
        text += "; nothing depends on it"
        if abs(offset) < CLOCK_OFFSET:
            yield Finding("clock", "ok", text)
        else:
            yield Finding("clock", "warning", f"{text} but the times that people read", "set both clocks by NTP")

    def persistence(self) -> Iterator[Finding]:
        info = self.info()
        appends = info.get("aof_enabled") == "1"
        if appends and info.get("aof_last_write_status") == "err":
            yield Finding("persistence", "error", "the last write to the append-only file failed", _LOG)
        if info.get("rdb_last_bgsave_status") == "err":
            text = "the last snapshot failed; until one succeeds the server refuses writes, unless told otherwise"
            yield Finding("persistence", "error", text, _LOG)
        try:
            saves, syncs = self.configured("save"), self.configured("appendfsync")
        except _Refused as error:
            if appends:
                yield Finding("persistence", "ok", "an append-only file")
                return
            text = f"no append-only file; whether snapshots are made was not checked: {error}"
            yield Finding("persistence", "warning", text, f"ACL SETUSER {self.user} +config|get")
            return
        if appends:
            yield Finding("persistence", "ok", f"an append-only file, appendfsync {syncs}")
        elif saves:
            text = f"snapshots only (save {saves}): a crash loses the leases that came after the last one"
            yield Finding("persistence", "ok", text)
        else:
            text = "none: a restart of the server loses all leases"
            cure = "CONFIG SET appendonly yes, and appendonly yes in the server's configuration file"
            yield Finding("persistence", "warning", text, cure)

    def eviction(self) -> Iterator[Finding]:
        info = self.info()
        policy, limit, used = info.get("maxmemory_policy", ""), self.number("maxmemory"), self.number("used_memory")
        if not limit:
            yield Finding("eviction", "ok", "no memory limit is set, so nothing is evicted")
            return
        cure = "CONFIG SET maxmemory-policy noeviction, and the same in the configuration file; or a server apart"
        if policy == "noeviction":
            yield Finding("eviction", "ok", policy)
        elif policy.startswith("volatile"):  # ours have no expiry
            text = f"{policy}: leases are spared, but it makes room for them by throwing away what others keep here"
            yield Finding("eviction", "warning", text, cure)
        else:
            yield Finding("eviction", "error", f"{policy}: when memory is short the server throws leases away", cure)
        text = f"{_size(used)} of {_size(limit)} used"
        if used > FULL * limit:
            yield Finding("memory", "warning", f"{text}; when it is full no port can be given out", "raise maxmemory")
        else:
            yield Finding("memory", "ok", text)

    def replicas(self) -> Iterator[Finding]:
        info = self.info()
        if info.get("role") == "slave":
            master = f"{info.get('master_host')}:{info.get('master_port')}"
            text = f"this is a replica of {printable(master)}, and refuses writes"
            yield Finding("replicas", "error", text, "give the address of the master")
            return
        count = self.number("connected_slaves")
        if not count:
            text = "none: if this server's machine is lost, so are the leases; a replica would have them"
            yield Finding("replicas", "ok", text)
        for index in range(count):
            its = dict(pair.split("=", 1) for pair in info.get(f"slave{index}", "").split(",") if "=" in pair)
            behind = self.number("master_repl_offset") - int(its.get("offset", 0))
            state, lag = its.get("state", "unknown"), int(its.get("lag", 0))
            text = printable(f"{its.get('ip')}:{its.get('port')} is {state}, {behind:,} bytes behind")
            if state == "online" and lag <= LAG:
                yield Finding("replicas", "ok", text)
            else:
                text += f", not heard of for {lag} s" if lag > LAG else ""
                yield Finding("replicas", "warning", text, "look at that replica: a failover to it loses what it lacks")

    # ---------------------------------------------------------------- access

    def permissions(self) -> Iterator[Finding]:
        lacking = self.refused([*NEEDED, *USEFUL, *TELLING])
        missing = [command[0] for command in NEEDED if command in lacking]
        if missing:
            rules = " ".join(f"+{name.lower()}" for name in missing)
            text = f"{self.user} may not run {', '.join(missing)} on {wire.PREFIX}*"
            yield Finding("user", "error", text, f"ACL SETUSER {self.user} ~{wire.PREFIX}* {rules}")
        else:
            yield Finding("user", "ok", f"{self.user} may run all that is needed")
        for commands, mark, meaning in (
            (USEFUL, "&", "who waits for a port is not woken"),
            (TELLING, "~", "what happens to ports is not written down, or not shown"),
        ):
            names = [command[0] for command in commands if command in lacking]
            if names:
                rules = " ".join(f"+{name.lower()}" for name in names)
                text = f"{self.user} may not run {', '.join(names)} on {wire.PREFIX}*: {meaning}"
                yield Finding("user", "warning", text, f"ACL SETUSER {self.user} {mark}{wire.PREFIX}* {rules}")

    def refused(self, commands: list[tuple[str, ...]]) -> set[tuple[str, ...]]:
        """Those that the user may not run; none of them is run."""
        words = [word for command in commands for word in (str(len(command)), *command)]
        try:
            indices = self.ask("EVAL", _REFUSED, "0", *words)
        except _Refused:  # no scripts: then a user who may ask about ACL can tell
            indices = None
        if isinstance(indices, list):
            return {commands[int(index)] for index in indices}
        return {command for command in commands if self.ask("ACL", "DRYRUN", self.user, *command) != "OK"}

    def password(self) -> Iterator[Finding]:
        if self.is_local():
            yield Finding("password", "ok", "not looked for: the server is on this machine")
            return
        try:
            flags = _mapping(self.ask("ACL", "GETUSER", "default")).get("flags", ())
            open_to_all = {"on", "nopass"} <= set(flags)
        except _Refused:
            given = self.parts()[1]
            if any(given.get(key) for key in ("username", "password", "credential_provider")):
                raise
            open_to_all = True  # for us it was
        if open_to_all:
            text = "the default user has none: whoever reaches the server may take and free every port"
            yield Finding("password", "warning", text, "ACL SETUSER default off, and a user with a password instead")
        else:
            yield Finding("password", "ok", "the default user has one, or is off")

    def tls(self) -> Iterator[Finding]:
        kind, given = self.parts()
        if not issubclass(kind, SSLConnection):
            if self.is_local():
                yield Finding("TLS", "ok", "not needed: the server is on this machine")
            else:
                text = "the connection is not encrypted: who can listen to it can read the password, and take ports"
                yield Finding("TLS", "warning", text, "use rediss://, with tls-port in the server's configuration file")
        elif str(given.get("ssl_cert_reqs", "required")).lower() in ("none", "0", "verifymode.cert_none"):
            text = "the server's certificate is not verified: anybody may pose as the server"
            yield Finding("TLS", "warning", text, "take ssl_cert_reqs=none out of the URL, and give ssl_ca_certs")
        else:
            yield Finding("TLS", "ok", "the connection is encrypted")

    def parts(self) -> tuple[type, Mapping[str, Any]]:
        """The class of the connections, and with what they are made."""
        pool: Any = getattr(getattr(self.link, "_client", None), "connection_pool", None)
        if pool is not None:
            return pool.connection_class, pool.connection_kwargs
        return getattr(self.link, "_class", object), getattr(self.link, "_arguments", {})

    def is_local(self) -> bool:
        kind, given = self.parts()
        if issubclass(kind, UnixDomainSocketConnection):
            return True
        host = str(given.get("host") or "localhost")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    def scripts(self) -> Iterator[Finding]:
        """One that reads, and one that may write, in a space in which there is nothing: neither changes anything."""
        keys = wire.keys(PROBE)
        self.backend._run("read", keys, wire.SpaceReader(PROBE).args())
        try:
            (reply,) = self.backend._scripted([("reclaim", len(keys), *keys)])
        except (RedisError, Unreached, OSError) as error:
            reply = error
        if isinstance(reply, BaseException):
            text = f"no writes now: {translate(reply, self.link.where)}"
            yield Finding("scripts", "error", text, "see what is said of replicas, persistence and the user")
        else:
            self.writable = True
            yield Finding("scripts", "ok", "they run, and may write")

    # ---------------------------------------------------------------- spaces

    def spaces(self, repair: bool) -> Iterator[Finding]:
        repair = repair and self.writable
        listed = set(self.backend.spaces())
        try:
            found = self.found()
        except _Refused as error:
            found = listed
            cure = f"ACL SETUSER {self.user} {error.permission}"
            text = f"whether a space is missing in it was not checked: {error}"
            yield Finding("index", "warning", text, cure, unknown=True)
        seen = _Spaces()
        names = sorted(listed | found)
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            contradictory = set()
            for one in compare(self.backend, part, mend=repair):
                contradictory.add(one.space)
                text = f"{_names([one.space])}: {one.text()}"
                if repair:
                    yield Finding("space", "ok", text, mended=True)
                else:
                    yield Finding("space", "error", text, "clusterports doctor --repair")
            for space, view in zip(part, self.backend.read(part), strict=True):
                findings = list(seen.add(space, view))
                if repair or space not in contradictory:
                    yield from findings
            with suppress(BackendError):  # the user may not look, as was said before
                logs = self.backend.events(dict.fromkeys(part, ""), 1)
                seen.untold += [space for space, log in zip(part, logs, strict=True) if isinstance(log, BackendError)]
        newer = "use the newest clusterports everywhere"
        if seen.newer:
            yield Finding("schema", "error", f"{_names(seen.newer)}: not of version 1", newer)
        else:
            yield Finding("schema", "ok", "version 1")
        yield Finding("spaces", "ok", seen.summary())
        if seen.untold:
            text = f"{_names(seen.untold)}: what happens to ports there is not written down, or cannot be read"
            cure = f"begin the log anew: DEL {' '.join(wire.all_keys(space)[-1] for space in seen.untold[:MOST_NAMES])}"
            yield Finding("events", "warning", text, printable(cure))
        yield from self.index(
            seen, [space for space in names if space not in listed and space not in seen.stale], repair
        )
        yield from self.overdue(seen, repair)

    def found(self) -> set[str]:
        """The spaces that have keys."""
        found = set()
        for server in self.link.servers():
            cursor = ""
            while cursor != "0":
                page = ("SCAN", cursor or "0", "MATCH", f"{wire.PREFIX}{{*}}:*", "COUNT", "1000")
                cursor, keys = self.ask(*page, of=server)
                cursor = str(cursor)
                found |= {match[1] for key in keys if (match := _KEY_OF_SPACE.fullmatch(key))}
        return found

    def index(self, seen: _Spaces, missing: list[str], repair: bool) -> Iterator[Finding]:
        cure = "clusterports doctor --repair"
        if missing:
            text = f"{len(missing)} missing, so that status does not show them: {_names(missing)}"
            if repair:
                self.ask("SADD", wire.SPACES, *missing)
                yield Finding("index", "ok", text, mended=True)
            else:
                yield Finding("index", "warning", text, cure)
        if seen.stale:
            text = f"{len(seen.stale)} without a space: {_names(seen.stale)}"
            if repair:
                for space in seen.stale:
                    self.backend.drop(space)  # unless somebody opened it just now
                yield Finding("index", "ok", text, mended=True)
            else:
                yield Finding("index", "warning", text, cure)
        if not missing and not seen.stale:
            yield Finding("index", "ok", "complete")

    def overdue(self, seen: _Spaces, repair: bool) -> Iterator[Finding]:
        if not seen.overdue:
            yield Finding("leases", "ok", "none has run out")
            return
        text = f"{seen.expired} ran out and nobody came to reclaim; with their ports and others' that are due, in "
        text += _names(seen.overdue)
        if not repair:
            yield Finding("leases", "warning", text, "clusterports gc")
            return
        for space in seen.overdue:
            while self.backend.reclaim(space).backlog:
                pass
        if seen.graced:
            text += f"; {seen.graced} of them, in spaces that nobody visited for long, have one more TTL now"
        yield Finding("leases", "ok", text, mended=True)


class _Spaces:
    """What was seen of the spaces so far."""

    def __init__(self) -> None:
        self.newer: list[str] = []
        self.stale: list[str] = []
        self.overdue: list[str] = []
        self.untold: list[str] = []
        self.count = self.leases = self.expired = self.graced = self.held = self.empty = 0

    def add(self, space: str, view: SpaceView | BackendError) -> Iterator[Finding]:
        if isinstance(view, IncompatibleSchema):
            self.newer.append(space)
        elif isinstance(view, BackendError):
            cure = f"end the jobs on its ports, and begin it anew: DEL {' '.join(wire.all_keys(space))}"
            yield Finding("space", "error", f"{_names([space])}: {view}", printable(cure))
        elif not view.fence:
            self.stale.append(space)
        else:
            self.count += 1
            self.leases += len(view.leases)
            self.held += sum(port.state == "held" for port in view.ports)
            self.empty += not (view.leases or view.ports or view.waiting)
            expired = [lease for lease in view.leases if lease.expires_in <= 0]
            self.expired += len(expired)
            self.graced += sum(lease.grace for lease in expired)
            if expired or any(port.free_in is not None and port.free_in <= 0 for port in view.ports):
                self.overdue.append(space)

    def summary(self) -> str:
        text = f"{self.count}, with {self.leases} leases and {self.held} held ports"
        return f"{text}; {self.empty} empty" if self.empty else text


def _names(spaces: Iterable[str]) -> str:
    """Some of them, as people call them."""
    every = [f"host {show(space_host(space))}" if is_host_space(space) else show(space) for space in spaces]
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return ", ".join(every[:MOST_NAMES]) + more


def _plain(reply: Any) -> Any:
    """In str, int, list and dict, whatever the client makes of it."""
    if isinstance(reply, dict):
        return {_plain(key): _plain(value) for key, value in reply.items()}
    if isinstance(reply, list | tuple | set | frozenset):
        return [_plain(item) for item in reply]
    return wire.text(reply)


def _mapping(reply: Any) -> dict[str, Any]:
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=False)) if isinstance(reply, list) else {}


def _joined(value: Any) -> str:
    """As INFO has it: redis-py takes ``ip=...,port=...`` apart."""
    return ",".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MB"
