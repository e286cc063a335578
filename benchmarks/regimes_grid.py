"""What the study of regimes is made of: worlds, models, rules, and the keys each of them sets."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

from stem_torchrec.analysis.compare.plan import SINGLE_TASK
from stem_torchrec.prepare.synthetic.config import WorldName

Settings = dict[str, str]

WORLDS: tuple[str, ...] = get_args(WorldName)
# Tables too small to hold what all tasks want at once, and features that tell little. Three tasks:
# of two, multi_balance weights both alike whatever they want.
DATA: Settings = {
    "num_tasks": "3",
    "train_rows": "150000",
    "valid_rows": "20000",
    "test_rows": "50000",
    "num_users": "800",
    "num_items": "250",
    "latent_dim": "4",
    "num_clusters": "50",
    "individuality": "0.5",
    "num_user_features": "1",
    "num_item_features": "1",
}
_RATIOS = {"positive_ratios": "[0.3, 0.15, 0.15]"}
DATA_OF_WORLD: dict[str, Settings] = {
    **dict.fromkeys(WORLDS, _RATIOS),
    "contradicting": _RATIOS | {"conflict_share": "0.5"},
    # Enough positive labels of each task for an AUC.
    "rare": {
        "positive_ratios": "[0.3, 0.15, 0.3]",
        "missing_label_share": "[0, 0, 0.95]",
        "test_rows": "100000",
    },
    "scales": {"positive_ratios": "[0.5, 0.05, 0.005]", "test_rows": "100000"},
}
# Every model has three experts.
MODELS: dict[str, Settings] = {
    SINGLE_TASK: {},
    "mmoe": {"model.num_shared_experts": "3"},
    "me_mmoe": {"model.num_shared_experts": "3"},
    "ple": {},
    "stem_net": {},
    "stem_net_without_stop_gradient": {"model.stop_gradient": "false"},
}
STATIC = "static"
# Beside equal weights; what does best on the valid split counts.
GRID: dict[str, Settings] = {
    f"{STATIC} {':'.join(weights)}": {
        "balance.rule": STATIC,
        "balance.weights": f"[{', '.join(weights)}]",
    }
    for weights in (("2", "0.5", "0.5"), ("0.5", "2", "0.5"), ("0.5", "0.5", "2"))
}
RULES: dict[str, dict[str, Settings]] = {
    "equal": {"equal": {"balance.rule": "equal"}},
    **{
        f"{rule}@{boundary}": {
            f"{rule}@{boundary}": {"balance.rule": rule, "balance.boundary": boundary}
        }
        for rule, boundary in (
            ("multi_balance", "pooled"),
            ("multi_balance", "experts"),
            ("mgda", "parameters"),
        )
    },
    STATIC: GRID,
}
"""Rule -> the trainings it takes, each with its keys."""

_PARTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("equal",), tuple(MODELS)),
    (("multi_balance@experts",), ("mmoe", "stem_net")),
    (("multi_balance@pooled",), ("mmoe",)),
    (tuple(RULES), tuple(MODELS)),
)
"""Rules and models in the order of what tells most."""


class Cell(NamedTuple):
    """What the seeds are taken over."""

    world: str
    model: str
    rule: str

    @property
    def left_out(self) -> str | None:
        """Why it is not trained; None if it is."""
        if self.model == SINGLE_TASK and self.rule != "equal":
            return f"{SINGLE_TASK} networks share nothing that could be balanced"
        return None


class Training(NamedTuple):
    """One training of a cell: with a seed, and with one point of a grid."""

    cell: Cell
    seed: int
    point: str

    @property
    def key(self) -> str:
        return f"{self.cell.world} {self.cell.model} {self.point} seed{self.seed}"

    @property
    def settings(self) -> Settings:
        name = self.cell.model.partition("_without_")[0]
        return {
            "run.seed": str(self.seed),
            "model.name": name,
            **MODELS[self.cell.model],
            **RULES[self.cell.rule][self.point],
        }


def trainings(
    worlds: Sequence[str], models: Sequence[str], rules: Sequence[str], num_seeds: int
) -> list[Training]:
    """All there are to do, what tells most first: of every seed the models with equal weights and
    where ``multi_balance`` is looked at first, in each world; then the rest."""
    found = [
        Training(Cell(world, model, rule), seed, point)
        for parts in (_PARTS[:-1], _PARTS[-1:])
        for seed in range(num_seeds)
        for rules_of_part, models_of_part in parts
        for rule in rules_of_part
        for point in RULES[rule]
        for model in models_of_part
        for world in worlds
        if rule in rules and model in models
    ]
    return list(dict.fromkeys(t for t in found if t.cell.left_out is None))
