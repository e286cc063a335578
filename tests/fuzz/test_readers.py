"""Whatever a file holds, its reader takes it or says in words of ours what is wrong.

``FUZZ_EXAMPLES=10000`` tries more. Examples are drawn from a fixed seed, so that a failure comes
again; ``FUZZ_SEED`` draws others, and a failure prints how to repeat it.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from stem_torchrec.analysis.compare.results import figures_of, last_test
from stem_torchrec.checkpoint.manifest import (
    Damaged,
    FileEntry,
    Manifest,
    read_manifest,
    write_manifest,
)
from stem_torchrec.config import Config
from stem_torchrec.config.keys import all_keys
from stem_torchrec.config.reading import dump_config, load_config, load_file, validate
from stem_torchrec.data.schema import Schema, load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.runs.folder import cut_records
from stem_torchrec.runs.records import METRICS, has_evaluation, read_records
from tests.fuzz.mutations import TOKENS, as_json, as_lines, as_yaml, files
from tests.support.steps import SCHEMA

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "120"))
SEED = os.environ.get("FUZZ_SEED")
LONGEST_MESSAGE = 20_000


def fuzz(*arguments: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Many examples of the arguments, the same ones in every run unless a seed is given."""
    chosen = settings(
        max_examples=EXAMPLES,
        derandomize=SEED is None,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Any) -> Any:
        test = given(*arguments)(test)
        return chosen(seed(int(SEED))(test) if SEED is not None else test)

    return decorate


def taken_or_refused(read: Callable[[], Any], *refusals: type[Exception]) -> Any:
    """What a reader gives; None where it refuses with an error of ours and a short message."""
    try:
        return read()
    except refusals as error:
        message = str(error)
    assert 0 < len(message) < LONGEST_MESSAGE, message[:500]
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


CONFIG = validate(
    {
        "run": {"dir": "runs/x"},
        "data": {"path": "prepared/x", "features": ["a", "b"], "days": "2022-04-08:2022-04-09"},
        "model": {"task_specific_features": ["a"]},
        "balance": {"weights": [1.0, 2.0], "torchjd_options": {"norm_eps": 0.1}},
        "distributed": {"tables": {"shared__*": {"sharding": ["row_wise"], "min_partition": 8}}},
    }
).model_dump(mode="json", exclude={"versions"})
OPTIONS = st.lists(
    st.one_of(
        st.sampled_from([f"--{key.name}" for key in all_keys()]),
        st.text(max_size=10),
        st.sampled_from(
            ["--", "--a.b", "=", "--train.epochs=", "--a=b", "1", "null", "[[", "!!int x"]
        ),
        st.sampled_from(["2022-02-30", "9" * 5000, "0x" + "f" * 5000, "[" * 900, "{a: 1, a: 2}"]),
    ),
    max_size=4,
)


@fuzz(files(CONFIG, as_yaml), OPTIONS)
def test_config(folder: Path, content: bytes, options: list[str]) -> None:
    file = folder / "config.yaml"
    file.write_bytes(content)
    config = taken_or_refused(lambda: load_config(file, options), UserError)
    if config is not None:  # what is taken can be written down and taken again
        file.write_text(dump_config(config, {}))
        again = load_config(file)
        places = {"run": again.run, "data": again.data}
        assert again == config.model_copy(update=places)


TEXTS = st.sampled_from(TOKENS).map(lambda token: token.decode(errors="surrogateescape"))


@fuzz(st.sampled_from(list(all_keys())), TEXTS | st.text(max_size=30) | st.floats().map(str))
def test_option(folder: Path, key: Any, text: str) -> None:
    file = folder / "small.yaml"
    file.write_text("run: {dir: runs/x}\ndata: {path: prepared/x}")
    config = taken_or_refused(lambda: load_config(file, [f"--{key.name}={text}"]), UserError)
    if config is not None:
        section, name = key.name.split(".")
        value = getattr(getattr(config, section), name)
        assert not isinstance(value, float) or math.isfinite(value)


