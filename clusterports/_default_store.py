"""The store of those who configured none: a file of this machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ._text import show
from .errors import ConfigurationError

__all__ = ["default_url"]

FILE_NAME: Final = "ports.db"

SYSTEM: Final = Path("/var/lib/clusterports")


def default_url() -> str:
    """The URL of ``ports.db`` in the directory that systemd gives a service (``StateDirectory=``), in
    ``/var/lib/clusterports`` for root, or in the user's state directory. Nothing is made there.

    :raises ConfigurationError: for a user who has no such directory.
    """
    path = str(_directory() / FILE_NAME)
    # sqlite:/// and then the path, which has a slash of its own
    return f"sqlite:///{quote(os.fsencode(path))}"


def _directory() -> Path:
    # systemd's list, when a unit has several
    given = Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0])
    if given.is_absolute():
        return given
    if os.geteuid() == 0:
        return SYSTEM
    from platformdirs import user_state_path

    path = Path()
    with contextlib.suppress(RuntimeError):  # no home; older releases answer with a relative path instead
        path = user_state_path("clusterports")
    if not path.is_absolute():
        home = os.environ.get("HOME")
        raise ConfigurationError(
            f"url: there is no home directory to keep the ports in ({f'HOME is {show(home)}' if home else 'no HOME'}); "
            f"give --url sqlite:////DIRECTORY/{FILE_NAME}, or set CLUSTERPORTS_URL, or url in clusterports.toml"
        )
    return path
