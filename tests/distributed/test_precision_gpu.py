"""Each precision on a GPU beside float32 on the CPU, to stated bounds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec.balancing.gradients import inner_products
from stem_torchrec.config import Config
from stem_torchrec.distributed.precision import DensePrecision
from stem_torchrec.distributed.ranks import ranks_of_job
from tests.distributed.test_checkpoint import (
    batches,
    load_for_evaluation,
    rows_of_steps,
    train_save_train,
)
from tests.distributed.test_precision import (
    BOUNDARIES,
    grams_and_losses,
    lowered,
    small_steps,
    train_lowered,
)
from tests.support.steps import Trained, assert_close, train_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # FBGEMM and NCCL speak at their start.
    pytest.mark.filterwarnings("default"),
]

DENSE_BOUNDS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
"""Of losses, in nats; tables and weights, whose rates are large here, may differ by five times."""
GRAM_BOUNDS = {"tf32": 0.03, "bf16": 0.15}
"""Of the largest inner product of gradients that have come through four layers' products."""
TABLE_BOUND = 0.015
"""Of float16 values up to 1.5 after six steps, each of which may round by one in the last place."""


def with_device(config: Config, device: str) -> Config:
    distributed = config.distributed.model_copy(update={"device": device})
    return config.model_copy(update={"distributed": distributed})


def on(device: str, function: Any, config: Config, *arguments: Any) -> Any:
    """``function(ranks, config, ...)`` in a job of one rank on a device."""
    config = with_device(config, device)
    with ranks_of_job(config.distributed) as ranks:
        return function(ranks, config, *arguments)


def train_all(ranks: Any, config: Config) -> Trained:
    return train_on(ranks, config, batches(ranks, rows_of_steps()))


@pytest.mark.parametrize("dense", DENSE_BOUNDS)
def test_the_dense_part(tmp_path: Path, dense: str) -> None:
    exact = on("cpu", train_all, lowered(tmp_path))
    found = on("cuda", train_all, lowered(tmp_path, dense))
    bound = DENSE_BOUNDS[dense]
    torch.testing.assert_close(found.losses.cpu(), exact.losses, rtol=0, atol=bound)
    assert_close(found.after.tables, exact.after.tables, 5 * bound)
    assert_close(found.after.dense, exact.after.dense, 5 * bound)


@pytest.mark.parametrize(("boundary", "gram_rows"), BOUNDARIES)
@pytest.mark.parametrize("dense", GRAM_BOUNDS)
def test_gram_matrices(tmp_path: Path, dense: str, boundary: str, gram_rows: int | None) -> None:
    balance = {"rule": "multi_balance", "boundary": boundary, "gram_rows": gram_rows}
    exact, _ = on("cpu", grams_and_losses, lowered(tmp_path, balance=balance))
    found, _ = on("cuda", grams_and_losses, lowered(tmp_path, dense, balance=balance))
    assert found[0].dtype == torch.float32
    atol = GRAM_BOUNDS[dense] * float(exact[0].max())
    torch.testing.assert_close(found[0].cpu(), exact[0], rtol=0, atol=atol)


def test_products_are_tf32_but_for_gram_matrices() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(3, 4096, device="cuda")
    wide = torch.randn(512, 512, device="cuda")
    exact = (wide.double() @ wide.double()).float()
    with DensePrecision("tf32", "cuda").products():
        rounded = (wide @ wide - exact).abs().max() / exact.abs().max()
        gram = inner_products(gradients)
    assert 1e-5 < rounded < 1e-2
    expected = (gradients.double() @ gradients.double().t()).float()
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("kernel", ["fused", "fused_uvm_caching"])
def test_tables(tmp_path: Path, kernel: str, optimizer: str) -> None:
    rate = {"sgd": 20.0}.get(optimizer, 0.02)
    embedding = {"optimizer": optimizer, "lr": rate, "eps": 1e-3}
    distributed = {"sharding": "table_wise", "kernel": kernel}
    found = {
        precision: on(
            "cuda",
            train_lowered,
            lowered(tmp_path, tables=precision, embedding=embedding, distributed=dict(distributed)),
        )
        for precision in ("fp32", "fp16")
    }
    _, exact, losses, _ = found["fp32"]
    _, after, other_losses, types = found["fp16"]
    assert types == {torch.float16}
    assert_close(after.tables, exact.tables, TABLE_BOUND)
    torch.testing.assert_close(other_losses, losses, rtol=0, atol=TABLE_BOUND)


def test_rounding_is_stochastic(tmp_path: Path) -> None:
    """Steps that rounding to the nearest loses, see the CPU's test, are kept in the mean."""
    slow = {"lr": 0.05}
    assert on("cuda", small_steps, lowered(tmp_path, tables="fp16", embedding=slow)) >= 2.0**-12


def test_float16_tables_of_a_gpu_are_read_on_a_cpu(tmp_path: Path) -> None:
    saved = lowered(tmp_path, "bf16", "fp16")
    halfway, _ = on("cuda", train_save_train, saved, tmp_path / "saved")
    found = on("cpu", load_for_evaluation, lowered(tmp_path), tmp_path / "saved")
    assert_close(found.tables, halfway.tables, 0.0)
