"""What each error of a server or of a connection means: whether to try again, and what the caller is told."""

from __future__ import annotations

import ssl

import pytest
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser

from clusterports.errors import BackendError, BackendUnavailable, IncompatibleSchema
from clusterports_redis._failures import Fate, Unreached, fate, translate, unavailable

NOT_RUN, UNKNOWN, FATAL = Fate.NOT_RUN, Fate.UNKNOWN, Fate.FATAL

REPLIES = [
    # The server refused before anything ran, and may accept soon.
    ("READONLY You can't write against a read only replica.", NOT_RUN),
    ("READONLY You can't write against a read only replica. script: 0abc, on @user_script:1.", NOT_RUN),
    ("LOADING Redis is loading the dataset in memory", NOT_RUN),
    ("LOADING Valkey is loading the dataset in memory", NOT_RUN),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", NOT_RUN),
    ("CLUSTERDOWN The cluster is down", NOT_RUN),
    ("CLUSTERDOWN Hash slot not served", NOT_RUN),
    ("TRYAGAIN Multiple keys request during rehashing of slot", NOT_RUN),
    ("NOREPLICAS Not enough good replicas to write.", NOT_RUN),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", NOT_RUN),
    ("NOSCRIPT No matching script. Please use EVAL.", NOT_RUN),
    ("ERR max number of clients reached", NOT_RUN),
    ("ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'", NOT_RUN),
    # Trying again does not help.
    ("NOAUTH Authentication required.", FATAL),
    ("NOAUTH HELLO must be called with the client already authenticated", FATAL),
    ("WRONGPASS invalid username-password pair or user is disabled.", FATAL),
    ("ERR AUTH <password> called without any password configured for the default user.", FATAL),
    ("ERR Client sent AUTH, but no password is set", FATAL),
    ("NOPERM User alice has no permissions to run the 'evalsha' command", FATAL),
    ("NOPERM No permissions to access a key", FATAL),
    ("OOM command not allowed when used memory > 'maxmemory'.", FATAL),
    ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", FATAL),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", FATAL),
    ("ERR unknown command 'EVALSHA', with args beginning with: ", FATAL),
    ("ERR DB index is out of range", FATAL),
    ("MOVED 3999 127.0.0.1:6381", FATAL),
    ("ASK 3999 127.0.0.1:6381", FATAL),
    ("CPSCHEMA 2", FATAL),
    ("CPDAMAGED tcp is missing", FATAL),
]


def reply(text: str) -> Exception:
    """The error as redis-py makes it from what the server sent."""
    error = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize(("text", "expected"), REPLIES, ids=[" ".join(text.split()[:3]) for text, _ in REPLIES])
def test_replies(text: str, expected: Fate) -> None:
    """Every error reply says of itself whether the request ran; without a connection it cannot have run."""
    error = reply(text)
    assert expected == fate(error)
    assert expected == fate(Unreached(error))


@pytest.mark.parametrize(
    ("error", "expected", "unreached"),
    [
        (redis_errors.TimeoutError("Timeout reading from socket"), UNKNOWN, NOT_RUN),
        (redis_errors.ConnectionError("Connection closed by server."), UNKNOWN, NOT_RUN),
        (redis_errors.InvalidResponse("Protocol Error"), UNKNOWN, NOT_RUN),
        (ConnectionResetError(104, "Connection reset by peer"), UNKNOWN, NOT_RUN),
        (BrokenPipeError(32, "Broken pipe"), UNKNOWN, NOT_RUN),
        (TimeoutError("timed out"), UNKNOWN, NOT_RUN),
        (redis_errors.ConnectionError("Error 111 connecting to a:1. Connection refused."), UNKNOWN, NOT_RUN),
        (redis_errors.DataError("Invalid input of type: 'NoneType'"), FATAL, FATAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_connections(error: Exception, expected: Fate, unreached: Fate) -> None:
    """A request that was sent and got no answer may have run; one that could not be sent has not."""
    assert expected == fate(error)
    assert unreached == fate(Unreached(error))


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("NOAUTH Authentication required.", BackendError, ["refuses the login"]),
        ("WRONGPASS invalid username-password pair", BackendError, ["refuses the login", "username-password"]),
        ("NOPERM User a has no permissions to run the 'eval' command", BackendError, ["forbids", "'eval'"]),
        ("ERR ACL failure in script: User a has no permissions to run the 'time' command", BackendError, ["forbids"]),
        ("ERR The user executing the script can't run this command or subcommand", BackendError, ["forbids"]),
        ("OOM command not allowed when used memory > 'maxmemory'.", BackendError, ["out of memory", "maxmemory"]),
        ("CPSCHEMA 2", IncompatibleSchema, ["schema 2", "schema 1"]),
        ("CPSCHEMA 2 script: 0abc, on @user_script:30.", IncompatibleSchema, ["schema 2"]),
        ("CPDAMAGED lease 7 script: 0abc, on @user_script:30.", BackendError, ["damaged", "lease 7"]),
        ("WRONGTYPE Operation against a key", BackendError, ["answered with an error", "WRONGTYPE"]),
        ("ERR a reply\r\n  of several lines", BackendError, ["a reply of several lines"]),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_translation(text: str, kind: type[BackendError], parts: list[str]) -> None:
    """The caller is told which store it was, what it means and what the server said, on one line."""
    error = translate(reply(text), "redis://store:6379/0")
    assert kind is type(error)
    message = str(error)
    assert [] == [part for part in [*parts, "redis://store:6379/0"] if part not in message]
    assert "\n" not in message
    assert "user_script" not in message


def test_translation_without_a_connection() -> None:
    """A login that is refused while the connection is made is told like any other."""
    error = translate(Unreached(reply("WRONGPASS invalid username-password pair")), "redis://store/0")
    assert "refuses the login" in str(error)


@pytest.mark.parametrize("unknown", [True, False])
def test_unavailable(unknown: bool) -> None:
    """Who waited in vain is told for how long, for whom, and whether the request may have been carried out."""
    error = unavailable(redis_errors.TimeoutError("Timeout reading"), "redis://store/0", 2.5, unknown=unknown)
    assert BackendUnavailable is type(error)
    assert unknown == error.unknown
    assert "The store at redis://store/0 did not answer within 2.5 s: Timeout reading" == str(error)


def test_unavailable_says_something() -> None:
    """An error without a text is told by its name."""
    assert str(unavailable(TimeoutError(), "redis://store/0", 5, unknown=True)).endswith(": TimeoutError")


HINT = "; it may want a client's certificate (ssl_certfile, ssl_keyfile)"


@pytest.mark.parametrize(
    ("cause", "where", "expected"),
    [
        (ssl.SSLEOFError(8, "EOF occurred"), "redis://store", HINT),
        (ConnectionResetError(104, "Connection reset by peer"), "redis://store", "EOF occurred"),
        (ConnectionResetError(104, "Connection reset by peer"), "rediss://store", HINT),
        (ConnectionResetError(104, "Connection reset by peer"), "valkeys+cluster://store", HINT),
        (ConnectionRefusedError(111, "Connection refused"), "rediss://store", "EOF occurred"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_cut_short(cause: Exception, where: str, expected: str) -> None:
    """A server that lacks a client's certificate may cut the connection before it can say so."""
    error = redis_errors.ConnectionError("EOF occurred")
    error.__context__ = cause
    assert NOT_RUN == fate(Unreached(error))
    assert str(unavailable(Unreached(error), where, 1.0, unknown=False)).endswith(expected)
