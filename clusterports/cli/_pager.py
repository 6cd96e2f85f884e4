"""Output that may be longer than the screen."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from ._common import on_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from subprocess import Popen

__all__ = ["page"]


def page(lines: Sequence[str]) -> None:
    """Print lines, on a terminal that has no room for them through a pager.

    That is $CLUSTERPORTS_PAGER, else $PAGER, else ``less``; "" and ``cat`` stand for none. One that is not there, or
    that ends before it has read all, is no error.
    """
    text = "\n".join(lines) + "\n"
    long = on_terminal() and len(lines) >= get_terminal_size().lines
    pager = _pager() if long else None
    if pager is None:
        print(text, end="")
    else:
        _feed(pager, text)


def _pager() -> Popen[bytes] | None:
    import shlex
    from subprocess import PIPE, Popen

    # For less: quit where one screen is enough, show colours, and leave what was read on the screen. As git does.
    environment = {"LESS": "FRX"} | os.environ
    sys.stdout.flush()
    with suppress(OSError, ValueError):  # not to be executed; a quotation mark that is not closed
        command = shlex.split(os.environ.get("CLUSTERPORTS_PAGER", os.environ.get("PAGER", "less")))
        if command and command != ["cat"] and os.environ.get("TERM") != "dumb":
            return Popen(command, stdin=PIPE, env=environment)  # noqa: S603 - the user's own choice
    return None


def _feed(pager: Popen[bytes], text: str) -> None:
    assert pager.stdin is not None
    # Ctrl-C is for the pager, which may well go on.
    with suppress(BrokenPipeError, KeyboardInterrupt), pager.stdin as pipe:
        pipe.write(text.encode(sys.stdout.encoding, "backslashreplace"))
    while pager.returncode is None:
        with suppress(KeyboardInterrupt):
            pager.wait()
