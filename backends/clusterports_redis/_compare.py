"""Whether the keys of a space agree with each other, and what to do where they do not: see lua/compare.lua."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clusterports._text import printable

from . import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from ._sync import RedisBackend

__all__ = ["Comparison", "compare"]

MOST_TEXTS: Final = 3


class Comparison(wire.Reader):
    """What was found in one space. ``count``: how many contradictions; ``texts``: some of them."""

    def __init__(self, space: str) -> None:
        self.space = space
        self.count = 0
        self.texts: list[str] = []
        self._begin("head")

    def _begin(self, part: str) -> None:
        self.part, self.where = part, ""
        self._counted: dict[str, int] = {}
        self._values: dict[str, str] = {}

    def args(self) -> list[Any]:
        return [self.part, self.where]

    def feed(self, reply: Any) -> bool:
        _, self.part, self.where, count, texts, counted, values = wire.text(reply)
        self.count += count
        self.texts += texts
        for name, number in zip(counted[::2], counted[1::2], strict=True):
            self._counted[name] = self._counted.get(name, 0) + number
        self._values |= dict(zip(values[::2], values[1::2], strict=True))
        return not self.part

    def counters(self) -> dict[str, tuple[str, int]]:
        """Those that are not what was counted: their value, "" for none, and what was counted."""
        names = self._counted.keys() | self._values.keys()
        pairs = {name: (self._values.get(name, ""), self._counted.get(name, 0)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != (str(pair[1]) if pair[1] else "")}

    def again(self) -> Comparison:
        """To count once more: in a space that is in use, a count over several parts may be off by what came between."""
        other = Comparison(self.space)
        other._begin("leases")
        return other

    def text(self) -> str:
        shown = ", ".join(printable(text) for text in self.texts[:MOST_TEXTS])
        more = self.count - min(self.count, len(self.texts), MOST_TEXTS)
        return f"{shown} and {more:,} more" if more else shown


def compare(backend: RedisBackend, spaces: Sequence[str], *, mend: bool) -> list[Comparison]:
    """Those of the spaces whose keys contradict each other; with ``mend`` they did.

    Of a space that cannot be looked at so, because its data is of another version, nothing is said here.
    """
    operation: Literal["mend", "check"] = "mend" if mend else "check"
    found = _run(backend, operation, [Comparison(space) for space in spaces])
    doubtful = [(one, counters) for one in found if (counters := one.counters())]
    again = {one.space: one.counters() for one in _run(backend, "check", [one.again() for one, _ in doubtful])}
    for one, counters in doubtful:
        for name, (value, counted) in sorted(counters.items()):
            if again.get(one.space, {}).get(name) != (value, counted):
                continue
            if not mend or backend._run("mend", wire.keys(one.space), ["counter", name, value, counted])[3]:
                one.count += 1
                one.texts.append(f"{name} is {value or 'missing'}, and {counted} were counted")
    return [one for one in found if one.count]


def _run(backend: RedisBackend, operation: str, comparisons: list[Comparison]) -> list[Comparison]:
    """Run them to their end; those that came there."""
    errors = backend._feed(operation, comparisons)
    return [one for one in comparisons if one not in errors]
