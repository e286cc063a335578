"""The models side by side, each at its own best learning rates and epoch: the fair comparison.

    python benchmarks/models_data.py --kuairand SLICE --movielens ml-latest-small --out DATA
    python benchmarks/models.py --data DATA --out DIR --workers 2

Trains every model on every set, searches its rates on valid with one seed, and takes more seeds at
the best ones; STEM-Net without any key set, and with one thing changed at a time, besides. Each
finished training is a line of ``DIR/trainings.jsonl``: interrupted, the same command goes on.
"""

import argparse
import math
from pathlib import Path
from time import monotonic

from models_search import MODELS, PARTS, SETS, wanted
from models_training import train
from pool import Job, lines_of, work_off


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    data = [of for of in SETS if of.name in options.sets]
    file, end = options.out / "trainings.jsonl", monotonic() + options.seconds
    done = {key: row for key, row in lines_of(file).items() if "failure" not in row}
    known = -1
    while known < len(done):  # what is wanted follows from what is done; what fails is not retried
        known = len(done)
        trainings = wanted(done, data, options.models, options.seeds, options.parts)
        jobs = [Job(training.key, (training, options.data)) for training in trainings]
        left = end - monotonic()
        done = work_off(jobs, train, file, processes=options.workers, limit_s=left)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [of.name for of in SETS]
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sets", nargs="+", choices=names, default=names, metavar="SET")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time to end after")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
