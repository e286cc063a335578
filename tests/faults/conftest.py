"""What disturbed jobs are compared with, once for all of them."""

from pathlib import Path

import pytest

from tests.faults.jobs import Result
from tests.faults.kills import undisturbed
from tests.support.prepared import small_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("faults") / "data")


@pytest.fixture(scope="session")
def expected(data: Path) -> Result:
    result = undisturbed(data.parent / "undisturbed", data)
    assert result.code == 0, result.log
    assert sorted(result.rows) == list(range(1, 33))
    assert len(set(result.rows.values())) == 32
    return result
