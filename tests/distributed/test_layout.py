"""Owners' columns side by side in one table (``fused``) train as tables of their own."""

import numpy as np
import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from stem_torchrec import checkpoint
from stem_torchrec.config import CheckpointConfig, EmbeddingConfig
from stem_torchrec.distributed.layout import tables_of
from tests.distributed.test_parity import rows_of_steps, share_of
from tests.support.steps import (
    DIM,
    SCHEMA,
    assert_close,
    assert_moved,
    batch_of,
    config_of,
    gather,
    join_rows,
    load_checkpoint,
    parts_of,
    run_steps,
    start,
    state_of,
    train_on,
)

LAYOUTS = ("separate", "fused")
BOUNDS = {"max_gradient": 0.02, "weight_decay": 0.01}
MIXED = {"dims": {"user": 20, "t*": 4}}
LR = {"sgd": 2.0, "adagrad": 0.2, "rowwise_adagrad": 0.2, "adam": 0.02}


def config_with(folder, layout, tables, sharding, *, model=None, balance=None, seed=3, **embedding):
    return config_of(
        folder,
        run={"seed": seed},
        model=model or {},
        balance=balance or {},
        embedding={"optimizer": tables, "layout": layout, "lr": LR[tables], "eps": 1e-4}
        | embedding,
        distributed={"sharding": sharding},
    )


def owners_with(*features):
    names = tuple(feature.name for feature in SCHEMA.sparse)
    return {"shared": names} | dict.fromkeys(("click", "like"), features or names)


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        (
            owners_with(),
            {
                "shared+2__user": 24,
                "shared+2__item": 24,
                "shared+2__tags": 24,
                "shared+2__hour": 24,
            },
        ),
        (
            owners_with("user", "item"),  # history has the table of item
            {
                "shared+2__user": 24,
                "shared__item": 8,
                "shared__tags": 8,
                "shared__hour": 8,
                "click+1__item": 16,
            },
        ),
        ({"shared": ("user",)}, {"shared__user": 8}),
    ],
    ids=["all", "some", "one owner"],
)
def test_owners_whose_table_serves_the_same_features_are_joined(owners, expected):
    tables = tables_of(SCHEMA, owners, EmbeddingConfig(dim=DIM, layout="fused"))
    assert {table.name: table.width for table in tables} == expected
    separate = tables_of(SCHEMA, owners, EmbeddingConfig(dim=DIM))
    logical = {name for table in tables for name in table.by_owner}
    assert logical == {table.name for table in separate}
    assert sum(table.width * table.rows for table in tables) == sum(
        table.dim * table.rows for table in separate
    )


def train_share(ranks, config):
    """Steps on this rank's share of the rows, or on all of them."""
    steps = rows_of_steps()
    if ranks.world_size == 1:
        return train_on(ranks, config, [batch_of(join_rows(parts)) for parts in steps])
    return train_on(ranks, config, share_of(steps, ranks.rank))


SOME = {"task_specific_features": ["user", "item"]}
ON_ONE = [
    ("sgd", "table_wise", {}, BOUNDS),
    ("adagrad", "column_wise", SOME, {}),
    ("adam", "table_wise", SOME, BOUNDS),
    ("adagrad", "column_wise", SOME, BOUNDS | MIXED),
]
ON_TWO = [
    ("adagrad", "table_wise", {}, BOUNDS),
    ("adagrad", "row_wise", SOME, BOUNDS),
    ("adagrad", "data_parallel", {}, BOUNDS),
    ("sgd", "column_wise", SOME, {}),
    ("sgd", "table_row_wise", {}, {}),
    ("adam", "row_wise", {}, BOUNDS),
    ("adagrad", "table_wise", SOME, BOUNDS | MIXED),
    ("sgd", "column_wise", {}, MIXED),
    ("adagrad", "row_wise", {}, MIXED),
]


@pytest.mark.parametrize(("tables", "sharding", "model", "embedding"), ON_ONE)
def test_bit_equal_to_separate_tables(tmp_path, alone, tables, sharding, model, embedding):
    assert_bit_equal(
        *(
            train_share(
                alone, config_with(tmp_path, layout, tables, sharding, model=model, **embedding)
            )
            for layout in LAYOUTS
        )
    )


