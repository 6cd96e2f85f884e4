"""A short soak; the long one is ``python tests/faults/soak.py``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from faults.phases import PHASES, play

if TYPE_CHECKING:
    from pathlib import Path

    import servers
    from faults.nemesis import Phase

CI = os.environ.get("CI") == "true"

SECONDS = 60.0 if CI else 15.0
"""Of both phases together, without their ends."""

SEED = 1


@pytest.mark.xdist_group("soak")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_soak(phase: type[Phase], valkey: servers.ServerStore, tmp_path: Path) -> None:
    """Clients are killed and stopped, servers fail, the network too: no guarantee is broken, and nothing is left."""
    print(f"\nseed {SEED}")
    outcome = play(phase, tmp_path, SECONDS / len(PHASES), clients=8, hosts=40, seed=SEED)
    print(outcome)
    assert outcome.clean, str(outcome)
    assert outcome.events["granted"] > SECONDS
    assert sum(outcome.faults.values()) >= SECONDS / len(PHASES) / 2 - 2
