import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from stem_torchrec.data.schema import SPLITS, load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic
from stem_torchrec.prepare.synthetic.world import build_world

SMALL: dict[str, Any] = {
    "train_rows": 30_000,
    "valid_rows": 2_000,
    "test_rows": 10_000,
    "row_group_rows": 8_192,
    "num_users": 300,
    "num_items": 200,
}


def _columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    config = SyntheticConfig(
        **SMALL,
        num_bags=2,
        num_dense=2,
        num_noise_features=1,
        missing_label_share=(0.0, 0.25),
    )
    prepare_synthetic(config, out)
    return out


def test_folder_holds_what_its_schema_says(folder: Path) -> None:
    schema = load_schema(folder)
    assert len(schema.features) == 8 + 1 + 2 + 2
    assert schema.task_names == ("click", "like")
    assert schema.group == "user_id"
    for split in SPLITS:
        file = pq.ParquetFile(folder / split / "part-0.parquet")
        assert file.metadata.num_rows == SMALL[f"{split}_rows"]
        assert file.metadata.row_group(0).num_rows <= SMALL["row_group_rows"]
        for feature in schema.sparse:
            values = file.read([feature.name])[feature.name].combine_chunks()
            ids = np.asarray(values.flatten() if feature.kind == "bag" else values)
            assert feature.num_embeddings is not None
            assert ids.min() >= 1
            assert ids.max() < feature.num_embeddings
    assert pq.ParquetFile(folder / "train" / "part-0.parquet").metadata.num_row_groups == 4


def test_bags_vary_in_length_and_belong_to_their_item(folder: Path) -> None:
    rows = pq.read_table(folder / "train", columns=["item_id", "bag_0"]).to_pylist()
    bags: dict[int, set[tuple[int, ...]]] = {}
    for row in rows:
        bags.setdefault(row["item_id"], set()).add(tuple(row["bag_0"]))
    assert all(len(found) == 1 for found in bags.values())
    assert {len(next(iter(found))) for found in bags.values()} == set(range(7))


def test_labels_follow_the_truth_and_nulls_are_rare_as_asked(folder: Path) -> None:
    truth = _columns(folder / "truth" / "train.parquet")
    rows = pq.read_table(folder / "train")
    for task, ratio, missing in (("click", 0.28, 0.0), ("like", 0.016, 0.25)):
        labels = rows[task].to_numpy().astype(float)
        seen = ~np.isnan(labels)
        probability = truth[f"p_{task}"].astype(np.float64)
        assert 1 - seen.mean() == pytest.approx(missing, abs=0.01)
        noise = np.sqrt((probability * (1 - probability)).sum()) / len(labels)
        assert abs(labels[seen].mean() - probability[seen].mean()) < 5 * noise
        assert probability.mean() == pytest.approx(ratio, rel=0.05)
        # Calibrated in each quarter of the truth, so the labels belong to these very rows.
        for part in np.array_split(np.argsort(probability), 4):
            part = part[seen[part]]
            expected = probability[part].mean()
            assert abs(labels[part].mean() - expected) < 5 * np.sqrt(expected / len(part))


def test_bayes_auc_is_that_of_the_written_truth(folder: Path) -> None:
    stats = json.loads((folder / "stats.json").read_text())
    truth = _columns(folder / "truth" / "test.parquet")
    rows = pq.read_table(folder / "test")
    for task in ("click", "like"):
        labels = rows[task].to_numpy().astype(float)
        seen = ~np.isnan(labels)
        expected = roc_auc_score(labels[seen], truth[f"p_{task}"][seen])
        assert stats["bayes_auc"][task] == pytest.approx(expected, abs=1e-9)
        assert expected > 0.75


def test_conflict_users_want_the_opposite(tmp_path: Path) -> None:
    config = SyntheticConfig(**SMALL | {"train_rows": 120_000, "num_users": 150})
    prepare_synthetic(config, tmp_path / "set")
    users = _columns(tmp_path / "set" / "truth" / "users.parquet")
    truth = _columns(tmp_path / "set" / "truth" / "train.parquet")
    user_ids = pq.read_table(tmp_path / "set" / "train")["user_id"].to_numpy()
    logits = {task: np.log(p / (1 - p)) for task, p in truth.items()}
    correlation = np.array(
        [
            np.corrcoef(logits["p_click"][user_ids == user], logits["p_like"][user_ids == user])[
                0, 1
            ]
            for user in users["user_id"]
        ]
    )
    assert users["conflict"].mean() == pytest.approx(config.conflict_share)
    assert correlation[users["conflict"]].mean() < -0.15
    assert correlation[~users["conflict"]].mean() > 0.15


def test_conflict_alternates_over_many_tasks() -> None:
    config = SyntheticConfig(num_users=50, num_items=20, num_tasks=4)
    world = build_world(config)
    first, *others = world.user_task[:, world.conflict]
    for task, vectors in enumerate(others, start=1):
        np.testing.assert_array_equal(vectors, first * (-1) ** task)
    assert not np.allclose(world.user_task[0, ~world.conflict], world.user_task[2, ~world.conflict])


