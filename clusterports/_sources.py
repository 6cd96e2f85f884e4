"""Where settings come from: each source is a layer of values that can say, of each of them, where it stands.

Tables of values are nested by key: ``{"ranges": {"backup": {"first": 10809}}}``; a path is a tuple of such keys.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ._text import printable, show
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pydantic_settings import BaseSettings

__all__ = [
    "PREFIX",
    "RANGES_BOUND",
    "Environment",
    "Layer",
    "Origin",
    "QemuConf",
    "TomlFile",
    "environment",
    "merge",
    "qemu_conf",
    "table",
    "toml_files",
]

PREFIX: Final = "CLUSTERPORTS_"
CONFIG_VARIABLE: Final = "CLUSTERPORTS_CONFIG"
FILE_NAME: Final = "clusterports.toml"
RANGES_BOUND: Final = "a table of ranges by name"

LONGEST_FILE: Final = 10 << 20
"""Bytes; libvirt reads no longer ``qemu.conf`` either."""

# Set by `clusterports run` for its command, which may well use this library itself.
_SET_BY_RUN: Final = frozenset({"CLUSTERPORTS_PORT", "CLUSTERPORTS_FENCE"})

_HEADER: Final = re.compile(r"\s*\[(?!\[)([^\[\]]+)\]\s*(?:#.*)?")
_WORD: Final = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY: Final = re.compile(rf"\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*=")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set.

    ``where``: the name of the variable, or the path of the file; "" for an argument and a default. More than one
    variable, with commas, when the value is a table that several of them fill. ``line``: in the file, from 1; None
    where it is not known.
    """

    kind: Literal["argument", "environment", "file", "default"]
    where: str = ""
    line: int | None = None

    def __str__(self) -> str:
        """On one line of a terminal: ``CLUSTERPORTS_TTL``, ``/etc/libvirt/qemu.conf:12``, ``default``."""
        if not self.where:
            return self.kind
        return printable(self.where) + ("" if self.line is None else f":{self.line}")


@dataclass(frozen=True)
class Layer:
    """The values of one source, arguments and defaults if it is none of those below."""

    values: dict[str, Any]
    kind: Literal["argument", "environment", "file", "default"]

    def __contains__(self, path: tuple[str, ...]) -> bool:
        """Whether there is a value, or a table, at the path."""
        inner: object = self.values
        for part in path:
            if not isinstance(inner, dict) or part not in inner:
                return False
            inner = inner[part]
        return True

    def origin(self, path: tuple[str, ...]) -> Origin:
        """Where what lies at the path was set; of no use for a path that is not in here."""
        return Origin(self.kind)


@dataclass(frozen=True)
class Environment(Layer):
    """``names``: the variables that there were, by their names in capitals."""

    names: Mapping[str, str]

    def origin(self, path: tuple[str, ...]) -> Origin:
        """The value's own variable, or that of a table around it, or those of what is inside."""
        for size in range(len(path), 0, -1):
            name = PREFIX + "__".join(path[:size]).upper()
            if name in self.names:
                return Origin(self.kind, self.names[name])
        inside = PREFIX + "__".join((*path, "")).upper()
        return Origin(self.kind, ", ".join(sorted(self.names[name] for name in self.names if name.startswith(inside))))


@dataclass(frozen=True)
class TomlFile(Layer):
    """``text``: where the lines are looked up, when somebody asks for them."""

    path: str
    text: str = field(repr=False)

    def origin(self, path: tuple[str, ...]) -> Origin:
        """The line of the value, or of the table that it is written in; None if the text leaves a doubt."""
        lines = _lines(self.text)
        near = next((path[:size] for size in range(len(path), 0, -1) if path[:size] in lines), None)
        return Origin(self.kind, self.path, None if near is None else lines[near])


@dataclass(frozen=True)
class QemuConf(Layer):
    """``lines``: by path."""

    path: str
    lines: Mapping[tuple[str, ...], int]

    def origin(self, path: tuple[str, ...]) -> Origin:
        """The line of the key."""
        return Origin(self.kind, self.path, self.lines.get(path))


def table(value: object) -> dict[str, Any]:
    """The value if it is a table, else an empty one."""
    return value if isinstance(value, dict) else {}


