"""The models side by side, each at its own best learning rates and epoch: the fair comparison.

    python benchmarks/models_data.py --kuairand SLICE --movielens ml-latest-small --out DATA
    python benchmarks/models.py --data DATA --out DIR --workers 2

Trains every model on every set, searches its rates on valid with one seed, and takes more seeds at
the best ones; STEM-Net without any key set, and with one thing changed at a time, besides. Each
finished training is a line of ``DIR/trainings.jsonl``: interrupted, the same command goes on.
"""

import argparse
import math
from functools import partial
from pathlib import Path

from models_pool import run_all
from models_search import MODELS, PARTS, SETS, wanted


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    data = tuple(of for of in SETS if of.name in options.sets)
    options.out.mkdir(parents=True, exist_ok=True)
    following = partial(
        wanted, data=data, models=options.models, seeds=options.seeds, parts=options.parts
    )
    file = options.out / "trainings.jsonl"
    run_all(following, file, options.data, options.workers, options.seconds)


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
