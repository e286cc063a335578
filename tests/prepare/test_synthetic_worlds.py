"""What each world of the generator promises, read from the folders it writes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stem_torchrec.cli import main
from stem_torchrec.config.days import parse_days
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.schema import SPLITS, load_schema
from stem_torchrec.prepare.check import check_folder
from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic
from stem_torchrec.prepare.synthetic.world import build_world

TINY: dict[str, Any] = {"train_rows": 3_000, "valid_rows": 500, "test_rows": 700}
# Many clusters and dimensions: what tasks have in common by chance is then small.
WIDE: dict[str, Any] = {
    "train_rows": 20_000,
    "valid_rows": 100,
    "test_rows": 20_000,
    "num_tasks": 3,
    "num_clusters": 1_000,
    "latent_dim": 8,
}
PAIR = ("user_id", "item_id")
# Rows of every split as they were before there were worlds.
CONTRADICTING = "7780b169874e6f7fc6fd3cc16926eee0b3260d8d304760141574143a241eaca0"


def digest(folder: Path) -> str:
    """Of the values of every column of every split."""
    found = hashlib.sha256()
    for split in SPLITS:
        for name, column in pq.read_table(folder / split).to_pydict().items():
            found.update(f"{split} {name} {column}".encode())
    return found.hexdigest()


def correlations(folder: Path, split: str = "test") -> np.ndarray:
    """(T, T) of the tasks' true logits."""
    truth = pq.read_table(folder / "truth" / f"{split}.parquet")
    probabilities = np.stack([column.to_numpy() for column in truth.columns]).astype(np.float64)
    return np.corrcoef(np.log(probabilities / (1 - probabilities)))


def test_the_default_world_has_the_rows_it_always_had(tmp_path: Path) -> None:
    config = SyntheticConfig(
        **TINY,
        row_group_rows=1_000,
        num_users=60,
        num_items=40,
        num_tasks=3,
        num_bags=2,
        num_dense=2,
        num_noise_features=1,
        missing_label_share=(0.0, 0.25, 0.1),
    )
    prepare_synthetic(config, tmp_path / "set")
    assert digest(tmp_path / "set") == CONTRADICTING


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"world": "independent"}, [0, 0, 0]),
        ({"world": "opposite"}, [-1, 1, -1]),
        ({"world": "partly_shared"}, [0.5, 0.5, 0.5]),
        ({"world": "partly_shared", "shared_share": 0.9}, [0.9, 0.9, 0.9]),
        ({"world": "scales", "shared_share": 0.8}, [0.8, 0.8, 0.8]),
    ],
)
def test_tasks_correlate_as_the_world_says(
    tmp_path: Path, options: dict[str, Any], expected: list[float]
) -> None:
    prepare_synthetic(SyntheticConfig(**WIDE, **options), tmp_path / "set")
    found = correlations(tmp_path / "set")
    np.testing.assert_allclose(found[[0, 0, 1], [1, 2, 2]], expected, atol=0.08)


def test_tasks_look_at_one_vector_of_an_item_only_where_they_contradict() -> None:
    size: dict[str, Any] = {"num_users": 50, "num_items": 5_000, "num_clusters": 2_000}
    for world in ("contradicting", "opposite"):
        assert len(build_world(SyntheticConfig(**size, world=world)).item_task) == 1
    for world in ("independent", "partly_shared", "rare", "scales", "drift"):
        first, second = build_world(SyntheticConfig(**size, world=world)).item_task
        assert first.std() > 0.5
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


def test_a_rare_task_has_few_rows_and_few_positives(tmp_path: Path) -> None:
    stats = prepare_synthetic(SyntheticConfig(**WIDE, world="rare"), tmp_path / "set")
    observed, samples = stats["observed_by_split"]["train"], WIDE["train_rows"]
    assert [observed[task] for task in ("click", "like")] == [samples, samples]
    assert observed["follow"] / samples == pytest.approx(0.02, rel=0.2)
    truth = pq.read_table(tmp_path / "set" / "truth" / "train.parquet")
    assert truth["p_follow"].to_numpy().mean() == pytest.approx(0.05, rel=0.1)


