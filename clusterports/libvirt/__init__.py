"""Ports for libvirt's jobs, on any number of hosts. Needs the binding: ``pip install clusterports[libvirt]``.

>>> from clusterports import PortAllocator
>>> from clusterports.libvirt import BackupPorts
>>> with PortAllocator() as ports, BackupPorts(ports) as backups:  # doctest: +SKIP
...     with backups.begin("vm-42", "<domainbackup mode='pull'>...</domainbackup>") as backup:
...         backup.port.number
10809
"""

from __future__ import annotations

from ._binding import start_events
from .backup import Backup, BackupPorts
from .display import Display, DisplayPorts
from .migration import migrate, settle_migrations

__all__ = [
    "Backup",
    "BackupPorts",
    "Display",
    "DisplayPorts",
    "migrate",
    "settle_migrations",
    "start_events",
]
