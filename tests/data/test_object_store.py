"""Prepared folders and raw files in an object store: a real S3-compatible server process."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from stem_torchrec.cli import main
from stem_torchrec.config.days import parse_days
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import SPLITS, load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.check import check_folder
from stem_torchrec.prepare.engine.transfer import local_source, local_target
from stem_torchrec.storage.place import Place, place_of, relative
from stem_torchrec.storage.store_path import StorePath
from stem_torchrec.storage.stores import open_store
from tests.support.kuairand_release import Source
from tests.support.prepared import small_config, small_data
from tests.support.s3_server import bucket

pytest.importorskip("moto")

SET = "s3://bucket/sets/small"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fs.FileSystem]:
    with bucket(tmp_path_factory.mktemp("s3") / "log") as store:
        yield store.filesystem


@pytest.fixture(scope="module")
def small(store: fs.FileSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, here and in the store."""
    folder = small_data(tmp_path_factory.mktemp("small") / "set")
    fs.copy_files(str(folder), "bucket/sets/small", fs.LocalFileSystem(), store)
    return folder


def at(url: str) -> StorePath:
    place = place_of(url)
    assert isinstance(place, StorePath)
    return place


def listing(url: str) -> list[str]:
    return [str(relative(file, at(url))) for file in at(url).files()]


def test_a_reader_gives_what_it_gives_on_files(small: Path) -> None:
    schema = load_schema(at(SET))
    assert schema == load_schema(small)
    places: tuple[tuple[Place, int], ...] = ((small, 1), (at(SET), 1), (at(SET), 3))
    local, stored, shared = (
        list(
            ParquetReader(
                place, "train", schema, batch_size=300, shuffle=True, workers=workers
            ).epoch(1)
        )
        for place, workers in places
    )
    pairs = [*zip(local, stored, strict=True), *zip(local, shared, strict=True)]
    for one, other in pairs:
        assert torch.equal(one.sparse.values(), other.sparse.values())
        assert torch.equal(one.sparse.lengths(), other.sparse.lengths())
        assert torch.equal(one.dense, other.dense)
        assert torch.equal(one.labels.nan_to_num(9), other.labels.nan_to_num(9))


