"""Many managers on many hosts, and something breaks every two seconds.

``python tests/faults/soak.py --seconds 600 --clients 20 --hosts 200 --seed 1``: half of the time on one server, which
half of the clients reach through a bad network; half of the time on a primary with replicas and sentinels. At the end
everything is well again, all clients end, and what they wrote down is judged. The exit code is 0 if no guarantee was
broken and nothing is left.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--folder", type=Path, help="where histories are written; kept")
    parser.add_argument("--phase", type=int, help="0 or 1: only this one, for all of the time")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from faults.phases import PHASES, play

    folder: Path = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {arguments.seed}, histories in {folder}", flush=True)
    phases = PHASES if arguments.phase is None else PHASES[arguments.phase :][:1]
    clean = True
    for phase in phases:
        outcome = play(
            phase,
            folder,
            arguments.seconds / len(phases),
            clients=arguments.clients,
            hosts=arguments.hosts,
            seed=arguments.seed,
        )
        print(outcome, flush=True)
        clean = clean and outcome.clean
    if clean and arguments.folder is None:
        shutil.rmtree(folder)
    sys.exit(not clean)


if __name__ == "__main__":
    main()