@pytest.mark.parametrize(("tables", "sharding", "model", "embedding"), ON_TWO)
def test_bit_equal_on_two_ranks(tmp_path, pair, tables, sharding, model, embedding):
    assert_bit_equal(
        *(
            pair.run(
                train_share,
                config_with(tmp_path, layout, tables, sharding, model=model, **embedding),
            )[0]
            for layout in LAYOUTS
        )
    )


def assert_bit_equal(separate, fused):
    assert_moved(fused)
    assert_close(fused.before.tables, separate.before.tables, 0.0)
    assert_close(fused.after.tables, separate.after.tables, 0.0)
    assert_close(fused.after.dense, separate.after.dense, 0.0)
    assert torch.equal(fused.losses, separate.losses)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_width_is_the_same_however_it_is_given(tmp_path, alone, layout):
    one, other = (
        train_share(alone, config_with(tmp_path, layout, "adagrad", "table_wise", **given))
        for given in ({"dim": DIM}, {"dim": 64, "dims": {"user": DIM, "[hit]*": DIM, "*": 12}})
    )
    assert_bit_equal(one, other)


@pytest.mark.parametrize(
    "sharding", ["row_wise", pytest.param("column_wise", marks=pytest.mark.slow)]
)
def test_balancing_of_parameters_is_that_of_separate_tables(tmp_path, pair, sharding):
    def config(layout):
        balance = {"rule": "mgda", "boundary": "parameters"}
        return config_with(tmp_path, layout, "adagrad", sharding, model=SOME, balance=balance)

    assert_bit_equal(*(pair.run(train_share, config(layout))[0] for layout in LAYOUTS))


def optimizer_state(session):
    """Every value of the tables' optimizers by parameter and name, gathered. Collective."""
    state = session.optimizers.state_dict()
    own = {
        (parameter.removeprefix("tables."), name): pieces_of(value)
        for part in state.values()
        for parameter, values in part["state"].items()
        if ".embedding_bags." in parameter
        for name, value in values.items()
    }
    found = {}
    for of_rank in gather(own, session.ranks):
        for key, pieces in of_rank.items():
            found.setdefault(key, {}).update(pieces)
    return found


def pieces_of(value):
    """By offset. Shards are told apart by where they lie, and the same in every layout."""
    if isinstance(value, ShardedTensor):
        return {tuple(s.metadata.shard_offsets): s.tensor.clone() for s in value.local_shards()}
    return {(): value.clone()}


def steps_of(ranks, first, last):
    steps = rows_of_steps()[first:last]
    if ranks.world_size == 1:
        return [batch_of(join_rows(parts)) for parts in steps]
    return share_of(steps, ranks.rank)


def train_save_train(ranks, config, folder):
    """Two steps, a checkpoint, two more; states and optimizer states after each two."""
    session = start(config, ranks)
    run_steps(session, steps_of(ranks, 0, 2))
    halfway = state_of(session), optimizer_state(session)
    saver = checkpoint.Saver(CheckpointConfig(on_error="stop"), folder, ranks)
    saver.save(checkpoint.Content(2, checkpoint.state_of(parts_of(session)), b"", {}))
    saver.wait()
    saver.close()
    run_steps(session, steps_of(ranks, 2, 4), taken=2)
    return halfway, (state_of(session), optimizer_state(session))


def load_train(ranks, config, folder):
    """A fresh model that loads it and makes the last two steps; the same."""
    session = start(config, ranks)
    load_checkpoint(folder / "step_2", session, ranks)
    halfway = state_of(session), optimizer_state(session)
    run_steps(session, steps_of(ranks, 2, 4), taken=2)
    return halfway, (state_of(session), optimizer_state(session))


def assert_same(one, other):
    (state, optimizers), (other_state, other_optimizers) = one, other
    assert_close(state.tables, other_state.tables, 0.0)
    assert_close(state.dense, other_state.dense, 0.0)
    assert optimizers.keys() == other_optimizers.keys()
    for key, pieces in optimizers.items():
        assert pieces.keys() == other_optimizers[key].keys(), key
        for place, values in pieces.items():
            assert torch.equal(values, other_optimizers[key][place]), (key, place)


