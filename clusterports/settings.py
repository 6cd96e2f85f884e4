"""Settings: arguments, then the environment, then ``clusterports.toml``, then libvirt's ``qemu.conf``, then defaults.

The files are, strongest first, ``clusterports.toml`` in the working directory,
``$XDG_CONFIG_HOME/clusterports/clusterports.toml`` and ``/etc/clusterports/clusterports.toml``; or one file
alone, when ``config`` or ``CLUSTERPORTS_CONFIG`` names it. Layers are merged down to the single key, so
``CLUSTERPORTS_RANGES__BACKUP__LAST=10900`` leaves the first port of ``backup`` as it was.

``qemu.conf`` is read when ``libvirt_conf`` names it, for the ``*_port_min`` and ``*_port_max`` of libvirt's ranges. A
file on which libvirt would not start is refused, also when other layers override what is wrong there.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ._names import NAME_BOUND, is_name
from ._sources import (
    PREFIX,
    RANGES_BOUND,
    Layer,
    Origin,
    QemuConf,
    TomlFile,
    environment,
    merge,
    qemu_conf,
    table,
    toml_files,
)
from ._text import redact_url, show
from .abc import EVENTS
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
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails
    from pydantic_settings import PydanticBaseSettingsSource

__all__ = ["Origin", "RangeSettings", "Settings"]

MAX_EVENTS: Final = 1_000_000
"""More are no log but an archive, and they take the store's memory."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")

# After a colon that is neither that of a scheme nor followed by a port.
_LONE_SECRET = re.compile(r":(?!/)(?!\d{1,5}(?:[/?#\s]|$))[^/?#]*")

_BOUNDS = {
    "url": "a URL such as redis://host:6379/0 without blanks or control characters",
    "host": NAME_BOUND,
    "instance": NAME_BOUND,
    "ttl": "a number of seconds from 0.1 to 3600",
    "timeout": "a number of seconds above 0, at most 3600",
    "ranges": RANGES_BOUND,
    "strict": "true or false",
    "probe": "true (or auto) or false",
    "libvirt_conf": "the path of libvirt's qemu.conf",
    "events": f"a whole number from 0 to {MAX_EVENTS}",
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

_DEFAULTS = Layer(
    {"ranges": {span.name: {"first": span.first, "last": span.last} for span in LIBVIRT_RANGES}}, "default"
)


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


def _good_path(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("not a path")
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
    out. ``libvirt_conf``: the path of libvirt's ``qemu.conf``, whose ranges are used where no other layer sets them;
    a relative one in ``clusterports.toml`` begins at the directory of that file. ``events``: how many of them the log
    of each host keeps, 0 to 1,000,000; 0: nothing is written down.

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
    libvirt_conf: Annotated[str, AfterValidator(_good_path)] | None = None
    events: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=MAX_EVENTS)] = EVENTS

    _layers: tuple[Layer, ...] = ()
    _conf: QemuConf | None = None

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
        libvirt_conf: str | os.PathLike[str] | None = None,
        events: int | str | None = None,
        based_on: Settings | None = None,
    ) -> None:
        arguments = {
            "url": url,
            "host": host,
            "instance": instance,
            "ttl": ttl,
            "timeout": timeout,
            "ranges": _copied(ranges),
            "strict": strict,
            "probe": probe,
            "libvirt_conf": os.fspath(libvirt_conf) if isinstance(libvirt_conf, os.PathLike) else libvirt_conf,
            "events": events,
        }
        given = Layer({key: value for key, value in arguments.items() if value is not None}, "argument")
        below = _read_layers(config) if based_on is None else based_on._layers
        layers = (given, *below)
        conf = _read_conf(layers) if based_on is None or "libvirt_conf" in given.values else based_on._conf
        used = (*layers, *([conf] if conf else []), _DEFAULTS)
        try:
            super().__init__(**merge(layer.values for layer in used))
        except ValidationError as error:
            # "from None": pydantic's own message shows the values, and with them passwords
            raise ConfigurationError("; ".join(_explain(item, used) for item in error.errors())) from None
        self._layers = layers
        self._conf = conf

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

    def origins(self) -> dict[str, Origin]:
        """Where each value was set, by key: ``ttl``, ``ranges.backup.first``. None of them is the value itself."""
        used = (*self._layers, *([self._conf] if self._conf else []))
        paths: list[tuple[str, ...]] = [(key,) for key in _BOUNDS if key != "ranges"]
        paths += [("ranges", name, key) for name in sorted(self.ranges) for key in _RANGE_BOUNDS]
        return {".".join(path): _origin(path, used) or Origin("default") for path in paths}

    def files(self) -> tuple[str, ...]:
        """The files that were read, strongest first; relative to what was the working directory then."""
        conf = [self._conf.path] if self._conf else []
        return (*(layer.path for layer in self._layers if isinstance(layer, TomlFile)), *conf)

    def __eq__(self, other: object) -> bool:
        """Equal values, wherever they come from."""
        return self.model_dump() == other.model_dump() if isinstance(other, Settings) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for key, value in super().__repr_args__():
            yield key, redact_url(value) if key == "url" and isinstance(value, str) else value


