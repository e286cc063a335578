"""Lower precision of the dense part, of tables, and between ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stem_torchrec.checkpoint.initial import load_initial
from stem_torchrec.checkpoint.matching import Initial
from stem_torchrec.config import Config
from stem_torchrec.distributed.memory_need import check_memory
from stem_torchrec.distributed.precision import (
    DensePrecision,
    check_precision,
    comm_codecs,
    dense_precision,
)
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.distributed.tables import local_shards
from stem_torchrec.errors import UserError
from tests.distributed.processes import Processes
from tests.distributed.test_checkpoint import batches, load_train, rows_of_steps, train_save_train
from tests.support.steps import (
    SCHEMA,
    State,
    assert_close,
    config_of,
    largest_difference,
    run_steps,
    start,
    state_of,
    train_on,
)

BOUNDARIES = [
    *(("pooled", 4), ("pooled", None), ("experts", None)),
    *(("parameters", None), ("dense_parameters", None)),
]
"""With the rows that the Gram matrix is of."""
SHARDINGS = ["table_wise", "row_wise", "column_wise", "table_row_wise"]
HALF_ULP = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""What rounding to a precision changes at most, relative."""


def lowered(folder: Path, dense: str = "fp32", tables: str = "fp32", **sections: Any) -> Config:
    """A small config with SGD, whose numbers do not jump where a gradient changes its sign."""
    embedding = {"precision": tables, "optimizer": "sgd", "lr": 5.0, "eps": 1e-4}
    return config_of(
        folder,
        embedding=embedding | sections.pop("embedding", {}),
        optim={"optimizer": "sgd", "lr": 0.1},
        train={"precision": dense} | sections.pop("train", {}),
        **sections,
    )


def _seen(function: Any, grams: list[Tensor]) -> Any:
    def call(gram: Tensor, *rest: Any) -> Any:
        grams.append(gram.clone())
        return function(gram, *rest)

    return call


def grams_and_losses(ranks: Any, config: Config) -> tuple[list[Tensor], Tensor]:
    """The Gram matrix that the rule gets in each step, with the losses."""
    session = start(config, ranks)
    fork, grams = session.fork, []
    assert fork is not None
    for name in ("set_from", "set_from_ranks"):
        setattr(fork, name, _seen(getattr(fork, name), grams))
    return grams, run_steps(session, batches(ranks, rows_of_steps()))


@pytest.mark.parametrize(("boundary", "gram_rows"), BOUNDARIES)
def test_balancing_is_float32_under_autocast(
    tmp_path: Path, alone: Any, boundary: str, gram_rows: int | None
) -> None:
    balance = {"rule": "multi_balance", "boundary": boundary, "gram_rows": gram_rows}
    (exact, _), (found, _) = (
        grams_and_losses(alone, lowered(tmp_path, train, balance=balance))
        for train in ("fp32", "bf16")
    )
    assert all(gram.dtype == torch.float32 for gram in found)
    # Of the first step: later weights are other ones.
    torch.testing.assert_close(found[0], exact[0], rtol=0, atol=0.03 * float(exact[0].max()))
    assert not torch.equal(found[0], exact[0])


@pytest.mark.parametrize("layers", [1, 2])
def test_autocast_is_of_the_dense_part_alone(tmp_path: Path, alone: Any, layers: int) -> None:
    model = {"layers": layers}
    steps = batches(alone, rows_of_steps())
    trained = {
        train: train_on(alone, lowered(tmp_path, train, model=model), steps)
        for train in ("fp32", "bf16")
    }
    exact, found = trained["fp32"], trained["bf16"]
    assert all(value.dtype == torch.float32 for value in found.after.dense.values())
    assert found.losses.dtype == torch.float32
    assert not torch.equal(found.losses, exact.losses)
    torch.testing.assert_close(found.losses, exact.losses, rtol=0, atol=0.01)
    assert_close(found.after.tables, exact.after.tables, 0.05)


def inner_types(session: Any, batch: Any) -> set[torch.dtype]:
    """Types of what the experts' layers make, in training and in prediction."""
    found: set[torch.dtype] = set()
    hooks = [
        part.register_forward_hook(lambda part, inputs, output: found.add(output.dtype))
        for name, part in session.recommender.model.named_modules()
        if "experts.hidden" in name and not isinstance(part, nn.ModuleList)
    ]
    session.step(iter([batch]))
    ((_, logits),) = session.step.predict(iter([batch]))
    for hook in hooks:
        hook.remove()
    assert logits.dtype == torch.float32
    return found


def test_experts_compute_in_bfloat16_in_training_and_prediction(tmp_path: Path, alone: Any) -> None:
    batch = batches(alone, rows_of_steps())[0]
    for train, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        session = start(lowered(tmp_path, train), alone)
        assert inner_types(session, batch) == {expected}


