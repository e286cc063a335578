"""What ``doctor`` runs on local ranks."""

from pathlib import Path
from typing import Any

import torch

from stem_torchrec.config import Config, DistributedConfig
from stem_torchrec.config.reading import validate
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
from stem_torchrec.errors import WorkerError
from stem_torchrec.launch.notices import hide_dependency_notices
from stem_torchrec.training.job import train

TIMEOUT_S = 60


def sum_of_ranks(device: str) -> None:
    """All-reduce on both groups. Collective.

    Raises:
        WorkerError: the sum is wrong.
    """
    hide_dependency_notices()
    ranks = start_ranks(DistributedConfig(device=device, timeout_s=TIMEOUT_S))  # type: ignore[arg-type]
    expected = ranks.world_size * (ranks.world_size - 1) / 2
    for group, where in ((ranks.dense_group, ranks.device), (ranks.host_group, "cpu")):
        total = torch.tensor([float(ranks.rank)], device=where)
        torch.distributed.all_reduce(total, group=group)
        if total.item() != expected:
            raise WorkerError(f"the ranks' sum is {total.item()}, expected {expected}")
    stop_ranks()


def small_run(folder: Path, device: str) -> Config:
    """A config of a few steps on generated data in ``folder``."""
    # Late: ranks import this module, too, and need no DuckDB, whose bindings complain when a
    # process ends that holds on to what it has imported.
    from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic

    prepare_synthetic(
        SyntheticConfig(
            train_rows=256, valid_rows=64, test_rows=64, num_users=20, num_items=20, feature_size=10
        ),
        folder / "data",
    )
    content: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "data": {"path": str(folder / "data")},
        "model": {"expert_widths": [8], "gate_widths": [4], "tower_widths": [4]},
        "embedding": {"dim": 4},
        "train": {"batch_size": 16, "max_steps": 3},
        "distributed": {"device": device, "sharding": "row_wise", "timeout_s": TIMEOUT_S},
    }
    return validate(content)


def train_small(config: Config) -> None:
    """Train, evaluate, save. Collective."""
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    train(config, ranks, existing="overwrite", listener=_ignore)
    stop_ranks()


def _ignore(record: dict[str, Any]) -> None:
    """Nobody reads these figures."""
