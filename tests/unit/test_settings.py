"""Settings: their order, and what each bad value is answered with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from clusterports.errors import ConfigurationError
from clusterports.ranges import LIBVIRT_RANGES, PortRange
from clusterports.settings import RangeSettings, Settings

NAME = "must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end"
TTL = "must be a number of seconds from 0.1 to 3600"
TIMEOUT = "must be a number of seconds above 0, at most 3600"
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
        ({"ranges": {"backup": {"last": 10808}}}, "ranges.backup.first: must be at most last (10808), got 10809"),
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
        ("ttl = 0", f"ttl (clusterports.toml): {TTL}, got 0"),
        ("ttl = nan", f"ttl (clusterports.toml): {TTL}, got nan"),
        ("ttl = true", f"ttl (clusterports.toml): {TTL}, got True"),
        ("ttl = 2020-01-01", f"ttl (clusterports.toml): {TTL}, got datetime.date(2020, 1, 1)"),
        ("hots = 'x'", "hots (clusterports.toml): there is no such setting; did you mean host?"),
        (
            "zzz = 'redis://:secret@x'",
            (
                "zzz (clusterports.toml): there is no such setting; "
                "known are url, host, instance, ttl, timeout, ranges, strict, probe"
            ),
        ),
        ("ranges = 5", "ranges (clusterports.toml): must be a table of ranges by name, got 5"),
        (
            "[ranges]\nbackup = [1, 2]",
            "ranges.backup (clusterports.toml): must be a table with at least first and last, got [1, 2]",
        ),
        ("ttl = = 5", "clusterports.toml: must be valid TOML in UTF-8: Invalid value (at line 1, column 7)"),
    ],
)
def test_bad_file(text: str, message: str) -> None:
    """A bad value in a file is refused with the file's name, too."""
    in_directory(text)

    assert message == refusal()


def test_everything_at_once() -> None:
    """All that is wrong is said in one go."""
    in_directory("ttl = 0\nhots = 'x'")

    assert refusal(timeout=0) == "; ".join(
        [
            f"ttl (clusterports.toml): {TTL}, got 0",
            f"timeout: {TIMEOUT}, got 0",
            "hots (clusterports.toml): there is no such setting; did you mean host?",
        ]
    )


def test_not_utf8() -> None:
    """A file in another encoding is refused."""
    Path("clusterports.toml").write_bytes(b"host = '\xff'")

    assert refusal().startswith("clusterports.toml: must be valid TOML in UTF-8: ")


def test_nested_too_deeply() -> None:
    """A file made to exhaust the parser is refused like any other that is wrong."""
    in_directory("a = " + "[" * 10_000)

    assert refusal().startswith("clusterports.toml: must be valid TOML in UTF-8: ")


def test_unreadable() -> None:
    """A file that is there and cannot be read is not passed over."""
    Path("clusterports.toml").mkdir()

    assert "clusterports.toml: cannot be read: Is a directory" == refusal()


def test_named_file_is_missing(work: Path) -> None:
    """A file that is named must be there."""
    assert f"config: there is no file '{work}/x.toml'" == refusal(config=work / "x.toml")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home has no file there."""

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)

    assert 30 == Settings.load().ttl


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
    settings = Settings.load(url="redis://user:secret@host/0")

    assert "redis://user:secret@host/0" == settings.url
    assert "secret" not in repr(settings) + str(settings)
    assert "redis://user:***@host/0" in repr(settings)


def test_frozen() -> None:
    """Settings do not change once they were checked."""
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().ttl = 0
