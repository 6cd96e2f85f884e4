"""The same qemu.conf, read by a real libvirtd and by clusterports."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from clusterports import ConfigurationError, Settings

if TYPE_CHECKING:
    from hypervisors import Host

REFUSED = {
    "migration_port_min = 0": "migration_port_min: port must be greater than 0",
    "migration_port_max = 65536": "migration_port_max: port must be between the minimal port 49152 and 65535",
    "migration_port_min = 50000\nmigration_port_max = 49999": (
        "migration_port_max: port must be between the minimal port 50000 and 65535"
    ),
    'migration_port_min = "many"': "expected an unsigned integer for 'migration_port_min' parameter",
    "migration_port_min = -5": "expected an unsigned integer for 'migration_port_min' parameter",
    "migration_port_min = [1]": "expected an unsigned integer for 'migration_port_min' parameter",
    "migration_port_min = 99999999999": "value for 'migration_port_min' parameter must be in range 0:4294967295",
    "migration_port_min = many": "expecting a value",
    "migration_port_min 5": "expecting an assignment",
    "remote_display_port_min = 5899": "remote_display_port_min: port must be greater than or equal to 5900",
    "remote_display_port_max = 5899": "remote_display_port_max: port must be between the minimal port and 65535",
    "remote_websocket_port_min = 5699": "remote_websocket_port_min: port must be greater than or equal to 5700",
    "remote_websocket_port_max = 65536": "remote_websocket_port_max: port must be between the minimal port and 65535",
}
"""What libvirtd says to these lines, and then does not start."""


def said_by_libvirtd(host: Host) -> str:
    """Its last word about its configuration."""
    lines = [line for line in host.log.splitlines() if "qemu.conf" in line]
    return re.sub(r"^.*/qemu\.conf:(\d+:)? ", "", lines[-1])


def said_by_us(host: Host, text: str) -> str:
    """The same word, without what is told beyond it: the value; the minimal port of a display; the key of what is no
    value.
    """
    host.write_conf(f"{text}\n")
    with pytest.raises(ConfigurationError) as refused:
        Settings(libvirt_conf=str(host.conf))
    said = re.sub(r"^.*/qemu\.conf:\d+: ", "", str(refused.value))
    said = re.sub(r"^\w+: (?=expecting)|, got .*$", "", said)
    return re.sub(r"(?<=minimal port) \d+", "", said) if said.startswith("remote_") else said


def test_refused(h1: Host) -> None:
    """What libvirtd does not start with is refused in its words; the range of backups is checked like migration's."""
    said = {}
    for text in REFUSED:
        h1.kill()
        h1.write_conf(f"{text}\n")
        h1.start()
        with pytest.raises(RuntimeError, match="does not answer"):
            h1.connect()
        said[text] = said_by_libvirtd(h1)
    assert said == REFUSED

    assert {text: said_by_us(h1, text) for text in REFUSED} == REFUSED
    for text, words in REFUSED.items():
        backup = said_by_us(h1, text.replace("migration", "backup"))
        assert words.replace("49152", "10809") == backup.replace("backup", "migration")


def test_accepted(h1: Host) -> None:
    """A file that libvirtd starts with gives the ranges, whatever encoding its comments and other values have."""
    h1.kill()
    h1.write_conf(
        "backup_port_min = 10809\nbackup_port_max = 10810\nmigration_port_min = 50000\nmigration_port_max = 50001\n"
    )
    with h1.conf.open("ab") as conf:
        conf.write(b"# caf\xe9\nvnc_password = 'caf\xe9'\n")
    h1.start()
    h1.connect().close()
    ranges = Settings(libvirt_conf=str(h1.conf)).port_ranges()
    assert [(10809, 10810), (50000, 50001)] == [
        (ranges[name].first, ranges[name].last) for name in ("backup", "migration")
    ]
