"""A run goes on with other ranks and another plan: equal evaluation, every row once."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import Processes
from tests.support.prepared import small_data
from tests.support.reshape import CASES, OPTIMIZERS, STOP, Shape, here, stop_and_evaluate, there
from tests.training.test_exact_resume import records, train_on

QUICK = [case for case in CASES if max(case).ranks < 4]
SLOW = [case for case in CASES if case not in QUICK]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reshape")
    small_data(folder / "data")
    return folder


def name_of(case: tuple[Shape, Shape]) -> str:
    return f"{case[0]} to {case[1]}"


@pytest.mark.parametrize("tables", OPTIMIZERS)
@pytest.mark.parametrize("case", QUICK[::2], ids=name_of)
def test_resumed_elsewhere(
    folder: Path, alone: Any, pair: Processes, case: tuple[Shape, Shape], tables: str
) -> None:
    assert_goes_on(folder, case, tables, {1: here(alone), 2: there(pair)})


@pytest.mark.slow
@pytest.mark.parametrize("tables", OPTIMIZERS)
@pytest.mark.parametrize("case", QUICK[1::2], ids=name_of)
def test_resumed_the_other_way(
    folder: Path, alone: Any, pair: Processes, case: tuple[Shape, Shape], tables: str
) -> None:
    assert_goes_on(folder, case, tables, {1: here(alone), 2: there(pair)})


@pytest.mark.slow
@pytest.mark.parametrize("tables", OPTIMIZERS)
@pytest.mark.parametrize("case", SLOW, ids=name_of)
def test_resumed_elsewhere_with_four_ranks(
    folder: Path, pair: Processes, four: Processes, case: tuple[Shape, Shape], tables: str
) -> None:
    assert_goes_on(folder, case, tables, {2: there(pair), 4: there(four)})


def assert_goes_on(folder: Path, case: tuple[Shape, Shape], tables: str, on: Any) -> None:
    found = stop_and_evaluate(folder, case, tables, on)
    assert found.difference() <= 1e-6
    run_dir = found.config.run.dir
    trained = records(run_dir)["train", STOP]
    on[case[1].ranks](train_on, found.config, "resume")
    last = max(records(run_dir).values(), key=lambda r: (r["kind"] == "train", r["step"]))
    assert last["samples"] == 2 * 2003
    following = records(run_dir)["train", STOP + 1]
    # The figure since the start goes on, that of the window does not.
    assert following["ne"]["click"] == pytest.approx(trained["ne"]["click"], rel=0.02)
    assert following["ne"]["click"] != following["ne_window"]["click"]
    assert records(run_dir)["test", last["step"]]["auc_mean"] > 0.5
