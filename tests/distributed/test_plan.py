"""Plans for machines that are not here, under the config's constraints."""

import numpy as np
import pytest
import torch

from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.distributed.constraints import Free, World, choices, constraints
from stem_torchrec.distributed.parallel import sharder_for
from stem_torchrec.distributed.plan import make_plan
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.distributed.table_options import TableOptions
from stem_torchrec.errors import UserError
from tests.support.steps import config_of

SCHEMA = Schema(
    features=(
        Feature(name="user", kind="id", num_embeddings=100_000),
        Feature(name="item", kind="id", num_embeddings=20_000),
        Feature(name="hour", kind="id", num_embeddings=24),
    ),
    tasks=(Task(name="click"), Task(name="like")),
)
TABLES = {
    f"{owner}__{feature.name}": feature.num_embeddings
    for owner in ("shared", "click", "like")
    for feature in SCHEMA.features
}
ONE_NODE = World(8, 8, "cuda")
SHARDINGS = ["table_wise", "column_wise", "row_wise", "table_row_wise", "data_parallel"]


def planned(folder, world, *, features=SCHEMA, **sections):
    sections.setdefault("embedding", {"dim": 16})
    distributed = {"device": "cpu"} | sections.pop("distributed", {})
    config = config_of(folder, features, distributed=distributed, **sections)
    with torch.device("meta"):
        module = Recommender(config, features, world.size)
    return make_plan(config, module, world, sharder_for(config, world))


def by_table(found):
    (tables,) = found.plan.plan.values()
    return dict(tables.items())


def shards_of(found, table):
    return by_table(found)[table].sharding_spec.shards


def ranks_of(found, table):
    return [shard.placement.rank() for shard in shards_of(found, table)]


def sharding_of(folder, rows, world, sharding="row_wise"):
    """What a table of some rows gets where row shards are asked for."""
    config = config_of(folder, SCHEMA, distributed={"sharding": sharding})
    (found, *_) = choices(config.distributed, {"t": rows}, world)
    return found["t"].sharding_types


@pytest.mark.parametrize(
    ("rows", "ranks", "divided"),
    [
        *((1, 1, True), (1, 2, False), (2, 2, True), (3, 4, False), (4, 4, True), (5, 4, False)),
        *((6, 4, False), (7, 4, True), (1000, 64, False), (1009, 64, True)),
    ],
)
def test_row_shards_leave_no_rank_without_a_row(tmp_path, rows, ranks, divided):
    expected = "row_wise" if divided else "table_wise"
    assert sharding_of(tmp_path, rows, World(ranks, ranks, "cpu")) == [expected]
    expected = "table_row_wise" if divided else "table_wise"
    node = World(2 * ranks, ranks, "cuda")
    assert sharding_of(tmp_path, rows, node, "table_row_wise") == [expected]


@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching"])
@pytest.mark.parametrize("key", ["kernel", "tables"])
def test_a_kernel_that_the_device_does_not_have_is_the_users_error(tmp_path, kernel, key):
    value = kernel if key == "kernel" else {"*__user": {"kernel": [kernel]}}
    distributed = {key: value, "sharding": "row_wise"}
    message = rf"distributed\.{key}: table 'shared__user'.*{kernel}.*cpu ranks.*they have fused$"
    with pytest.raises(UserError, match=message):
        planned(tmp_path, World(2, 2, "cpu"), distributed=distributed)
    assert kernel in planned(tmp_path, ONE_NODE, distributed=distributed).report


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_dense_kernel_is_that_of_data_parallel_tables(tmp_path, device):
    found = planned(tmp_path, World(2, 2, device), distributed={"kernel": "dense"})
    assert {p.sharding_type for p in by_table(found).values()} == {"data_parallel"}


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


@pytest.mark.parametrize(
    ("least", "columns"), [(None, [16, 16, 16]), (8, [16, 16, 16]), (20, [48]), (64, [48])]
)
def test_column_shards_of_a_wide_table_hold_whole_owners(tmp_path, least, columns):
    constraint = {"sharding": ["column_wise"], "min_partition": least}
    found = planned(
        tmp_path,
        ONE_NODE,
        embedding={"dim": 16, "layout": "fused"},
        distributed={"sharding": "table_wise", "tables": {"*__user": constraint}},
    )
    assert sorted(by_table(found)) == sorted(f"shared+2__{f.name}" for f in SCHEMA.sparse)
    assert [s.shard_sizes[1] for s in shards_of(found, "shared+2__user")] == columns


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
    rows = [line.split() for line in found.report.split("Memory per rank")[1].splitlines()[3:-1]]
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


def many_tables(seed=0, sizes=(1e3, 1e7), number=20):
    """Three owners' tables of features of any size."""
    generator = np.random.default_rng(seed)
    rows = np.exp(generator.uniform(*np.log(sizes), number)).astype(int)
    features = (Feature(name=f"f{i}", kind="id", num_embeddings=int(n)) for i, n in enumerate(rows))
    return SCHEMA.model_copy(update={"features": tuple(features)})


