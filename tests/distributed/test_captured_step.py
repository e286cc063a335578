"""The dense step recorded and replayed, against the one that runs anew each time."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stem_torchrec.config import Config
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed import captured_step
from stem_torchrec.distributed.captured_step import CapturedStep, check_capture
from stem_torchrec.errors import UserError
from stem_torchrec.training.session import Session
from tests.support.steps import SCHEMA, batch_of, config_of, random_rows, start, state_of

# The third and the last but one have fewer rows than what is recorded.
ROWS = (8, 8, 5, 8, 8, 8, 8, 8, 8, 5, 8)
SETTINGS = [
    {},
    {"balance": {"rule": "multi_balance", "gram_every": 2}},
    {"balance": {"rule": "mgda", "boundary": "experts"}, "model": {"dropout": 0.0}},
]


IDS = SCHEMA.model_copy(update={"features": tuple(f for f in SCHEMA.features if f.kind != "bag")})
SCHEMAS = (SCHEMA, IDS)


def config_with(
    folder: Path, device: str, sections: dict[str, Any], schema: Schema = SCHEMA
) -> Config:
    distributed = {"device": device, "sharding": "table_wise"}
    return config_of(folder, schema, **sections, distributed=distributed)


def run(session: Session, schema: Schema = SCHEMA, spoiled: int = 7) -> list[Any]:
    """Losses, and what balancing keeps, of each step; one of the steps is left out."""
    found: list[Any] = []
    session.recommender.train()
    for step, num_rows in enumerate(ROWS):
        rows = random_rows(np.random.default_rng(step), num_rows, schema)
        if step == spoiled:
            rows.dense[0] = np.nan
            rows.labels[0] = 1.0
        session.optimizers.set_learning_rates(1.0 / (1 + step))
        if session.fork is not None:
            session.fork.begin(step)
        done = session.step(iter([batch_of(rows, schema).to(session.ranks.device)]))
        kept = deepcopy(session.fork.last_state()) if session.fork is not None else None
        buffers = [b.clone() for b in session.fork.buffers()] if session.fork is not None else []
        found.append((done.dense.losses.clone(), done.skipped.clone(), kept, buffers))
    return found


def same(found: list[Any], expected: list[Any]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert [bool(skipped) for _, skipped, _, _ in found] == [step == 7 for step in range(len(ROWS))]


class Rerun:
    """Stands in for a graph on a CPU: runs a function again, into the memory of the first run."""

    def __init__(self, session: Session) -> None:
        self._fork = session.fork
        self.recorded = self.replayed = 0

    def run(self, function: Any) -> Any:
        return function()

    def record(self, function: Any) -> Any:
        buffers = [] if self._fork is None else list(self._fork.buffers())
        before = [value.clone() for value in buffers]
        output = function()  # as it is recorded, nothing happens
        for value, old in zip(buffers, before, strict=True):
            value.copy_(old)
        memory = self._made(output)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            for kept, value in zip(memory, self._made(function()), strict=True):
                kept.copy_(value)

        return output, replay

    def _made(self, output: Any) -> list[Tensor]:
        """What a run of the function has made."""
        balanced = self._fork is not None and self._fork.is_due
        return tensors([output, self._fork.found if balanced else None])


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "values"):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("schema", SCHEMAS, ids=["bags", "ids"])
@pytest.mark.parametrize("sections", SETTINGS)
def test_what_is_replayed_is_what_would_run(
    tmp_path: Path,
    alone: Any,
    schema: Schema,
    sections: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captured_step, "WARM_UP_STEPS", 1)
    config = config_with(tmp_path, "cpu", sections, schema)
    plain, captured = start(config, alone), start(config, alone)
    rerun = Rerun(captured)
    captured.step._gradients = CapturedStep(captured.step._gradients, captured.fork, rerun)
    same(run(captured, schema), run(plain, schema))
    for one, other in zip(state_of(captured), state_of(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    due_or_not = 2 if "gram_every" in sections.get("balance", {}) else 1
    assert rerun.recorded == due_or_not
    assert rerun.replayed == ROWS.count(8) - due_or_not


def capture(folder: Path, device: str, **balance: Any) -> Config:
    sections = {"train": {"capture": "on"}, "balance": balance}
    return config_with(folder, device, sections)


@pytest.mark.parametrize(
    ("device", "balance", "reason"),
    [
        ("cpu", {}, "on a CPU"),
        ("cuda", {"rule": "mgda", "boundary": "parameters"}, "balance.boundary parameters"),
        ("cuda", {"rule": "pcgrad"}, "balance.rule pcgrad"),
    ],
)
def test_what_cannot_be_recorded(
    tmp_path: Path, device: str, balance: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=rf"train.capture: 'on' .*{reason}.*allowed: auto, off"):
        check_capture(capture(tmp_path, device, **balance), 3)


def test_what_can_be_recorded(tmp_path: Path) -> None:
    for balance in ({}, {"rule": "multi_balance"}, {"rule": "mgda", "boundary": "experts"}):
        check_capture(capture(tmp_path, "cuda", **balance), 3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of FBGEMM and torch
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("schema", SCHEMAS, ids=["bags", "ids"])
@pytest.mark.parametrize("sections", [*SETTINGS, {"model": {"dropout": 0.3}}])
def test_captured_equals_not_captured(
    tmp_path: Path, gpu: Any, schema: Schema, sections: dict[str, Any]
) -> None:
    found = []
    for capture in ("off", "on"):
        config = config_with(tmp_path, "cuda", sections | {"train": {"capture": capture}}, schema)
        session = start(config, gpu)
        torch.manual_seed(0)
        found.append((run(session, schema), state_of(session)))
    (plain, plain_state), (captured, captured_state) = found
    same(captured, plain)
    for one, other in zip(captured_state, plain_state, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
