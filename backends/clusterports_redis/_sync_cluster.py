# Generated from backends/clusterports_redis/_async_cluster.py by .ci/unasync.py; do not edit.

"""How requests reach the nodes of a cluster."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_errors
from redis.crc import key_slot

from ._failures import Fate, Unreached, fate, not_known
from ._sync_link import FAILURES, OwnConnections, session
from ._url import Address, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ClusterConnections"]

_SLOTS: Final = 16384

_WITHOUT_KEY: Final = frozenset(
    ("ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "INFO", "PING", "SCAN", "SCRIPT", "TIME")
)


class ClusterConnections:
    """Connections to the nodes of a cluster: a command goes to the node that has the slot of its key.

    Nothing is repeated here. An error that another try may cure is given as one of those, and before that try the map
    of the slots is asked for again.
    """

    def __init__(self, target: Target) -> None:
        self.where = target.where
        self._target = target
        self._nodes: dict[Address, OwnConnections] = {}
        self._owners: list[Address | None] = []
        self._primaries = target.seeds[:1]
        self._order = target.seeds
        """Who is asked for the map: the one that was asked, or failed, last is the last."""
        self._stale = True
        self._closed = False
        seed = self._node(target.seeds[0])
        self._class, self._arguments = seed._class, seed._arguments

    def call(self, *command: Any) -> Any:
        (reply,) = self.together([command])
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send all, to the nodes one after another. An error stands for its own command, also that of a node."""
        self._look()
        parts: dict[Address | None, list[int]] = {}
        for index, command in enumerate(commands):
            parts.setdefault(self._owner(command), []).append(index)
        replies: list[Any] = [None] * len(commands)
        for address, indices in parts.items():
            part = self._at(address, [commands[index] for index in indices])
            for index, reply in zip(indices, part, strict=True):
                replies[index] = reply
                if isinstance(reply, redis_errors.AskError):
                    (replies[index],) = self._redirected(reply, [commands[index]])
        return replies

    def together(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """As `calls`, and all of them on the one connection that the first command's key calls for."""
        self._look()
        replies = self._at(self._owner(commands[0]), commands)
        if isinstance(replies[0], redis_errors.AskError):
            replies = self._redirected(replies[0], commands)
        if isinstance(replies[0], BaseException) and not isinstance(replies[0], redis_errors.ResponseError):
            raise replies[0]
        return replies

    def sessions(self, keys: Sequence[str]) -> list[str]:
        """The run of the server that serves each key: a restart, or another server, makes it another. "": unknown."""
        try:
            self._look()
        except FAILURES:
            return [""] * len(keys)
        owners = [self._owners[key_slot(key.encode())] for key in keys]
        runs = {owner: session(self._node(owner).call) if owner else "" for owner in dict.fromkeys(owners)}
        return [runs[owner] for owner in owners]

    def servers(self) -> list[OwnConnections]:
        """To each server that has data of its own, as far as they are known."""
        return [self._node(address) for address in self._primaries]

    def pubsub(self) -> Any:
        """At any node: each passes on to all others what is published."""
        return self._node(random.choice(self._primaries)).pubsub()

    def close(self) -> None:
        self._closed = True
        for node in list(self._nodes.values()):
            node.close()

    def _node(self, address: Address) -> OwnConnections:
        try:
            return self._nodes[address]
        except KeyError:
            arguments = {**self._target.arguments, "host": address.host, "port": address.port}
            node = self._nodes.setdefault(address, OwnConnections(Target("server", self.where, arguments)))
            node._closed = self._closed
            return node

    def _owner(self, command: Sequence[Any]) -> Address | None:
        """Where a command is to go. Those without a key go where the first slot is, all of them."""
        key = _key(command)
        return self._owners[0 if key is None else key_slot(key.encode())]

    def _at(self, address: Address | None, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if address is None:
            self._stale = True
            return [Unreached(redis_errors.ConnectionError("no node of the cluster has the slot"))] * len(commands)
        try:
            replies = self._node(address).calls(commands)
        except FAILURES as error:
            replies = [error] * len(commands)
        for index, reply in enumerate(replies):
            if not isinstance(reply, BaseException) or not_known(reply):
                continue
            if isinstance(reply, redis_errors.AskError):
                spot = _address(reply.host, reply.port, address)
                reply.node_addr = spot
                if isinstance(reply, redis_errors.MovedError):
                    self._owners[reply.slot_id] = spot
                    self._stale = True
                    replies[index] = redis_errors.TryAgainError(f"slot {reply.slot_id} has moved to {spot}")
            elif fate(reply) is not Fate.FATAL:
                self._stale = True
                self._order = _last(self._order, address)
        return replies

    def _redirected(self, ask: redis_errors.AskError, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """From the node that another is about to get the slot of: these keys are there already, or are to be."""
        return (self._at(Address(*ask.node_addr), [("ASKING",), *commands]))[1:]

    def _look(self) -> None:
        """See who has which slot, if what is known of it has proved wrong.

        :raises Unreached: no node says so.
        """
        if not self._stale:
            return
        said = []
        refused: Exception | None = None
        for address in self._order:
            self._order = _last(self._order, address)
            try:
                found = self._node(address).call("CLUSTER", "SLOTS")
            except FAILURES as error:
                said.append(f"{address}: {error}")
                if fate(error) is Fate.FATAL:
                    refused = error
                continue
            self._follow(address, found)
            return
        raise refused or Unreached(redis_errors.ConnectionError(f"no node can be asked: {'; '.join(said)}"))

    def _follow(self, asked: Address, found: Any) -> None:
        owners: list[Address | None] = [None] * _SLOTS
        known: dict[Address, None] = {}
        primaries: dict[Address, None] = {}
        for first, last, *servers in found:
            spots = [_address(host, port, asked) for host, port, *_ in servers]
            owners[first : last + 1] = [spots[0]] * (last + 1 - first)
            primaries[spots[0]] = None
            known |= dict.fromkeys(spots)
        self._owners = owners
        self._primaries = tuple(primaries) or self._primaries
        self._stale = False
        known |= dict.fromkeys(self._target.seeds)
        self._order = tuple(dict.fromkeys([*(node for node in known if node not in self._order), *self._order]))
        self._order = tuple(node for node in self._order if node in known)
        for gone in [node for node in list(self._nodes) if node not in known]:
            node = self._nodes.pop(gone, None)
            if node is not None:
                node.close()


def _key(command: Sequence[Any]) -> str | None:
    """The first of the keys that a command of ours names."""
    if command[0] in ("EVAL", "EVALSHA"):
        return str(command[3]) if int(command[2]) else None
    return None if command[0] in _WITHOUT_KEY else str(command[1])


def _last(nodes: tuple[Address, ...], node: Address) -> tuple[Address, ...]:
    return (*(other for other in nodes if other != node), node)


def _address(host: str | None, port: int, asked: Address) -> Address:
    """Of a node. One that does not know by which name it is reached leaves that to who asked: it is the one used."""
    return Address(asked.host if host in (None, "", "?") else str(host), port)
