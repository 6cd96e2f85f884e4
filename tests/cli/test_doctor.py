"""``clusterports doctor``: ranges and this host. What it says of a store is tested with the store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer
from rich.cells import cell_len

from clusterports.abc import Finding
from clusterports.cli import doctor as module
from clusterports.cli._common import Common
from clusterports.cli.doctor import doctor
from clusterports.probe import EphemeralOverlap, Verdict
from clusterports.ranges import LIBVIRT_RANGES
from clusterports.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cli.conftest import Command, Main

WELL = Finding("store", "ok", "in 0.1 ms")
POOR = Finding("persistence", "warning", "nothing is kept over a restart", "set appendonly yes")
BAD = Finding("space 'host:a'", "error", "is damaged \x1b[31m", "clusterports doctor --repair")


GAME = {"game": {"first": 40000, "last": 40009}}


class Patient(Common):
    """The shared options, with a store that has these findings."""

    findings: tuple[Finding, ...] = (WELL,)
    repaired: bool | None = None
    given: Settings

    def settings(self, **_: object) -> Settings:
        return self.given

    def backend(self, settings: object) -> Any:
        return self

    def __enter__(self) -> Patient:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def diagnose(self, *, repair: bool) -> Iterator[Finding]:
        self.repaired = repair
        yield from self.findings


@pytest.fixture(autouse=True)
def _a_host_where_all_is_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(module, "ephemeral_overlap", lambda first, last: None)
    monkeypatch.setattr(module, "probe", lambda number, protocol: Verdict("free"))


def patient(*findings: Finding, ranges: dict[str, Any] | None = None, **options: Any) -> Patient:
    common = Patient(**options)
    common.findings = findings or (WELL,)
    common.given = Settings(url="redis://:secret@x/0", ranges=ranges)
    return common


def examined(capsys: pytest.CaptureFixture[str], common: Common, *, repair: bool = False) -> tuple[int, list[Finding]]:
    """The exit code, and the findings as JSON has them."""
    common.json = True
    code = 0
    try:
        doctor(common, repair=repair)
    except typer.Exit as ended:
        code = ended.exit_code
    document = json.loads(capsys.readouterr().out)
    assert 1 == document["schema"]
    return code, [Finding(**finding) for finding in document["findings"]]


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ((WELL,), 0),
        ((WELL, POOR), 0),
        ((WELL, POOR, BAD), 1),
        ((WELL, BAD._replace(mended=True)), 0),
        ((BAD._replace(check="store"),), 5),
    ],
)
def test_exit_code(findings: tuple[Finding, ...], expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings are 0, an error is 1 unless it was mended, and a store that cannot be reached is 5."""
    code, found = examined(capsys, patient(*findings))
    assert expected == code
    assert list(findings) == found[-len(findings) :]


