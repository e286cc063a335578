"""Steps that are left out, in a run: counted a step late, and right wherever a count is read."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec.config.reading import load_config
from stem_torchrec.errors import UserError
from stem_torchrec.runs.schema import schema_of_new
from stem_torchrec.training.session import build
from stem_torchrec.training.trainer import Trainer
from tests.support.prepared import small_config, small_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("skipped") / "data")


def trainer_of(ranks: Any, folder: Path, data: Path, bad: Collection[int], **keys: Any) -> Trainer:
    """A run of 9 steps; those numbered in ``bad``, from 1, have logits that are not finite."""
    keys = {"max_steps": 9, "log_every": 100} | keys
    folder.mkdir(exist_ok=True)
    path = small_config(folder / "config.yaml", data, folder / "run")
    config = load_config(path, [f"--train.{key}={value}" for key, value in keys.items()])
    trainer = Trainer(build(config, ranks, schema_of_new(config, None, ranks)), lambda record: None)
    model = trainer.session.recommender.model

    def spoil(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits * float("inf") if trainer.position.step + 1 in bad else logits

    model.register_forward_hook(spoil)
    trainer.begin("overwrite", None)
    return trainer


def train_records(trainer: Trainer) -> dict[int, dict[str, Any]]:
    lines = (trainer.config.run.dir / "metrics.jsonl").read_text().splitlines()
    return {
        record["step"]: record for record in map(json.loads, lines) if record["kind"] == "train"
    }


def test_every_record_knows_its_own_step(alone: Any, tmp_path: Path, data: Path) -> None:
    trainer = trainer_of(alone, tmp_path, data, {1, 4, 5, 9}, log_every=1)
    trainer.run()
    records = train_records(trainer)
    skipped = [records[step]["skipped"] for step in range(1, 10)]
    assert skipped == [1, 1, 1, 2, 3, 3, 3, 3, 4]
    for step, record in records.items():
        assert (record["loss"]["click"] is None) == (step in {1, 4, 5, 9})


def test_how_often_is_recorded_changes_nothing(alone: Any, tmp_path: Path, data: Path) -> None:
    """Counts and metrics over all steps; those that were left out are in none."""
    found = []
    for log_every in (1, 4, 100):
        trainer = trainer_of(alone, tmp_path, data, {4, 5, 9}, log_every=log_every)
        trainer.run()
        last = train_records(trainer)[9]
        names = ("skipped", "ne", "ne_window", "calibration", "samples")
        found.append({name: last[name] for name in names})
        assert trainer.position.skipped == 3
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("log_every", [1, 100])
def test_too_many_in_a_row_end_the_run(
    alone: Any, tmp_path: Path, data: Path, log_every: int
) -> None:
    """With the batch of the last of them, though a step may have followed it."""
    bad, keys = {2, 4, 5, 6, 7, 8}, {"max_skipped_steps": 3, "log_every": log_every}
    trainer = trainer_of(alone, tmp_path, data, bad, **keys)
    with pytest.raises(UserError, match="3 steps in a row, the last of them 6"):
        trainer.run()
    assert trainer.position.step == (6 if log_every == 1 else 7)
    saved = torch.load(tmp_path / "run" / "bad_batch_rank0.pt")
    assert saved["step"] == 6
    batches = trainer_of(alone, tmp_path / "other", data, ()).position.batches(9)
    sixth = [next(batches) for _ in range(6)][-1]
    assert torch.equal(saved["batch"]["labels"], sixth.labels)