@pytest.mark.parametrize(
    ("tables", "sharding", "layouts", "dims"),
    [
        ("adagrad", "table_wise", ("separate", "fused"), {}),
        ("adagrad", "row_wise", ("fused", "separate"), {}),
        ("adagrad", "row_wise", ("separate", "fused"), MIXED),
        ("adam", "row_wise", ("separate", "fused"), {}),
        ("adam", "data_parallel", ("fused", "separate"), {}),
        ("rowwise_adagrad", "row_wise", ("fused", "fused"), {}),
        ("rowwise_adagrad", "column_wise", ("fused", "fused"), {}),
        ("rowwise_adagrad", "column_wise", ("fused", "fused"), MIXED),
        ("rowwise_adagrad", "data_parallel", ("fused", "fused"), {}),
    ],
)
def test_a_checkpoint_goes_on_bit_equal(tmp_path, pair, tables, sharding, layouts, dims):
    saving, loading = (
        config_with(tmp_path, layout, tables, sharding, model=SOME, seed=seed, **dims)
        for layout, seed in zip(layouts, (3, 4), strict=True)  # nothing is there by chance
    )
    saved = pair.run(train_save_train, saving, tmp_path / "saved")[0]
    loaded = pair.run(load_train, loading, tmp_path / "saved")[0]
    for one, other in zip(saved, loaded, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise"])
def test_row_wise_accumulators_of_owners_become_their_mean(tmp_path, pair, alone, sharding):
    """And the other way: every owner of a row has the row's. Ranks and plan may change, too."""
    separate = config_with(tmp_path, "separate", "rowwise_adagrad", "row_wise")
    fused = config_with(tmp_path, "fused", "rowwise_adagrad", sharding, seed=4)
    (state, of_owners), _ = pair.run(train_save_train, separate, tmp_path / "separate")[0]
    (loaded, of_rows), _ = load_train(alone, fused, tmp_path / "separate")
    assert_close(loaded.tables, state.tables, 0.0)
    for feature in ("user", "item", "tags", "hour"):
        accumulators = by_owner(of_owners, feature)
        assert len({owner.sum().item() for owner in accumulators.values()}) == 4
        mean = torch.stack(list(accumulators.values())).double().mean(0).float()
        expected = dict.fromkeys(accumulators, mean) if sharding == "table_wise" else accumulators
        for owner, values in by_owner(of_rows, feature).items():
            assert torch.equal(values, expected[owner])

    (state, of_rows), _ = train_save_train(alone, fused, tmp_path / "fused")
    (loaded, of_owners), _ = pair.run(load_train, separate, tmp_path / "fused")[0]
    assert_close(loaded.tables, state.tables, 0.0)
    for feature in ("user", "item", "tags", "hour"):
        expected = by_owner(of_rows, feature)
        for owner, values in by_owner(of_owners, feature).items():
            assert torch.equal(values, expected[owner])


def by_owner(optimizers, feature):
    """Each owner's whole accumulator of a feature's rows."""
    return {
        parameter.rsplit(".", 2)[1].split("__")[0]: torch.cat(
            [values for _, values in sorted(pieces.items())]
        )
        for (parameter, _), pieces in optimizers.items()
        if parameter.endswith(f"__{feature}.weight")
    }


def test_a_row_wise_accumulator_is_the_mean_square_over_all_owners(tmp_path, alone):
    """One step from the same tables: it is the mean of what the owners' own would be."""

    def state_after_one_step(layout):
        session = start(config_with(tmp_path, layout, "rowwise_adagrad", "table_wise"), alone)
        run_steps(session, steps_of(alone, 0, 1))
        return optimizer_state(session)

    separate, fused = (state_after_one_step(layout) for layout in LAYOUTS)
    own = torch.stack(list(by_owner(separate, "user").values()))
    for values in by_owner(fused, "user").values():
        torch.testing.assert_close(values, own.mean(0))
    assert not np.allclose(own, own.mean(0))


def test_cached_rows_are_not_written_over_loaded_ones(tmp_path, alone, monkeypatch):
    """They go with the values that are replaced, before anything could write them back."""
    session = start(config_with(tmp_path, "fused", "sgd", "table_wise"), alone)
    state, calls = session.model.state_dict(), []
    for lookup in session.recommender.embeddings.tables._lookups:
        for name in ("purge", "flush"):
            monkeypatch.setattr(lookup, name, lambda name=name: calls.append(name))
    session.model.load_state_dict(state)
    assert "flush" in calls
    assert calls[0] == "purge"
