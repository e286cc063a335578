"""Plans for machines that are not here, under the config's constraints."""

import pytest
import torch

from stem_torchrec.distributed.parallel import sharder_for
from stem_torchrec.distributed.plan import World, constraints, make_plan
from stem_torchrec.errors import UserError
from stem_torchrec.recommender import Recommender
from stem_torchrec.schema import Feature, Schema, Task
from tests.steps import config_of

SCHEMA = Schema(
    features=(
        Feature(name="user", kind="id", num_embeddings=100_000),
        Feature(name="item", kind="id", num_embeddings=20_000),
        Feature(name="hour", kind="id", num_embeddings=24),
    ),
    tasks=(Task(name="click"), Task(name="like")),
)
TABLES = [f"{o}__{f.name}" for o in ("shared", "click", "like") for f in SCHEMA.features]
ONE_NODE = World(8, 8, "cuda")
SHARDINGS = ["table_wise", "column_wise", "row_wise", "table_row_wise", "data_parallel"]


def planned(folder, world, *, features=SCHEMA, **sections):
    sections.setdefault("embedding", {"dim": 16})
    distributed = {"device": "cpu"} | sections.pop("distributed", {})
    config = config_of(folder, features, distributed=distributed, **sections)
    with torch.device("meta"):
        module = Recommender(config, features, world.size)
    return make_plan(config, module, world, sharder_for(config, world.device))


def by_table(found):
    (tables,) = found.plan.plan.values()
    return dict(tables.items())


def shards_of(found, table):
    return by_table(found)[table].sharding_spec.shards


def ranks_of(found, table):
    return [shard.placement.rank() for shard in shards_of(found, table)]


def test_a_plan_for_eight_gpus_is_made_on_a_cpu(tmp_path):
    found = planned(tmp_path, ONE_NODE)
    assert sorted(by_table(found)) == sorted(TABLES)
    for table in TABLES:
        parameter = by_table(found)[table]
        assert parameter.sharding_type in SHARDINGS
        assert set(parameter.ranks) <= set(range(8))
        assert table in found.report
    assert "8 cuda ranks" in found.report


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("world", [ONE_NODE, World(8, 4, "cuda"), World(2, 2, "cpu")], ids=str)
def test_one_sharding_type_for_all_tables(tmp_path, world, sharding):
    found = planned(tmp_path, world, distributed={"sharding": sharding})
    assert {p.sharding_type for p in by_table(found).values()} == {sharding}
    rows, columns = SCHEMA.features[0].num_embeddings, 16
    if sharding == "data_parallel":
        assert by_table(found)["shared__user"].ranks == list(range(world.size))
        return
    sizes = [shard.shard_sizes for shard in shards_of(found, "shared__user")]
    assert sum(r * c for r, c in sizes) == rows * columns
    if sharding == "table_wise":
        assert sizes == [[rows, columns]]
    if sharding == "row_wise":
        assert ranks_of(found, "shared__user") == list(range(world.size))
    if sharding == "column_wise":
        assert sizes == [[rows, 4]] * 4
    if sharding == "table_row_wise":  # all ranks of one node
        ranks = ranks_of(found, "shared__user")
        node = ranks[0] // world.per_node
        assert ranks == [node * world.per_node + i for i in range(world.per_node)]


def test_constraints_of_a_table_win_over_the_global_ones(tmp_path):
    found = planned(
        tmp_path,
        ONE_NODE,
        distributed={
            "sharding": "table_wise",
            "kernel": "fused",
            "tables": {
                "shared__user": {"sharding": ["row_wise"], "kernel": ["fused_uvm"]},
                "*__user": {"sharding": ["column_wise"], "min_partition": 8},
            },
        },
    )
    kinds = {name: (p.sharding_type, p.compute_kernel) for name, p in by_table(found).items()}
    expected = dict.fromkeys(TABLES, ("table_wise", "fused"))
    expected |= dict.fromkeys(("click__user", "like__user"), ("column_wise", "fused"))
    assert kinds == expected | {"shared__user": ("row_wise", "fused_uvm")}
    assert [s.shard_sizes[1] for s in shards_of(found, "like__user")] == [8, 8]


def test_a_kernel_for_all_tables(tmp_path):
    found = planned(tmp_path, ONE_NODE, distributed={"kernel": "fused_uvm_caching"})
    assert {p.compute_kernel for p in by_table(found).values()} == {"fused_uvm_caching"}


def test_a_pattern_that_matches_no_table_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"distributed\.tables: 'buy__\*' matches no table.*like__"):
        planned(tmp_path, ONE_NODE, distributed={"tables": {"buy__*": {"sharding": ["row_wise"]}}})


def test_too_little_memory_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"no sharding plan fits.*8 cuda ranks, hbm_gib 0\.001"):
        planned(tmp_path, ONE_NODE, distributed={"hbm_gib": 0.001, "host_gib": 0.001})


def test_memory_limits_bound_every_rank(tmp_path):
    """A table that is too large for one rank is divided."""
    schema = SCHEMA.model_copy(
        update={"features": (Feature(name="user", kind="id", num_embeddings=40_000_000),)}
    )
    found = planned(
        tmp_path, ONE_NODE, features=schema, distributed={"hbm_gib": 2.0, "host_gib": 0.1}
    )
    rows = [line.split() for line in found.report.split("Memory per rank")[1].splitlines()[3:]]
    assert [row[0] for row in rows] == [str(rank) for rank in range(8)]
    assert all(float(device) <= 2.0 for _, _, device, _ in rows)
    tables_gib = 3 * 40_000_000 * 16 * 4 / 1024**3
    assert sum(float(tables) for _, tables, _, _ in rows) == pytest.approx(tables_gib, rel=0.01)


@pytest.mark.parametrize(
    ("optimizer", "device", "kernel"),
    [("adam", "cpu", "dense"), ("adam", "cuda", "fused"), ("adagrad", "cpu", "fused")],
)
def test_adam_on_cpu_has_the_dense_kernel(tmp_path, optimizer, device, kernel):
    found = planned(
        tmp_path,
        World(2, 2, device),
        embedding={"dim": 16, "optimizer": optimizer},
        distributed={"sharding": "row_wise"},
    )
    assert {p.compute_kernel for p in by_table(found).values()} == {kernel}


def test_whole_tables_on_cpu_ranks(tmp_path):
    found = planned(tmp_path, World(4, 4, "cpu"))
    assert {p.sharding_type for p in by_table(found).values()} == {"table_wise"}


def test_the_first_pattern_that_matches_counts(tmp_path):
    from stem_torchrec.distributed.plan import Free

    config = config_of(
        tmp_path,
        SCHEMA,
        distributed={
            "tables": {"like__*": {"sharding": ["row_wise"]}, "*": {"sharding": ["table_wise"]}}
        },
    )
    free = Free(("data_parallel",), None)
    found = constraints(config.distributed, TABLES, free)
    chosen = {name: constraint.sharding_types for name, constraint in found.items()}
    assert chosen == {
        name: ["row_wise" if name.startswith("like") else "table_wise"] for name in TABLES
    }
