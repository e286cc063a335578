"""Runs that are stopped on some ranks and under one plan, and resumed on others under another."""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.provenance import provenance
from stem_torchrec.config import Config, DistributedConfig
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
from stem_torchrec.training.finished_run import evaluate_run
from tests.distributed.processes import Processes
from tests.support.prepared import small_data
from tests.training.test_exact_resume import config_of, records, train_on

METRICS = ("logloss", "ne", "auc", "calibration")
STOP = 5
OPTIMIZERS = ("rowwise_adagrad", "adam")
OnRanks = Callable[..., Any]
"""Calls a function with the ranks and the arguments on every rank; rank 0's result."""


class Shape(NamedTuple):
    """Number of ranks and sharding type of all tables."""

    ranks: int
    sharding: str

    def __str__(self) -> str:
        return f"{self.ranks} {self.sharding}"


ROWS, TABLES = "row_wise", "table_wise"
CASES = [
    (Shape(1, TABLES), Shape(2, ROWS)),
    (Shape(2, ROWS), Shape(1, TABLES)),
    (Shape(2, ROWS), Shape(2, TABLES)),
    (Shape(2, TABLES), Shape(2, ROWS)),
    (Shape(2, TABLES), Shape(4, ROWS)),
    (Shape(2, ROWS), Shape(4, TABLES)),
    (Shape(4, ROWS), Shape(2, TABLES)),
    (Shape(4, TABLES), Shape(2, ROWS)),
]


class Reshaped(NamedTuple):
    """One run that goes on in another shape.

    Attributes:
        config: of the second part.
        before: the eval record of the valid split when it stopped.
        after: the same of its checkpoint, loaded in the other shape.
    """

    config: Config
    before: dict[str, Any]
    after: dict[str, Any]

    def difference(self) -> float:
        """The largest of any metric and task."""
        return max(
            abs(self.before[metric][task] - value)
            for metric in METRICS
            for task, value in self.after[metric].items()
        )


def stop_and_evaluate(
    folder: Path, case: tuple[Shape, Shape], tables: str, on: Mapping[int, OnRanks]
) -> Reshaped:
    """Train some steps in one shape and evaluate the checkpoint in another.

    Args:
        folder: holds ``data`` and gets the run.
        on: by number of ranks.
    """
    name = f"{case[0]} to {case[1]} {tables}".replace(" ", "-")
    first, second = (
        {
            "embedding": {"optimizer": tables, "lr": 0.01},
            "distributed": {"sharding": shape.sharding},
        }
        for shape in case
    )
    stopped = config_of(folder, name, train={"max_steps": STOP}, **first)
    on[case[0].ranks](train_on, stopped, "refuse")
    before = records(folder / name)["valid", STOP]
    config = config_of(folder, name, **second)
    return Reshaped(config, before, on[case[1].ranks](evaluate_on, config))


def evaluate_on(ranks: Any, config: Config) -> dict[str, Any]:
    return evaluate_run(config, ranks, "valid")


def here(alone: Any) -> OnRanks:
    """This process as the only rank."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "embedding.optimizer adam on CPU", UserWarning)
            return function(alone, *arguments)

    return call


def there(processes: Processes) -> OnRanks:
    return lambda function, *arguments: processes.run(function, *arguments)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        small_data(folder / "data")
        on = {1: here(start_ranks(DistributedConfig(device="cpu")))}
        for number in (2, 4):
            on[number] = there(stack.enter_context(closing(Processes(number))))
        for case in CASES:
            for tables in OPTIMIZERS:
                found = stop_and_evaluate(folder, case, tables, on)
                row = {"from": str(case[0]), "to": str(case[1]), "optimizer": tables}
                rows.append(row | {"largest_difference": found.difference()})
                print(rows[-1], flush=True)
    stop_ranks()
    options.json.write_text(json.dumps({"rows": rows, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
