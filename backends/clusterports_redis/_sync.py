# Generated from backends/clusterports_redis/_async.py by .ci/unasync.py; do not edit.

"""The Redis backend: scripts, sent and repeated until there is an answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis import exceptions as redis_errors
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from clusterports._space import Space
from clusterports._text import show
from clusterports.abc import (
    EVENTS,
    Backend,
    Capability,
    Gone,
    Granted,
    Marked,
    Opened,
    Released,
    Renewal,
    Watch,
)
from clusterports.errors import BackendError, NotReplicated

from . import _wire as wire
from ._copies import NO_COPIES, Copies
from ._failures import (
    Fate,
    Unreached,
    concerns_data,
    damaged,
    fate,
    lacks_a_key,
    not_known,
    refuses_flags,
    too_old,
    translate,
    unavailable,
)
from ._scripts import TELLING, Scripts, keeping
from ._sync_cluster import ClusterConnections
from ._sync_link import CallersClient, OwnConnections, Subscription
from ._url import target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from clusterports.abc import (
        Ask,
        Claim,
        Claimed,
        Closed,
        Events,
        Finding,
        Full,
        Held,
        Holder,
        Occupied,
        Port,
        PortView,
        Queued,
        Reclaimed,
        Recovering,
        Renewed,
        Request,
        SpaceView,
        Stale,
        Wait,
    )

__all__ = ["RedisBackend"]

logger = logging.getLogger("clusterports")

_BATCH: Final = 250
"""How many requests travel together."""


_R = TypeVar("_R", bound=wire.Reader)


class _Transient(Exception):
    """Some requests of a batch have no answer yet."""


class RedisBackend(Backend):
    """Spaces in Redis or Valkey: each step is one script, time is the server's.

    ``timeout``: seconds that one call may take, with its repetitions.
    """

    name = "redis"
    capabilities = frozenset({Capability.EVENTS, Capability.PROCESSES, Capability.WAKES})

    def __init__(
        self,
        connections: OwnConnections | ClusterConnections | CallersClient,
        *,
        timeout: float = 5.0,
        copies: Copies = NO_COPIES,
        scripts: Scripts | None = None,
    ) -> None:
        self._link = connections
        self._timeout = timeout
        self._copies = copies
        self._patience = timeout / 4  # with copies; a connection gives up after half of the time
        self._scripts = scripts or keeping(EVENTS)
        self._sessions: dict[tuple[str, int], str] = {}  # which server answered the last heartbeat, by space and lease

    @classmethod
    def connect(
        cls,
        url: str = "",
        *,
        timeout: float = 5.0,
        client: Any = None,
        min_replicas: int | None = None,
        fsync: bool | None = None,
        events: int = EVENTS,
        scripts: Scripts | None = None,
    ) -> RedisBackend:
        """From a URL, or with the caller's own client. What is granted is handed out when so many replicas have it
        (``min_replicas``), and when it is on disk (``fsync``); by default that is as the URL says. ``events``: how
        many of them the log of a space keeps.

        :raises ConfigurationError: for a URL, a client or a value that can never work.
        """
        url, copies = Copies.of(url)
        copies = copies.override(min_replicas, fsync)
        link: CallersClient | ClusterConnections | OwnConnections
        if client is not None:
            link = CallersClient(client)
        else:
            where = target(url, timeout / 2)
            link = ClusterConnections(where) if where.kind == "cluster" else OwnConnections(where)
        return cls(link, timeout=timeout, copies=copies, scripts=scripts or keeping(events))

    # ---------------------------------------------------------------- steps

    def open(
        self,
        space: str,
        instance: str,
        *,
        token: str,
        ttl: int,
        supersede: int = 0,
        bound: bool = False,
        knew: int = 0,
    ) -> Opened | Occupied:
        reply = self._run("open", wire.keys(space), wire.open_args(instance, token, ttl, supersede, knew))
        self._list(space)
        opened: Opened | Occupied = wire.reply_of(reply)
        if isinstance(opened, Opened):
            for session in filter(None, self._answering([space])):
                self._sessions.setdefault((space, opened.lease), session)
        return opened

    def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        args = wire.acquire_args(holder, request, asks, wait)
        if self._copies.wanted:
            return self._acquire_copied(space, holder, request, wire.keys_for(space, asks), args)
        return wire.reply_of(self._run("acquire", wire.keys_for(space, asks), args))  # type: ignore[no-any-return]

    def claim(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        args = wire.claim_args(holder, request, claims)
        return wire.reply_of(self._run("claim", wire.keys(space), args))  # type: ignore[no-any-return]

    def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full | Recovering:
        reply = self._run("preview", wire.keys_for(space, asks), wire.preview_args(asks))
        return wire.reply_of(reply) if len(reply) > 1 else Space(space).preview(0, asks)

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        outcomes = self._batch("renew", [(wire.keys(renewal.space), wire.renew_args(renewal)) for renewal in renewals])
        replies = [outcome if isinstance(outcome, BaseException) else wire.reply_of(outcome) for outcome in outcomes]
        answered = [i for i, reply in enumerate(replies) if not isinstance(reply, BaseException)]
        if answered:
            self._doubt(renewals, replies, answered)
        return replies

    def _doubt(self, renewals: Sequence[Renewal], replies: list[Any], answered: list[int]) -> None:
        """Say where another server answers than before, or the same after a restart: it may know less."""
        sessions = self._answering([renewals[i].space for i in answered])
        for i, session in zip(answered, sessions, strict=False):
            lease = renewals[i].space, renewals[i].holder.lease
            if session and session != self._sessions.setdefault(lease, session):
                self._sessions[lease] = session
                replies[i] = replies[i]._replace(doubt=True)
            if isinstance(replies[i], Gone):
                self._sessions.pop(lease, None)

    def _answering(self, spaces: Sequence[str]) -> list[str]:
        """Which run of which server answers for each space; nothing where it does not say."""
        try:
            return self._link.sessions([wire.keys(space)[0] for space in spaces])
        except (redis_errors.RedisError, Unreached, OSError):
            return []  # the next heartbeat will tell

    def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
        replies = self._in_parts("release", space, ports, lambda part: wire.release_args(holder, part))
        if isinstance(replies, Gone):
            return replies
        revoked = tuple(port for reply in replies for port in reply.revoked)
        return Released(sum(reply.count for reply in replies), revoked)

    def mark_foreign(
        self,
        space: str,
        holder: Holder,
        ports: Sequence[Port],
        *,
        range: str,
        duration: int,
        most: int,
        host: str = "",
    ) -> Marked | Gone:
        def args(part: Sequence[Port]) -> list[Any]:
            return wire.foreign_args(holder, part, host, range, duration, most)

        replies = self._in_parts("foreign", space, ports, args)
        return replies if isinstance(replies, Gone) else Marked(sum(reply.count for reply in replies))

    def force(self, space: str, port: PortView) -> bool:
        reply = self._run("force", wire.keys(space), wire.force_args(port))
        return wire.reply_of(reply)  # type: ignore[no-any-return]

    def drop(self, space: str) -> bool:
        # The index comes first: whoever opens the space from here on puts it in again. The other way round, a space
        # that was opened between the two would be lost from it for good.
        self._call("SREM", wire.SPACES, space)
        dropped = False
        try:
            reply = self._run("drop", wire.all_keys(space), [])
            dropped = bool(wire.reply_of(reply))
        finally:
            if not dropped:
                self._list(space)
        return dropped

    def _list(self, space: str) -> None:
        """Put it into the index. That serves status only: what was done in the space stands all the same."""
        try:
            self._call("SADD", wire.SPACES, space)
        except BackendError as error:
            logger.warning("the index of spaces was not updated: %s", error)

    def watch(self, space: str, ticket: int) -> Watch:
        channel = wire.wake_channel(space, ticket)
        pubsub = self._link.pubsub()
        if pubsub is None:
            return Watch()
        try:
            return Subscription.begin(pubsub, channel, self._timeout)
        except (redis_errors.RedisError, OSError) as error:
            logger.info("no wake-up for who waits, only pauses: %s", error)
            return Watch()

    def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        reply = self._run("close", wire.keys(space), wire.close_args(holder, quarantine))
        return wire.reply_of(reply)  # type: ignore[no-any-return]

    def reclaim(self, space: str) -> Reclaimed:
        return wire.reply_of(self._run("reclaim", wire.keys(space), []))  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- reads

    def held(self, space: str, holder: Holder, after: Port | None = None) -> Held | Gone:
        reply = self._run("held", wire.keys(space), wire.held_args(holder, after))
        return wire.reply_of(reply)  # type: ignore[no-any-return]

    def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        readers = [wire.SpaceReader(space) for space in spaces]
        errors = self._feed("read", readers)
        return [errors.get(reader) or reader.view() for reader in readers]

    def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        readers = [wire.EventReader(space, cursor, limit) for space, cursor in cursors.items()]
        errors = self._feed("events", readers)
        return [errors.get(reader) or reader.view() for reader in readers]

    def spaces(self, instance: str | None = None) -> list[str]:
        known = sorted(wire.text(space) for space in self._call("SMEMBERS", wire.SPACES))
        if instance is None:
            return known
        field = f"name/{wire.instance_text(instance)}"
        found: list[str] = []
        for start in range(0, len(known), _BATCH):
            part = known[start : start + _BATCH]
            commands = [("HEXISTS", wire.keys(space)[0], field) for space in part]
            answers = self._repeat(commands, self._link.calls)
            for space, answer in zip(part, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                if answer:
                    found.append(space)
        return found

    def diagnose(self, *, repair: bool = False) -> Iterator[Finding]:
        from ._doctor import diagnose

        # sync-only:
        return diagnose(self, repair=repair)

    def close(self) -> None:
        self._link.close()

    # ---------------------------------------------------------------- copies

    def _acquire_copied(
        self, space: str, holder: Holder, request: Request, keys: tuple[str, ...], args: list[Any]
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        """What is granted counts when there are copies enough; otherwise it is undone."""
        (outcome,) = self._repeat([("acquire", len(keys), *keys, *args)], self._with_copies)
        if isinstance(outcome, BaseException):
            raise outcome
        reply = wire.reply_of(outcome[0])
        lack = self._copies.lack(outcome[1], self._patience) if isinstance(reply, Granted) else ""
        if not lack:
            return reply  # type: ignore[no-any-return]
        error = NotReplicated(f"What the store at {self._link.where} granted was undone: {lack}")
        undo = Renewal(space, holder, request.floor, (request.number,))
        (undone,) = self._batch("renew", [(wire.keys(space), wire.renew_args(undo))])
        error.unknown = isinstance(undone, BaseException)
        raise error

    def _with_copies(self, commands: Sequence[Any]) -> list[Any]:
        """A script and the wait for its copies, on one connection: the server counts what that one wrote."""
        (command,) = commands
        quiet = False
        wait = self._copies.command(self._patience)
        reply, waited = self._link.together([self._by_sha(command), wait])
        if lacks_a_key(reply):
            quiet = True
            reply, waited = self._link.together([self._by_sha(command, quiet=True), wait])
        if not_known(reply):
            reply = self._eval(command, quiet=quiet)
            if not isinstance(reply, BaseException):  # the same request again, which is answered again
                try:
                    reply, waited = self._link.together([self._by_sha(command, quiet=quiet), wait])
                except Unreached as error:  # this one was not sent, but the first was carried out
                    raise redis_errors.ConnectionError(str(error)) from error
        return [reply if isinstance(reply, BaseException) else (reply, waited)]

    # ---------------------------------------------------------------- running scripts

    def _feed(self, operation: str, readers: Sequence[_R]) -> dict[_R, BackendError]:
        """Run an operation page by page, until each reader has had its last. An error that lies in the data of one
        stands for that one alone.
        """
        errors: dict[_R, BackendError] = {}
        waiting = list(readers)
        while waiting:
            pages = self._batch(operation, [(reader.keys(), reader.args()) for reader in waiting])
            more = []
            for reader, page in zip(waiting, pages, strict=True):
                if isinstance(page, BackendError):
                    if not concerns_data(page):
                        raise page
                    errors[reader] = page
                    continue
                try:
                    if not reader.feed(page):
                        more.append(reader)
                except wire.Undecodable as error:
                    errors[reader] = damaged(show(str(error)), self._link.where)
            waiting = more
        return errors

    def _in_parts(
        self, operation: str, space: str, ports: Sequence[Port], args: Callable[[Sequence[Port]], list[Any]]
    ) -> list[Any] | Gone:
        """Run an operation on ports, not too many at once: the reply for each part."""
        replies = []
        for start in range(0, len(ports) or 1, wire.RELEASE_AT_ONCE):
            part = ports[start : start + wire.RELEASE_AT_ONCE]
            reply = wire.reply_of(self._run(operation, wire.keys(space), args(part)))
            if isinstance(reply, Gone):
                return reply
            replies.append(reply)
        return replies

    def _run(self, operation: str, keys: tuple[str, ...], args: list[Any]) -> Any:
        try:
            return self._link.call(*self._by_sha((operation, len(keys), *keys, *args)))
        except (redis_errors.RedisError, Unreached, OSError) as error:
            first = error
        (outcome,) = self._batch(operation, [(keys, args)], first)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _call(self, *command: Any) -> Any:
        """A plain command, repeated like a script."""
        (outcome,) = self._repeat([command], self._link.calls)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _batch(
        self, operation: str, jobs: Sequence[tuple[tuple[str, ...], list[Any]]], first: BaseException | None = None
    ) -> list[Any]:
        """Run one operation on many spaces; an outcome is a reply or a `BackendError`."""
        commands = [(operation, len(keys), *keys, *args) for keys, args in jobs]
        outcomes: list[Any] = []
        for start in range(0, len(commands), _BATCH):
            outcomes += self._repeat(commands[start : start + _BATCH], self._scripted, first)
        return outcomes

    def _repeat(self, commands: Sequence[Any], send: Any, first: BaseException | None = None) -> list[Any]:
        """Send, and send again those without an answer, until each has one or the time is over."""
        outcomes: list[Any] = [first] * len(commands)
        left = list(range(len(commands)))
        unknown = False

        def sort_out() -> None:
            nonlocal left, unknown
            again = []
            for index in left:
                error = outcomes[index]
                if not isinstance(error, BaseException) or isinstance(error, BackendError):
                    continue
                outlook = fate(error)
                if outlook is Fate.FATAL:
                    outcomes[index] = translate(error, self._link.where)
                    outcomes[index].__cause__ = error
                    outcomes[index].unknown = unknown  # an earlier try may have been carried out
                else:
                    unknown = unknown or outlook is Fate.UNKNOWN
                    again.append(index)
            left = again

        if first is not None:
            sort_out()
        try:
            for attempt in Retrying(
                stop=stop_before_delay(self._timeout),
                wait=wait_random_exponential(multiplier=0.02, max=0.5),
                retry=retry_if_exception_type(_Transient),
            ):
                with attempt:
                    if left:
                        try:
                            replies = send([commands[index] for index in left])
                        except (redis_errors.RedisError, Unreached, OSError) as error:
                            replies = [error] * len(left)
                        for index, reply in zip(left, replies, strict=True):
                            outcomes[index] = reply
                        sort_out()
                    if left:
                        raise _Transient
        except RetryError:
            for index in left:
                outcomes[index] = unavailable(outcomes[index], self._link.where, self._timeout, unknown=unknown)
        return outcomes

    def _by_sha(self, command: Sequence[Any], *, quiet: bool = False) -> tuple[Any, ...]:
        scripts = self._scripts.quiet if quiet else self._scripts
        return ("EVALSHA", getattr(scripts, command[0]).sha, *_words(scripts, command))

    def _scripted(self, commands: Sequence[Any]) -> list[Any]:
        replies = self._taught(commands)
        # A part of a cluster that is moving answers nobody who names a key that is not there. The log may be that key,
        # and no reason to wait: it goes without.
        lacking = [i for i, reply in enumerate(replies) if lacks_a_key(reply) and commands[i][0] in TELLING]
        if lacking and self._scripts.kept:
            again = self._taught([commands[i] for i in lacking], quiet=True)
            for i, reply in zip(lacking, again, strict=True):
                replies[i] = reply
        return replies

    def _taught(self, commands: Sequence[Any], *, quiet: bool = False) -> list[Any]:
        """EVALSHA; where the server does not know the script, EVAL, which teaches it."""
        replies = self._link.calls([self._by_sha(command, quiet=quiet) for command in commands])
        unknown = [i for i, reply in enumerate(replies) if not_known(reply)]
        while unknown:  # each node of a cluster has to be taught
            head, *rest = unknown
            replies[head] = self._eval(commands[head], quiet=quiet)
            if not rest or isinstance(replies[head], BaseException):
                break
            again = self._link.calls([self._by_sha(commands[i], quiet=quiet) for i in rest])
            for i, reply in zip(rest, again, strict=True):
                replies[i] = reply
            unknown = [i for i in rest if not_known(replies[i])]
        return replies

    def _eval(self, command: Sequence[Any], *, quiet: bool = False) -> Any:
        scripts = self._scripts
        told = scripts.quiet if quiet else scripts
        try:
            return self._link.call("EVAL", getattr(told, command[0]).source, *_words(told, command))
        except redis_errors.ResponseError as error:
            if not refuses_flags(error) or not scripts.flags:
                return error
        if self._scripts.flags:  # nobody has found out meanwhile
            version = self._old_version()
            if version:
                return too_old(version, self._link.where)
            self._scripts = scripts.without_flags()
        return self._eval(command, quiet=quiet)

    def _old_version(self) -> str:
        """What to call a server that does not know script flags; empty for an emulator of a newer one."""
        try:
            info = wire.info(self._link.call("INFO", "server"))
        except redis_errors.NoPermissionError:
            return "older than Redis 7.0"
        except redis_errors.ResponseError:
            return ""
        return wire.old_version(str(info.get("redis_version", "")))


def _words(scripts: Scripts, command: Sequence[Any]) -> tuple[Any, ...]:
    """Number of keys, keys and arguments, with the key of the log where these scripts write to it."""
    operation, count, *rest = command
    if operation not in TELLING or not scripts.kept:
        return (count, *rest)
    return (count + 1, *rest[:count], wire.log_beside(rest[0]), *rest[count:])
