"""A vocabulary's identity goes by values and their order, not by types."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_torchrec.data import vocabulary_identity
from stem_torchrec.data.vocabulary_identity import identity_of
from stem_torchrec.errors import UserError


def written(folder: Path, values: pa.Array, ids: list[int] | None = None) -> Path:
    file = folder / "f.parquet"
    ids = ids or list(range(1, len(values) + 1))
    pq.write_table(pa.table({"value": values, "id": pa.array(ids, pa.int32())}), file)
    return file


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["7", "12", "3"]),
        pa.array(["7", "12", "3"], pa.large_string()),
        pa.array(["7", "12", "3"]).dictionary_encode(),
        pa.array([7, 12, 3], pa.uint8()),
        pa.array([7.0, 12.0, 3.0], pa.float32()),
        pa.array([b"7", b"12", b"3"]),
    ],
    ids=lambda values: str(values.type),
)
def test_a_value_is_its_text(tmp_path: Path, values: pa.Array) -> None:
    plain = identity_of(written(tmp_path, pa.array([7, 12, 3], pa.int64())))
    assert identity_of(written(tmp_path, values)) == plain


# The same anywhere and at any time: it stands in prepared folders and checkpoints.
def test_a_known_identity(tmp_path: Path) -> None:
    found = identity_of(written(tmp_path, pa.array(["7", "12", "3"])))
    assert found.sha256.startswith("4442bb856c8ace50")
    assert found.num_values == 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=3), unique=True, max_size=12), st.data())
def test_the_first_values_are_a_vocabulary(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], data: Any
) -> None:
    folder = tmp_path_factory.mktemp("vocabulary")
    first = data.draw(st.integers(0, len(values)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_identity, "_BATCH_ROWS", data.draw(st.integers(1, 5)))
        whole = written(folder, pa.array(values, pa.string()))
        start, every = identity_of(whole, first), identity_of(whole)
    of_start = identity_of(written(folder, pa.array(values[:first], pa.string())))
    assert start == of_start
    assert (start == every) == (first == len(values))


def test_where_texts_meet_counts(tmp_path: Path) -> None:
    found = {identity_of(written(tmp_path, pa.array(v))).sha256 for v in (["ab", "c"], ["a", "bc"])}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("values", "ids", "message"),
    [(["a", None], [1, 2], "null"), (["a", "b"], [1, 3], "row 1 has id 3; expected 2")],
)
def test_what_has_no_identity(tmp_path: Path, values: Any, ids: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        identity_of(written(tmp_path, pa.array(values, pa.string()), ids))