def test_a_process_keeps_its_setting_of_products(tmp_path: Path, alone: Any) -> None:
    session = start(lowered(tmp_path), alone)
    inside: list[str] = []
    hook = session.recommender.model.register_forward_hook(
        lambda *_: inside.append(torch.get_float32_matmul_precision())
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        session.step(iter(batches(alone, rows_of_steps()[:1])))
        list(session.step.predict(iter(batches(alone, rows_of_steps()[:1]))))
        assert torch.get_float32_matmul_precision() == "medium"
        with DensePrecision("tf32", "cuda").products():
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
        hook.remove()
    assert inside == ["highest", "highest"]


@pytest.mark.parametrize(
    ("wanted", "device", "name"),
    [
        ("auto", "cpu", "fp32"),
        ("auto", "cuda", "tf32"),
        ("tf32", "cpu", "fp32"),
        ("bf16", "cpu", "bf16"),
        ("fp32", "cuda", "fp32"),
    ],
)
def test_precision_of_a_device(wanted: str, device: str, name: str) -> None:
    assert dense_precision(wanted, device) == DensePrecision(name, device)


@pytest.mark.parametrize(
    ("device", "sections", "message"),
    [
        ("cpu", {"embedding": {"precision": "bf16"}}, r"embedding\.precision: 'bf16', for which"),
        ("cuda", {"embedding": {"precision": "bf16"}}, r"embedding\.precision: 'bf16', for which"),
        *(
            (
                device,
                {"embedding": {"precision": "fp16", "optimizer": "adam"}},
                r"embedding\.precision: 'fp16' with embedding\.optimizer adam",
            )
            for device in ("cpu", "cuda")
        ),
        (
            "cuda",
            {"embedding": {"precision": "fp16"}, "distributed": {"sharding": "data_parallel"}},
            r"'fp16' with distributed\.sharding data_parallel",
        ),
        (
            "cuda",
            {
                "embedding": {"precision": "fp16"},
                "distributed": {"tables": {"*__user": {"kernel": ["dense"]}}},
            },
            r"'fp16' with distributed\.tables\.\*__user dense",
        ),
        (
            "cpu",
            {"distributed": {"comm_precision": "bf16"}},
            r"distributed\.comm_precision: 'bf16'",
        ),
        ("cuda", {"embedding": {"precision": "fp16"}}, None),
        ("cuda", {"distributed": {"comm_precision": "bf16"}}, None),
        ("cpu", {"embedding": {"precision": "fp16"}}, None),
    ],
)
def test_what_a_device_does_not_have(
    tmp_path: Path, device: str, sections: Any, message: str | None
) -> None:
    config = config_of(tmp_path, **sections)
    if message is None:
        check_precision(config, device)
        return
    with pytest.raises(UserError, match=message + ".*; allowed: fp32"):
        check_precision(config, device)


def test_tables_of_half_the_size_need_half_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = "stem_torchrec.distributed.memory_need.host_memory_bytes"
    for tables, num_bytes in (("fp32", 4), ("fp16", 2)):
        config = lowered(tmp_path, tables=tables, embedding={"optimizer": "adagrad"})
        with torch.device("meta"):
            recommender = Recommender(config, SCHEMA)
        values = sum(table.numel() for table in recommender.embeddings.parameters())
        dense = sum(weight.numel() for weight in recommender.model.parameters())
        need = values * (num_bytes + 4) + dense * 8
        monkeypatch.setattr(room, lambda need=need: need)
        check_memory(config, recommender, 1)
        monkeypatch.setattr(room, lambda need=need: need - 1)
        with pytest.raises(UserError, match="GiB"):
            check_memory(config, recommender, 1)


def train_lowered(ranks: Any, config: Config) -> tuple[State, State, Tensor, set[torch.dtype]]:
    """Tables before and after, losses, and the types of the tables and their optimizers' states."""
    session = start(config, ranks)
    before = state_of(session)
    losses = run_steps(session, batches(ranks, rows_of_steps()))
    states = {
        shard.tensor.dtype
        for values in session.optimizers.fused.state_dict()["state"].values()
        for value in values.values()
        for shard in value.local_shards()
    }
    assert states <= {torch.float32}
    return before, state_of(session), losses, {s.values.dtype for s in local_shards(session.model)}


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_float16_tables_train_as_float32_ones(
    tmp_path: Path, alone: Any, pair: Processes, sharding: str, optimizer: str
) -> None:
    """Clipping and decay, which are of the pooled features, included."""
    if (sharding, optimizer) == ("column_wise", "rowwise_adagrad"):
        pytest.skip("each column shard of a row has an accumulator of its own there")
    rate = {"sgd": 20.0, "adagrad": 0.02, "rowwise_adagrad": 0.02}[optimizer]
    embedding = {"optimizer": optimizer, "lr": rate, "weight_decay": 1e-3, "max_gradient": 0.01}
    config = {
        tables: lowered(
            tmp_path, tables=tables, embedding=embedding, distributed={"sharding": sharding}
        )
        for tables in ("fp32", "fp16")
    }
    exact = train_lowered(alone, config["fp32"])
    before, after, losses, types = pair.run(train_lowered, config["fp16"])[0]
    assert types == {torch.float16}
    rounded = {name: values.half().float() for name, values in exact[0].tables.items()}
    assert_close(before.tables, rounded, 0.0)
    assert min(largest_difference(before.tables, after.tables).values()) > 0.01
    # Adagrad divides by what a sum of squares is at first: rounding counts for more.
    assert_close(after.tables, exact[1].tables, 0.003 if optimizer == "sgd" else 0.01)
    torch.testing.assert_close(losses, exact[2], rtol=0, atol=1e-3)


def small_steps(ranks: Any, config: Config) -> float:
    """The largest change of values above 1/4, whose last place in float16 is 2^-12 or more."""
    before, after, _, _ = train_lowered(ranks, config)
    changes = [
        (after.tables[name] - values)[values.abs() > 0.25].abs().max()
        for name, values in before.tables.items()
    ]
    return float(max(changes))


def test_a_cpu_rounds_tables_to_the_nearest(tmp_path: Path, alone: Any) -> None:
    """Steps of less than half of the last place are lost there; a GPU rounds at random."""
    slow = {"lr": 0.05}
    assert 0 < small_steps(alone, lowered(tmp_path, embedding=slow)) < 2.0**-13
    assert small_steps(alone, lowered(tmp_path, tables="fp16", embedding=slow)) == 0


def pooled_of(ranks: Any, config: Config) -> tuple[dict[str, Tensor], Tensor]:
    session = start(config, ranks)
    steps = batches(ranks, rows_of_steps())
    with torch.no_grad():
        pooled = session.recommender.embeddings(steps[0].sparse)
    return pooled, run_steps(session, steps)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_float16_between_ranks_rounds_and_no_more(
    tmp_path: Path, pair: Processes, sharding: str
) -> None:
    results = []
    for comm in ("fp32", "fp16"):
        distributed = {"sharding": sharding, "comm_precision": comm}
        results.append(pair.run(pooled_of, lowered(tmp_path, distributed=distributed)))
    for (exact, losses), (found, other_losses) in zip(*results, strict=True):
        for owner, values in exact.items():
            assert found[owner].dtype == torch.float32
            # Sums of two ranks' parts, each rounded; means of bags are made afterwards.
            bound = 2 * HALF_ULP["fp16"] * float(values.abs().max())
            torch.testing.assert_close(found[owner], values, rtol=0, atol=bound)
        assert any(not torch.equal(found[owner], exact[owner]) for owner in exact)
        assert not torch.equal(losses[-1], other_losses[-1])
        torch.testing.assert_close(other_losses, losses, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("comm", "device"), [("fp16", "cpu"), ("fp16", "cuda"), ("bf16", "cuda")])
def test_gradients_of_large_batches_survive_the_way(tmp_path: Path, comm: str, device: str) -> None:
    config = lowered(tmp_path, train={"batch_size": 60_000}, distributed={"comm_precision": comm})
    codecs = comm_codecs(config, device)
    assert codecs is not None
    torch.manual_seed(0)
    gradient = torch.randn(1000) / 60_000
    for codec in codecs.values():
        there = codec.backward.encode(gradient)
        assert there.element_size() == 2
        error = (codec.backward.decode(there) - gradient).abs()
        large = gradient.abs() > 1e-8
        assert (error / gradient.abs())[large].max() <= HALF_ULP[comm]


@pytest.mark.parametrize(("there", "here"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_checkpoint_of_another_precision_is_converted(
    tmp_path: Path,
    alone: Any,
    pair: Processes,
    caplog: pytest.LogCaptureFixture,
    there: str,
    here: str,
) -> None:
    embedding = {"optimizer": "adagrad", "lr": 0.02}
    distributed = {"sharding": "row_wise"}
    saved = lowered(tmp_path, tables=there, embedding=embedding, distributed=distributed)
    halfway, end = pair.run(train_save_train, saved, tmp_path / "saved")[0]
    for ranks in ("one", "two"):
        config = lowered(tmp_path, tables=here, embedding=embedding, run={"seed": 4})
        loading = (load_train, config, tmp_path / "saved")
        loaded, loaded_end, _ = (
            pair.run(*loading)[0] if ranks == "two" else loading[0](alone, *loading[1:])
        )
        expected = halfway.tables
        if here == "fp16":
            expected = {name: values.half().float() for name, values in expected.items()}
        assert_close(loaded.tables, expected, 0.0)
        assert_close(loaded.dense, halfway.dense, 0.0)
        assert_close(loaded_end.tables, end.tables, 0.01)
    names = {"fp32": "float32", "fp16": "float16"}
    told = [record.getMessage() for record in caplog.records if "converted" in record.message]
    assert told == [f"{tmp_path / 'saved/step_3'}: tables of {names[there]} are converted to "
                    f"{names[here]}"]  # fmt: skip


def test_first_weights_of_another_precision(
    tmp_path: Path, alone: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.checkpoint.test_initial import save

    saved = save(alone, lowered(tmp_path / "old"))
    config = lowered(tmp_path / "new", tables="fp16", run={"seed": 4})
    session = start(config, alone)
    load_initial(session.model, config, session.schema, Initial(tmp_path / "old" / "run"), alone)
    rounded = {name: values.half().float() for name, values in saved.tables.items()}
    assert_close(state_of(session).tables, rounded, 0.0)
    assert [r.message for r in caplog.records if "float16" in r.message]
