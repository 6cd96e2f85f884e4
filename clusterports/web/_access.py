"""Who may look: a token, a session made from it, and for a page of this machine alone the name it is asked by."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import TYPE_CHECKING

from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Access", "check_token"]

SHORTEST, LONGEST = 16, 1024
"""Characters of a token."""

SESSION = 12 * 3600
"""Seconds for which a browser stays logged in."""

PENALTY = 0.5
"""Seconds that a wrong token waits for its answer."""

WAITING = 32
"""Wrong tokens that wait at the same time; more are sent away at once."""


def check_token(token: str) -> str:
    """The token, if it can be one. What it was is in no error.

    :raises ConfigurationError: it is too short or too long, or not printable ASCII without blanks.
    """
    if SHORTEST <= len(token) <= LONGEST and all("!" <= c <= "~" for c in token):
        return token
    got = f"{len(token)} characters" if not SHORTEST <= len(token) <= LONGEST else "others"
    raise ConfigurationError(
        f"token: must be {SHORTEST} to {LONGEST} printable ASCII characters without blanks, got {got}"
    )


class Access:
    """The token, and what is derived from it. Without one, everybody on this machine may look."""

    def __init__(self, token: str | None) -> None:
        self.token = None if token is None else check_token(token).encode("ascii")
        # A session outlives a restart of the server, and ends when the token is changed.
        self._key = hashlib.sha256(b"clusterports session\0" + (self.token or b"")).digest()
        # Browsers send the cookies of all ports of a host; two pages there are not to throw out each other's.
        self.cookie = f"clusterports_{self._sign(b'name')[:8]}"
        self._waiting = 0

    def is_token(self, given: bytes) -> bool:
        """Whether it is the token."""
        return self.token is not None and hmac.compare_digest(given, self.token)

    def session(self) -> str:
        """A new one, to be kept by a browser."""
        until = f"{int(time.time()) + SESSION}"
        return f"{until}.{self._sign(until.encode())}"

    def is_session(self, value: str) -> bool:
        """Whether it is one of ours that has not run out."""
        until, _, sign = value.partition(".")
        if not (until.isascii() and until.isdecimal() and len(until) <= 12):
            return False
        signed = hmac.compare_digest(sign.encode(), self._sign(until.encode()).encode())
        return signed and time.time() < int(until)

    def allows(self, authorization: str, cookies: Mapping[str, str]) -> bool:
        """Whether a request with these may read."""
        if self.token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip().encode()):
            return True
        return self.is_session(cookies.get(self.cookie, ""))

    async def penalty(self) -> bool:
        """Let somebody with a wrong token wait. False when too many wait already."""
        if self._waiting >= WAITING:
            return False
        self._waiting += 1
        try:
            await asyncio.sleep(PENALTY)
        finally:
            self._waiting -= 1
        return True

    def _sign(self, text: bytes) -> str:
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