@pytest.mark.parametrize("repair", [False, True])
def test_repair(repair: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is mended unless it was asked for."""
    common = patient()
    examined(capsys, common, repair=repair)
    assert repair is common.repaired


def test_ranges_that_share_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Ranges of one scope may share numbers. To lose some to one of the cluster is a warning, to lose all an error."""
    ranges = {
        "game": {"first": 27000, "last": 27010},
        "match": {"first": 27005, "last": 27020},
        "gate": {"first": 27009, "last": 27030, "scope": "cluster"},
        "inside": {"first": 27025, "last": 27026},
    }
    code, found = examined(capsys, patient(ranges=ranges))
    said = of(found, "ranges")
    assert 1 == code
    assert [
        ("warning", "game does not give 27009-27010, which belong to gate, whose scope is the cluster"),
        ("warning", "inside does not give 27025-27026, which belong to gate, whose scope is the cluster"),
        ("warning", "match does not give 27009-27020, which belong to gate, whose scope is the cluster"),
        ("error", "inside (27025-27026) has no port to give"),
    ] == sorted(((f.level, f.text) for f in said), key=lambda one: (one[0] == "error", one[1]))
    assert all(finding.cure for finding in said)

    del ranges["gate"]
    (well,) = of(examined(capsys, patient(ranges=ranges))[1], "ranges")
    assert ("ok", True, True) == (well.level, "game 27000-27010" in well.text, "game and match" in well.text)


def test_ephemeral_ports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A range of one's own that the kernel takes ports from is a warning, with the line that cures it."""
    overlap = EphemeralOverlap("40000-40009", "32768-60999", "sysctl -w net.ipv4.ip_local_reserved_ports=40000-40009")
    monkeypatch.setattr(module, "ephemeral_overlap", lambda first, last: overlap)
    (game,) = of(examined(capsys, patient(ranges=GAME))[1], "ephemeral ports")
    text = "the kernel gives 40000-40009 of game to outgoing connections (32768-60999)"
    assert ("warning", text, f"reserve them: {overlap.sysctl}") == (game.level, game.text, game.cure)

    monkeypatch.setattr(module, "ephemeral_overlap", lambda first, last: overlap._replace(sysctl=None))
    (game,) = of(examined(capsys, patient(ranges=GAME))[1], "ephemeral ports")
    assert "move ranges.game out of that span" == game.cure


CLEAN = "the kernel gives no port of {} to outgoing connections"
USED = "of libvirt's default ranges, {} 32768-60999, which matters where they are used"


@pytest.mark.parametrize(
    ("ranges", "overlapping", "text"),
    [
        (GAME, [], CLEAN.format("backup, display, game, migration or websocket")),
        (
            GAME,
            ["display", "migration", "websocket"],
            f"{CLEAN.format('backup or game')}; {USED.format('display, migration and websocket overlap')}",
        ),
        (
            None,
            ["display"],
            f"{CLEAN.format('backup, migration or websocket')}; {USED.format('display overlaps')}",
        ),
        (
            None,
            ["backup", "display", "migration", "websocket"],
            USED.format("backup, display, migration and websocket overlap"),
        ),
    ],
)
def test_ephemeral_ports_of_defaults(
    ranges: dict[str, Any] | None,
    overlapping: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A default range that the kernel takes ports from is no warning, but it is said."""
    spans = {(span.first, span.last): span.name for span in LIBVIRT_RANGES}
    overlap = EphemeralOverlap("49152", "32768-60999", None)
    monkeypatch.setattr(
        module, "ephemeral_overlap", lambda first, last: overlap if spans.get((first, last)) in overlapping else None
    )
    (well,) = of(examined(capsys, patient(ranges=ranges))[1], "ephemeral ports")
    assert ("ok", text, "") == (well.level, well.text, well.cure)


def test_a_default_beside_a_range_that_overlaps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a range that was set is warned of, no line says that all is well."""
    overlap = EphemeralOverlap("40000-40009", "32768-60999", None)
    monkeypatch.setattr(module, "ephemeral_overlap", lambda first, last: overlap)
    found = of(examined(capsys, patient(ranges=GAME))[1], "ephemeral ports")
    assert [("warning", True)] == [(one.level, " of game " in one.text) for one in found]


@pytest.mark.parametrize(("state", "level"), [("free", "ok"), ("busy", "ok"), ("error", "warning")])
def test_bind(state: Any, level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A range whose first port this user may not bind is a warning; that somebody has it now is not."""
    reason = "443/tcp on 0.0.0.0 (Permission denied)"
    monkeypatch.setattr(module, "probe", lambda number, protocol: Verdict(state if number == 443 else "free", reason))
    (web,) = of(examined(capsys, patient(ranges={"web": {"first": 443, "last": 450}}))[1], "bind")
    assert (level, level == "warning") == (web.level, reason in web.text)


def test_password_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The store is named without its password."""
    _, found = examined(capsys, patient())
    (url,) = of(found, "url")
    assert "redis://:***@x/0" == url.text


@pytest.mark.parametrize("width", [40, 80])
def test_screen(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finding begins with its level, is kept within the width, and has its cure below it; nothing is raw."""
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(typer.Exit):
        doctor(patient(WELL, POOR, BAD))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert {"ok", "warning", "error", ""} == {line[:8].strip() for line in lines}
    text = " ".join(" ".join(lines).split())
    assert "warning persistence: nothing is kept over a restart > set appendonly yes error" in text
    assert "is damaged \\x1b[31m" in text


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet only what is not well is shown."""
    doctor(patient(WELL, POOR, quiet=True))
    out = capsys.readouterr().out
    assert "store:" not in out
    assert "persistence" in out


@pytest.mark.parametrize(
    ("text", "environment", "told", "others"),
    [
        ("ttl = 0", {}, "ttl (clusterports.toml:1): must be a number of seconds from 0.1 to 3600, got 0", False),
        ("ttl = = 5", {}, "clusterports.toml: must be valid TOML in UTF-8: Invalid value (at line 1, column 7)", False),
        ("", {"URL": "nonsense:s3cr3t"}, "url (CLUSTERPORTS_URL): must be a URL such as redis://host:6379/0 ", False),
        ("", {"TTL": "0", "URL": "nonsense"}, "url (CLUSTERPORTS_URL): must be a URL such as ", False),
        ("url = 'redsi://:s3cr3t@h'", {}, "url (clusterports.toml:1): unknown scheme 'redsi', must be one of ", True),
        ("", {"URL": "redis://:s3cr3t@h:0"}, "url (CLUSTERPORTS_URL): redis://h:0: port 0 is not in 1-65535", True),
        ("", {"URL": "memory://x"}, "url (CLUSTERPORTS_URL): must be a store that several processes share", True),
    ],
)
def test_wrong_settings(
    text: str, environment: dict[str, str], told: str, others: bool, main: Main, tmp_path: Path
) -> None:
    """What is configured wrongly is a finding like any other, code 2; what does not depend on it is looked at."""
    (tmp_path / "clusterports.toml").write_text(text)
    variables = {f"CLUSTERPORTS_{name}": value for name, value in environment.items()}
    code, out, err = main("doctor", "--json", **variables)
    *found, last = [Finding(**finding) for finding in json.loads(out)["findings"]]
    assert (2, "") == (code, err)
    assert (others, []) == (bool(found), [one for one in found if one.level != "ok" or one.check in ("url", "store")])
    assert ("settings", "error", True) == (last.check, last.level, bool(last.cure))
    assert last.text.startswith(told)
    assert "s3cr3t" not in out

    code, out, err = main("doctor", "--quiet", **variables)
    assert (2, "") == (code, err)
    assert out.startswith(f"error    settings: {told}")
    assert "s3cr3t" not in out


def test_store_that_is_away(bare: Command) -> None:
    """A store that is not there is one finding, in the time given, and code 5."""
    bare.environment |= {"CLUSTERPORTS_URL": "redis://:secret@127.0.0.1:1/0", "CLUSTERPORTS_TIMEOUT": "0.3"}
    done = bare("doctor")
    assert 5 == done.returncode
    assert "secret" not in done.stdout + done.stderr
    assert "error    store: " in done.stdout


def test_real_stores(command: Command) -> None:
    """On a store that is there, the whole list comes to its end without an error."""
    done = command("doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    assert (0, "") == (done.returncode, done.stderr)
    assert {"store", "ranges"} <= {finding["check"] for finding in findings}
    done = command("doctor", "--json", "--url", f"sqlite:///{command.directory}/ports.db")
    assert (0, "") == (done.returncode, done.stderr)
    assert "store" in {finding["check"] for finding in json.loads(done.stdout)["findings"]}
