"""Names: what is accepted from outside, and how a host's name becomes the name of its space.

A space's name is part of the store's keys. That of a host is made of ``[A-Za-z0-9._-]``, ``%`` and one ``:``, so
no host name, whatever it contains, can leave its keys or match another's. That of the cluster has no ``:``.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from ._text import show
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CLUSTER_SPACE",
    "NAME_BOUND",
    "check_labels",
    "check_name",
    "check_text",
    "default_host",
    "default_instance",
    "host_space",
    "is_cluster_space",
    "is_host_space",
    "is_name",
    "space_host",
    "where",
]

NAME_BYTES: Final = 255
"""As long as a file name may be; a DNS name is at most 253."""

TEXT_BYTES: Final = 10_240

LABELS: Final = 64

NAME_BOUND: Final = f"1 to {NAME_BYTES} bytes of UTF-8 without control characters or blanks at either end"

CLUSTER_SPACE: Final = "cluster"
"""The space of all numbers that are unique over all hosts."""

_HOST_SPACE: Final = "host:"


@lru_cache(4096)
def host_space(host: str) -> str:
    """The name of the space of a host."""
    return _HOST_SPACE + quote(host, safe="").replace("~", "%7E")


def is_host_space(space: str) -> bool:
    """Whether this is the space of a host."""
    return space.startswith(_HOST_SPACE)


def is_cluster_space(space: str) -> bool:
    """Whether this is the space of the whole cluster."""
    return space == CLUSTER_SPACE


def space_host(space: str) -> str:
    """The host of a space.

    :raises ValueError: when the space is not that of a host.
    """
    if not is_host_space(space):
        raise ValueError(f"not the space of a host: {space!r}")
    return unquote(space[len(_HOST_SPACE) :], errors="replace")


def where(space: str) -> str:
    """A space as a message says it: ``on host 'kvm-07'``."""
    return f"on host {space_host(space)!r}" if is_host_space(space) else "on the whole cluster"


def is_name(value: object) -> bool:
    """Whether this can name a host or an instance."""
    if not isinstance(value, str) or not value or value != value.strip():
        return False
    if any(c < " " or "\x7f" <= c <= "\x9f" for c in value):
        return False
    size = _utf8_size(value)
    return size is not None and size <= NAME_BYTES


def check_name(key: str, value: object) -> str:
    """The name of a host or an instance, if it is one.

    :raises ConfigurationError: otherwise; ``key`` is what the value was given as.
    """
    if not isinstance(value, str) or not is_name(value):
        raise ConfigurationError(f"{key}: must be {NAME_BOUND}, got {show(value)}")
    return value


def check_text(key: str, value: object) -> str:
    """Free text, an owner or a part of a label: any characters, at most 10,240 bytes of UTF-8.

    :raises ConfigurationError: when it is longer, or not text, or has lone surrogates (not encodable).
    """
    size = _utf8_size(value) if isinstance(value, str) else None
    if not isinstance(value, str) or size is None or size > TEXT_BYTES:
        got = show(value) if size is None else f"{size} bytes: {show(value)}"
        raise ConfigurationError(f"{key}: must be text of at most {TEXT_BYTES} bytes in UTF-8, got {got}")
    return value


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of the labels: at most 64, keys and values as in :func:`check_text`, no key empty.

    :raises ConfigurationError: otherwise.
    """
    if not labels:
        return {}
    if len(labels) > LABELS:
        raise ConfigurationError(f"labels: must be at most {LABELS}, got {len(labels)}")
    checked: dict[str, str] = {}
    for key, value in labels.items():
        if not check_text("label key", key):
            raise ConfigurationError("label key: must not be empty, got ''")
        checked[key] = check_text(f"label {show(key, 40)}", value)
    return checked


def default_host() -> str:
    """This machine's host name, as it calls itself."""
    name = socket.gethostname()
    if not is_name(name):
        raise ConfigurationError(f"host: this machine's own name {show(name)} cannot be used; set host to {NAME_BOUND}")
    return name


def default_instance(host: str) -> str:
    """A name that no other process has: host, process id, and a random part (pids repeat, also in containers)."""
    unique = f"-{os.getpid()}-{os.urandom(4).hex()}"
    return host.encode()[: NAME_BYTES - len(unique)].decode(errors="ignore") + unique


def _utf8_size(text: str) -> int | None:
    """None when it cannot be encoded: a lone surrogate."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None
