"""How long a sharding plan takes, and how even it is, for hundreds and thousands of tables.

    python benchmarks/planning.py --json FILE [--only NAME]

A model of 8 tasks has 9 tables per feature, one per owner. ``alike``: the 9 tables of a feature are
of one size, as the trainer makes them; ``different``: no two tables are, which leaves nothing to
share. Rows are log-uniform from 1,000 to 100 million, D 64, batch 4,096 per rank, nodes of 8 GPUs
with 80 GiB.

Figures of a row: ``plan_s`` is processor time of one thread, everything from the unsharded module
to plan and report; ``divided`` are the tables that are not whole at one rank;
``device_largest_over_mean`` is the device memory of the fullest rank over the mean;
``ms_largest_over_mean`` the same of TorchRec's estimate of the tables' part of a step.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from provenance import provenance
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config.reading import validate
from stem_torchrec.distributed.constraints import World
from stem_torchrec.distributed.parallel import sharder_for
from stem_torchrec.distributed.plan import Planned, make_plan
from stem_torchrec.launch.notices import hide_dependency_notices

OWNERS = 9
DIM = 64


class Case(NamedTuple):
    tables: int
    gpus: int
    alike: bool

    @property
    def name(self) -> str:
        return f"{self.tables} on {self.gpus}, {'alike' if self.alike else 'different'}"


CASES = [Case(*size, alike) for size in ((900, 128), (4500, 1024)) for alike in (True, False)]


def model_of(case: Case, seed: int = 0) -> nn.Module:
    """Tables on the meta device."""
    generator = np.random.default_rng(seed)
    num_sizes = case.tables // OWNERS if case.alike else case.tables
    rows = np.exp(generator.uniform(np.log(1e3), np.log(1e8), num_sizes)).astype(int)
    tables = [
        EmbeddingBagConfig(
            name=f"t{i}",
            num_embeddings=int(rows[i // OWNERS if case.alike else i]),
            embedding_dim=DIM,
            feature_names=[f"f{i // OWNERS}"],
        )
        for i in range(case.tables)
    ]
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    return nn.ModuleDict({"tables": collection})


def plan_of(case: Case) -> Planned:
    config = validate(
        {
            "run": {"dir": "unused"},
            "data": {"path": "unused"},
            "embedding": {"dim": DIM},
            "train": {"batch_size": 4096},
            "distributed": {"hbm_gib": 80, "host_gib": 200},
        }
    )
    world = World(case.gpus, 8, "cuda")
    return make_plan(config, model_of(case), world, sharder_for(config, world))


def measure(case: Case) -> dict[str, Any]:
    begin = time.process_time()
    planned = plan_of(case)
    seconds = time.process_time() - begin
    (tables,) = planned.plan.plan.values()
    kinds = [sharding.sharding_type for _, sharding in tables.items()]  # type: ignore[attr-defined]
    return {
        "case": case.name,
        "tables": case.tables,
        "gpus": case.gpus,
        "alike": case.alike,
        "plan_s": round(seconds, 1),
        "divided": sum(kind != "table_wise" for kind in kinds),
        "device_largest_over_mean": round(planned.balance.memory, 3),
        "ms_largest_over_mean": round(planned.balance.time, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one case alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    hide_dependency_notices()
    rows = []
    for case in CASES:
        if options.only in (None, case.name):
            rows.append(measure(case))
            print(rows[-1], flush=True)
    content = {"rows": rows, "provenance": provenance()}
    options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