def test_losses_of_scales_differ_a_hundredfold(tmp_path: Path) -> None:
    config = SyntheticConfig(**WIDE | {"test_rows": 100_000}, world="scales")
    prepare_synthetic(config, tmp_path / "set")
    ratios = np.array(config.ratios)
    entropies = -ratios * np.log(ratios) - (1 - ratios) * np.log1p(-ratios)
    np.testing.assert_allclose(entropies[0] / entropies, [1, 10, 100], rtol=1e-6)
    truth = pq.read_table(tmp_path / "set" / "truth" / "test.parquet")
    means = [column.to_numpy().mean() for column in truth.columns]
    np.testing.assert_allclose(means, ratios, rtol=0.15)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drift") / "set"
    few = {"num_tasks": 2, "num_users": 200, "num_items": 200}
    config = SyntheticConfig(**WIDE | few, world="drift", days=5, day_correlation=0.6)
    prepare_synthetic(config, out)
    return out


def test_the_training_days_are_folders_that_data_days_chooses(drifting: Path) -> None:
    folders = sorted(folder.name for folder in (drifting / "train").iterdir())
    assert folders == [f"date=2024-01-0{day}" for day in range(1, 6)]
    schema = load_schema(drifting)
    days = parse_days("2024-01-02:2024-01-03")
    assert check_split(drifting, "train", schema, days).num_rows == 8_000
    assert check_split(drifting, "train", schema).num_rows == 20_000
    assert json.loads((drifting / "stats.json").read_text())["samples"]["train"] == 20_000
    assert not check_folder(drifting).faults


def test_preferences_are_forgotten_and_ids_come_and_go(drifting: Path) -> None:
    """Pairs that occur on two days tell how their logits hang together."""
    truth = pq.read_table(drifting / "truth" / "train.parquet")["p_click"].to_numpy()
    days = [pq.read_table(f) for f in sorted((drifting / "train").glob("*/*.parquet"))]
    logits = np.split(np.log(truth / (1 - truth)), len(days))
    items = [set(day["item_id"].to_pylist()) for day in days]
    assert all(len(found) <= 100 for found in items)
    assert len(items[0] & items[1]) > len(items[0] & items[4]) > 0
    pairs = [list(zip(*(day[c].to_pylist() for c in PAIR), strict=True)) for day in days]
    values = [dict(zip(*of_day, strict=True)) for of_day in zip(pairs, logits, strict=True)]

    def correlation(a: int, b: int) -> float:
        common = sorted(values[a].keys() & values[b].keys())
        assert len(common) > 50
        return float(np.corrcoef(*[[values[d][pair] for pair in common] for d in (a, b)])[0, 1])

    near = np.mean([correlation(day, day + 1) for day in range(4)])
    far = np.mean([correlation(day, day + 3) for day in range(2)])
    assert near > far + 0.15
    for own in logits:
        assert (1 / (1 + np.exp(-own))).mean() == pytest.approx(0.28, rel=0.05)


def test_same_seed_same_rows_and_a_best_that_is_written(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare_synthetic(
            SyntheticConfig(**TINY, world="drift", days=2, seed=seed), tmp_path / name
        )
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    best = json.loads((tmp_path / "a" / "truth" / "best.json").read_text())
    assert best["auc"] == json.loads((tmp_path / "a" / "stats.json").read_text())["bayes_auc"]
    assert best["auc"]["click"] > 0.7
    labels = pq.read_table(tmp_path / "a" / "test")["click"].to_numpy().astype(float)
    truth = pq.read_table(tmp_path / "a" / "truth" / "test.parquet")["p_click"].to_numpy()

    def log_loss(p: np.ndarray) -> float:
        return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)))

    entropy = log_loss(np.full(len(labels), labels.mean()))
    assert best["ne"]["click"] == pytest.approx(log_loss(truth) / entropy, rel=1e-4)
    assert best["ne"]["click"] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world": "independent", "conflict_share": 0.5}, "conflict_share has no effect"),
        ({"shared_share": 0.5}, "shared_share has no effect in the world contradicting"),
        ({"world": "rare", "day_correlation": 0.5}, "it has in drift"),
        ({"days": 5, "train_rows": 4}, "days: 5 is more than train_rows = 4"),
    ],
)
def test_keys_that_the_world_does_not_use_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig(**settings)


def test_an_unknown_world_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "synthetic", "--out", str(tmp_path / "set"), "--world", "flat"]) == 2
    message = capsys.readouterr().err
    assert "world" in message
    assert "'flat'" in message
    assert "'partly_shared'" in message
    assert not (tmp_path / "set").exists()