@fuzz(files(SCHEMA.model_dump(mode="json"), as_json))
def test_schema(folder: Path, content: bytes) -> None:
    (folder / "schema.json").write_bytes(content)
    schema = taken_or_refused(lambda: load_schema(folder), UserError)
    if schema is not None:
        schema.save(folder)
        assert load_schema(folder) == schema
        assert isinstance(schema, Schema)


DESCRIPTION = {
    "format": {"delimiter": "|", "header": False, "columns": ["a", "b"], "types": {"a": "BIGINT"}},
    "features": [
        {"name": "a", "side": "user"},
        {"name": "b", "kind": "bag", "separator": ",", "encoding": "hash", "num_embeddings": 9},
        {"name": "c", "kind": "dense", "expression": "a + 1"},
        {"name": "d", "table": "a"},
    ],
    "labels": {"click": "b = 'x'"},
    "group": "a",
    "user": "a",
    "split": {"by": "time", "column": "a", "valid_from": 20220408, "test_from": 20220409},
    "min_count": 3,
}
SPLITS = [
    DESCRIPTION["split"],
    {"by": "random", "shares": [0.8, 0.1, 0.1], "seed": 1},
    {"by": "column", "column": "a", "train": ["x", 1], "valid": [True], "test": [0.5]},
]


@fuzz(st.sampled_from(SPLITS).flatmap(lambda split: files(DESCRIPTION | {"split": split}, as_yaml)))
def test_description(folder: Path, content: bytes) -> None:
    file = folder / "describe.yaml"
    file.write_bytes(content)
    found = taken_or_refused(lambda: load_file(Description, file, "--describe"), UserError)
    if found is not None:
        assert found.features
        assert [found.owner(feature) for feature in found.features]


RECORDS = [
    {"kind": "train", "step": 5, "qps_total": 3.5, "peak_memory_bytes": 9, "loss": {"click": 0.5}},
    {"kind": "eval", "split": "valid", "step": 10, "auc": {"click": None}},
    {"kind": "checkpoint", "step": 10, "error": "disk full"},
    {
        "kind": "eval",
        "split": "test",
        "step": 10,
        **{name: {"click": 0.5, "like": None} for name in ("logloss", "ne", "auc")},
        "auc_mean": 0.5,
    },
]


@fuzz(files(RECORDS, as_lines))
def test_records(folder: Path, content: bytes) -> None:
    (folder / METRICS).write_bytes(content)
    records = read_records(folder)
    found = has_evaluation(folder, "valid", 10)
    kinds = [(record["kind"], record.get("split"), record["step"]) for record in records]
    assert found == (("eval", "valid", 10) in kinds)
    if last_test(records) is not None:
        assert all(type(value) in (int, float) for value in figures_of(records).values())
    cut_records(folder, 7)
    kept = read_records(folder)
    assert all(record["step"] <= 7 and record.get("split") != "test" for record in kept)
    assert len(kept) == (folder / METRICS).read_bytes().count(b"\n")


@fuzz(st.data())
def test_manifest(folder: Path, data: st.DataObject) -> None:
    where = folder / "checkpoint"
    where.mkdir(exist_ok=True)
    (where / "a.bin").write_bytes(b"abc")
    written = Manifest({"step": 3, "world_size": 2}, (FileEntry("a.bin", 3, (891568578,)),))
    write_manifest(where, written)
    text = (where / "manifest.json").read_bytes()
    content = data.draw(files(json.loads(text), as_json) | files(json.loads(text), _as_written))
    (where / "manifest.json").write_bytes(content)
    found = taken_or_refused(lambda: read_manifest(where), Damaged)
    assert found is None or found == written


def _as_written(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=False, default=str) + "\n"


def test_the_config_of_the_fuzz_test_is_right() -> None:
    assert Config.model_validate(CONFIG)
    assert [Description.model_validate(DESCRIPTION | {"split": split}) for split in SPLITS]
