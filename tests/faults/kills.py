"""Kill a short 2-rank run at random moments, and compare what it ends with.

``python -m tests.faults.kills --kills 200 --json FILE`` takes about 10 s a kill on two cores.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from tests.faults.jobs import Job, Result, differences
from tests.faults.moments import kill_often
from tests.support.prepared import small_data


def undisturbed(folder: Path, data: Path) -> Result:
    with Job(folder, data) as job:
        return job.result()


def disturbed(folder: Path, data: Path, num_kills: int, chance: random.Random) -> Result:
    """A job that is killed so often and then left alone."""
    with Job(folder, data, restarts=1000) as job:
        return job.result(kill_often(job, num_kills, chance))


def run(num_kills: int, seed: int, folder: Path, write: Any) -> bool:
    chance, data = random.Random(seed), small_data(folder / "data")
    expected = undisturbed(folder / "undisturbed", data)
    assert expected.code == 0, expected.log
    phases: Counter[str] = Counter()
    jobs = wrong = 0
    while sum(phases.values()) < num_kills:
        left = num_kills - sum(phases.values())
        here = folder / f"job_{jobs}"
        try:
            result = disturbed(here, data, min(left, chance.randint(4, 10)), chance)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            # Its kills are not counted: nothing can be said of what they would have left.
            print(f"job {jobs + 1} hangs: {error}\n{(here / 'out').read_text()}", file=sys.stderr)
            jobs, wrong = jobs + 1, wrong + 1
            continue
        phases.update(result.kills)
        found = differences(result, expected)
        jobs += 1
        wrong += bool(found)
        if found:
            print(f"job {jobs}: {found}; kills {result.kills}\n{result.log}", file=sys.stderr)
        else:
            shutil.rmtree(folder / f"job_{jobs - 1}")
        write({"jobs": jobs, "kills": sum(phases.values()), "phases": phases, "wrong": wrong})
    return wrong == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()

    about = provenance()

    def write(row: dict[str, Any]) -> None:
        options.json.write_text(json.dumps({"rows": [row | about]}, indent=1) + "\n")
        print(row, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    fine = run(options.kills, options.seed, folder, write)
    if fine:
        shutil.rmtree(folder)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
