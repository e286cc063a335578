"""Ids that training takes for unseen: a share of each column, anew in each pass."""

from pathlib import Path

import pytest
import torch

from stem_torchrec.data.reader import ParquetReader
from tests.data.test_reader import SCHEMA, write_split

RATE = 0.25


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_split(path, [[200, 200], [200, 200]])
    return path


def rows(path: Path, epoch: int = 0, ranks: int = 1, *, shuffle: bool = True) -> list[list[int]]:
    """What each row of a pass has, sorted: age (the row's number), row id, item id."""
    found = []
    for rank in range(ranks):
        reader = ParquetReader(
            path,
            "train",
            SCHEMA,
            batch_size=64,
            rank=rank,
            world_size=ranks,
            shuffle=shuffle,
            shuffle_row_groups=2,
            unseen_rate=RATE,
        )
        for batch in reader.epoch(epoch):
            ids = [batch.sparse[name].values()[: batch.num_samples] for name in ("row", "item")]
            ages = batch.dense[: batch.num_samples, 1].long()
            assert batch.sparse["bag_b"].values().tolist()[::2] == ages.tolist()
            found += torch.stack([ages, *ids], dim=1).tolist()
    return sorted(found)


def hidden(found: list[list[int]]) -> set[tuple[int, str]]:
    """Which ids of which rows are not what they were."""
    names = {(age, "row") for age, row, _ in found if row != age}
    return names | {(age, "item") for age, _, item in found if item != age % 7}


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_share_of_each_column_becomes_0(path: Path, shuffle: bool) -> None:
    found = rows(path, shuffle=shuffle)
    assert [age for age, _, _ in found] == list(range(800))
    assert all(row in (0, age) and item in (0, age % 7) for age, row, item in found)
    for column in ("row", "item"):
        share = sum(name == column for _, name in hidden(found)) / 800
        assert share == pytest.approx(RATE * (6 / 7 if column == "item" else 1), abs=0.04)


def test_other_ids_in_each_pass_and_the_same_on_any_ranks(path: Path) -> None:
    assert rows(path, ranks=3) == rows(path)
    assert len(hidden(rows(path, epoch=1)) & hidden(rows(path))) < 200
    both = {age for age, _ in hidden(rows(path))}
    assert 0.3 < len(both) / 800 < 0.5  # columns are drawn apart: .41 have one or both
