"""``clusterports run`` on one SQLite file, killed at random."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from faults.runs import play

if TYPE_CHECKING:
    from pathlib import Path


def test_killed_at_random(tmp_path: Path) -> None:
    """No port is held twice, none is left after the TTL, no command fails otherwise, and the file is whole."""
    outcome = play(tmp_path, loops=4, runs=6, kill_every=0.3)

    assert {0, -signal.SIGKILL} >= set(outcome.codes), outcome
    assert 24 == sum(outcome.codes.values())
    assert outcome.kills >= outcome.codes.get(-signal.SIGKILL, 0) > 0  # one may have come just too late
    assert ([], "ok") == (outcome.left, outcome.check)
