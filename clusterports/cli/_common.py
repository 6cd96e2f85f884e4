"""What the commands share: options, the store, and how they speak."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import signal
import sys
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterports._text import printable, show
from clusterports.abc import Capability
from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from clusterports.abc import Backend
    from clusterports.settings import Settings

    T = TypeVar("T")

__all__ = [
    "CLUSTER",
    "DEFAULT_RANGE",
    "Common",
    "Ttl",
    "as_json",
    "complete_range",
    "end",
    "end_in_order",
    "log_to_stderr",
    "on_terminal",
    "say",
    "shared",
]

DEFAULT_RANGE = "backup"
"""The range of those who name none."""

CLUSTER = "(cluster)"
"""What stands for a host where a number is that of all of them."""

SCHEMA = 1
"""Of all JSON that the commands print."""

# Text here: the settings say what is wrong with a number, and which bounds it has.
Ttl = Annotated[
    str | None, typer.Option(metavar="SECONDS", help="How long the lease outlives its last heartbeat, 0.1 to 3600.")
]


def say(message: object) -> None:
    """One line on stderr, whatever the message contains."""
    with contextlib.suppress(OSError):  # a closed stderr is no reason to leave the command alone
        print(f"clusterports: {printable(str(message))}", file=sys.stderr, flush=True)


def as_json(document: dict[str, Any], **how: Any) -> str:
    """The document without any character that a terminal might obey. ``how``: as for ``json.dumps``."""
    text = json.dumps({"schema": SCHEMA} | document, ensure_ascii=True, **how)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is


def on_terminal() -> bool:
    """Whether stdout is one; it may be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def end(signum: int, _: object) -> None:
    """For a signal that ends a process: the code that a shell gives it, and all that is to be done at the end."""
    sys.exit(128 + signum)


def end_in_order() -> None:
    """What else ends a process is to leave as little behind as Ctrl-C does."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, end)


def complete_range(incomplete: str) -> list[str]:
    """For the shell: the names of ranges that begin so."""
    from clusterports.settings import Settings

    with contextlib.suppress(ConfigurationError):
        return [name for name in Settings.load().ranges if name.startswith(incomplete)]
    return []


@dataclass
class Common:
    """The options that every command has, and what follows from them."""

    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The store, such as redis://host:6379/0. Also CLUSTERPORTS_URL, which `ps` does not show. "
            "Default: a file of this machine, sqlite:///...",
        ),
    ] = None
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="The host. Default: this machine's name; for those who only look, all."),
    ] = None
    instance: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name to hold a lease under. Default: one of its own.")
    ] = None
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Read this file, not clusterports.toml.")] = None
    json: Annotated[bool, typer.Option("--json", help="One JSON document, of a fixed layout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No warnings and no progress; errors only.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False

    def settings(self, **overrides: Any) -> Settings:
        """The settings, with a URL among them in any case.

        :raises ConfigurationError: for a value that cannot be.
        """
        from clusterports.settings import Settings

        options = {"url": self.url, "host": self.host, "instance": self.instance}
        settings = Settings.load(self.config, **(options | overrides))
        if settings.url is None:
            from clusterports._default_store import default_url

            settings = settings.override(url=default_url())
        return settings

    def backend(self, settings: Settings) -> Backend:
        """The store's backend; nothing is contacted yet.

        :raises ConfigurationError: also for a store that only one process sees: of no use to a command.
        """
        from clusterports import _backends

        with _backends.set_in(settings.origins()["url"]):
            backend = _backends.connect(settings.url, timeout=settings.timeout, events=settings.events)
            if Capability.PROCESSES not in backend.capabilities:
                raise ConfigurationError(
                    "url: must be a store that several processes share, such as redis://host:6379/0; "
                    f"got {show(settings.url)}, which one process has to itself"
                )
        return backend

    def warn(self, message: object) -> None:
        """A line on stderr for people, unless they want none."""
        if not self.quiet:
            say(message)

    def print_json(self, document: dict[str, Any]) -> None:
        """On stdout, without any character that a terminal might obey."""
        print(as_json(document, indent=2 if on_terminal() else None))  # lines cost a second where there are many ports

    @cached_property
    def width(self) -> int | None:
        """Of the terminal; None when the output goes elsewhere: as wide as it takes."""
        from shutil import get_terminal_size

        return get_terminal_size().columns if on_terminal() or "COLUMNS" in os.environ else None

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """On a terminal, a sign of life while this lasts."""
        if not self._shows_progress:
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(what):
            yield

    @property
    def _shows_progress(self) -> bool:
        return not (self.quiet or self.json) and sys.stderr.isatty()

    def progress(self, steps: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """The steps; on a terminal with a bar that shows how far they have come, and goes away at the end."""
        if not self._shows_progress:
            yield from steps
            return
        from rich.console import Console
        from rich.progress import track

        yield from track(steps, what, total=total, console=Console(stderr=True), transient=True)


def shared(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer from a function whose first parameter is a `Common`: it gets the options of that, too."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    given = inspect.get_annotations(Common, eval_str=True)
    options = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=given[one.name])
        for one in fields(Common)
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *options]

    def command(ctx: typer.Context, **values: Any) -> None:
        outer: Common = ctx.obj or Common()
        here = {one.name: values.pop(one.name) for one in options}
        merged: dict[str, Any] = {
            name: getattr(outer, name) if value is None or value is False else value for name, value in here.items()
        }
        common = Common(**merged)
        if common.quiet and common.verbose:
            raise ConfigurationError("quiet: must not be given together with verbose")
        if common.verbose and ctx.parent is not None:
            log_to_stderr(logging.INFO)
        ctx.obj = common
        function(common, **values)

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


class _Say(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def log_to_stderr(level: int) -> None:
    """What the library logs, from this level on, as lines for people."""
    logger = logging.getLogger("clusterports")
    logger.setLevel(level)
    logger.addHandler(_Say())
