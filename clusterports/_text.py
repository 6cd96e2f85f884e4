"""Text that came from outside, on its way to a person: no secrets, no control characters, no floods."""

from __future__ import annotations

import re

__all__ = ["printable", "redact_url", "show"]

# Also without the question mark that it needs to be an option.
_SECRET_QUERY = re.compile(r"(?i)((?:^|[?&;,/])[^=&;,/]*(?:pass|pw|secret|token|auth)[^=&;]*=)[^&;]*")


def redact_url(url: str) -> str:
    """The URL without its password.

    Errs on the side of hiding: everything up to the last ``@`` counts as credentials, because a password in
    which ``/`` or ``?`` was not percent-encoded would show otherwise. A lone word before the ``@`` is hidden
    too: it is a password that lacks its colon as often as a user name.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    credentials, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        rest = f"{user if colon else ''}{colon}***@{place}"
    return scheme + separator + _SECRET_QUERY.sub(r"\1***", rest)


def printable(text: str) -> str:
    r"""The text with everything that a terminal might obey, or not show, as an escape: ``\x1b``, ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def show(value: object, limit: int = 80) -> str:
    """A value for an error message: its repr, without secrets, at most about ``limit`` characters."""
    if isinstance(value, str):
        head = value[: 8 * limit]
        text = repr(redact_url(value) if "://" in head or "@" in head else head)
    else:
        try:
            text = repr(value)
        except ValueError:  # Python writes out no integer of more than some thousands of digits
            text = f"a very large {type(value).__name__}"
        if "://" in text or "@" in text:
            text = redact_url(text)
    return printable(text if len(text) <= limit else f"{text[: limit - 3]}...")
