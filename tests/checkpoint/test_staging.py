"""The copy on the host that a save in the background is written from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint.staging import HostCopy
from stem_torchrec.config import CheckpointConfig
from tests.checkpoint.test_save import content
from tests.distributed.processes import Processes
from tests.distributed.test_checkpoint import batches, config_with, rows_of_steps
from tests.support.steps import assert_close, config_of, load_checkpoint, run_steps, start, state_of


class PageLocked:
    """Stands in for CUDA's page-locked memory: tensors asked for as such say that they are."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.buffers: list[Tensor] = []
        self._empty = torch.empty
        patch.setattr(torch, "empty", self._allocate)
        patch.setattr(torch.Tensor, "is_pinned", lambda tensor, device=None: self._holds(tensor))

    def _allocate(self, *size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        buffer = self._empty(*size, **options)
        if pin_memory:
            self.buffers.append(buffer)
        return buffer

    def _holds(self, tensor: Tensor) -> bool:
        return any(tensor.data_ptr() == buffer.data_ptr() for buffer in self.buffers)


def sharded(state: Any) -> list[ShardedTensor]:
    if isinstance(state, dict):
        return [found for part in state.values() for found in sharded(part)]
    return [state] if isinstance(state, ShardedTensor) else []


def say_on_gpu(tensor: ShardedTensor, shards: slice = slice(None)) -> None:
    """Let a tensor's metadata be those of a table whose shards lie on GPUs."""
    for place in tensor.metadata().shards_metadata[shards]:
        place.placement._device = torch.device("cuda", place.placement.rank())


def save_page_locked(ranks: Any, config: Any, folder: Path) -> tuple[Any, int]:
    """A save whose shards are staged as those of GPUs; the state and the page-locked buffers."""
    session = start(config, ranks)
    run_steps(session, batches(ranks, rows_of_steps()[:2]))
    saved = content(session, 2)
    for tensor in sharded(saved.state):
        say_on_gpu(tensor)
    with pytest.MonkeyPatch.context() as patch:
        memory = PageLocked(patch)
        saver = checkpoint.Saver(CheckpointConfig(on_error="stop"), folder, ranks)
        saver.save(saved)
        saver.wait()
        saver.close()
    return state_of(session), len(memory.buffers)


def load_and_go_on(ranks: Any, config: Any, path: Path) -> Any:
    session = start(config, ranks)
    load_checkpoint(path, session, ranks)
    loaded = state_of(session)
    run_steps(session, batches(ranks, rows_of_steps()[2:]))
    return loaded, state_of(session)


def uninterrupted(ranks: Any, config: Any) -> Any:
    session = start(config, ranks)
    run_steps(session, batches(ranks, rows_of_steps()))
    return state_of(session)


@pytest.mark.parametrize(
    ("sharding", "tables"), [("row_wise", "rowwise_adagrad"), ("column_wise", "adam")]
)
def test_a_checkpoint_from_page_locked_memory_resumes_bit_equal(
    tmp_path: Path, pair: Processes, sharding: str, tables: str
) -> None:
    config = config_with(tmp_path, sharding, tables)
    outcomes = pair.run(save_page_locked, config, tmp_path / "saved")
    assert all(buffers > 0 for _, buffers in outcomes)
    loaded, ended = pair.run(load_and_go_on, config, tmp_path / "saved" / "step_2")[0]
    whole = pair.run(uninterrupted, config)[0]
    for one, other in ((loaded, outcomes[0][0]), (ended, whole)):
        assert_close(one.tables, other.tables, 0.0)
        assert_close(one.dense, other.dense, 0.0)


def staged(ranks: Any, config: Any, on_gpu: slice) -> tuple[bool, bool]:
    """Whether a table is staged in page-locked memory, and said to be, on this rank."""
    session = start(config, ranks)
    table = sharded(session.model.state_dict())[0]
    say_on_gpu(table, on_gpu)
    with pytest.MonkeyPatch.context() as patch:
        memory = PageLocked(patch)
        copied = HostCopy().stage({"table": table})["table"]
    return bool(memory.buffers), copied.metadata().tensor_properties.pin_memory


@pytest.mark.parametrize(
    ("on_gpu", "page_locked"), [(slice(None), True), (slice(1, None), False), (slice(0), False)]
)
def test_the_shards_of_all_ranks_agree(
    tmp_path: Path, pair: Processes, on_gpu: slice, page_locked: bool
) -> None:
    """Some shards on a GPU and some not, or none there: plain memory everywhere."""
    config = config_with(tmp_path, "row_wise", "sgd")
    assert pair.run(staged, config, on_gpu) == [(page_locked, page_locked)] * 2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of FBGEMM and torch
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adam"])
@pytest.mark.parametrize("kernel", ["fused", "fused_uvm_caching"])
@pytest.mark.parametrize("layout", ["separate", "fused"])
def test_a_checkpoint_from_a_gpu_resumes_bit_equal(
    tmp_path: Path, gpu: Any, layout: str, kernel: str, tables: str, asynchronous: bool
) -> None:
    config = config_of(
        tmp_path,
        embedding={"optimizer": tables, "lr": 0.02, "layout": layout},
        distributed={
            "device": "cuda",
            "sharding": "table_wise",
            "tables": {"*": {"kernel": [kernel]}},
        },
    )
    data = [batch.to(gpu.device) for batch in batches(gpu, rows_of_steps())]
    session = start(config, gpu)
    run_steps(session, data[:2])
    settings = CheckpointConfig(asynchronous=asynchronous, on_error="stop")
    saver = checkpoint.Saver(settings, tmp_path / "saved", gpu)
    saver.save(content(session, 2))
    saver.wait()
    saver.close()
    loaded = start(config, gpu)
    load_checkpoint(tmp_path / "saved" / "step_2", loaded, gpu)
    for steps in ([], data[2:3]):
        if steps:
            assert torch.equal(run_steps(session, steps, 2), run_steps(loaded, steps, 2))
        one, other = state_of(session), state_of(loaded)
        assert_close(one.tables, other.tables, 0.0)
        assert_close(one.dense, other.dense, 0.0)
