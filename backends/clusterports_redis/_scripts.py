"""The Lua: one file per operation, joined with what they share."""

from __future__ import annotations

import hashlib
from functools import cache, cached_property
from importlib.resources import files
from typing import Final, NamedTuple

from clusterports.abc import EVENTS

__all__ = ["TELLING", "Script", "Scripts", "keeping"]

_NAMES: Final = (
    *("open", "acquire", "claim", "renew", "release", "foreign", "force", "close", "reclaim", "drop"),
    *("preview", "held", "read", "events", "check", "mend"),
)


_OF_EVENTS: Final = "  -- events"


TELLING: Final = frozenset(
    ("open", "acquire", "claim", "renew", "release", "foreign", "force", "close", "reclaim"),
)
"""Those that write events, if any are kept: to the last of their keys."""


class Script(NamedTuple):
    """What EVAL and EVALSHA take."""

    source: str
    sha: str


def _read(name: str) -> str:
    return files(__name__.rpartition(".")[0]).joinpath("lua", f"{name}.lua").read_text("utf-8")


def _code(text: str, kept: int) -> str:
    """Without comments and blank lines: the server keeps every script it has seen.

    ``-- include: name`` is where a part comes that costs nothing to those who have returned before. ``-- events`` ends
    a line that is needed only where any are ``kept``.
    """
    lines = []
    for line in text.splitlines():
        if line.startswith("-- include: "):
            lines.append(_code(_read(line.partition(": ")[2]), kept))
        elif line.strip() and not line.lstrip().startswith("--") and (kept or not line.endswith(_OF_EVENTS)):
            lines.append(line.removesuffix(_OF_EVENTS))
    return "\n".join(lines)


class Scripts:
    """All operations. ``clock``: Lua that sets ``local now``; tests put a virtual clock here. ``kept``: how many events
    they leave in a log, 0: none.

    ``flags``: real servers are told what a script may do (``#!lua flags=...``); emulators do not know that line.
    """

    open: Script
    acquire: Script
    preview: Script
    renew: Script
    release: Script
    claim: Script
    foreign: Script
    force: Script
    close: Script
    reclaim: Script
    drop: Script
    held: Script
    read: Script
    events: Script
    check: Script
    mend: Script

    def __init__(self, clock: str | None = None, *, kept: int = EVENTS, flags: bool = True) -> None:
        self.clock = clock or _read("clock")
        self.kept = kept
        self.flags = flags
        parts = {name: _code(_read(name), kept) for name in ("space", "time", "enter", "pick")}
        parts["clock"] = _code(self.clock, kept)
        for name in _NAMES:
            text = _read(name)
            wanted, joined, reads = (line.partition(": ")[2] for line in text.splitlines()[:3])
            source = "\n".join([*(parts[part] for part in joined.split()), _code(text, kept)])
            source = source.replace("$reads", reads).replace("$events", str(kept))
            if flags:
                source = f"#!lua{'' if wanted == 'none' else f' flags={wanted}'}\n{source}"
            # sha1 is how the server names a script, not a protection.
            setattr(self, name, Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()))

    @cached_property
    def quiet(self) -> Scripts:
        """Those that leave no events, and need no key for them."""
        return Scripts(self.clock, kept=0, flags=self.flags) if self.kept else self

    def without_flags(self) -> Scripts:
        return Scripts(self.clock, kept=self.kept, flags=False)


@cache
def keeping(events: int) -> Scripts:
    """Those that leave so many events in a log."""
    return Scripts(kept=events)