def merge(layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One table; of two values for a key the earlier layer's wins, and tables are merged."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key not in merged:
                merged[key] = value
            elif isinstance(merged[key], dict) and isinstance(value, dict):
                merged[key] = merge([merged[key], value])
    return merged


# ------------------------------------------------------------------ files


def toml_files(config: str | os.PathLike[str] | None) -> Iterator[TomlFile]:
    """Those that there are, strongest first. ``config``: that one alone, and it must be there.

    :raises ConfigurationError: for one that is there and cannot be read.
    """
    key = "config"
    if config is None:
        config = os.environ.get(CONFIG_VARIABLE)
        key = CONFIG_VARIABLE
    if config is not None:
        path = os.fspath(config)
        if not path or "\0" in path:
            raise ConfigurationError(f"{key}: must be the path of a TOML file, got {show(path)}")
        file = _toml_file(path)
        if file is None:
            raise ConfigurationError(f"{key}: there is no file {show(path, 300)}")
        yield file
        return
    for path in _usual_places():
        file = _toml_file(path, usual=True)
        if file is not None:
            yield file


def _usual_places() -> list[str]:
    places = [Path(FILE_NAME)]
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    with contextlib.suppress(RuntimeError):  # a user without a home
        # the XDG specification, too, has a relative one ignored
        places.append((home if home.is_absolute() else Path.home() / ".config") / "clusterports" / FILE_NAME)
    return [str(place) for place in (*places, Path("/etc/clusterports") / FILE_NAME)]


def _toml_file(path: str, *, usual: bool = False) -> TomlFile | None:
    """None when there is no such file."""
    import tomllib

    text = _read(path, path, usual=usual)
    if text is None:
        return None
    text = text.removeprefix("\ufeff")  # editors of other systems put it there
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise ConfigurationError(f"{printable(path)}: must be valid TOML in UTF-8: {printable(str(error))}") from None
    libvirt_conf = values.get("libvirt_conf")
    if isinstance(libvirt_conf, str) and libvirt_conf:
        values["libvirt_conf"] = str(Path(path).parent / libvirt_conf)
    return TomlFile(values, "file", path, text)


@lru_cache(8)
def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each key and table header. One that seems to be there twice is left out: it is in a string."""
    lines: dict[tuple[str, ...], int] = {}
    doubtful: set[tuple[str, ...]] = set()
    header: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        if found := _HEADER.fullmatch(line):
            header = path = _keys(found[1])
        elif found := _KEY.match(line):
            path = (*header, *_keys(found[1]))
        else:
            continue
        if path in lines:
            doubtful.add(path)
        for size in range(1, len(path) + 1):
            lines.setdefault(path[:size], number)
    return {path: number for path, number in lines.items() if path not in doubtful}


def _keys(dotted: str) -> tuple[str, ...]:
    """``ranges."a.b"`` as a path; nothing for what is no key."""
    import tomllib

    keys: list[str] = []
    with contextlib.suppress(ValueError):
        inner = tomllib.loads(f"{dotted}=0")
        while isinstance(inner, dict):
            ((key, inner),) = inner.items()
            keys.append(key)
    return tuple(keys)


def qemu_conf(path: str, key: str) -> QemuConf:
    """libvirt's ranges as a layer. ``key``: what the path was given as, for messages.

    :raises ConfigurationError: also when there is no such file.
    """
    from ._libvirt_conf import read_ranges

    # libvirt does not ask for any encoding: there may be a comment from before UTF-8.
    text = _read(path, f"{key}: {show(path, 300)}", errors="surrogateescape")
    if text is None:
        raise ConfigurationError(f"{key}: there is no file {show(path, 300)}")
    ranges = read_ranges(path, text)
    values = {name: {end: bound.port for end, bound in ends.items()} for name, ends in ranges.items()}
    lines: dict[tuple[str, ...], int] = {
        ("ranges", name, end): bound.line for name, ends in ranges.items() for end, bound in ends.items()
    }
    return QemuConf({"ranges": values}, "file", path, lines)


def _read(path: str, shown: str, *, usual: bool = False, errors: str = "strict") -> str | None:
    """The text of a file; None when there is none. ``shown``: what an error calls it.

    ``usual``: nobody asked for it, so it may be in a directory that is closed to us: a service may well have
    somebody else's home. ``errors``: what to do with bytes that are not UTF-8, as for ``bytes.decode``.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LONGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if usual and isinstance(error, PermissionError) and not _in_sight(path):
            return None
        raise ConfigurationError(f"{printable(shown)}: cannot be read: {error.strerror}") from None
    if len(data) > LONGEST_FILE:
        raise ConfigurationError(f"{printable(shown)}: must be a file of at most {LONGEST_FILE} bytes")
    try:
        return data.decode(errors=errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise ConfigurationError(
            f"{printable(shown)}: must be UTF-8, got the byte {byte:#04x} in line {line}"
        ) from None


def _in_sight(path: str) -> bool:
    """Whether it is the file that we may not read, and not a directory on the way to it."""
    try:
        Path(path).stat()
    except PermissionError:
        return False
    return True


# ------------------------------------------------------------------ environment


def environment(settings: type[BaseSettings], ranges: Collection[str]) -> Environment:
    """What the variables say. ``ranges``: the names of ranges that are known from elsewhere.

    :raises ConfigurationError: for a variable that looks mistyped.
    """
    from pydantic_settings import EnvSettingsSource, SettingsError

    names = {name.upper(): name for name in os.environ if name.upper().startswith(PREFIX)}
    _refuse_near_misses(names, list(settings.model_fields))
    try:
        values = dict(EnvSettingsSource(settings)())
    except (SettingsError, AttributeError, TypeError):  # the latter two: JSON, but not an object
        name = f"{PREFIX}RANGES"
        got = show(os.environ.get(names.get(name, name), ""))
        raise ConfigurationError(f"ranges ({name}): must be {RANGES_BOUND}, as JSON, got {got}") from None
    # The environment has no case here, range names have: RANGES__BACKUP means "Backup" if a file has that.
    spelt = {name.casefold(): name for name in reversed(list(ranges))}
    if isinstance(values.get("ranges"), dict):
        values["ranges"] = {spelt.get(name.casefold(), name): value for name, value in values["ranges"].items()}
    return Environment(values, "environment", names)


def _refuse_near_misses(names: Mapping[str, str], keys: list[str]) -> None:
    """A mistyped variable must not be passed over in silence.

    Only what resembles a setting is refused: others may use the prefix for good reasons. Kubernetes sets
    ``CLUSTERPORTS_SERVICE_HOST`` and more in every pod beside a service of that name.
    """
    for name, variable in sorted(names.items()):
        if name == CONFIG_VARIABLE or name in _SET_BY_RUN:
            continue
        key, nested, _ = name[len(PREFIX) :].lower().partition("__")
        if key in keys and (key == "ranges" or not nested):
            continue
        near = difflib.get_close_matches(key, [*keys, "config"], n=1, cutoff=0.65)
        if near:
            raise ConfigurationError(
                f"{printable(variable)}: there is no such setting; did you mean {PREFIX}{near[0].upper()}?"
            )
