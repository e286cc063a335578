"""A checkpoint of a stranger runs no code, reads no other file and takes no memory it has not.

Whatever the command: evaluate, --resume, --init-from, analyze.
"""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from stem_torchrec.checkpoint import Initial
from stem_torchrec.checkpoint.index import read_index
from stem_torchrec.checkpoint.pickled_index import read_pickled
from stem_torchrec.checkpoint.plain import NotPlain, load_plain
from stem_torchrec.errors import UserError
from stem_torchrec.training.finished_run import evaluate_run, mean_gates_of_run
from stem_torchrec.training.job import train
from tests.checkpoint.saved_runs import (
    Evil,
    config_of_run,
    forge_index,
    forge_part,
    forge_pickled,
    go_on,
    last,
    saved,
    sign,
    unpack,
)

TABLE = "model.recommender.embeddings.tables.embedding_bags.shared__user.weight"


def evaluate(ranks: Any, run_dir: Path) -> None:
    evaluate_run(config_of_run(run_dir), ranks, "test")


def resume(ranks: Any, run_dir: Path) -> None:
    go_on(ranks, run_dir, "--train.max_steps", "7", "--train.epochs", "2")


def init(ranks: Any, run_dir: Path) -> None:
    config = config_of_run(run_dir, "--run.dir", str(run_dir.parent / "new"))
    train(config, ranks, existing="refuse", listener=lambda record: None, initial=Initial(run_dir))


def analyse(ranks: Any, run_dir: Path) -> None:
    mean_gates_of_run(config_of_run(run_dir), ranks, "test")


COMMANDS: list[Callable[[Any, Path], None]] = [evaluate, resume, init, analyse]


@pytest.fixture(params=[1, 2], ids=["format 1", "format 2"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path, alone: Any) -> Path:
    found = unpack(tmp_path)
    if request.param == 2:
        go_on(alone, found)
        assert (last(found) / "index.json").exists()
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def refused(command: Callable[[Any, Path], None], ranks: Any, run_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        command(ranks, run_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["planner_data", "storage_data", "storage_meta", "whole"])
def test_the_index_of_format_1(
    old: Path, alone: Any, tmp_path: Path, command: Any, place: str
) -> None:
    mark = tmp_path / "mark"

    def change(metadata: Any) -> Any:
        if place == "whole":
            return Evil(mark, metadata)
        setattr(metadata, place, Evil(mark, None))
        return metadata

    forge_pickled(old, change)
    assert "builtins.eval does not belong into it" in refused(command, alone, old)
    assert not mark.exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("name", "value"), [("position.step", 4), (TABLE, torch.zeros(5, 4))])
def test_a_part_of_the_files(
    run_dir: Path, alone: Any, tmp_path: Path, command: Any, name: str, value: Any
) -> None:
    mark = tmp_path / "mark"
    forge_part(run_dir, name, saved(Evil(mark, value)))
    if command is init and name == "position.step":  # which it does not read
        command(alone, run_dir)
    else:
        assert "names eval, which is no number, text or tensor" in refused(command, alone, run_dir)
    assert not mark.exists()


def test_what_a_rank_keeps(run_dir: Path, alone: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (last(run_dir) / "rank_0.pt").write_bytes(saved({"rng": Evil(mark, None)}))
    sign(run_dir)
    assert "names eval" in refused(resume, alone, run_dir)
    assert not mark.exists()


def test_the_position_is_checked(run_dir: Path, alone: Any) -> None:
    forge_part(run_dir, "position.intervals", saved([[0, "x"]]))
    assert "position.intervals" in refused(resume, alone, run_dir)


EXTENT = {"file": "../../../../data/train/part-0.parquet", "start": 0, "num_bytes": 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extent": EXTENT}, "lies outside of the files"),
        ({"extent": EXTENT | {"file": "/etc/passwd"}}, "lies outside of the files"),
        ({"extent": EXTENT | {"file": "manifest.json"}}, "lies outside of the files"),
        ({"extent": EXTENT | {"file": "__0_0.distcp", "num_bytes": 10**9}}, "lies outside of the"),
        ({"extent": EXTENT | {"start": -1}}, "greater than or equal to 0"),
        ({"extent": EXTENT | {"num_bytes": True}}, "valid integer"),
        ({"extent": None}, "extent: "),
        ({"sizes": [5, 10**12]}, "has a chunk that ends at"),
        ({"sizes": [5]}, "zip"),
        ({"sizes": [2, 4]}, "has 20 values, its chunks 8"),
        ({"sizes": [10**30, 0]}, "less than 9223372036854775808"),
        ({"transforms": ["stream.zstd"]}, "Extra inputs"),
    ],
)
def test_an_index_that_leads_elsewhere(old: Path, alone: Any, change: Any, message: str) -> None:
    go_on(alone, old)
    forge_index(old, lambda index: index["tensors"][TABLE]["chunks"][0].update(change))
    assert message in refused(evaluate, alone, old)


def test_a_tensor_larger_than_its_bytes(old: Path, alone: Any) -> None:
    go_on(alone, old)

    def change(index: Any) -> None:
        tensor = index["tensors"][TABLE]
        tensor["size"] = tensor["chunks"][0]["sizes"] = [10**6, 10**6]

    forge_index(old, change)
    assert "has a chunk [1000000, 1000000] in" in refused(init, alone, old)


def test_an_index_that_is_none(old: Path, alone: Any) -> None:
    go_on(alone, old)
    for text in ("", "[]", "{}", "[" * 100_000, '{"tensors": 3, "values": {}}'):
        (last(old) / "index.json").write_text(text)
        sign(old)
        with pytest.raises(UserError, match=r"index\.json: not what a save writes"):
            read_index(last(old))


def test_a_pickle_does_not_reach_the_classes_it_names() -> None:
    """BUILD sets attributes of whatever is on the stack, of a class too."""
    pickled = b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'planner_data'\nS'x'\nstb."
    with pytest.raises(ValueError, match="Error"):
        read_pickled(pickled)
    assert Metadata({}).planner_data is None
    assert not hasattr(TensorStorageMetadata, "planner_data")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b".",
        pickle.dumps(3),
        pickle.dumps({"state_dict_metadata": {}}),
        b"(" * 9 + b".",
    ],
)
def test_a_pickle_that_is_no_index(content: bytes) -> None:
    with pytest.raises(ValueError, match="Error"):
        read_pickled(content)


def zipped(compression: int, times: int = 1) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
        archive.filelist.extend([archive.filelist[0]] * (times - 1))
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (zipped(zipfile.ZIP_DEFLATED), "is compressed"),
        (zipped(zipfile.ZIP_STORED, times=3), "overlap"),
        (io.BytesIO(b"no archive"), "no archive of torch.save"),
        (io.BytesIO(pickle.dumps(3)), "no archive of torch.save"),
    ],
)
def test_what_takes_more_memory_than_it_has_bytes(stream: io.BytesIO, message: str) -> None:
    with pytest.raises(NotPlain, match=message):
        load_plain(stream)