def _copied(ranges: object) -> object:
    """Tables as the layers have them; who gave them may change them later."""
    if not isinstance(ranges, Mapping):
        return ranges
    return {name: dict(one) if isinstance(one, Mapping) else one for name, one in ranges.items()}


def _read_layers(config: str | os.PathLike[str] | None) -> list[Layer]:
    """What lies between the arguments and ``qemu.conf``."""
    files = list(toml_files(config))
    ranges = [name for file in files for name in table(file.values.get("ranges"))]
    return [environment(Settings, [*ranges, *_DEFAULTS.values["ranges"]]), *files]


def _read_conf(layers: Iterable[Layer]) -> QemuConf | None:
    path = ("libvirt_conf",)
    for layer in layers:
        if path in layer:
            value = layer.values[path[0]]
            if isinstance(value, str) and value and "\0" not in value:  # else refused with all other values
                return qemu_conf(value, _where(path, path, [layer]))
            break
    return None


# ------------------------------------------------------------------ errors


def _explain(error: ErrorDetails, layers: Iterable[Layer]) -> str:
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
        return _misfit(path, key, error["msg"], layers) if key else f"{_where(path, path, layers)}: {error['msg']}"
    if len(path) == 1:
        bound = _BOUNDS[path[0]]
    elif len(path) == 2:
        bound = "a table with at least first and last"
    else:
        bound = _RANGE_BOUNDS[path[2]]
    if error["type"] == "missing":
        return f"{_where(path, path[:-1], layers)}: is missing, must be {bound}"
    got = _show_url(error["input"]) if path[0] == "url" else show(error["input"])
    return f"{_where(path, path, layers)}: must be {bound}, got {got}"


def _misfit(path: tuple[str, ...], key: str, text: str, layers: Iterable[Layer]) -> str:
    """What does not go together may have been set in different places: all of them are named."""
    own = _origin((*path, key), layers)
    others = [_origin((*path, other), layers) for other in ("first", "last") if other != key]
    places = [str(one) for one in dict.fromkeys(others) if one not in (None, own) and one.kind != "argument"]
    bound, bracket, got = text.partition(")")  # the first brackets have the values of the others
    where = _where((*path, key), path, layers) if own else f"{'.'.join((*path, key))} (default)"
    return f"{where}: {', '.join([bound, *places])}{bracket}{got}"


def _show_url(value: object) -> str:
    """What is no URL may well be a password, or have one where nobody looks for it."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    text = redact_url(value)
    return show(text if "@" in text else _LONE_SECRET.sub(":***", text))


def _where(key: tuple[str, ...], path: tuple[str, ...], layers: Iterable[Layer]) -> str:
    """The key, and in brackets what set it, or else what decided that there is something at ``path``."""
    shown = show(".".join(key), 120)[1:-1]
    origin = _origin(key, layers) or _origin(path, layers)
    return shown if origin is None or origin.kind == "argument" else f"{shown} ({origin})"


def _origin(path: tuple[str, ...], layers: Iterable[Layer]) -> Origin | None:
    """None for a default."""
    found = next((layer for layer in layers if path in layer), None)
    return None if found is None or found is _DEFAULTS else found.origin(path)
