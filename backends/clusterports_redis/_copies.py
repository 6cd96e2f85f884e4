"""How many copies of what was granted there must be before it is handed out: replicas (WAIT), disks (WAITAOF). Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from clusterports._text import show
from clusterports.errors import ConfigurationError

from ._url import place

__all__ = ["NO_COPIES", "Copies"]

MOST_REPLICAS: Final = 100

_BOUND: Final = f"must be an integer from 0 to {MOST_REPLICAS}"

_WORDS: Final = {
    "yes": True,
    "true": True,
    "on": True,
    "1": True,
    "no": False,
    "false": False,
    "off": False,
    "0": False,
}


class Copies(NamedTuple):
    """``min_replicas``: this many replicas must have it. ``fsync``: it must be on the primary's disk, and on that of as
    many replicas.
    """

    min_replicas: int = 0
    fsync: bool = False

    @classmethod
    def of(cls, url: str) -> tuple[str, Copies]:
        """The URL without these two options, and what they say: ``redis://host/0?min_replicas=1&fsync=yes``.

        :raises ConfigurationError: a value out of its bounds.
        """
        base, mark, query = url.partition("?")
        said: dict[str, Any] = {}
        left = []
        for part in query.split("&") if mark else ():
            name, _, value = part.partition("=")
            if name == "min_replicas":
                if not (value.isascii() and value.isdigit() and int(value) <= MOST_REPLICAS):
                    raise ConfigurationError(f"url: {place(url)}: min_replicas: {_BOUND}, got {show(value)}")
                said[name] = int(value)
            elif name == "fsync":
                if value.lower() not in _WORDS:
                    raise ConfigurationError(f"url: {place(url)}: fsync: must be yes or no, got {show(value)}")
                said[name] = _WORDS[value.lower()]
            else:
                left.append(part)
        return f"{base}?{'&'.join(left)}" if left else base, cls(**said)

    def override(self, min_replicas: int | None, fsync: bool | None) -> Copies:
        """What is given instead, where it is.

        :raises ConfigurationError: a value out of its bounds.
        """
        if min_replicas is not None and (type(min_replicas) is not int or not 0 <= min_replicas <= MOST_REPLICAS):
            raise ConfigurationError(f"min_replicas: {_BOUND}, got {show(min_replicas)}")
        if fsync is not None and type(fsync) is not bool:
            raise ConfigurationError(f"fsync: must be True or False, got {show(fsync)}")
        return Copies(
            self.min_replicas if min_replicas is None else min_replicas, self.fsync if fsync is None else fsync
        )

    @property
    def wanted(self) -> bool:
        return self.fsync or self.min_replicas > 0

    def command(self, timeout: float) -> tuple[Any, ...]:
        """What is sent behind a script, on the same connection. ``timeout``: seconds."""
        milliseconds = max(1, round(timeout * 1000))
        if self.fsync:
            return "WAITAOF", 1, self.min_replicas, milliseconds
        return "WAIT", self.min_replicas, milliseconds

    def lack(self, reply: Any, timeout: float) -> str:
        """What is missing, in words; "" when nothing is."""
        if isinstance(reply, ResponseError):
            said = str(reply)
            if "unknown command" in said.lower():
                return "the server does not know WAITAOF, which fsync needs: Redis 7.2 or Valkey does"
            return f"it cannot be told: {said}"
        disks, replicas = reply if self.fsync else (1, reply)
        where = "on the disk of" if self.fsync else "on"
        missing = [f"it is not on the primary's disk after {timeout:g} s"] * (int(disks) < 1)
        if int(replicas) < self.min_replicas:
            missing.append(
                f"after {timeout:g} s it is {where} {int(replicas)} of the {self.min_replicas} replicas wanted"
            )
        return "; ".join(missing)


NO_COPIES: Final = Copies()
