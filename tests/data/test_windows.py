"""Several threads that share the reading: the same batches, a bound, an end and errors."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_torchrec.config.reading import validate
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.negatives import negative_sampling
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.shares import EpochSequence, Interval
from stem_torchrec.data.windows import WindowReader
from stem_torchrec.errors import UserError
from tests.data.test_reader import SCHEMA, equal, rows_of, write_split
from tests.support.forked import Forked


def worker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "stem_torchrec-" in thread.name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    assert write_split(tmp_path, [[30, 30, 30], [30, 30]]) == 150
    return tmp_path


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.lists(st.lists(st.integers(0, 13), min_size=1, max_size=4), min_size=1, max_size=3),
    ranks=st.integers(1, 3),
    batch_size=st.integers(1, 17),
    shuffle=st.booleans(),
    width=st.integers(1, 4),
    seed=st.integers(0, 3),
    rate=st.sampled_from([0.5, 1.0]),
    unseen_rate=st.sampled_from([0.0, 0.3]),
    skipped=st.integers(0, 5),
)
def test_batches_and_places_are_the_same_for_any_number_of_workers(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[int]],
    ranks: int,
    batch_size: int,
    shuffle: bool,
    width: int,
    seed: int,
    rate: float,
    unseen_rate: float,
    skipped: int,
) -> None:
    path = tmp_path_factory.mktemp("data")
    write_split(path, [*files, [2]])

    def read(workers: int, state: dict[str, object] | None) -> tuple[object, list[Batch]]:
        reader = ParquetReader(
            path,
            "train",
            SCHEMA,
            batch_size=batch_size,
            rank=ranks - 1,
            world_size=ranks,
            shuffle=shuffle,
            seed=seed,
            shuffle_row_groups=width,
            workers=workers,
            negatives=negative_sampling(rate, seed, SCHEMA),
            unseen_rate=unseen_rate,
        )
        place = reader.start(1) if state is None else reader.resumed(state)
        for _ in range(skipped if state is None else 0):
            place = reader.after(place)
        return place.state_dict(), list(reader.batches(place))

    state, expected = read(0, None)
    assert expected
    for workers in (1, 2, 3, 40):
        found_state, found = read(workers, state)  # type: ignore[arg-type]
        assert found_state == state
        assert len(found) == len(expected)
        assert all(equal(*pair) for pair in zip(found, expected, strict=True))
    assert not worker_threads()


def test_rows_are_whole(path: Path) -> None:
    reader = ParquetReader(path, "train", SCHEMA, batch_size=40, shuffle=True, workers=3)
    rows = [row for batch in reader.epoch(0) for row in rows_of(batch)]
    assert sorted(rows) == list(range(150))


def test_closing_early_leaves_no_thread(path: Path) -> None:
    reader = ParquetReader(path, "train", SCHEMA, batch_size=4, shuffle=True, workers=2)
    batches = reader.epoch(0)
    next(batches)
    assert worker_threads()
    batches.close()
    assert not worker_threads()


@pytest.mark.parametrize("workers", [1, 2, 40])
def test_no_more_than_two_windows_are_held(path: Path, workers: int) -> None:
    """One that is cut into batches, one that is read."""
    asked = []

    def noted(pieces: Iterator[object]) -> Iterator[object]:
        for piece in pieces:
            asked.append(piece)
            yield piece

    groups = check_split(path, "train", SCHEMA).row_groups
    sequence = EpochSequence([group.size for group in groups], epoch=0)
    windows = WindowReader(groups, SCHEMA, workers=workers).rows(
        noted(sequence.pieces([Interval(0, 150)])),  # type: ignore[arg-type]
        sequence,
    )
    for taken in range(1, 4):
        next(windows)
        assert not threading.Event().wait(0.05)
        assert len(asked) == taken + 1
    windows.close()


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_an_error_is_the_one_of_a_single_thread(path: Path, workers: int) -> None:
    file = path / "train" / "001.parquet"
    table = pq.read_table(file)
    labels = table.column("click").to_pylist()
    labels[35] = 3
    at = table.column_names.index("click")
    reader = ParquetReader(path, "train", SCHEMA, batch_size=30, workers=workers)
    pq.write_table(
        table.set_column(at, "click", pa.array(labels, pa.int8())), file, row_group_size=30
    )
    batches = reader.epoch(0)
    for _ in range(4):
        rows_of(next(batches))
    with pytest.raises(
        UserError, match=r"001\.parquet, row group 1: label column 'click' has value 3.0; allowed"
    ):
        next(batches)
    assert not worker_threads()


def read_on(path: Path) -> None:
    reader = ParquetReader(path, "train", SCHEMA, batch_size=4, workers=2)
    next(reader.epoch(0))
    print("reading", flush=True)
    while True:
        list(reader.epoch(0))


def test_nothing_is_left_of_a_killed_process(path: Path, tmp_path: Path) -> None:
    """Threads end with their process, whatever ends it, and share no memory with others."""
    log = tmp_path / "log"
    child = Forked.logged(log, read_on, path)
    while "reading\n" not in log.read_text():
        assert child.poll() is None, log.read_text()
        time.sleep(0.01)
    own = Path(f"/proc/{child.pid}")
    children = (own / "task" / str(child.pid) / "children").read_text()
    shared = [line for line in (own / "maps").read_text().splitlines() if "/dev/shm" in line]
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not children.split()
    assert not shared


@pytest.mark.parametrize(("number", "allowed"), [(-1, "0"), (257, "256")])
def test_a_number_of_workers_that_cannot_be_meant(number: int, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"data\.workers: .*{allowed}.*{number}"):
        validate({"data": {"path": "x", "workers": number}})
