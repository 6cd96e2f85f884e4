"""Settings: arguments, then the environment, then ``clusterports.toml``, then defaults.

The files are, strongest first, ``clusterports.toml`` in the working directory,
``$XDG_CONFIG_HOME/clusterports/clusterports.toml`` and ``/etc/clusterports/clusterports.toml``; or one file
alone, when ``config`` or ``CLUSTERPORTS_CONFIG`` names it. Layers are merged down to the single key, so
``CLUSTERPORTS_RANGES__BACKUP__LAST=10900`` leaves the first port of ``backup`` as it was.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from ._names import NAME_BOUND, is_name
from ._text import printable, redact_url, show
from .errors import ConfigurationError
from .ranges import (
    COOLING_BOUND,
    DEFAULT_QUARANTINE,
    EXCLUDE_BOUND,
    LIBVIRT_RANGES,
    LIMIT_BOUND,
    MAX_COOLING,
    MAX_PORT,
    PORT_BOUND,
    SCOPE_BOUND,
    STATIC_BAND_BOUND,
    STRATEGY_BOUND,
    PortRange,
    Scope,
    Span,
    Strategy,
    is_range_name,
    misfit,
    parse_spans,
)
from .ranges import NAME_BOUND as RANGE_NAME_BOUND

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic_core import ErrorDetails
    from pydantic_settings import PydanticBaseSettingsSource

__all__ = ["RangeSettings", "Settings"]

PREFIX = "CLUSTERPORTS_"
CONFIG_VARIABLE = "CLUSTERPORTS_CONFIG"
FILE_NAME = "clusterports.toml"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")

# Set by `clusterports run` for its command, which may well use this library itself.
_SET_BY_RUN = frozenset({"CLUSTERPORTS_PORT", "CLUSTERPORTS_FENCE"})

_BOUNDS = {
    "url": "a URL such as redis://host:6379/0 without blanks or control characters",
    "host": NAME_BOUND,
    "instance": NAME_BOUND,
    "ttl": "a number of seconds from 0.1 to 3600",
    "timeout": "a number of seconds above 0, at most 3600",
    "ranges": "a table of ranges by name",
    "strict": "true or false",
    "probe": "true (or auto) or false",
}
_RANGE_BOUNDS = {
    "first": PORT_BOUND,
    "last": PORT_BOUND,
    "scope": SCOPE_BOUND,
    "strategy": STRATEGY_BOUND,
    "exclude": EXCLUDE_BOUND,
    "static_band": STATIC_BAND_BOUND,
    "cooldown": COOLING_BOUND,
    "quarantine": COOLING_BOUND,
    "limit": LIMIT_BOUND,
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "ranges": {span.name: {"first": span.first, "last": span.last} for span in LIBVIRT_RANGES}
}


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value


def _no_auto(value: object) -> object:
    return True if value == "auto" else value


def _good_spans(value: object) -> tuple[Span, ...]:
    if isinstance(value, str):  # from a variable
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    try:
        return parse_spans(value)
    except ValueError as error:
        raise _fault("", str(error)) from None


def _fault(key: str, text: str) -> PydanticCustomError:
    """An error with a text of our own; ``key``: what is wrong inside the table, if not all of the value."""
    return PydanticCustomError("fault", "{text}", {"key": key, "text": text})


def _good_url(value: str) -> str:
    if not _URL.fullmatch(value) or not value.isprintable():
        raise ValueError("not a URL")
    return value


def _good_name(value: str) -> str:
    if not is_name(value):
        raise ValueError("not a name")
    return value


def _good_range_name(value: str) -> str:
    if not is_range_name(value):
        raise ValueError("not a range name")
    return value


_Port = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=MAX_PORT)]
_Cooling = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=MAX_COOLING, allow_inf_nan=False)]
_Name = Annotated[str, AfterValidator(_good_name)]
_RangeName = Annotated[str, AfterValidator(_good_range_name)]


class RangeSettings(BaseModel):
    """One range as configured; see :class:`~clusterports.PortRange`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: _Port
    last: _Port
    scope: Scope = "host"
    strategy: Strategy = "lowest"
    exclude: Annotated[tuple[Span, ...], NoDecode, BeforeValidator(_good_spans)] = ()
    static_band: Annotated[int, BeforeValidator(_no_bool), Field(ge=0)] = 0
    cooldown: _Cooling = 0.0
    quarantine: _Cooling = DEFAULT_QUARANTINE
    limit: Annotated[int, BeforeValidator(_no_bool), Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wrong = misfit(self.first, self.last, self.exclude, self.static_band)
        if wrong is not None:
            raise _fault(*wrong)
        return self


class Settings(BaseSettings):
    """What an allocator needs to know. Everything is checked here, at once, before anything is contacted.

    An argument that is None was not given: the next layer decides. With ``based_on``, those settings are the next
    layer, and the last.

    ``url``: the store; None when it is configured nowhere. ``host``, ``instance``: None for this machine's
    name, and for a name that no other process has. ``ttl``: seconds after its last heartbeat at which a lease
    runs out, 0.1 to 3600. ``timeout``: seconds that one call to the store may take with its retries, above 0
    and at most 3600. ``ranges``: by name; libvirt's are there unless overridden. ``strict``: a lease that was
    not renewed in time is given up at once. ``probe``: a port of this machine is tried before it is handed
    out.

    :raises ConfigurationError: names each bad key, where it was set, the value and the bound.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=False
    )

    url: Annotated[str, AfterValidator(_good_url)] | None = None
    host: _Name | None = None
    instance: _Name | None = None
    ttl: Annotated[float, BeforeValidator(_no_bool), Field(ge=0.1, le=3600, allow_inf_nan=False)] = 30.0
    timeout: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=3600, allow_inf_nan=False)] = 5.0
    ranges: dict[_RangeName, RangeSettings] = {}
    strict: bool = False
    probe: Annotated[bool, BeforeValidator(_no_auto)] = True

    def __init__(
        self,
        *,
        config: str | os.PathLike[str] | None = None,
        url: str | None = None,
        host: str | None = None,
        instance: str | None = None,
        ttl: float | str | None = None,
        timeout: float | str | None = None,
        ranges: Mapping[str, Mapping[str, object]] | None = None,
        strict: bool | None = None,
        probe: bool | Literal["auto"] | None = None,
        based_on: Settings | None = None,
    ) -> None:
        arguments = {
            "url": url,
            "host": host,
            "instance": instance,
            "ttl": ttl,
            "timeout": timeout,
            "ranges": ranges,
            "strict": strict,
            "probe": probe,
        }
        given = {key: value for key, value in arguments.items() if value is not None}
        layers = [
            _Layer(None, given),
            *(_layers(config) if based_on is None else [_Layer(None, based_on.model_dump())]),
        ]
        try:
            super().__init__(**_merge(layer.values for layer in layers))
        except ValidationError as error:
            # "from None": pydantic's own message shows the values, and with them passwords
            raise ConfigurationError("; ".join(_explain(item, layers) for item in error.errors())) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The layers are read and merged in ``__init__``, which remembers where each value came from."""
        return (init_settings,)

    @classmethod
    def load(cls, config: str | os.PathLike[str] | None = None, **overrides: Any) -> Self:
        """The settings of this process. ``config``: read this file instead of those in the usual places."""
        return cls(config=config, **overrides)

    def override(self, **arguments: Any) -> Self:
        """These settings with other values for those arguments that are not None; nothing else is read.

        :raises ConfigurationError: as for the settings themselves.
        """
        if all(value is None for value in arguments.values()):
            return self
        return type(self)(based_on=self, **arguments)

    def port_ranges(self) -> dict[str, PortRange]:
        """The ranges by name, sorted."""
        return {
            name: PortRange(name, **{key: getattr(span, key) for key in _RANGE_BOUNDS})
            for name, span in sorted(self.ranges.items())
        }

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for key, value in super().__repr_args__():
            yield key, redact_url(value) if key == "url" and isinstance(value, str) else value


class _Layer(NamedTuple):
    """``origin``: None for arguments and defaults, "" for the environment, else the file."""

    origin: str | None
    values: dict[str, Any]


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _merge(layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One table; of two values for a key the earlier layer's wins, and tables are merged."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key not in merged:
                merged[key] = value
            elif isinstance(merged[key], dict) and isinstance(value, dict):
                merged[key] = _merge([merged[key], value])
    return merged


def _layers(config: str | os.PathLike[str] | None) -> list[_Layer]:
    """What lies below the arguments."""
    files = list(_files(config))
    ranges = [name for file in files for name in _table(file.values.get("ranges"))]
    return [_environment([*ranges, *_DEFAULTS["ranges"]]), *files, _Layer(None, _DEFAULTS)]


# ------------------------------------------------------------------ files


def _files(config: str | os.PathLike[str] | None) -> Iterator[_Layer]:
    if config is None:
        config = os.environ.get(CONFIG_VARIABLE)
        key = CONFIG_VARIABLE
    else:
        key = "config"
    if config is not None:
        path = os.fspath(config)
        if not path or "\0" in path:
            raise ConfigurationError(f"{key}: must be the path of a TOML file, got {show(path)}")
        values = _read(path)
        if values is None:
            raise ConfigurationError(f"{key}: there is no file {show(path, 300)}")
        yield _Layer(path, values)
        return
    for path in _usual_places():
        values = _read(path)
        if values is not None:
            yield _Layer(path, values)


def _usual_places() -> list[str]:
    places = [Path(FILE_NAME)]
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    with contextlib.suppress(RuntimeError):  # a user without a home
        # the XDG specification, too, has a relative one ignored
        places.append((home if home.is_absolute() else Path.home() / ".config") / "clusterports" / FILE_NAME)
    return [str(place) for place in (*places, Path("/etc/clusterports") / FILE_NAME)]


def _read(path: str) -> dict[str, Any] | None:
    """The file's table; None when there is no such file."""
    import tomllib

    try:
        text = Path(path).read_bytes().decode()
        return tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigurationError(f"{printable(path)}: must be valid TOML in UTF-8: {printable(str(error))}") from None


# ------------------------------------------------------------------ environment


def _environment(ranges: Iterable[str]) -> _Layer:
    _refuse_near_misses()
    try:
        values = dict(EnvSettingsSource(Settings)())
    except (SettingsError, AttributeError, TypeError):  # the latter two: JSON, but not an object
        name = f"{PREFIX}RANGES"
        got = show(os.environ.get(name, ""))
        raise ConfigurationError(f"ranges ({name}): must be {_BOUNDS['ranges']}, as JSON, got {got}") from None
    # The environment has no case here, range names have: RANGES__BACKUP means "Backup" if a file has that.
    spelt = {name.casefold(): name for name in reversed(list(ranges))}
    table = values.get("ranges")
    if isinstance(table, dict):
        values["ranges"] = {spelt.get(name.casefold(), name): value for name, value in table.items()}
    return _Layer("", values)


def _refuse_near_misses() -> None:
    """A mistyped variable must not be passed over in silence.

    Only what resembles a setting is refused: others may use the prefix for good reasons. Kubernetes sets
    ``CLUSTERPORTS_SERVICE_HOST`` and more in every pod beside a service of that name.
    """
    for variable in sorted(os.environ):
        name = variable.upper()
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or name in _SET_BY_RUN:
            continue
        key, nested, _ = name[len(PREFIX) :].lower().partition("__")
        if key in _BOUNDS and (key == "ranges" or not nested):
            continue
        near = difflib.get_close_matches(key, [*_BOUNDS, "config"], n=1, cutoff=0.65)
        if near:
            raise ConfigurationError(
                f"{printable(variable)}: there is no such setting; did you mean {PREFIX}{near[0].upper()}?"
            )


def _variable(path: tuple[str, ...]) -> str:
    """The variables that set this value: its own, or that of a table around it, or those of what is inside."""
    present = {name.upper(): name for name in os.environ}
    for size in range(len(path), 0, -1):
        name = PREFIX + "__".join(path[:size]).upper()
        if name in present:
            return present[name]
    inside = PREFIX + "__".join((*path, "")).upper()
    return ", ".join(sorted(present[name] for name in present if name.startswith(inside)))


# ------------------------------------------------------------------ errors


def _explain(error: ErrorDetails, layers: list[_Layer]) -> str:
    path = tuple(str(part) for part in error["loc"])
    if path[-1:] == ("[key]",):
        path = path[:-1]
        return f"{_where(path[:1], path, layers)}: a range's name must be {RANGE_NAME_BOUND}, got {show(path[-1])}"
    if error["type"] == "extra_forbidden":
        known = _RANGE_BOUNDS if path[0] == "ranges" else _BOUNDS
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{_where(path, path, layers)}: there is no such setting; {hint}"
    if error["type"] == "fault":
        key = error.get("ctx", {})["key"]
        return f"{_where((*path, key) if key else path, path, layers)}: {error['msg']}"
    if len(path) == 1:
        bound = _BOUNDS[path[0]]
    elif len(path) == 2:
        bound = "a table with at least first and last"
    else:
        bound = _RANGE_BOUNDS[path[2]]
    if error["type"] == "missing":
        return f"{_where(path, path[:-1], layers)}: is missing, must be {bound}"
    return f"{_where(path, path, layers)}: must be {bound}, got {show(error['input'])}"


def _where(key: tuple[str, ...], path: tuple[str, ...], layers: list[_Layer]) -> str:
    """The key, and in brackets the layer that decided what lies at ``path``."""
    shown = show(".".join(key), 120)[1:-1]
    for origin, values in layers:
        table: object = values
        for part in path:
            if not isinstance(table, dict) or part not in table:
                break
            table = table[part]
        else:
            if origin is None:
                return shown
            return f"{shown} ({printable(origin or _variable(path))})"
    return shown
