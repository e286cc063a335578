"""Interrupted preparing goes on: to the bytes that an uninterrupted one has written."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

import duckdb
import pytest

from stem_torchrec.cli import main
from stem_torchrec.errors import UserError
from stem_torchrec.prepare import engine
from stem_torchrec.prepare.engine.building import building
from stem_torchrec.prepare.engine.prepared import prepared_folder
from stem_torchrec.prepare.engine.stages import Stage, StageLog
from stem_torchrec.prepare.engine.working_database import Resources, working_database
from tests.prepare.raw_tables import files_under, write_text
from tests.support.forked import Forked
from tests.support.kuairand_release import Source

DESCRIPTION = """
features:
  - {name: user, side: user}
  - {name: item, encoding: hash, num_embeddings: 50}
  - {name: tags, kind: bag, separator: "|"}
  - {name: price, kind: dense}
labels: {y: label}
user: user
split: {by: random}
min_count: 2
"""


def killed(wanted: str, command: list[str]) -> None:
    """Ends the process in the middle of a stage: its work is done, and not recorded."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run_and_die(log: StageLog, stage: Stage) -> None:
        is_wanted = stage.name.startswith(wanted)
        run_stage(log, Stage(stage.name, lambda: (stage.run(), die())) if is_wanted else stage)

    run_stage, StageLog._run = StageLog._run, run_and_die  # type: ignore[method-assign]
    if wanted == "count labels":
        engine.prepared.compute_stats = lambda *_, **__: die()  # type: ignore[assignment]
    if wanted == "exchange":
        engine.building.exchanged = lambda *_: die()  # type: ignore[assignment]
    main(command)


def endless(folder: Path) -> int:
    try:
        with working_database(folder, Resources()) as database:
            print("begins", flush=True)
            database.connection.execute("SELECT sum(hash(range)) FROM range(10000000000000)")
    except KeyboardInterrupt:
        return 7
    return 0


def killed_in(stage: str, command: Sequence[str]) -> None:
    with NamedTemporaryFile() as log:
        process = Forked.logged(Path(log.name), killed, stage, list(command))
        assert process.wait(120) == -signal.SIGKILL, log.read().decode()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_csv(path: Path, num_rows: int) -> Path:
    header = ["user", "item", "tags", "price", "label"]
    rows = ([k % 97, f"i{k % 31}", f"a{k % 5}|b{k % 7}", k / 8, k % 2] for k in range(num_rows))
    return write_text(path, [header, *rows])


