"""Settings: their order, and what each bad value is answered with."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clusterports.errors import ConfigurationError
from clusterports.ranges import LIBVIRT_RANGES, PortRange
from clusterports.settings import Origin, RangeSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end"
TTL = "must be a number of seconds from 0.1 to 3600"
TIMEOUT = "must be a number of seconds above 0, at most 3600"
EVENTS = "must be a whole number from 0 to 1000000"
PORT = "must be an integer from 1 to 65535"
EXCLUDE = 'must be a list of port numbers and spans, such as [20005, "20000-20003"]'
BAND = "must be an integer from 0, less than the size of the range"
COOLING = "must be a number of seconds from 0 to 3600"
LIMIT = "must be an integer of at least 1"
URL = "must be a URL such as redis://host:6379/0 without blanks or control characters"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a home of one's own, and no variable of this library."""
    for name in list(os.environ):
        if name.upper().startswith("CLUSTERPORTS_"):
            monkeypatch.delenv(name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def in_directory(text: str) -> None:
    Path("clusterports.toml").write_text(text)


def in_home(work: Path, text: str, config: str = "home/.config") -> None:
    path = work / config / "clusterports" / "clusterports.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def refusal(**arguments: Any) -> str:
    """The message; nothing is chained to it that a traceback would show, values and all."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(**arguments)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_defaults() -> None:
    """Without anything there are libvirt's ranges, a TTL of 30 s, and no store."""
    settings = Settings.load()

    assert {one.name: one for one in LIBVIRT_RANGES} == settings.port_ranges()
    assert (None, None, None) == (settings.url, settings.host, settings.instance)
    assert (30.0, 5.0, False, True) == (settings.ttl, settings.timeout, settings.strict, settings.probe)


def test_order(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments beat the environment, that the working directory's file, and that the user's."""
    in_home(work, "ttl = 1\ntimeout = 1\nhost = 'home'\ninstance = 'home'")
    in_directory("ttl = 2\ntimeout = 2\nhost = 'directory'")
    monkeypatch.setenv("CLUSTERPORTS_TTL", "3")
    monkeypatch.setenv("CLUSTERPORTS_TIMEOUT", "3")
    settings = Settings.load(ttl=4)

    assert (4, 3, "directory", "home") == (settings.ttl, settings.timeout, settings.host, settings.instance)


@pytest.mark.parametrize("kept", [0, 1_000_000])
def test_events(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many events are kept is a setting like the others, with both ends within the bounds."""
    assert 500 == Settings.load().events
    monkeypatch.setenv("CLUSTERPORTS_EVENTS", str(kept))
    settings = Settings.load()

    assert kept == settings.events == Settings.load(events=kept).events
    assert "CLUSTERPORTS_EVENTS" == str(settings.origins()["events"])


def test_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument of None leaves the decision to the next layer."""
    monkeypatch.setenv("CLUSTERPORTS_TTL", "3")

    assert 3 == Settings(ttl=None).ttl


def test_xdg(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's directory is where XDG_CONFIG_HOME says; a relative one is ignored."""
    in_home(work, "ttl = 1")
    in_home(work, "ttl = 2", "xdg")

    monkeypatch.setenv("XDG_CONFIG_HOME", str(work / "xdg"))
    assert 2 == Settings.load().ttl
    monkeypatch.setenv("XDG_CONFIG_HOME", "../xdg")
    assert 1 == Settings.load().ttl


def test_one_file_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is named is read instead of those in the usual places."""
    in_directory("ttl = 1\ntimeout = 1")
    (work / "a.toml").write_text("ttl = 2")
    (work / "b.toml").write_text("ttl = 3")

    monkeypatch.setenv("CLUSTERPORTS_CONFIG", str(work / "a.toml"))
    assert (2, 5) == (Settings.load().ttl, Settings.load().timeout)
    assert 3 == Settings.load(config=work / "b.toml").ttl


def test_part_of_a_range(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer does not say of a range stays as the layers below have it."""
    in_home(work, "[ranges.backup]\nquarantine = 5")
    in_directory("[ranges.backup]\nlast = 10900\n[ranges.mine]\nfirst = 1\nlast = 2")
    monkeypatch.setenv("CLUSTERPORTS_RANGES__BACKUP__FIRST", "10850")
    ranges = Settings.load(ranges={"display": {"last": 5999}}).port_ranges()

    assert PortRange("backup", 10850, 10900, quarantine=5) == ranges["backup"]
    assert PortRange("display", 5900, 5999) == ranges["display"]
    assert PortRange("mine", 1, 2) == ranges["mine"]
    assert ["backup", "display", "migration", "mine", "websocket"] == list(ranges)


def test_ranges_in_the_environment_have_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable means the range of that name however the file spells it."""
    in_directory("[ranges.Mine]\nfirst = 1\nlast = 2")
    monkeypatch.setenv("CLUSTERPORTS_RANGES__MINE__LAST", "3")

    assert PortRange("Mine", 1, 3) == Settings.load().port_ranges()["Mine"]


def test_ranges_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranges fit into one variable, too."""
    monkeypatch.setenv("CLUSTERPORTS_RANGES", '{"x.y": {"first": 1, "last": 2}}')

    assert PortRange("x.y", 1, 2) == Settings.load().port_ranges()["x.y"]


ALL_OF_A_RANGE = PortRange(
    "gateway",
    20000,
    32000,
    scope="cluster",
    strategy="next",
    exclude=["20000-31000", 31005],
    static_band=16,
    cooldown=2.5,
    quarantine=5,
    limit=4,
)


def test_all_of_a_range_in_a_file() -> None:
    """A file can say whatever a range can be told in Python."""
    in_directory(
        """
        [ranges.gateway]
        first = 20000
        last = 32000
        scope = "cluster"
        strategy = "next"
        exclude = ["20000-30500", [30501, 31000], 31005]
        static_band = 16
        cooldown = 2.5
        quarantine = 5
        limit = 4
        """
    )

    assert ALL_OF_A_RANGE == Settings.load().port_ranges()["gateway"]


def test_all_of_a_range_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """So can the environment; a list is JSON there."""
    variables = {
        "FIRST": "20000",
        "LAST": "32000",
        "SCOPE": "cluster",
        "STRATEGY": "next",
        "EXCLUDE": '["20000-31000", 31005]',
        "STATIC_BAND": "16",
        "COOLDOWN": "2.5",
        "QUARANTINE": "5",
        "LIMIT": "4",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"CLUSTERPORTS_RANGES__GATEWAY__{name}", value)

    assert {name.lower() for name in variables} == set(RangeSettings.model_fields)
    assert ALL_OF_A_RANGE == Settings.load().port_ranges()["gateway"]


def test_override_keeps_all_of_a_range() -> None:
    """What a range was told survives when other settings are replaced."""
    in_directory('[ranges.backup]\nexclude = ["10810-10812"]\nlimit = 2')
    settings = Settings.load().override(ttl=5, ranges={"backup": {"static_band": 2}})

    assert (
        PortRange("backup", 10809, 10872, exclude=[(10810, 10812)], limit=2, static_band=2)
        == settings.port_ranges()["backup"]
    )


@pytest.mark.parametrize(("value", "probe"), [("auto", True), ("true", True), ("false", False), ("off", False)])
def test_probe(value: str, probe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is on, or off; "auto" is how the allocator's argument spells on."""
    monkeypatch.setenv("CLUSTERPORTS_PROBE", value)

    assert probe is Settings.load().probe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ttl": 0}, f"ttl: {TTL}, got 0"),
        ({"ttl": -1}, f"ttl: {TTL}, got -1"),
        ({"ttl": 3601}, f"ttl: {TTL}, got 3601"),
        ({"ttl": "soon"}, f"ttl: {TTL}, got 'soon'"),
        ({"ttl": float("nan")}, f"ttl: {TTL}, got nan"),
        ({"ttl": float("inf")}, f"ttl: {TTL}, got inf"),
        ({"ttl": True}, f"ttl: {TTL}, got True"),
        ({"timeout": 0}, f"timeout: {TIMEOUT}, got 0"),
        ({"timeout": 3600.5}, f"timeout: {TIMEOUT}, got 3600.5"),
        ({"events": -1}, f"events: {EVENTS}, got -1"),
        ({"events": 1_000_001}, f"events: {EVENTS}, got 1000001"),
        ({"events": 1.5}, f"events: {EVENTS}, got 1.5"),
        ({"events": True}, f"events: {EVENTS}, got True"),
        ({"events": "many"}, f"events: {EVENTS}, got 'many'"),
        ({"host": ""}, f"host: {NAME}, got ''"),
        ({"host": "a\x1b[31m"}, f"host: {NAME}, got 'a\\x1b[31m'"),
        ({"host": 5}, f"host: {NAME}, got 5"),
        ({"instance": " x"}, f"instance: {NAME}, got ' x'"),
        ({"strict": "perhaps"}, "strict: must be true or false, got 'perhaps'"),
        ({"url": ""}, f"url: {URL}, got ''"),
        ({"url": "localhost:6379"}, f"url: {URL}, got 'localhost:6379'"),
        ({"url": "redis://:sec ret@host"}, f"url: {URL}, got 'redis://:***@host'"),
        ({"url": "://x"}, f"url: {URL}, got '://x'"),
        ({"ranges": 5}, "ranges: must be a table of ranges by name, got 5"),
        ({"ranges": {"backup": {"first": 0}}}, f"ranges.backup.first: {PORT}, got 0"),
        ({"ranges": {"backup": {"last": 65536}}}, f"ranges.backup.last: {PORT}, got 65536"),
        ({"ranges": {"backup": {"last": 10809.5}}}, f"ranges.backup.last: {PORT}, got 10809.5"),
        ({"ranges": {"backup": {"last": True}}}, f"ranges.backup.last: {PORT}, got True"),
        (
            {"ranges": {"backup": {"last": 10808}}},
            "ranges.backup.first (default): must be at most last (10808), got 10809",
        ),
        ({"ranges": {"x": {"first": 2, "last": 1}}}, "ranges.x.first: must be at most last (1), got 2"),
        (
            {"ranges": {"backup": {"quarantine": -1}}},
            "ranges.backup.quarantine: must be a number of seconds from 0 to 3600, got -1",
        ),
        ({"ranges": {"x": {"first": 1}}}, f"ranges.x.last: is missing, {PORT}"),
        ({"probe": "perhaps"}, "probe: must be true (or auto) or false, got 'perhaps'"),
        ({"ranges": {"backup": {"scope": "site"}}}, "ranges.backup.scope: must be one of host, cluster, got 'site'"),
        (
            {"ranges": {"backup": {"strategy": "best"}}},
            "ranges.backup.strategy: must be one of lowest, random, next, got 'best'",
        ),
        ({"ranges": {"backup": {"exclude": 10810}}}, f"ranges.backup.exclude: {EXCLUDE}, got 10810"),
        ({"ranges": {"backup": {"exclude": [True]}}}, f"ranges.backup.exclude: {EXCLUDE}, got True"),
        ({"ranges": {"backup": {"exclude": ["10810-"]}}}, f"ranges.backup.exclude: {EXCLUDE}, got '10810-'"),
        (
            {"ranges": {"backup": {"exclude": ["10812-10811"]}}},
            "ranges.backup.exclude: must be spans whose first number is at most the last, got '10812-10811'",
        ),
        (
            {"ranges": {"backup": {"exclude": [10810, 20005]}}},
            "ranges.backup.exclude: must be numbers of the range (10809-10872), got 20005",
        ),
        (
            {"ranges": {"backup": {"exclude": ["10809-10872"]}}},
            "ranges.backup.exclude: must leave a port of the range (10809-10872), got 10809-10872",
        ),
        ({"ranges": {"backup": {"static_band": -1}}}, f"ranges.backup.static_band: {BAND}, got -1"),
        ({"ranges": {"backup": {"static_band": True}}}, f"ranges.backup.static_band: {BAND}, got True"),
        ({"ranges": {"backup": {"static_band": 64}}}, f"ranges.backup.static_band: {BAND} (64), got 64"),
        ({"ranges": {"backup": {"cooldown": 3601}}}, f"ranges.backup.cooldown: {COOLING}, got 3601"),
        ({"ranges": {"backup": {"cooldown": float("nan")}}}, f"ranges.backup.cooldown: {COOLING}, got nan"),
        ({"ranges": {"backup": {"limit": 0}}}, f"ranges.backup.limit: {LIMIT}, got 0"),
        ({"ranges": {"backup": {"limit": True}}}, f"ranges.backup.limit: {LIMIT}, got True"),
        ({"ranges": {"x": 5}}, "ranges.x: must be a table with at least first and last, got 5"),
        (
            {"ranges": {"a b": {"first": 1, "last": 2}}},
            "ranges: a range's name must be 1 to 64 characters of [A-Za-z0-9._-], got 'a b'",
        ),
    ],
)
def test_bad_values(arguments: dict[str, Any], message: str) -> None:
    """A bad value is refused with the key, the bound and the value."""
    assert message == refusal(**arguments)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TTL": "0"}, f"ttl (CLUSTERPORTS_TTL): {TTL}, got '0'"),
        ({"TTL": ""}, f"ttl (CLUSTERPORTS_TTL): {TTL}, got ''"),
        ({"HOST": ""}, f"host (CLUSTERPORTS_HOST): {NAME}, got ''"),
        ({"URL": "redis:/:pw@x y"}, f"url (CLUSTERPORTS_URL): {URL}, got 'redis:***@x y'"),
        (
            {"RANGES__BACKUP__FIRST": "x"},
            f"ranges.backup.first (CLUSTERPORTS_RANGES__BACKUP__FIRST): {PORT}, got 'x'",
        ),
        (
            {"RANGES__BACKUP__FIRST": "20000"},
            "ranges.backup.first (CLUSTERPORTS_RANGES__BACKUP__FIRST): must be at most last (10872), got 20000",
        ),
        (
            {"RANGES__BACKUP__FRIST": "1"},
            "ranges.backup.frist (CLUSTERPORTS_RANGES__BACKUP__FRIST): there is no such setting; did you mean first?",
        ),
        (
            {"RANGES": '{"backup": {"first": 0}}'},
            f"ranges.backup.first (CLUSTERPORTS_RANGES): {PORT}, got 0",
        ),
        (
            {"RANGES__BACKUP__EXCLUDE": "[10810"},
            f"ranges.backup.exclude (CLUSTERPORTS_RANGES__BACKUP__EXCLUDE): {EXCLUDE}, got '[10810'",
        ),
        (
            {"RANGES__BACKUP__EXCLUDE": "[1]"},
            (
                "ranges.backup.exclude (CLUSTERPORTS_RANGES__BACKUP__EXCLUDE): "
                "must be numbers of the range (10809-10872), got 1"
            ),
        ),
        (
            {"RANGES__BACKUP__LIMIT": "none"},
            f"ranges.backup.limit (CLUSTERPORTS_RANGES__BACKUP__LIMIT): {LIMIT}, got 'none'",
        ),
        (
            {"RANGES__BACKUP__SCOP": "host"},
            "ranges.backup.scop (CLUSTERPORTS_RANGES__BACKUP__SCOP): there is no such setting; did you mean scope?",
        ),
        ({"PROBE": "no!"}, "probe (CLUSTERPORTS_PROBE): must be true (or auto) or false, got 'no!'"),
        ({"RANGES": "{"}, "ranges (CLUSTERPORTS_RANGES): must be a table of ranges by name, as JSON, got '{'"),
        ({"TLL": "5"}, "CLUSTERPORTS_TLL: there is no such setting; did you mean CLUSTERPORTS_TTL?"),
        ({"URL__X": "5"}, "CLUSTERPORTS_URL__X: there is no such setting; did you mean CLUSTERPORTS_URL?"),
        (
            {"RANGE__BACKUP__FIRST": "5"},
            "CLUSTERPORTS_RANGE__BACKUP__FIRST: there is no such setting; did you mean CLUSTERPORTS_RANGES?",
        ),
        ({"CONFIG": ""}, "CLUSTERPORTS_CONFIG: must be the path of a TOML file, got ''"),
        ({"CONFIG": "missing.toml"}, "CLUSTERPORTS_CONFIG: there is no file 'missing.toml'"),
    ],
)
def test_bad_variables(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad value from the environment is refused with the variable's name, too."""
    for name, value in variables.items():
        monkeypatch.setenv(f"CLUSTERPORTS_{name}", value)

    assert message == refusal()


@pytest.mark.parametrize("name", ["PORT", "FENCE", "SERVICE_HOST", "PORT_6379_TCP_ADDR", "VERSION"])
def test_other_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that resembles no setting is somebody else's."""
    monkeypatch.setenv(f"CLUSTERPORTS_{name}", "tcp://10.0.0.1:6379")

    assert 30 == Settings.load().ttl


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttl = 0", f"ttl (clusterports.toml:1): {TTL}, got 0"),
        ("ttl = nan", f"ttl (clusterports.toml:1): {TTL}, got nan"),
        ("ttl = true", f"ttl (clusterports.toml:1): {TTL}, got True"),
        ("ttl = 2020-01-01", f"ttl (clusterports.toml:1): {TTL}, got datetime.date(2020, 1, 1)"),
        ("[ttl]\nseconds = 5", f"ttl (clusterports.toml:1): {TTL}, got {{'seconds': 5}}"),
        ("ttl = [5]", f"ttl (clusterports.toml:1): {TTL}, got [5]"),
        (f"ttl = 0x{'f' * 5000}", f"ttl (clusterports.toml:1): {TTL}, got a very large int"),
        ("\n# a comment\ntimeout = ''", f"timeout (clusterports.toml:3): {TIMEOUT}, got ''"),
        ("strict = 'no!'", "strict (clusterports.toml:1): must be true or false, got 'no!'"),
        ("host.name = 'x'", f"host (clusterports.toml:1): {NAME}, got {{'name': 'x'}}"),
        ("url = 5", f"url (clusterports.toml:1): {URL}, got a value of type int"),
        ("hots = 'x'", "hots (clusterports.toml:1): there is no such setting; did you mean host?"),
        (
            "zzz = 'redis://:secret@x'",
            (
                "zzz (clusterports.toml:1): there is no such setting; "
                "known are url, host, instance, ttl, timeout, ranges, strict, probe, libvirt_conf, events"
            ),
        ),
        ("ranges = 5", "ranges (clusterports.toml:1): must be a table of ranges by name, got 5"),
        (
            "[[ranges]]\nname = 'x'",
            "ranges (clusterports.toml): must be a table of ranges by name, got [{'name': 'x'}]",
        ),
        (
            "[ranges]\nbackup = [1, 2]",
            "ranges.backup (clusterports.toml:2): must be a table with at least first and last, got [1, 2]",
        ),
        ("[ranges.x]\nfirst = 1", f"ranges.x.last (clusterports.toml:1): is missing, {PORT}"),
        ("[ranges.backup]\nlast = {x = 1}", f"ranges.backup.last (clusterports.toml:2): {PORT}, got {{'x': 1}}"),
        (
            "[ranges.backup]\nlats = 5",
            "ranges.backup.lats (clusterports.toml:2): there is no such setting; did you mean last?",
        ),
        (
            "[ranges.backup]\nlast = 5",
            "ranges.backup.first (default): must be at most last (5, clusterports.toml:2), got 10809",
        ),
        (
            "ranges.backup = {first = 3, last = 2}",
            "ranges.backup.first (clusterports.toml:1): must be at most last (2), got 3",
        ),
        ("ranges.backup.last = 0", f"ranges.backup.last (clusterports.toml:1): {PORT}, got 0"),
        ("ranges = {backup = {last = 0}}", f"ranges.backup.last (clusterports.toml:1): {PORT}, got 0"),
        ("libvirt_conf = 5", "libvirt_conf (clusterports.toml:1): must be the path of libvirt's qemu.conf, got 5"),
        ("libvirt_conf = ''", "libvirt_conf (clusterports.toml:1): must be the path of libvirt's qemu.conf, got ''"),
        (
            'libvirt_conf = "a\\u0000"',
            "libvirt_conf (clusterports.toml:1): must be the path of libvirt's qemu.conf, got 'a\\x00'",
        ),
    ],
)
def test_bad_file(text: str, message: str) -> None:
    """A bad value in a file is refused with the file's name and the line, too."""
    in_directory(text)

    assert message == refusal()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ttl = = 5", "at line 1, column 7"),
        ("ttl = 5\ntimeout =", "at end of document"),
        ("[ranges.backup", "at end of document"),
        ("ttl = 5\nttl = 6\n", "at line 2, column 8"),
        ("ttl = 5\n[ttl]", "at line 2, column 5"),
        ("host = 'x", "at end of document"),
    ],
)
def test_half_written_file(text: str, place: str) -> None:
    """What is no TOML is refused with the place where it ceases to be."""
    in_directory(text)
    message = refusal()

    assert message.startswith("clusterports.toml: must be valid TOML in UTF-8: ")
    assert message.endswith(f" ({place})")


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        (
            "[ranges.backup]\nfirst = 10\nlast = 20",
            {"LAST": "9"},
            "first (clusterports.toml:2): must be at most last (9, CLUSTERPORTS_RANGES__BACKUP__LAST), got 10",
        ),
        (
            "[ranges.backup]\nfirst = 10\nlast = 20",
            {"FIRST": "21"},
            "first (CLUSTERPORTS_RANGES__BACKUP__FIRST): must be at most last (20, clusterports.toml:3), got 21",
        ),
        (
            "[ranges.backup]\nlast = 10810",
            {"STATIC_BAND": "2"},
            (f"static_band (CLUSTERPORTS_RANGES__BACKUP__STATIC_BAND): {BAND} (2, clusterports.toml:2), got 2"),
        ),
        (
            "",
            {"": '{"first": 10, "last": 20}', "STATIC_BAND": "11"},
            f"static_band (CLUSTERPORTS_RANGES__BACKUP__STATIC_BAND): {BAND} (11, CLUSTERPORTS_RANGES__BACKUP), got 11",
        ),
        (
            "[ranges.backup]\nexclude = [10820]\nfirst = 10811",
            {"LAST": "10819"},
            (
                "exclude (clusterports.toml:2): must be numbers of the range "
                "(10811-10819, clusterports.toml:3, CLUSTERPORTS_RANGES__BACKUP__LAST), got 10820"
            ),
        ),
    ],
)
def test_what_does_not_go_together(
    text: str, variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of values that do not go together each is told with the place where it was set."""
    in_directory(text)
    for name, value in variables.items():
        monkeypatch.setenv(f"CLUSTERPORTS_RANGES__BACKUP__{name}".removesuffix("__"), value)

    assert f"ranges.backup.{message}" == refusal()


def test_everything_at_once() -> None:
    """All that is wrong is said in one go."""
    in_directory("ttl = 0\nhots = 'x'")

    assert refusal(timeout=0) == "; ".join(
        [
            f"ttl (clusterports.toml:1): {TTL}, got 0",
            f"timeout: {TIMEOUT}, got 0",
            "hots (clusterports.toml:2): there is no such setting; did you mean host?",
        ]
    )


def test_not_utf8() -> None:
    """A file in another encoding is refused."""
    Path("clusterports.toml").write_bytes(b"# a comment\nhost = '\xff'")

    assert "clusterports.toml: must be UTF-8, got the byte 0xff in line 2" == refusal()


def test_byte_order_mark() -> None:
    """A mark that some editors put at the beginning is no part of the first key."""
    Path("clusterports.toml").write_bytes(b"\xef\xbb\xbfttl = 4")

    assert 4 == Settings.load().ttl


def test_nested_too_deeply() -> None:
    """A file made to exhaust the parser is refused like any other that is wrong."""
    in_directory("a = " + "[" * 10_000)

    assert refusal().startswith("clusterports.toml: must be valid TOML in UTF-8: ")


def test_endless() -> None:
    """A file without end is not read to its end."""
    assert "/dev/zero: must be a file of at most 10485760 bytes" == refusal(config="/dev/zero")


def test_unreadable() -> None:
    """A file that is there and cannot be read is not passed over."""
    Path("clusterports.toml").mkdir()

    assert "clusterports.toml: cannot be read: Is a directory" == refusal()


@pytest.fixture
def nobody() -> Iterator[None]:
    """What root may read anyway is only closed to somebody else."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)


@pytest.mark.usefixtures("nobody")
def test_closed_file(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that one may not read is there, too."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.chdir(directory)
        in_directory("ttl = 4")
        Path("clusterports.toml").chmod(0)
        message = refusal()

    assert "clusterports.toml: cannot be read: Permission denied" == message


@pytest.mark.usefixtures("nobody")
def test_closed_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home into which one may not look has no file, unless the file is asked for by name."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.chdir("/")
        home = Path(directory)
        in_home(home, "ttl = 4", ".config")
        monkeypatch.setenv("HOME", directory)
        assert 4 == Settings.load().ttl
        home.chmod(0)
        left = Settings.load()
        message = refusal(config=home / "x.toml")
        home.chmod(0o700)

    assert (30, ()) == (left.ttl, left.files())
    assert f"{home}/x.toml: cannot be read: Permission denied" == message


def test_named_file_is_missing(work: Path) -> None:
    """A file that is named must be there."""
    assert f"config: there is no file '{work}/x.toml'" == refusal(config=work / "x.toml")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home has no file there."""

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    in_directory("ttl = 4")

    assert 4 == Settings.load().ttl


@pytest.mark.parametrize("home", ["/nowhere/x", "/dev/null", "", "/\x01"])
def test_odd_home(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is missing, or no directory, has no file either."""
    monkeypatch.setenv("HOME", home)
    in_directory("ttl = 4")

    assert (4, ("clusterports.toml",)) == (Settings.load().ttl, Settings.load().files())


def test_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings with some values replaced; what is not given stays, and nothing is read again."""
    settings = Settings.load(ttl=4, url="redis://a", ranges={"mine": {"first": 1, "last": 2}})
    monkeypatch.setenv("CLUSTERPORTS_TIMEOUT", "9")
    changed = settings.override(url="redis://b", ttl=None, strict=True)

    assert ("redis://b", 4, 5, True) == (changed.url, changed.ttl, changed.timeout, changed.strict)
    assert settings.port_ranges() == changed.port_ranges()
    assert settings is settings.override(ttl=None)


def test_bad_override() -> None:
    """A value that replaces another is checked like any other."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.load().override(ttl=0)

    assert f"ttl: {TTL}, got 0" == str(caught.value)


def test_passwords_do_not_show() -> None:
    """The password of the URL is in no representation of the settings."""
    settings = Settings.load(url="redis://user:secret@host/0?passwd=secret")
    shown = repr(settings) + str(settings) + repr(settings.origins())

    assert "redis://user:secret@host/0?passwd=secret" == settings.url
    assert "secret" not in shown
    assert "redis://user:***@host/0?passwd=***" in shown


@pytest.mark.parametrize(
    ("url", "got"),
    [
        ("redis://u:secret@h/0 x", "'redis://u:***@h/0 x'"),
        ("redis://h/0?passwd=secret x", "'redis://h/0?passwd=***'"),
        ("h:6379?passwd=secret", "'h:6379?passwd=***'"),
        ("redis://h:6379/0&password=secret x", "'redis://h:6379/0&password=***'"),
        ("redis://h:6379/0;pw=secret x", "'redis://h:6379/0;pw=***'"),
        ("redis://h:6379,password=secret x", "'redis://h:***'"),
        ("unix:///run/s.sock&auth=secret x", "'unix:///run/s.sock&auth=***'"),
        ("sqlite:///password=secret x", "'sqlite:///password=***'"),
        ("sqlite://password=secret x", "'sqlite://password=***'"),
        ("redis:/u:secret@h", "'redis:***@h'"),
        (":secret", "':***'"),
        ("redis://:sec ret", "'redis://:***'"),
        ("redis:secret", "'redis:***'"),
        (["redis://:secret@h"], "a value of type list"),
        ({"host": "h", "password": "secret"}, "a value of type dict"),
    ],
)
def test_passwords_in_bad_urls(url: object, got: str) -> None:
    """Nor is what looks like one in the message about a URL that is none."""
    assert f"url: {URL}, got {got}" == refusal(url=url)


@pytest.mark.parametrize("key", ["host", "ttl", "ranges", "probe", "libvirt_conf"])
@pytest.mark.parametrize("wrap", [str, lambda url: [url], lambda url: {"x": url}], ids=["text", "list", "table"])
def test_url_in_the_wrong_place(key: str, wrap: Any) -> None:
    """A URL that was given as another setting keeps its password, too."""
    assert "secret" not in refusal(**{key: wrap("redis://user:secret@host/0 \n")})


def test_frozen() -> None:
    """Settings do not change once they were checked."""
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().ttl = 0


def origins(**arguments: Any) -> dict[str, str]:
    """As people see them, without the defaults."""
    found = Settings.load(**arguments).origins()
    return {key: str(origin) for key, origin in found.items() if origin.kind != "default"}


def test_origins_of_defaults() -> None:
    """Every value has an origin, those of a range too."""
    found = Settings.load().origins()

    assert {Origin("default")} == set(found.values())
    assert [key for key in Settings.model_fields if key != "ranges"] == [key for key in found if "." not in key]
    assert {f"ranges.{span.name}.{key}" for span in LIBVIRT_RANGES for key in RangeSettings.model_fields} == {
        key for key in found if "." in key
    }


def test_origins(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument, variable, file with its line, default: value by value."""
    in_home(work, "host = 'home'\nttl = 1\n\n[ranges.backup]\nlast = 10900\nlimit = 5")
    in_directory("ttl = 2\n[ranges]\nbackup.limit = 4 # four\n[ranges.'x.y']\n  'first' = 1\n\"last\"=2")
    monkeypatch.setenv("CLUSTERPORTS_TIMEOUT", "3")
    monkeypatch.setenv("CLUSTERPORTS_RANGES", '{"backup": {"cooldown": 1, "quarantine": 1}}')
    monkeypatch.setenv("CLUSTERPORTS_RANGES__BACKUP__QUARANTINE", "2")
    home = f"{work}/home/.config/clusterports/clusterports.toml"
    settings = Settings.load(ranges={"display": {"first": 5901}})

    assert {
        "host": f"{home}:1",
        "ttl": "clusterports.toml:1",
        "timeout": "CLUSTERPORTS_TIMEOUT",
        "ranges.backup.cooldown": "CLUSTERPORTS_RANGES",
        "ranges.backup.quarantine": "CLUSTERPORTS_RANGES__BACKUP__QUARANTINE",
        "ranges.backup.last": f"{home}:5",
        "ranges.backup.limit": "clusterports.toml:3",
        "ranges.display.first": "argument",
        "ranges.x.y.first": "clusterports.toml:5",
        "ranges.x.y.last": "clusterports.toml:6",
    } == origins(ranges={"display": {"first": 5901}})
    assert ("clusterports.toml", home) == settings.files()
    assert Origin("environment", "CLUSTERPORTS_TIMEOUT") == settings.origins()["timeout"]
    assert Origin("file", "clusterports.toml", 1) == settings.origins()["ttl"]


def test_origins_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found when the settings were made does not change with the environment or the files."""
    in_directory("ttl = 2")
    monkeypatch.setenv("CLUSTERPORTS_TIMEOUT", "3")
    settings = Settings.load()
    before = settings.origins()
    Path("clusterports.toml").unlink()
    monkeypatch.delenv("CLUSTERPORTS_TIMEOUT")

    assert before == settings.origins()
    assert before == pickle.loads(pickle.dumps(settings)).origins()  # noqa: S301


def test_origins_after_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """What replaces a value is an argument; the others keep their origin, and all keep their values."""
    in_directory("ttl = 2\n[ranges.backup]\nfirst = 10810\nlast = 10900")
    monkeypatch.setenv("CLUSTERPORTS_TIMEOUT", "3")
    settings = Settings.load(host="h").override(ttl=4, ranges={"backup": {"last": 10901}}).override(host="k")

    assert {
        "host": "argument",
        "ttl": "argument",
        "timeout": "CLUSTERPORTS_TIMEOUT",
        "ranges.backup.first": "clusterports.toml:3",
        "ranges.backup.last": "argument",
    } == {key: str(origin) for key, origin in settings.origins().items() if origin.kind != "default"}
    assert (4, 3, "k", PortRange("backup", 10810, 10901)) == (
        settings.ttl,
        settings.timeout,
        settings.host,
        settings.port_ranges()["backup"],
    )


def test_a_key_in_a_string_is_no_key() -> None:
    """Where the text has a key twice, no line is better than a wrong one."""
    in_directory('host = """\nttl = 5"""\nttl = 6')

    assert Origin("file", "clusterports.toml") == Settings.load().origins()["ttl"]


def test_control_characters_in_an_origin() -> None:
    """A path is shown so that a terminal obeys nothing of it."""
    assert "a\\x1b[31m:3" == str(Origin("file", "a\x1b[31m", 3))


def test_equal() -> None:
    """Settings are equal when their values are, wherever these come from."""
    in_directory("ttl = 4")

    assert Settings.load() == Settings.load(ttl=4)
    assert Settings.load() != Settings.load(ttl=5)


def test_tables_are_copied() -> None:
    """Who changes the tables that the settings were made of changes nothing."""
    ranges = {"backup": {"last": 10900}}
    settings = Settings.load(ranges=ranges)
    ranges["backup"]["last"] = 1

    assert 10900 == settings.override(ttl=5).ranges["backup"].last


CONF = "# libvirt\n\nbackup_port_min = 20000 # ours\nbackup_port_max = 20010\nmigration_port_max = 49300\n"


def libvirt(text: str = CONF, path: str = "qemu.conf") -> str:
    Path(path).write_text(text)
    return path


def test_libvirt_conf() -> None:
    """The ranges of libvirt's file are used; the half that it does not set stays the default."""
    settings = Settings.load(libvirt_conf=libvirt())

    assert PortRange("backup", 20000, 20010) == settings.port_ranges()["backup"]
    assert PortRange("migration", 49152, 49300) == settings.port_ranges()["migration"]
    assert "qemu.conf" == settings.libvirt_conf
    assert ("qemu.conf",) == settings.files()
    assert {
        "libvirt_conf": "argument",
        "ranges.backup.first": "qemu.conf:3",
        "ranges.backup.last": "qemu.conf:4",
        "ranges.migration.last": "qemu.conf:5",
    } == origins(libvirt_conf=Path("qemu.conf"))


def test_libvirt_conf_is_above_the_defaults_only(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each other layer wins, key by key."""
    libvirt()
    in_home(work, "[ranges.backup]\nlast = 20020\nlimit = 3")
    monkeypatch.setenv("CLUSTERPORTS_LIBVIRT_CONF", "qemu.conf")
    monkeypatch.setenv("CLUSTERPORTS_RANGES__MIGRATION__LAST", "49400")
    ranges = Settings.load(ranges={"migration": {"first": 49200}}).port_ranges()

    assert PortRange("backup", 20000, 20020, limit=3) == ranges["backup"]
    assert PortRange("migration", 49200, 49400) == ranges["migration"]


def test_libvirt_conf_beside_the_toml(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in a file begins at that file's directory, a variable's at the working directory."""
    in_home(work, "libvirt_conf = 'qemu.conf'")
    beside = libvirt(path=f"{work}/home/.config/clusterports/qemu.conf")
    assert beside == Settings.load().libvirt_conf

    monkeypatch.setenv("CLUSTERPORTS_LIBVIRT_CONF", "qemu.conf")
    assert "libvirt_conf (CLUSTERPORTS_LIBVIRT_CONF): there is no file 'qemu.conf'" == refusal()


def test_libvirt_conf_and_override() -> None:
    """It is read once; another one takes its place, and then nothing of the first is left."""
    first = Settings.load(libvirt_conf=libvirt())
    Path("qemu.conf").unlink()
    other = libvirt("migration_port_max = 49301", "other.conf")

    assert first.port_ranges() == first.override(ttl=5).port_ranges()
    assert "qemu.conf:3" == str(first.override(ttl=5).origins()["ranges.backup.first"])
    changed = first.override(libvirt_conf=other)
    assert [PortRange("backup", 10809, 10872), PortRange("migration", 49152, 49301)] == [
        changed.port_ranges()[name] for name in ("backup", "migration")
    ]
    assert ("other.conf",) == changed.files()


def test_libvirt_conf_that_is_wrong_and_overridden() -> None:
    """libvirt would not start on it, and so it is refused."""
    libvirt("backup_port_min = 20\nbackup_port_max = 10")
    message = "qemu.conf:2: backup_port_max: port must be between the minimal port 20 and 65535, got 10"

    assert message == refusal(libvirt_conf="qemu.conf", ranges={"backup": {"first": 1, "last": 2}})


def test_libvirt_conf_and_a_range_that_does_not_fit() -> None:
    """Where two layers together are wrong, the line of libvirt's file is named, and what it does not go with."""
    libvirt()
    in_directory("libvirt_conf = 'qemu.conf'\n[ranges.backup]\nlast = 10900")

    assert (
        "ranges.backup.first (qemu.conf:3): must be at most last (10900, clusterports.toml:3), got 20000" == refusal()
    )


def test_libvirt_conf_that_cannot_be_read(work: Path) -> None:
    """Missing, a directory: the file is named, and what named the file."""
    Path("latin").write_bytes(b"# \xe9")
    Path("clusterports.toml").write_text("\nlibvirt_conf = 'no.conf'")

    assert "libvirt_conf (clusterports.toml:2): there is no file 'no.conf'" == refusal()
    assert f"libvirt_conf: '{work}': cannot be read: Is a directory" == refusal(libvirt_conf=work)
    assert "libvirt_conf: there is no file 'latin/x'" == refusal(libvirt_conf="latin/x")
    assert "libvirt_conf: '/dev/zero': must be a file of at most 10485760 bytes" == refusal(libvirt_conf="/dev/zero")


def test_libvirt_conf_in_another_encoding(work: Path) -> None:
    """libvirt takes any bytes; where one is in a message, it is one that can be printed."""
    conf = work / "qemu.conf"
    conf.write_bytes(b"# \xe9\nvnc_password = 'caf\xe9'\nbackup_port_min = 10810 # \xff\n")

    assert 10810 == Settings(libvirt_conf=str(conf)).port_ranges()["backup"].first
    conf.write_bytes(b"backup_port_min = caf\xe9\n")
    told = f"{conf}:1: backup_port_min: expecting a value, got 'caf\\udce9'"
    assert told == refusal(libvirt_conf=conf)


@pytest.mark.usefixtures("nobody")
def test_libvirt_conf_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions keep it from everybody but root."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.chdir(directory)
        libvirt()
        Path("qemu.conf").chmod(0)
        message = refusal(libvirt_conf="qemu.conf")

    assert "libvirt_conf: 'qemu.conf': cannot be read: Permission denied" == message
