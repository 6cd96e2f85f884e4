"""The commands, put together; and what becomes of errors."""

from __future__ import annotations

import logging
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clusterports._text import show
from clusterports.errors import (
    AllocationError,
    BackendError,
    ClusterPortsError,
    ConfigurationError,
    ImpossibleRequest,
    LeaseLost,
)

from ._common import Common, say, shared

__all__ = ["COMMANDS", "app", "run_app"]

COMMANDS = {
    "run": "Take a port, run a command with it, give it back.",
    "status": "Show who holds which port, and for how long.",
    "hosts": "Show the hosts, and how full they are.",
    "events": "Tell what happened to ports.",
    "ranges": "Show the ranges, and where each value comes from.",
    "acquire": "Take ports for a script, for a limited time.",
    "renew": "Keep what `acquire` gave for longer.",
    "release": "Give back what `acquire` gave, or take a port by force.",
    "backup-xml": "Fill a port into the XML of a libvirt backup, for virsh.",
    "exporter": "Serve figures of the cluster to Prometheus.",
    "serve": "Serve a page with the map of ports.",
    "doctor": "Find out what is wrong, and how to cure it.",
    "gc": "Take back what is due, and remove what is empty.",
    "demo": "See it work on three hosts, one of which dies.",
}

EXIT_CODES: tuple[tuple[type[ClusterPortsError], int], ...] = (
    (ConfigurationError, 2),
    (ImpossibleRequest, 2),
    (AllocationError, 3),
    (LeaseLost, 4),
    (BackendError, 5),
    (ClusterPortsError, 1),
)


class _LazyGroup(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            python_name = cmd_name.replace("-", "_")
            function = getattr(import_module(f".{python_name}", __package__), python_name)
            one = typer.Typer(add_completion=False, rich_markup_mode=None)
            # What follows the first word of a command to run is that command's, also without "--".
            one.command(cmd_name, context_settings={"allow_interspersed_args": cmd_name != "run"})(shared(function))
            self.commands[cmd_name] = typer.main.get_command(one)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = get_close_matches(name, COMMANDS, 1)
            ctx.fail(f"No such command {show(name)}{f'; did you mean {close[0]!r}?' if close else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


# Plain help: rich takes longer to import than the rest of a command's start.
app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"clusterports {version('clusterports')}")
        raise typer.Exit


def clusterports(
    common: Common,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Cluster-wide network ports for jobs: leased, renewed while the job runs, and back again when it dies.

    These options may stand before the command or after it. Exit codes: 0 done, 2 usage or configuration, 3 exhausted or
    in use, 4 lease lost, 5 store unavailable.
    """


app.callback()(shared(clusterports))


def run_app() -> int | str | None:
    """Carry out the command line: the exit code."""
    if sys.stdout is None:  # closed when we were started; no file that we open is to take its number
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stderr is None:  # else what is meant for it would be printed on stdout
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that cannot show a character is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    # Errors are told here, in one line, and what befalls a lease by the command that holds it.
    logging.getLogger("clusterports").addHandler(logging.NullHandler())
    try:
        try:
            app(prog_name="clusterports")
        finally:
            sys.stdout.flush()
    except SystemExit as done:
        return done.code
    except ClusterPortsError as error:
        say(error)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except BrokenPipeError:
        _forget_output()
        return 1
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        say(f"unexpected {type(error).__name__}: {error} (python -X dev shows where)")
        if isinstance(error, OSError):  # a full device, perhaps
            _forget_output()
        return 1
    return 0


def _forget_output() -> None:
    """What is still in the buffer goes nowhere, quietly, when the interpreter flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
