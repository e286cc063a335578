"""Mistakes of a user: exit code 2, one readable message, nothing written."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.cli import main
from tests.support.prepared import small_config, small_data

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def refused(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs ``train`` with options that must be refused; returns the message."""

    def run(*options: str, path: Path = data) -> str:
        run_dir = tmp_path / "run"
        config = small_config(tmp_path / "config.yaml", path, run_dir)
        code = main(["train", "--config", str(config), *options])
        message = capsys.readouterr().err
        assert code == 2, message
        assert message.startswith("error: ")
        assert "Traceback" not in message
        assert not run_dir.exists()
        return message

    return run


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--modle.name", "stem_net", ["modle.name", "did you mean model.name"]),
        ("--model.gate_inputt", "both", ["gate_inputt", "did you mean model.gate_input"]),
        ("--model.gate_input", "bth", ["model.gate_input", "'bth'", "both", "task"]),
        ("--model.name", "stemnet", ["model.name", "'stemnet'", "did you mean 'stem_net'?"]),
        ("--balance.rule", "multibalance", ["balance.rule", "did you mean 'multi_balance'?"]),
        ("--distributed.kernel", "fused_uvm", ["distributed.kernel", "cpu ranks do not have"]),
        ("--model.expert_widths", "[1048576,1048576]", ["model.expert_widths", "GiB"]),
        ("--resum", "1", ["--resum: unknown option; did you mean --resume?"]),
        ("--train.batch_size", "0", ["train.batch_size", "0", "1"]),
        ("--train.batch_size", "many", ["train.batch_size", "'many'", "integer"]),
        ("--embedding.lr", ".nan", ["embedding.lr", "nan"]),
        ("--tasks.names", "click,lke", ["tasks.names", "'lke'; did you mean 'like'?"]),
        ("--tasks.names", "click,click", ["tasks.names", "'click'", "twice"]),
        ("--data.features", "user_id,itemid", ["data.features", "'itemid'", "item_id"]),
        ("--model.task_specific_features", "[foo]", ["task_specific_features", "'foo'", "user_id"]),
        ("--model.task_specific_features", "[itemid]", ["did you mean 'item_id'?"]),
        ("--data.path", "nowhere/at/all", ["data.path", "nowhere/at/all"]),
        ("--distributed.tables", "{nope*: {}}", ["distributed.tables", "'nope*'", "shared__user"]),
        ("--distributed.sharding", "rowwise", ["distributed.sharding", "'rowwise'", "row_wise"]),
    ],
)
def test_config(refused: Refused, option: str, value: str, expected: list[str]) -> None:
    message = refused(option, value)
    assert [part for part in expected if part not in message] == []


def test_the_configs_mistakes_come_before_the_run_folders(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("run: {}")
    config = small_config(tmp_path / "config.yaml", data, run_dir)
    command = ["train", "--config", str(config)]
    assert main([*command, "--balance.rule", "equall"]) == 2
    assert "did you mean 'equal'?" in capsys.readouterr().err
    assert main(command) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_more_ranks_than_cuda_devices(refused: Refused) -> None:
    message = refused("--nproc", "2", "--distributed.device", "cuda")
    assert "2 ranks" in message
    assert "0 CUDA devices" in message


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("compare --config x.yaml --models a --out s3://bucket/key", "--out: 's3://bucket/key'"),
        ("analyze gates --runs ftp://host/run --out o", "--runs: 'ftp://host/run'"),
        ("doctor --run.dir ftp://host/runs", "--run.dir: 'ftp://host/runs'"),
        ("train --config x.yaml --init-from ftp://host/run", "--init-from: 'ftp://host/run'"),
        ("evaluate --run s3:///run", "--run: 's3:///run'"),
        ("prepare --check ftp://host/data", "--check: 'ftp://host/data'"),
    ],
)
def test_url_that_an_option_cannot_take(
    command: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_missing_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "no/such.yaml"]) == 2
    assert "no/such.yaml" in capsys.readouterr().err


def test_run_folder_that_holds_a_run(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text('{"kind": "train"}\n')
    config = small_config(tmp_path / "config.yaml", data, run_dir)
    assert main(["train", "--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert str(run_dir) in message
    assert "--overwrite" in message
    assert (run_dir / "metrics.jsonl").read_text() == '{"kind": "train"}\n'


def test_nothing_to_resume_or_evaluate(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no run" in refused("--resume")
    assert main(["evaluate", "--run", str(tmp_path / "other")]) == 2
    assert "holds no run" in capsys.readouterr().err


def _with_column(folder: Path, source: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """A copy of a prepared folder whose train split went through ``change``."""
    folder.mkdir()
    (folder / "schema.json").write_text((source / "schema.json").read_text())
    (folder / "train").mkdir()
    table = change(pq.read_table(source / "train"))
    pq.write_table(table, folder / "train" / "0.parquet", row_group_size=500)
    return folder


def _replaced(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    column = pa.array(values, type=table[name].type)
    return table.set_column(table.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.drop_columns(["item_id"]), ["item_id", "0.parquet"]),
        (lambda t: t.drop_columns(["like"]), ["like", "0.parquet"]),
        (
            lambda t: t.set_column(0, t.column_names[0], t[t.column_names[0]].cast(pa.string())),
            ["user_id", "string"],
        ),
        (lambda t: _replaced(t, "item_id", 700, 41), ["item_id", "row group 1", "41", "0 to 40"]),
        (lambda t: _replaced(t, "item_id", 700, -1), ["item_id", "row group 1", "-1"]),
        (lambda t: t.slice(0, 0), ["train", "no rows"]),
    ],
    ids=["no feature", "no label", "wrong type", "id too large", "negative id", "empty split"],
)
def test_data(
    refused: Refused,
    tmp_path: Path,
    data: Path,
    change: Callable[[pa.Table], pa.Table],
    expected: list[str],
) -> None:
    message = refused(path=_with_column(tmp_path / "bad", data, change))
    assert [part for part in expected if part not in message] == []


def test_missing_split_and_schema(refused: Refused, tmp_path: Path, data: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "schema.json" in refused(path=bare)
    (bare / "schema.json").write_text((data / "schema.json").read_text())
    assert "train" in refused(path=bare)
    (bare / "schema.json").write_text('{"features": []}')
    assert "features" in refused(path=bare)


def test_bad_label_met_while_training(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Footers do not tell labels; the reader does, and a rank's mistake ends both ranks."""
    bad = _with_column(tmp_path / "bad", data, lambda t: _replaced(t, "like", 1999, 2))
    config = small_config(tmp_path / "config.yaml", bad, tmp_path / "run")
    assert main(["train", "--config", str(config), "--nproc", "2"]) == 2
    last_line = capfd.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("error: ")
    assert "like" in last_line
    assert "row group 3" in last_line
