"""Which trainings a fair comparison needs: each model searches its own learning rates on valid.

First the tables' rate, then the dense weights' at the best one of these, with one seed; then more
seeds at the best pair. What is wanted next follows from what is done, so a comparison can stop and
go on anywhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

Row = dict[str, Any]
Settings = tuple[tuple[str, Any], ...]
"""Keys of a config with their values, sorted."""

PARTS = ("defaults", "search", "variations")
TABLE_RATES = (0.1, 0.05, 0.2)
DENSE_RATES = (1e-3, 5e-4, 2e-3)

# What all models of the table have; of the models with gates each has as many experts as STEM-Net.
COMMON: Mapping[str, Any] = {
    "model.expert_widths": [64, 32],
    "model.gate_widths": [32],
    "model.tower_widths": [32],
    "train.batch_size": 256,
    "train.epochs": 20,
    "eval.patience": 2,
    "eval.batch_size": 4096,
    "checkpoint.keep_best": "valid/auc_mean",
}
MODELS = (
    *("stem_net", "single_task", "mmoe", "ple", "me_mmoe", "shared_bottom"),
    *("me_ple", "omoe", "aitm", "home", "esmm"),
)
_ALL_EXPERTS_SHARED = ("omoe", "mmoe", "me_mmoe")

# One thing at a time away from STEM-Net's settings.
VARIATIONS: Mapping[str, Mapping[str, Any]] = {
    "table decay 0.03": {"embedding.weight_decay": 0.03},
    "table decay 0.003": {"embedding.weight_decay": 0.003},
    "rates fall": {"optim.decay": "linear", "train.epochs": 4},
    "batch 1024": {"train.batch_size": 1024},
    "wide": {
        "model.expert_widths": [256, 128],
        "model.gate_widths": [64],
        "model.tower_widths": [64],
    },
    "dropout 0.2": {"model.dropout": 0.2},
    "dropout 0.5": {"model.dropout": 0.5},
    "large first values": {"embedding.init_std": 0.1},
    "dim 8": {"embedding.dim": 8},
    "no stop-gradient": {"model.stop_gradient": False},
}


class DataSet(NamedTuple):
    """A prepared set: its tasks, and the pair that ESMM needs, the second one's label 0 wherever
    the first one's is; None where there is none."""

    name: str
    tasks: tuple[str, ...]
    pair: tuple[str, str] | None = None


SETS = (
    DataSet(
        "kuairand", ("click", "long_view", "comment_stay", "profile_enter"), ("click", "long_view")
    ),
    DataSet("movielens_random", ("like", "love", "dislike"), ("like", "love")),
    DataSet("contradicting", ("click", "like")),
    DataSet("movielens_time", ("like", "love", "dislike"), ("like", "love")),
    DataSet("independent", ("click", "like")),
)


class Training(NamedTuple):
    """One run of ``train``.

    Attributes:
        role: ``search`` for the table, ``defaults``, or the name of a variation.
    """

    data: str
    model: str
    role: str
    seed: int
    settings: Settings

    @property
    def key(self) -> str:
        return repr(self)


def wanted(
    rows: Mapping[str, Row],
    data: Sequence[DataSet],
    models: Sequence[str],
    seeds: int,
    parts: Sequence[str] = PARTS,
) -> Iterator[Training]:
    """Trainings that are not among ``rows`` (by key), the most telling ones first.

    What depends on one that is missing comes once that is there.
    """
    stages: list[Iterable[list[Training]]] = []
    if "defaults" in parts:
        stages.append(defaults(of, seeds) for of in data)
    if "search" in parts:
        stages.append(search(rows, of, model, seeds) for model in models for of in data)
    if "variations" in parts:
        stages.append(variation(rows, of, name, 1) for name in VARIATIONS for of in data)
        stages.append(variation(rows, of, name, seeds) for name in VARIATIONS for of in data)
    for training in chain.from_iterable(chain.from_iterable(stages)):
        if training.key not in rows:
            yield training


def search(rows: Mapping[str, Row], of: DataSet, model: str, seeds: int) -> list[Training]:
    """The trainings of a model on a set so far known to be needed."""
    if model == "esmm" and of.pair is None:
        return []
    tables = [_at(of, model, rate, DENSE_RATES[0]) for rate in TABLE_RATES]
    best = best_of(rows, tables)
    if best is None:
        return tables
    rate = dict(best.settings)["embedding.lr"]
    dense = [_at(of, model, rate, dense) for dense in DENSE_RATES[1:]]
    best = best_of(rows, [*tables, *dense])
    if best is None:
        return [*tables, *dense]
    return [*tables, *dense, *(best._replace(seed=seed) for seed in range(1, seeds))]


def chosen(rows: Mapping[str, Row], of: DataSet, model: str) -> Training | None:
    """The best of a finished search; None before."""
    needed = [training for training in search(rows, of, model, 1) if training.seed == 0]
    full = len(needed) == len(TABLE_RATES) + len(DENSE_RATES) - 1
    return best_of(rows, needed) if full else None


def best_of(rows: Mapping[str, Row], trainings: list[Training]) -> Training | None:
    """By mean AUC on valid; None while one is missing. One that failed counts as the worst."""
    if any(training.key not in rows for training in trainings):
        return None
    return max(trainings, key=lambda training: rows[training.key].get("valid_auc_mean") or 0.0)


def variation(rows: Mapping[str, Row], of: DataSet, name: str, seeds: int) -> list[Training]:
    """STEM-Net at its best rates with one thing changed; nothing before these are known."""
    best = chosen(rows, of, "stem_net")
    if best is None:
        return []
    settings = _settings(dict(best.settings) | VARIATIONS[name])
    return [best._replace(role=name, settings=settings, seed=seed) for seed in range(seeds)]


def defaults(of: DataSet, seeds: int) -> list[Training]:
    """What a newcomer gets, who sets no key."""
    return [Training(of.name, "stem_net", "defaults", seed, ()) for seed in range(seeds)]


def _at(of: DataSet, model: str, table_rate: float, dense_rate: float) -> Training:
    settings = dict(COMMON) | {"embedding.lr": table_rate, "optim.lr": dense_rate}
    settings["model.name"] = model
    if model in _ALL_EXPERTS_SHARED:
        settings["model.num_shared_experts"] = 1 + len(of.tasks)
    if model == "esmm" and of.pair is not None:
        settings["model.task_order"] = list(of.pair)
    return Training(of.name, model, "search", 0, _settings(settings))


def _settings(keys: Mapping[str, Any]) -> Settings:
    frozen = {key: tuple(v) if isinstance(v, list) else v for key, v in keys.items()}
    return tuple(sorted(frozen.items()))