def csv_command(tmp_path: Path, out: str, raw: str = "raw.csv") -> list[str]:
    described = tmp_path / "describe.yaml"
    described.write_text(DESCRIPTION)
    command = ["prepare", "csv", "--source", str(tmp_path / raw), "--out"]
    return [*command, str(tmp_path / "sets" / out), "--describe", str(described)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("expected")
    write_csv(folder / "raw.csv", 3000)
    assert main(csv_command(folder, "out")) == 0
    return contents(folder / "sets" / "out")


@pytest.mark.parametrize(
    ("stage", "done"),
    [
        ("read", None),
        ("ids of item", ", split, ids of user"),
        ("bags of tags", ", ids of item, ids of tags"),
        ("write train", ", collisions of item"),
        ("count labels", ", write test, look at features"),
    ],
)
def test_a_killed_process_is_gone_on_with_from_the_stage_it_was_in(
    tmp_path: Path,
    stage: str,
    done: str | None,
    expected: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_csv(tmp_path / "raw.csv", 3000)
    command = csv_command(tmp_path, "out")
    killed_in(stage, command)
    assert files_under(tmp_path / "sets") == {".out.building"}
    assert main(command) == 0
    shown = capsys.readouterr().err.splitlines()
    if done is None:
        assert "goes on" not in shown[0]
    else:
        assert shown[0].startswith("goes on after: read 1 files")
        assert shown[0].endswith(done)
    assert contents(tmp_path / "sets" / "out") == expected
    assert files_under(tmp_path / "sets") == {"out"}


@pytest.mark.parametrize(
    ("stage", "done"),
    [
        ("read log_standard_4_22", "read log_standard_4_08_to_4_21_27k_part2.csv"),
        ("write valid", "ids, count users and items, write train"),
    ],
)
def test_kuairand_goes_on(
    tmp_path: Path, stage: str, done: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(tmp_path / "KuaiRand-27K").write()
    command = ["prepare", "kuairand", "--source", str(source), "--min_count", "2", "--out"]
    assert main([*command, str(tmp_path / "expected")]) == 0
    killed_in(stage, [*command, str(tmp_path / "out")])
    capsys.readouterr()
    assert main([*command, str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("goes on after: ")
    assert shown[0].endswith(done)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_work_serves_the_same_request_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_csv(tmp_path / "raw.csv", 300)
    command = csv_command(tmp_path, "out")

    def first_line(*options: str) -> str:
        killed_in("write train", command)
        capsys.readouterr()
        assert main([*command, *options]) == 0
        shutil.rmtree(tmp_path / "sets" / "out")
        return capsys.readouterr().err.splitlines()[0]

    assert first_line("--memory-gib", "1", "--threads", "1").startswith("goes on after: read 1")
    anew = "starts anew: {} changed since the interruption"
    assert first_line("--shuffle-seed", "4") == anew.format("options")
    assert first_line("--fresh").startswith("read 1 files")
    killed_in("split", command)
    write_csv(source, 301)
    assert main(command) == 0
    assert anew.format("sources") in capsys.readouterr().err
    write_csv(tmp_path / "other.csv", 301)
    assert main(csv_command(tmp_path, "other", "other.csv")) == 0
    assert contents(tmp_path / "sets" / "out") == contents(tmp_path / "sets" / "other")


def test_a_database_that_was_damaged_is_made_anew(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    write_csv(tmp_path / "raw.csv", 3000)
    command = csv_command(tmp_path, "out")
    killed_in("write valid", command)
    database = tmp_path / "sets" / ".out.building" / "work" / "work.duckdb"
    database.write_bytes(b"x" * 5000)
    assert main(command) == 0
    assert contents(tmp_path / "sets" / "out") == expected


@pytest.mark.parametrize(("number", "read"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
@pytest.mark.usefixtures("ordinary_signals")
def test_a_signal_keeps_finished_stages_and_says_so(
    tmp_path: Path, number: signal.Signals, read: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "raw.csv", 250_000)
    command, log = csv_command(tmp_path, "out"), tmp_path / "log"
    process = Forked.logged(log, main, command)
    folder = tmp_path / "sets" / ".out.building"
    while not (folder / ("request" if read else "work/work.duckdb")).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    errors = log.read_text()
    assert "Traceback" not in errors
    if not read:
        assert errors.splitlines()[-1] == f"stopped by {number.name}; nothing is left"
        assert files_under(tmp_path / "sets") == set()
        return
    left = f"finished stages are kept in {folder}: the same command goes on, --fresh starts anew"
    assert errors.splitlines()[-1] == f"stopped by {number.name}; {left}"
    assert files_under(tmp_path / "sets") == {folder.name}
    assert main(command) == 0
    assert capsys.readouterr().err.startswith("goes on after: read 1 files")
    assert main(csv_command(tmp_path, "expected")) == 0
    assert contents(tmp_path / "sets" / "out") == contents(tmp_path / "sets" / "expected")


@pytest.mark.usefixtures("ordinary_signals")
def test_a_signal_ends_a_query_that_would_go_on_for_hours(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = Forked.logged(log, endless, tmp_path)
    while "begins\n" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(60) == 7, log.read_text()
    finally:
        process.kill()


def test_what_is_no_mistake_of_the_user_keeps_finished_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "raw.csv", 300)
    command = csv_command(tmp_path, "out")

    def fail(*_: object) -> int:
        raise error

    error: Exception = duckdb.OutOfMemoryException("failed to pin block")
    with monkeypatch.context() as patch:
        patch.setattr("stem_torchrec.prepare.tables.preparation.table_rows", fail)
        assert main(command) == 2
        shown = capsys.readouterr().err
        assert "memory_gib: not enough" in shown
        assert "finished stages are kept" in shown
        assert files_under(tmp_path / "sets") == {".out.building"}
        error = duckdb.InternalException("a fault of no one's data")
        with pytest.raises(duckdb.InternalException):
            main(command)
        capsys.readouterr()
        assert files_under(tmp_path / "sets") == {".out.building"}
        error = duckdb.IOException("No space left on device")
        assert main(command) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("goes on after: read 1 files (0.00 GB), split\n")
        assert "is full" in shown
        assert files_under(tmp_path / "sets") == set()


def test_a_folder_is_prepared_by_one_process_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "raw.csv", 300)
    command = csv_command(tmp_path, "out")
    with building(tmp_path / "sets" / "out"):
        assert main(command) == 2
        assert "out' is being written by process" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_a_folder_that_was_moved_away_for_its_successor_is_put_back(tmp_path: Path) -> None:
    replaced = tmp_path / ".out.building" / "replaced"
    replaced.mkdir(parents=True)
    (replaced / "schema.json").write_text("{}")
    with pytest.raises(UserError, match="not empty"), prepared_folder(tmp_path / "out"):
        raise AssertionError("entered")
    assert files_under(tmp_path) == {"out"}
    assert files_under(tmp_path / "out") == {"schema.json"}