def test_seed_fixes_the_rows_and_another_seed_changes_them(tmp_path: Path) -> None:
    stats = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        stats.append(prepare_synthetic(SyntheticConfig(**SMALL, seed=seed), tmp_path / name))
    tables = {name: pq.read_table(tmp_path / name / "train") for name in "abc"}
    assert tables["a"].equals(tables["b"])
    assert stats[0] == stats[1]
    assert not tables["a"]["user_id"].equals(tables["c"]["user_id"])


def test_a_longer_split_starts_with_the_same_row_groups(tmp_path: Path) -> None:
    prepare_synthetic(SyntheticConfig(**SMALL), tmp_path / "short")
    prepare_synthetic(SyntheticConfig(**SMALL | {"train_rows": 40_000}), tmp_path / "long")
    short = pq.ParquetFile(tmp_path / "short" / "train" / "part-0.parquet").read_row_group(2)
    long = pq.ParquetFile(tmp_path / "long" / "train" / "part-0.parquet").read_row_group(2)
    assert short.equals(long)
    first = pq.ParquetFile(tmp_path / "short" / "train" / "part-0.parquet").read_row_group(0)
    assert not first.equals(short)


def test_popularity_is_a_power_law(folder: Path) -> None:
    items = _columns(folder / "train" / "part-0.parquet")["item_id"]
    counts = np.sort(np.bincount(items, minlength=201)[1:])[::-1]
    expected = np.arange(1, 201) ** -0.8
    assert counts[0] / counts.sum() == pytest.approx(expected[0] / expected.sum(), rel=0.1)
    assert counts[9] / counts[99] == pytest.approx(10**0.8, rel=0.3)


def test_features_tell_of_their_side_except_noise(folder: Path) -> None:
    rows = _columns(folder / "train" / "part-0.parquet")
    truth = _columns(folder / "truth" / "train.parquet")["p_click"].astype(np.float64)

    def explained(ids: np.ndarray) -> float:
        means = np.bincount(ids, weights=truth) / np.maximum(np.bincount(ids), 1)
        return float(means[ids].var() / truth.var())

    assert explained(rows["item_feature_0"]) > 0.03
    assert explained(rows["user_feature_0"]) > 0.03
    assert explained(rows["noise_0"]) < 0.01
    by_user: dict[int, int] = {}
    for user, cell in zip(rows["user_id"], rows["user_feature_1"], strict=True):
        assert by_user.setdefault(user, cell) == cell


def test_vocabulary_sizes_set_every_table(tmp_path: Path) -> None:
    sizes = (700, 4_000, 1_500, 400, 5, 900, 750, 100)
    rows = {f"{split}_rows": 5_000 for split in SPLITS}
    prepare_synthetic(SyntheticConfig(**rows, vocabulary_sizes=sizes), tmp_path / "set")
    assert tuple(f.num_embeddings for f in load_schema(tmp_path / "set").features) == sizes
    columns = _columns(tmp_path / "set" / "train" / "part-0.parquet")
    assert set(columns["user_feature_2"]) == {1, 2, 3, 4}


def test_default_ratios_fall_from_frequent_to_rare() -> None:
    assert SyntheticConfig().ratios == pytest.approx((0.28, 0.016))
    ratios = SyntheticConfig(num_tasks=8).ratios
    assert ratios[0] == pytest.approx(0.28)
    assert ratios[-1] == pytest.approx(0.016)
    assert list(ratios) == sorted(ratios, reverse=True)
    assert len(set(SyntheticConfig(num_tasks=64).names)) == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_task": 2}, "num_task"),
        ({"positive_ratios": (0.1,)}, "positive_ratios: 1 values for num_tasks = 2"),
        ({"positive_ratios": (0.1, 1.0)}, "positive_ratios: 1.0"),
        ({"missing_label_share": (0.1, 1.5)}, "missing_label_share: 1.5"),
        ({"vocabulary_sizes": (10, 10)}, "vocabulary_sizes: 2 values for 8"),
        ({"vocabulary_sizes": (10,) * 8, "num_users": 5}, "vocabulary_sizes replaces num_users"),
        ({"vocabulary_sizes": (10,) * 7 + (1,)}, "vocabulary_sizes: 1 is not"),
        ({"num_bags": 1, "bag_size": 6, "bag_length": 6}, "bag_size: 6"),
        ({"task_names": ("click", "user_id")}, "'user_id' is the name of a feature"),
        ({"task_names": ("click", "shared")}, "shared"),
        ({"conflict_share": 1.5}, "conflict_share"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig(**settings)


def test_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "schema.json").touch()
    with pytest.raises(UserError, match="not empty"):
        prepare_synthetic(SyntheticConfig(), tmp_path)