def device_loads(found):
    lines = found.report.split("Memory per rank")[1].splitlines()[3:-1]
    return np.array([float(line.split()[2]) for line in lines])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("world", [ONE_NODE, World(16, 4, "cuda")], ids=str)
def test_every_row_lies_once_and_memory_is_even(tmp_path, world, seed):
    schema = many_tables(seed)
    found = planned(tmp_path, world, features=schema)
    rows = {feature.name: feature.num_embeddings for feature in schema.features}
    assert len(by_table(found)) == 3 * len(rows)
    kinds = set()
    for name, sharding in by_table(found).items():
        kinds.add(sharding.sharding_type)
        cover = sorted((*s.shard_offsets, *s.shard_sizes) for s in shards_of(found, name))
        assert all((first_column, dim) == (0, 16) for _, first_column, _, dim in cover)
        ends = [first + size for first, _, size, _ in cover]
        assert [first for first, *_ in cover] == [0, *ends[:-1]]
        assert ends[-1] == rows[name.split("__")[1]]
        assert ranks_of(found, name) == sharding.ranks
    assert "table_wise" in kinds  # nor is all divided
    loads = device_loads(found)
    assert len(loads) == world.size
    assert loads.max() / loads.mean() == pytest.approx(found.balance.memory, abs=0.01)
    assert found.balance.memory <= 1.2
    assert planned(tmp_path, world, features=schema).report == found.report


def test_what_is_left_over_is_divided_table_by_table(tmp_path):
    """Nine equal tables on eight ranks: eight whole, one on all."""
    schema = many_tables(sizes=(1e6, 1e6), number=3)
    found = planned(tmp_path, ONE_NODE, features=schema)
    kinds = [sharding.sharding_type for sharding in by_table(found).values()]
    assert sorted(kinds) == ["row_wise", *["table_wise"] * 8]
    assert found.balance.memory <= 1.2


def test_one_gpu_has_whole_tables(tmp_path):
    found = planned(tmp_path, World(1, 1, "cuda"), features=many_tables())
    assert {p.sharding_type for p in by_table(found).values()} == {"table_wise"}


def test_tables_that_do_not_fit_the_devices_go_to_the_host(tmp_path):
    schema = many_tables(sizes=(1e6, 1e7))
    limits = {"hbm_gib": 1.5, "host_gib": 16.0}
    found = planned(tmp_path, ONE_NODE, features=schema, distributed=limits)
    kernels = {p.compute_kernel for p in by_table(found).values()}
    assert kernels == {"fused", "fused_uvm_caching"}
    assert device_loads(found).max() <= 1.5 * 0.85


def test_equal_tables_are_estimated_once(tmp_path, monkeypatch):
    seen = []
    estimate = TableOptions._options

    def counted(self, by_name, sharding):
        seen.extend((name, sharding) for name in by_name)
        return estimate(self, by_name, sharding)

    monkeypatch.setattr(TableOptions, "_options", counted)
    planned(tmp_path, ONE_NODE)
    assert len([name for name, sharding in seen if sharding == "table_wise"]) == 3
    assert len(seen) == len(set(seen))


def test_whole_tables_on_cpu_ranks(tmp_path):
    found = planned(tmp_path, World(4, 4, "cpu"))
    assert {p.sharding_type for p in by_table(found).values()} == {"table_wise"}


def test_the_first_pattern_that_matches_counts(tmp_path):
    config = config_of(
        tmp_path,
        SCHEMA,
        distributed={
            "tables": {"like__*": {"sharding": ["row_wise"]}, "*": {"sharding": ["table_wise"]}}
        },
    )
    free = Free(("data_parallel",), None)
    found = constraints(config.distributed, TABLES, free, ONE_NODE)
    chosen = {name: constraint.sharding_types for name, constraint in found.items()}
    assert chosen == {
        name: ["row_wise" if name.startswith("like") else "table_wise"] for name in TABLES
    }


def test_lowered_tables_take_half_the_memory_and_stay_fused(tmp_path):
    world = World(1, 1, "cuda")
    gib = {}
    for precision in ("fp32", "fp16"):
        found = planned(tmp_path, world, embedding={"dim": 128, "precision": precision})
        assert precision == "fp32" or "data_parallel" not in found.report
        *_, rank_0, _ratio = found.report.splitlines()
        gib[precision] = float(rank_0.split()[1])
    assert gib["fp16"] == pytest.approx(gib["fp32"] / 2, abs=0.001)
    with pytest.raises(UserError, match=r"embedding\.precision: 'bf16', for which"):
        planned(tmp_path, World(2, 2, "cpu"), embedding={"precision": "bf16"})
