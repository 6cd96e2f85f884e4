"""What an error of redis-py says about the request: not run, unknown, or hopeless. Pure."""

from __future__ import annotations

import re
import ssl
from enum import Enum
from typing import Final

from redis import exceptions as redis_errors

from clusterports.errors import BackendError, BackendUnavailable, IncompatibleSchema

__all__ = [
    "Fate",
    "Unreached",
    "code",
    "concerns_data",
    "damaged",
    "fate",
    "lacks_a_key",
    "not_known",
    "points_elsewhere",
    "refuses_flags",
    "too_old",
    "translate",
    "unavailable",
]


class Fate(Enum):
    """``NOT_RUN``: try again. ``UNKNOWN``: try again with the same request. ``FATAL``: trying again is of no use."""

    NOT_RUN = "not run"
    UNKNOWN = "unknown"
    FATAL = "fatal"


class Unreached(Exception):
    """No connection could be made, so nothing was sent."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


_LATER: Final = frozenset(
    ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOREPLICAS", "NOSCRIPT", "READONLY", "TRYAGAIN")
)
"""The server refused before the script ran, and may accept soon. Any other error reply is for good."""

_FORBIDDEN_IN_SCRIPT: Final = ("ACL failure in script", "The user executing the script can't")
"""How Valkey and Redis 7.0 say it; newer ones say NOPERM."""

_WHERE_IN_SCRIPT: Final = re.compile(r" script: ([0-9a-f]+, )?on @user_script:\d+\.?$")

_NO_LOGIN: Final = ("NOAUTH", "WRONGPASS", "NOPERM")


def code(error: BaseException) -> str:
    """The first word of an error reply; redis-py strips it from those it has a class for."""
    return _CODES.get(type(error)) or str(error).split(" ", 1)[0].rstrip(":")


_CODES: Final[dict[type[BaseException], str]] = {
    redis_errors.BusyLoadingError: "LOADING",
    redis_errors.ReadOnlyError: "READONLY",
    redis_errors.NoScriptError: "NOSCRIPT",
    redis_errors.NoPermissionError: "NOPERM",
    redis_errors.AuthenticationError: "WRONGPASS",
    redis_errors.OutOfMemoryError: "OOM",
    redis_errors.ClusterDownError: "CLUSTERDOWN",
    redis_errors.MasterDownError: "MASTERDOWN",
    redis_errors.TryAgainError: "TRYAGAIN",
    redis_errors.MovedError: "MOVED",
    redis_errors.AskError: "ASK",
    redis_errors.AuthenticationWrongNumberOfArgsError: "NOAUTH",
}


def refuses_flags(error: BaseException) -> bool:
    """The server cannot read a script's first line. fakeredis says so of a script that it keeps all the same."""
    return "unexpected symbol near '#'" in str(error)


def not_known(error: object) -> bool:
    """The server has to be sent the script itself."""
    return isinstance(error, redis_errors.NoScriptError) or (isinstance(error, Exception) and refuses_flags(error))


def lacks_a_key(error: object) -> bool:
    """The keys are moving to another node of a cluster, and one is not there: it has moved, or there is none."""
    return isinstance(error, redis_errors.TryAgainError) and "rehashing" in str(error)


def points_elsewhere(error: BaseException) -> bool:
    """The server is no longer the one to talk to; a new connection may find the one that is."""
    return code(error) in ("READONLY", "MASTERDOWN", "CLUSTERDOWN")


def too_old(server: str, where: str) -> IncompatibleSchema:
    return IncompatibleSchema(f"The server at {where} is {server}; Redis 7.0 or Valkey 7.2 is the oldest that will do")


def fate(error: BaseException) -> Fate:
    if isinstance(error, Unreached):
        inner = error.cause
        return Fate.FATAL if fate(inner) is Fate.FATAL or _distrust(inner) else Fate.NOT_RUN
    if "max number of clients reached" in str(error) or code(error) in _LATER or not_known(error):
        return Fate.NOT_RUN
    if code(error) in _NO_LOGIN or isinstance(error, (redis_errors.ResponseError, redis_errors.DataError)):
        return Fate.FATAL
    return Fate.UNKNOWN


def _below(error: BaseException) -> tuple[BaseException | None, ...]:
    """It, and what redis-py made it from."""
    return error, error.__cause__ or error.__context__


def _distrust(error: BaseException) -> str:
    """Which certificate one side does not accept from the other; "" if that is not it."""
    for cause in _below(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and re.search("CERT|UNKNOWN_CA", getattr(cause, "reason", None) or ""):
            said = cause.reason.lower().replace("_", " ")
            return f"it does not accept this client's certificate (ssl_certfile, ssl_keyfile): {said}"
    return ""


def translate(error: BaseException, where: str) -> BackendError:
    """The error for a fate of FATAL."""
    inner = error.cause if isinstance(error, Unreached) else error
    if distrust := _distrust(inner):
        return BackendError(f"The store at {where} was not reached: {distrust}")
    said = _WHERE_IN_SCRIPT.sub("", " ".join(str(inner).split()))
    if "CPSCHEMA " in said:
        version = said.split("CPSCHEMA ", 1)[1].split(" ", 1)[0]
        return IncompatibleSchema(f"The data at {where} has schema {version}; this clusterports knows schema 1 only")
    if "CPDAMAGED " in said:
        return damaged(said.split("CPDAMAGED ", 1)[1], where)
    if said.startswith(_FORBIDDEN_IN_SCRIPT):
        return BackendError(f"The store at {where} forbids this user what is needed: {said}")
    match code(inner):
        case "NOAUTH" | "WRONGPASS":
            return BackendError(f"The store at {where} refuses the login: {said}")
        case "NOPERM":
            return BackendError(f"The store at {where} forbids this user what is needed: {said}")
        case "MOVED" | "ASK":
            return BackendError(
                f"The server at {where} is a node of a cluster: the URL must be like redis+cluster://host"
            )
        case "OOM":
            return BackendError(f"The store at {where} is out of memory: {said}")
    return BackendError(f"The store at {where} answered with an error: {said}")


def damaged(what: str, where: str) -> BackendError:
    return BackendError(f"The data at {where} is damaged, so nothing is allocated there: {what}")


def concerns_data(error: BackendError) -> bool:
    """Whether a translated error is about the data that was touched, and not about the server or the user."""
    said = str(error.__cause__)
    return any(word in said for word in ("CPSCHEMA ", "CPDAMAGED ", "WRONGTYPE "))


def unavailable(error: BaseException, where: str, timeout: float, *, unknown: bool) -> BackendUnavailable:
    said = " ".join(str(error).split()) or type(error).__name__
    inner = error.cause if isinstance(error, Unreached) else error
    cut = (ssl.SSLEOFError, ConnectionResetError) if where.startswith(("rediss", "valkeys")) else ssl.SSLEOFError
    if any(isinstance(cause, cut) for cause in _below(inner)):  # its reason may have got lost
        said += "; it may want a client's certificate (ssl_certfile, ssl_keyfile)"
    return BackendUnavailable(f"The store at {where} did not answer within {timeout:g} s: {said}", unknown=unknown)
