"""A small prepared folder and a config file for it, for tests that run commands."""

from pathlib import Path

import yaml

from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic

TASKS = ("click", "like")


def small_data(folder: Path, **options: object) -> Path:
    """Two tasks, a bag and a dense feature, 2,003 / 301 / 401 rows in several row groups."""
    config = SyntheticConfig(
        train_rows=2003,
        valid_rows=301,
        test_rows=401,
        row_group_rows=500,
        num_users=50,
        num_items=40,
        feature_size=20,
        positive_ratios=(0.3, 0.2),
        num_bags=1,
        num_dense=1,
    )
    prepare_synthetic(config.model_copy(update=options), folder)
    return folder


def small_config(file: Path, data: Path, run_dir: Path) -> Path:
    file.write_text(
        yaml.safe_dump(
            {
                "run": {"dir": str(run_dir)},
                "data": {"path": str(data)},
                "model": {
                    "expert_widths": [16, 8],
                    "gate_widths": [8],
                    "tower_widths": [8],
                },
                "embedding": {"dim": 4, "lr": 0.05},
                "train": {
                    "epochs": 1,
                    "batch_size": 128,
                    "log_every": 5,
                    "qps_warmup_steps": 1,
                },
                "distributed": {"device": "cpu"},
            }
        )
    )
    return file
