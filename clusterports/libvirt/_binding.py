"""The binding, libvirt-python: imported when it is needed, and told once what it needs to hear."""

from __future__ import annotations

import logging
import threading
import time
from functools import cache
from importlib import import_module
from typing import Any

from clusterports._lease import Process
from clusterports.errors import ClusterPortsError

__all__ = ["binding", "code", "start_events"]

logger = logging.getLogger("clusterports")

_starting = threading.Lock()
_loop: threading.Thread | None = None
_loop_forks = 0


@cache
def binding() -> Any:
    """The module ``libvirt``.

    :raises ClusterPortsError: it is not installed.
    """
    try:
        module = import_module("libvirt")
        module.libvirtError  # noqa: B018  # a folder of this name is a module too
    except (ImportError, AttributeError) as error:
        raise ClusterPortsError(
            "libvirt: the Python binding is not installed; install clusterports[libvirt], which needs libvirt's"
            " development files (Debian: libvirt-dev), or your system's python3-libvirt"
        ) from error
    return module


def code(error: BaseException) -> int:
    """libvirt's number of an error, 0 for any other."""
    return getattr(error, "get_error_code", int)() or 0


def start_events() -> None:
    """Run libvirt's event loop in a thread, and let its errors be raised without being printed as well.

    Once in a process, and before the connection is opened whose events are wanted; again does nothing. It takes the
    place of an error handler that was registered before. Not for a program that has an event loop of its own for
    libvirt.

    :raises ClusterPortsError: the loop is the parent's: libvirt's does not live on in a forked child.
    """
    global _loop, _loop_forks  # noqa: PLW0603  # libvirt has one event loop in a process
    libvirt = binding()
    if _loop is not None and _loop_forks != Process.forks:
        raise ClusterPortsError("libvirt's event loop is the parent's; fork before libvirt is first used, or spawn")
    with _starting:
        if _loop is None:
            libvirt.registerErrorHandler(_unprinted, None)
            libvirt.virEventRegisterDefaultImpl()
            _loop_forks = Process.forks
            _loop = threading.Thread(target=_run, args=(libvirt,), name="clusterports-libvirt-events", daemon=True)
            _loop.start()


def _run(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            logger.warning("libvirt's event loop: %s", error)
            time.sleep(1.0)


def _unprinted(_: object, error: tuple[Any, ...]) -> None:
    logger.debug("libvirt: %s", error[2])
