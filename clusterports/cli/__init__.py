"""The command line. A module per command, imported when the command is used."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The entry point of the command ``clusterports``: every outcome is an exit code, none is a traceback."""
    import sys

    try:
        from ._app import run_app

        code = run_app()
    except KeyboardInterrupt:  # also while the rest is imported
        code = 130
    sys.exit(code)
