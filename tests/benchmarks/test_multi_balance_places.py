"""Weights in every place: what each of them changes, and a study that goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from in_memory import Data, load
from multi_balance_places import RULES, cells, main, rule_of
from torch import Tensor
from weighted_training import Learner, Place, Rates

from stem_torchrec.balancing import Options, Rule, Situation, State
from stem_torchrec.balancing.rules.equal import EqualRule
from stem_torchrec.balancing.rules.mgda import MgdaRule
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.nn import labelled, task_losses
from stem_torchrec.nn.owners import SHARED
from tests.support.prepared import small_config, small_data


class Half(Rule[Options]):
    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        return 0.5 * situation.active.double(), state


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Data]:
    folder = tmp_path_factory.mktemp("places")
    file = small_config(folder / "config.yaml", small_data(folder / "data"), folder / "run")
    config = load_config(file, ["--model.name=mmoe", "--model.num_shared_experts=2"])
    return config, load(config)


def test_bags_and_ids_are_those_of_the_folder(prepared: tuple[Config, Data]) -> None:
    config, data = prepared
    files = sorted((Path(str(config.data.path)) / "train").glob("*.parquet"))
    read = pq.read_table(files[0]).to_pydict()
    rows = data.splits["train"]
    first_row = 0
    for index, feature in enumerate(data.schema.sparse):
        slots = data.features == index
        for row in range(50):
            value = read[feature.name][row]
            bag = value if feature.kind == "bag" else [value]
            held = rows.shares[row, slots] > 0
            assert (rows.ids[row, slots][held] - first_row).tolist() == bag
            whole = len(bag) if feature.pooling == "sum" else float(len(bag) > 0)
            assert rows.shares[row, slots].sum().item() == pytest.approx(whole)
        first_row += feature.num_embeddings or 0
    assert first_row == data.num_rows


def stepped(prepared: tuple[Config, Data], rule: Rule[Any], place: Place = "everywhere") -> Learner:
    """After one step of rates 0: with gradients, and the first weights."""
    config, data = prepared
    learner = Learner(config, data, ("sgd", "sgd"), Rates(0.0, 0.0), rule, place)
    learner.step(data.splits["train"].select(slice(64)))
    return learner


def test_equal_weights_give_the_gradient_of_the_sum(prepared: tuple[Config, Data]) -> None:
    learner, data = stepped(prepared, EqualRule()), prepared[1]
    batch = data.splits["train"].select(slice(64))
    table = learner.table.detach().clone().requires_grad_()
    slots = table[batch.ids] * batch.shares.unsqueeze(2)
    by_feature = [slots[:, data.features == f].sum(dim=1) for f in data.features.unique()]
    logits = learner.model({SHARED: torch.cat(by_feature, dim=1)}, batch.dense)
    target = labelled(batch.labels, None)
    loss = task_losses(logits, target, target.weights.sum(dim=0)).sum()
    parameters = list(learner.model.parameters())
    expected = torch.autograd.grad(loss, [table, *parameters])
    found = [learner.table.grad, *(parameter.grad for parameter in parameters)]
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize(
    ("place", "of_tables", "of_experts"),
    [("everywhere", 0.5, 0.5), ("tables", 0.5, 1.0), ("features", 0.5, 1.0)],
)
def test_a_place_is_all_that_its_weights_change(
    prepared: tuple[Config, Data], place: Place, of_tables: float, of_experts: float
) -> None:
    plain, halved = stepped(prepared, EqualRule()), stepped(prepared, Half(), place)
    torch.testing.assert_close(halved.table.grad, of_tables * plain.table.grad)
    shared = {id(parameter) for parameter in halved.model.shared_parameters()}
    pairs = zip(halved.model.parameters(), plain.model.parameters(), strict=True)
    for parameter, before in pairs:
        share = of_experts if id(parameter) in shared else 1.0
        torch.testing.assert_close(parameter.grad, share * before.grad)


def test_a_feature_has_weights_of_its_own_gradients(prepared: tuple[Config, Data]) -> None:
    by_feature = stepped(prepared, MgdaRule(), "features")
    weights = by_feature.balancing.steps[0]["weight"]
    norms = by_feature.balancing.steps[0]["gradient_norm"]
    joint = stepped(prepared, MgdaRule()).balancing.steps[0]
    assert weights.shape == (len(prepared[1].schema.sparse), 2)
    torch.testing.assert_close(norms.square().sum(dim=0), joint["gradient_norm"][0].square())
    assert weights.std(dim=0).min() > 0.01
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))


def test_a_study_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small_config(tmp_path / "config.yaml", small_data(tmp_path / "data"), tmp_path / "run")
    arguments = ["--name", "small", "--data", str(tmp_path / "data"), "--config", str(file)]
    arguments += ["--out", str(tmp_path / "out"), "--pairs", "sgd adam", "--factors", "1", "4"]
    arguments += ["--seeds", "1", "--processes", "0"]
    main(arguments)
    studies = json.loads((tmp_path / "out" / "multi_balance_places.json").read_text())
    rows = studies["small"]["rows"]
    assert [(row["rule"], row["place"]) for row in rows] == cells(list(RULES))
    assert all(row["seeds"] == [0] for row in rows)
    assert all(len(row["weight"]) == 2 for row in rows[1:])
    assert rows[0]["gain"] == 0
    capsys.readouterr()
    main(arguments)
    assert "of" not in capsys.readouterr().out.partition("{")[0]


def test_weights_of_ones_own(prepared: tuple[Config, Data]) -> None:
    plain, weighed = (
        stepped(prepared, rule_of("static:1:1")),
        stepped(prepared, rule_of("static:2:0")),
    )
    assert plain.balancing.steps[0]["weight"].tolist() == [[1.0, 1.0]]
    assert weighed.balancing.steps[0]["weight"].tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("rule", ["static", "static:a", "static:-1:1", "mgd"])
def test_a_rule_that_there_is_not(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--name", "n", "--data", "d", "--config", "c", "--out", "o", "--rules", rule])
    assert "argument --rules" in capsys.readouterr().err
