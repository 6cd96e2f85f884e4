"""``clusterports ranges``: each value, and where it was set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len

from clusterports.cli.ranges import overlaps
from clusterports.ranges import LIBVIRT_RANGES, PortRange

if TYPE_CHECKING:
    from cli.conftest import Command

TOML = """
url = "redis://:secret@redis.example/0"
libvirt_conf = "qemu.conf"

[ranges.game]
first = 27015
last = 27114
exclude = [27020, "27025-27029"]
limit = 4

[ranges.backup]
last = 20020
"""

CONF = "backup_port_min = 20000\nbackup_port_max = 20010\nspice_password = 'secret'\n"


@pytest.fixture
def configured(bare: Command) -> Command:
    """The command with a file of its own and one of libvirt's, and a variable."""
    (bare.directory / "clusterports.toml").write_text(TOML)
    (bare.directory / "qemu.conf").write_text(CONF)
    bare.environment["CLUSTERPORTS_RANGES__GAME__QUARANTINE"] = "60"
    return bare


def test_one(configured: Command) -> None:
    """The values of a range, each with where it comes from; below them the files that were read."""
    done = configured("ranges", "game")

    assert (0, "") == (done.returncode, done.stderr)
    assert "secret" not in done.stdout
    assert [
        "RANGE KEY         VALUE              FROM",
        "game  first       27015              clusterports.toml:6",
        "      last        27114              clusterports.toml:7",
        "      scope       host               default",
        "      strategy    lowest             default",
        "      exclude     27020, 27025-27029 clusterports.toml:8",
        "      static_band 0                  default",
        "      cooldown    0 s                default",
        "      quarantine  60 s               CLUSTERPORTS_RANGES__GAME__QUARANTINE",
        "      limit       4                  clusterports.toml:9",
        "",
        "Read: clusterports.toml",
        "Read: qemu.conf",
        "Note: display and game share 27015-27019, 27021-27024, 27030-27114",
        "Note: game and websocket share 27015-27019, 27021-27024, 27030-27114",
        "A number is never given twice: what one range has given is not free in the other.",
    ] == done.stdout.splitlines()


def test_all(configured: Command) -> None:
    """Without a name all of them are shown, those of libvirt's file with their lines."""
    rows = [line.split() for line in configured("ranges").stdout.splitlines()]

    assert ["backup", "display", "game", "migration", "websocket"] == [row[0] for row in rows if row[1:2] == ["first"]]
    assert ["backup", "first", "20000", "qemu.conf:1"] in rows
    assert ["last", "20020", "clusterports.toml:12"] in rows


def test_json(configured: Command) -> None:
    """One document of a fixed layout, without secrets, and only what was asked for."""
    done = configured("ranges", "--json", "backup")

    assert "secret" not in done.stdout
    assert {
        "schema": 1,
        "ranges": [
            {
                "name": "backup",
                "first": 20000,
                "last": 20020,
                "size": 21,
                "scope": "host",
                "strategy": "lowest",
                "exclude": [],
                "static_band": 0,
                "cooldown_s": 0,
                "quarantine_s": 15,
                "limit": None,
                "origins": {
                    "first": {"kind": "file", "where": "qemu.conf", "line": 1},
                    "last": {"kind": "file", "where": "clusterports.toml", "line": 12},
                }
                | {
                    key: {"kind": "default", "where": "", "line": None}
                    for key in ("scope", "strategy", "exclude", "static_band", "cooldown", "quarantine", "limit")
                },
            }
        ],
        "overlaps": [
            {"ranges": ["backup", "display"], "scope": "host", "shared": [[20000, 20020]]},
            {"ranges": ["backup", "websocket"], "scope": "host", "shared": [[20000, 20020]]},
        ],
        "files": ["clusterports.toml", "qemu.conf"],
    } == json.loads(done.stdout)


def test_nothing_to_note(bare: Command) -> None:
    """Ranges that have nothing in common, from no file, are a table alone."""
    out = bare("ranges", "x", CLUSTERPORTS_RANGES='{"x": {"first": 1, "last": 2}}').stdout

    assert 10 == len(out.splitlines())
    assert "limit       none   default" in out


def test_unknown(bare: Command) -> None:
    """A typo is answered with what is near."""
    done = bare("ranges", "bakcup")

    assert (2, "") == (done.returncode, done.stdout)
    assert (
        "clusterports: range: unknown range 'bakcup', must be one of: backup, display, migration, websocket; "
        "did you mean 'backup'?\n"
    ) == done.stderr


def test_bad_libvirt_conf(configured: Command) -> None:
    """A file of libvirt's that libvirt would refuse ends the command with file, line, key, value and bound."""
    (configured.directory / "qemu.conf").write_text("backup_port_min = 20\nbackup_port_max = 10\n")
    done = configured("ranges")

    assert (2, "") == (done.returncode, done.stdout)
    assert (
        "clusterports: qemu.conf:2: backup_port_max: port must be between the minimal port 20 and 65535, got 10\n"
    ) == done.stderr


def test_no_store_and_no_home(bare: Command) -> None:
    """To look at ranges, neither a store nor a home is needed."""
    del bare.environment["XDG_CONFIG_HOME"]
    done = bare("ranges", HOME="")

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("width", [40, 1])
def test_width(width: int, configured: Command) -> None:
    """No line is wider than the terminal, and no path speaks to it."""
    name = f"\x1b[31m[red]{'日' * 30}.toml"
    (configured.directory / name).write_text(TOML)
    out = configured("ranges", "--config", name, COLUMNS=str(width)).stdout

    assert out.replace("\n", "").isprintable()
    assert all(cell_len(line) <= width for line in out.splitlines())
    if width == 40:
        assert "27015" in out


def test_help(bare: Command) -> None:
    """The help has examples, each on its line."""
    out = bare("ranges", "--help").stdout

    assert "  clusterports ranges backup --json\n" in out


def test_overlaps() -> None:
    """Ranges of one scope that can give the same numbers; excluded ones, and other scopes, are no overlap."""
    one = PortRange("one", 10, 19, exclude=["12-13"])
    two = PortRange("two", 12, 15)
    three = PortRange("three", 12, 13)
    wide = PortRange("wide", 1, 100, scope="cluster")

    assert [(one, two, ((14, 15),)), (two, three, ((12, 13),))] == list(overlaps([one, two, three, wide]))
    assert [] == list(overlaps([]))
    assert 5 == len(list(overlaps(LIBVIRT_RANGES)))
