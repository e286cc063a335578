"""Paths and URLs, as they are given; nothing here talks to a store."""

import pickle
from pathlib import Path, PurePosixPath

import pytest

from stem_torchrec.config.reading import dump_config, load_config, validate
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import place_of, relative
from stem_torchrec.storage.store_path import StorePath


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prepared/set", "prepared/set"),
        ("/data/a b", "/data/a b"),
        ("odd/s3://set", "odd/s3:/set"),
        ("file:///data/a%20b", "/data/a b"),
        ("file://localhost/data", "/data"),
    ],
)
def test_local_places_are_paths(text: str, path: str) -> None:
    assert place_of(text) == Path(path)
    assert place_of(Path(text)) == Path(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("s3://bucket/a/set", "bucket/a/set"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/a set/day=2022-04-08", "bucket/a set/day=2022-04-08"),
        ("gs://bucket/a%3Fb%23c%25", "bucket/a?b#c%"),
        ("hdfs://node:8020/data/set", "/data/set"),
        ("hdfs:///data/set", "/data/set"),
        ("s3://bucket/set?endpoint_override=localhost:9000&scheme=http", "bucket/set"),
    ],
)
def test_a_url_is_kept_as_it_is(text: str, key: str) -> None:
    place = place_of(text)
    assert isinstance(place, StorePath)
    assert place.key == key
    assert str(place).rstrip("/") == text
    assert place_of(str(place)) == place == place_of(text + "/" * ("?" not in text))
    assert pickle.loads(pickle.dumps(place)) == place
    assert place.absolute() == place.resolve() == place.expanduser() == place


def test_parts_of_a_store_path() -> None:
    folder = place_of("s3://bucket/set?region=x")
    assert isinstance(folder, StorePath)
    file = folder / "train" / "part-0.b.parquet"
    assert str(file) == "s3://bucket/set/train/part-0.b.parquet?region=x"
    assert (file.name, file.stem, file.suffix) == ("part-0.b.parquet", "part-0.b", ".parquet")
    assert file.parent == folder / "train"
    assert relative(file, folder) == PurePosixPath("train/part-0.b.parquet")
    assert sorted([folder / "b", folder / "a"]) == [folder / "a", folder / "b"]
    assert str(folder.bucket / "x") == "s3://bucket/x?region=x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x", "'ftp://host/x' is no path and no URL of s3://, gs://, hdfs://, file://"),
        ("s3:///x", "names no bucket"),
        ("s3://key:secret@bucket/x", r"^'s3://\.\.\.@bucket/x': credentials are read from"),
        ("S3://key:secret@bucket/x", r"^'S3://\.\.\.@bucket/x': credentials are read from"),
        ("s3://key:sec/ret/secret@bucket/x", r"^'s3://\.\.\.@bucket/x': credentials"),
        ("https://key:secret@host/x", r"^'https://\.\.\.@host/x': credentials"),
        ("here/https://key:secret@host", r"^'here/https://\.\.\.@host': credentials"),
        ("gs://bucket/x?password=secret", r"^'gs://bucket/x\?password=\.\.\.': credentials"),
        ("file://host/x", "is no path and no URL"),
    ],
)
def test_urls_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        place_of(text)
    assert "secret" not in str(found.value)
    for key in ("run.dir", "data.path"):
        content = {"run": {"dir": "x"}, "data": {"path": "y"}}
        section, _, name = key.partition(".")
        content[section][name] = text
        with pytest.raises(UserError) as of_config:
            validate(content)
        assert str(of_config.value) == f"{key}: {found.value}"


def test_a_config_takes_a_url_and_writes_it_back(tmp_path: Path) -> None:
    url = "s3://bucket/a//set"
    file = tmp_path / "config.yaml"
    file.write_text("run: {dir: x}\ndata: {path: y}\n")
    config = load_config(file, ["--data.path", url])
    assert str(config.data.path) == url
    file.write_text(dump_config(config, {}))
    assert load_config(file).data == config.data
    with pytest.raises(UserError, match=r"data\.path: .*path or URL, found 3"):
        validate({"run": {"dir": "x"}, "data": {"path": 3}})
