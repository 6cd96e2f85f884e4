"""Where a command serves: an address, and a socket that listens there."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from clusterports._text import show
from clusterports.errors import AllocationError, ConfigurationError
from clusterports.ranges import MAX_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Address", "Place", "is_loopback_name"]


def is_loopback_name(host: str) -> bool:
    """Whether a ``Host`` header, with or without a port, can only mean this machine."""
    name, bracket, _ = host.removeprefix("[").partition("]")
    if not (host.startswith("[") and bracket):
        name = host.partition(":")[0]
    name = name.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Place(NamedTuple):
    """An address as the kernel knows it."""

    family: socket.AddressFamily
    host: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        address = ipaddress.ip_address(self.host.partition("%")[0])
        inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (inner or address).is_loopback


class Address(NamedTuple):
    """Where to listen. ``port`` 0: any that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, usual: int) -> Address:
        """Of ``ADDRESS:PORT``; an IPv6 address stands in brackets. ``usual``: the port of an example.

        :raises ConfigurationError: it is none.
        """
        host, colon, digits = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 5 else -1
        if colon and bare and (":" in bare) == (bare != host) and 0 <= number <= MAX_PORT:
            return cls(bare, number)
        raise ConfigurationError(
            f"listen: must be ADDRESS:PORT such as 127.0.0.1:{usual} or [::1]:{usual}, with a port from 0 to"
            f" {MAX_PORT}; got {show(text)}"
        )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def find(self) -> Place:
        """The first of the addresses that the name stands for."""
        with self.usable():
            (family, _, _, _, place), *_ = socket.getaddrinfo(*self, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return Place(family, str(place[0]))

    def listening(self, place: Place) -> socket.socket:
        """A socket that listens there."""
        with self.usable():
            return socket.create_server((place.host, self.port), family=place.family, backlog=128)

    @contextmanager
    def usable(self) -> Iterator[None]:
        """What the kernel says of this address, in words.

        :raises ConfigurationError: there is no such address here, or it may not be used.
        :raises AllocationError: something else has it.
        """
        try:
            yield
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AllocationError(f"listen: {self} is in use by another process") from error
            raise ConfigurationError(f"listen: {show(str(self))} cannot be used: {error.strerror or error}") from error
        except UnicodeError as error:  # a label of a name that is empty or too long
            raise ConfigurationError(f"listen: {show(str(self))} cannot be used: not a name of a host") from error