def test_training_and_evaluating(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "config.yaml", Path(), tmp_path / "run")
    options = ["--data.path", SET, "--nproc", "2", "--train.max_steps", "5"]
    assert main(["train", "--config", str(config), *options]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["path"] == SET
    capsys.readouterr()
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--split", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 401


def test_partitions_by_day(small: Path, store: fs.FileSystem) -> None:
    source = str(next((small / "train").glob("*.parquet")))
    for name in ("date=2022-04-08/a", "date=2022-04-09/a", "date=2022-04-09/b", ".c"):
        key = f"bucket/sets/daily/train/{name}.parquet"
        fs.copy_files(source, key, fs.LocalFileSystem(), store)
    schema, days = load_schema(small), parse_days("2022-04-09")
    found = check_split(at("s3://bucket/sets/daily"), "train", schema, days)
    names = [str(relative(group.file, at("s3://bucket/sets/daily"))) for group in found.row_groups]
    assert pickle.loads(pickle.dumps(found)) == found  # ranks send it to one another
    assert list(dict.fromkeys(names)) == [
        "train/date=2022-04-09/a.parquet",
        "train/date=2022-04-09/b.parquet",
    ]


def test_checking_in_the_store(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--check", SET]) == 0
    assert f"{SET}: no faults" in capsys.readouterr().out
    found, expected = check_folder(at(SET)), check_folder(small)
    assert found.splits == expected.splits


def test_a_damaged_file_is_named_by_its_url(
    small: Path, store: fs.FileSystem, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fs.copy_files(str(small), "bucket/sets/cut", fs.LocalFileSystem(), store)
    (file, *_) = at("s3://bucket/sets/cut/train").files()
    with store.open_input_stream(file.key) as stream:
        content = stream.read()
    with store.open_output_stream(file.key) as out:
        out.write(content[:-9])
    assert main(["prepare", "--check", "s3://bucket/sets/cut"]) == 2
    assert f"{file}: cannot be read as Parquet" in capsys.readouterr().err
    config = small_config(tmp_path / "config.yaml", Path(), tmp_path / "run")
    assert main(["train", "--config", str(config), "--data.path", "s3://bucket/sets/cut"]) == 2
    assert f"{file}: cannot be read as Parquet" in capsys.readouterr().err


def test_kuairand_from_store_to_store(store: fs.FileSystem, tmp_path: Path) -> None:
    release = Source(tmp_path / "KuaiRand-27K").write()
    fs.copy_files(str(release), "bucket/raw/KuaiRand-27K", fs.LocalFileSystem(), store)
    command = ["prepare", "kuairand", "--min_count", "3", "--source"]
    target = "s3://bucket/prepared/kuairand"
    assert main([*command, "s3://bucket/raw/KuaiRand-27K", "--out", target]) == 0
    assert main([*command, str(release), "--out", str(tmp_path / "local")]) == 0
    assert check_folder(at(target)).faults == []
    local = sorted(p.relative_to(tmp_path / "local") for p in (tmp_path / "local").rglob("*.*"))
    assert listing(target) == [str(path) for path in local]
    for split in SPLITS:
        stored = pq.read_table(f"bucket/prepared/kuairand/{split}", filesystem=store)
        assert stored == pq.read_table(tmp_path / "local" / split)


def test_only_the_files_that_are_read_are_fetched(
    store: fs.FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.csv", "data/b.csv", "data/c.parquet"):
        with store.open_output_stream(f"bucket/few/{name}") as out:
            out.write(name.encode())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with local_source(at("s3://bucket/few"), ["*.csv"]) as folder:
        found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.*")}
        assert found == {"a.csv": "a.csv", "data/b.csv": "data/b.csv"}
        assert folder.name == "few"
    with local_source(at("s3://bucket/few/data/b.csv")) as file:
        assert file.read_text() == "data/b.csv"
        assert file.stat().st_mtime_ns == at("s3://bucket/few/data/b.csv").stat().st_mtime_ns
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_the_url_and_not_the_copy(store: fs.FileSystem, tmp_path: Path) -> None:
    with store.open_output_stream("bucket/odd/log_standard_x_1k.csv") as out:
        out.write(b"user_id\n")
    with (
        pytest.raises(UserError, match=r"^broken: s3://bucket/odd/data$"),
        local_source(at("s3://bucket/odd")) as source,
    ):
        raise UserError(f"broken: {source / 'data'}")


def test_a_disk_that_is_too_small_for_the_source(
    store: fs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.open_output_stream("bucket/large/a.csv") as out:
        out.write(b"x" * 10)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9))
    with (
        pytest.raises(UserError, match=r"s3://bucket/large: 0\.0 GiB do not fit into .*TMPDIR"),
        local_source(at("s3://bucket/large")),
    ):
        pass


SYNTHETIC = ["--train_rows", "40", "--valid_rows", "10", "--test_rows", "10", "--num_users", "9"]


def synthetic(out: str, *options: str) -> int:
    return main(["prepare", "synthetic", "--out", out, *SYNTHETIC, *options])


def test_an_occupied_target(store: fs.FileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    url = "s3://bucket/twice"
    assert synthetic(url) == 0
    assert synthetic(url) == 2
    assert f"{url!r} is not empty" in capsys.readouterr().err
    with store.open_output_stream("bucket/twice/train/old.parquet") as out:
        out.write(b"old")
    assert synthetic(url, "--overwrite", "--num_items", "7") == 0
    assert "train/old.parquet" not in listing(url)
    assert check_folder(at(url)).faults == []
    with store.open_output_stream("bucket/home/thesis.txt") as out:
        out.write(b"x")
    assert synthetic("s3://bucket/home", "--overwrite") == 2
    assert "no schema.json" in capsys.readouterr().err
    assert listing("s3://bucket/home") == ["thesis.txt"]


def test_the_schema_goes_up_last_and_an_error_leaves_nothing(
    store: fs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    copy = fs.copy_files

    def recorded(source: str, to: str, *rest: Any) -> None:
        order.append(to.removeprefix("bucket/ordered/"))
        if len(order) == fails_at:
            raise OSError("cable cut")
        copy(source, to, *rest)

    monkeypatch.setattr("stem_torchrec.prepare.engine.transfer.fs.copy_files", recorded)
    fails_at = 0
    assert synthetic("s3://bucket/ordered") == 0
    assert order[-1] == "schema.json"
    assert sorted(order) == listing("s3://bucket/ordered")
    fails_at, order = len(order), []
    assert synthetic("s3://bucket/ordered", "--overwrite") == 2
    assert listing("s3://bucket/ordered") == []


def test_a_block_that_fails_uploads_nothing(store: fs.FileSystem) -> None:
    def fail(out: Path) -> None:
        out.mkdir()
        (out / "schema.json").write_text("{}")
        raise ZeroDivisionError

    target = local_target(at("s3://bucket/failed"), overwrite=False)
    with pytest.raises(ZeroDivisionError), target as out:
        fail(out)
    assert not out.parent.exists()
    assert not at("s3://bucket/failed").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-bucket/set", "s3://no-bucket/set: the bucket 'no-bucket' does not exist"),
        ("s3://bucket/no-set", "'s3://bucket/no-set' is not a folder"),
    ],
)
def test_what_is_missing_is_named(
    store: fs.FileSystem, capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str, message: str
) -> None:
    config = small_config(tmp_path / "config.yaml", Path(), tmp_path / "run")
    assert main(["train", "--config", str(config), "--data.path", url]) == 2
    assert message in capsys.readouterr().err
    assert main(["prepare", "--check", url]) == 2
    assert message in capsys.readouterr().err
    assert main(["prepare", "kuairand", "--source", url, "--out", str(tmp_path / "out")]) == 2
    assert url in capsys.readouterr().err


def test_targets_that_cannot_be_written(
    store: fs.FileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthetic("s3://no-bucket/set") == 2
    assert "the bucket 'no-bucket' does not exist" in capsys.readouterr().err
    assert synthetic("s3://bucket/set?speed=9") == 2
    assert "unknown option 'speed'; allowed: endpoint_override" in capsys.readouterr().err


def test_a_store_that_does_not_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    open_store.cache_clear()
    config = small_config(tmp_path / "config.yaml", Path(), tmp_path / "run")
    for command in (
        ["train", "--config", str(config), "--data.path", SET],
        ["prepare", "--check", SET],
        ["prepare", "synthetic", "--out", SET],
        ["prepare", "kuairand", "--source", SET, "--out", str(tmp_path / "out")],
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "s3://bucket" in message
        assert "unreachable after 2 tries" in message
    assert not (tmp_path / "out").exists()
    open_store.cache_clear()


def test_a_store_that_goes_away_while_it_is_read(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one fault per file, but an end."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation: no route")

    monkeypatch.setattr("stem_torchrec.prepare.check.open_parquet_file", refuse)
    with pytest.raises(UserError, match=rf"^{SET}/train/.*: unreachable after 2 tries"):
        check_folder(at(SET))


@pytest.mark.parametrize("source", ["raw/*.csv", "raw/a.csv"])
def test_described_files_come_from_a_store_and_go_to_one(
    store: fs.FileSystem, tmp_path: Path, source: str
) -> None:
    store.create_dir("bucket/raw")
    for name in ("a", "b"):
        rows = [f"{user},{user % 3},{user % 2}" for user in range(60)]
        with store.open_output_stream(f"bucket/raw/{name}.csv") as file:
            file.write("\n".join(["user,item,click", *rows]).encode())
    features = [
        {"name": name, "side": name, "encoding": "hash", "num_embeddings": 50}
        for name in ("user", "item")
    ]
    description = {
        "features": features,
        "labels": {"click": "click"},
        "split": {"by": "random"},
        "user": "user",
        "item": "item",
    }
    described = tmp_path / "describe.yaml"
    described.write_text(yaml.safe_dump(description))
    out = f"s3://bucket/made/{source.replace('*', 'all').replace('/', '-')}"
    command = ["prepare", "csv", "--source", f"s3://bucket/{source}", "--out", out]
    assert main([*command, "--describe", str(described)]) == 0
    assert check_folder(at(out)).faults == []
    schema = load_schema(at(out))
    rows = sum(check_split(at(out), split, schema).num_rows for split in SPLITS)
    assert rows == (120 if "*" in source else 60)
