"""Between two records nothing reads a number of a step: on a GPU the host would wait for it."""

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stem_torchrec
from stem_torchrec.config.reading import load_config
from stem_torchrec.distributed.dense_step import DenseOutput
from stem_torchrec.runs.schema import schema_of_new
from stem_torchrec.training.session import build
from stem_torchrec.training.trainer import Trainer
from tests.support.prepared import small_config, small_data

PACKAGES = ("stem_torchrec", "torchrec", "fbgemm_gpu", "torch")
# They look at what is on the host: a CPU's tensors, and a copy that has arrived.
ON_THE_HOST = {"taking_part", "known_unset", "OnTheWay.is_set"}
METHODS = {
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.nonzero, Tensor.unique, Tensor.numpy, torch.nonzero, torch.unique),
}
OPERATIONS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "equal"}


class Reads:
    """Where this package reads a tensor's numbers, while ``on``: function -> times."""

    def __init__(self) -> None:
        self.on = False
        self.found: Counter[str] = Counter()

    def note(self) -> None:
        """The reader is the innermost function of a package but torch."""
        frame = sys._getframe(2)
        while frame is not None:
            package, _, _ = frame.f_globals.get("__name__", "").partition(".")
            if package in PACKAGES and package != "torch":
                name = frame.f_code.co_qualname
                if self.on and package == stem_torchrec.__name__ and name not in ON_THE_HOST:
                    self.found[name] += 1
                return
            frame = frame.f_back


class Methods(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            self.reads.note()
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in OPERATIONS:
            self.reads.note()
        return func(*args, **(kwargs or {}))


def run_watched(
    ranks: Any, folder: Path, options: dict[str, Any], watch: Callable[[bool], None]
) -> None:
    """A run of 8 steps; ``watch`` is told whether the next is after the second and before the last.

    The pipeline is filled and warm by then, and the record is not due.
    """
    options = {"train.max_steps": 8, "train.log_every": 8, "train.qps_warmup_steps": 1} | options
    path = small_config(folder / "config.yaml", folder / "data", folder / "run")
    config = load_config(path, [f"--{key}={value}" for key, value in options.items()])
    trainer = Trainer(build(config, ranks, schema_of_new(config, None, ranks)), lambda record: None)
    trainer.begin("overwrite", None)
    advance = trainer.position.advance

    def watched() -> int:
        watch(2 <= trainer.position.step < 6)
        return advance()

    trainer.position.advance = watched  # type: ignore[method-assign]
    trainer.run()


def reads_of(ranks: Any, folder: Path, options: dict[str, Any]) -> Counter[str]:
    """What the steps of a run read."""
    reads = Reads()
    with Methods(reads), Operations(reads):
        run_watched(ranks, folder, options, partial(setattr, reads, "on"))
    return reads.found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("no_wait")
    small_data(folder / "data")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"balance.rule": "multi_balance", "optim.clip_norm": 1.0, "embedding.max_gradient": 0.5},
        {"balance.rule": "mgda", "balance.boundary": "experts", "optim.optimizer": "adagrad"},
        {"embedding.optimizer": "adam", "optim.optimizer": "sgd"},
    ],
    ids=["equal", "multi_balance", "mgda", "adam"],
)
def test_a_step_reads_nothing(alone: Any, folder: Path, options: dict[str, Any]) -> None:
    assert reads_of(alone, folder, options) == {}


def test_a_read_would_be_seen(alone: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finite = DenseOutput.is_finite

    def looked_at(output: DenseOutput) -> Tensor:
        if output.losses.nonzero().tolist():
            return finite(output) & finite(output)
        return finite(output)

    monkeypatch.setattr(DenseOutput, "is_finite", looked_at)
    assert reads_of(alone, folder, {}) == {"ForwardBackward.from_sums": 4 * 3}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of FBGEMM and torch
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", ["equal", "multi_balance"])
def test_on_a_gpu_nothing_waits(gpu: Any, folder: Path, rule: str) -> None:
    """TorchRec and FBGEMM neither."""

    def watch(on: bool) -> None:
        torch.cuda.set_sync_debug_mode("error" if on else "default")

    try:
        run_watched(gpu, folder, {"distributed.device": "cuda", "balance.rule": rule}, watch)
    finally:
        watch(False)
