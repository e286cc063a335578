"""The benchmarks' queue of trainings goes on where it stopped; a curve is that of ``train``."""

from pathlib import Path
from typing import Any

from pool import Job, at_best, learning_curve, lines_of, work_off

import stem_torchrec as st
from stem_torchrec.config.reading import load_config
from tests.support.prepared import small_config, small_data


def square(number: int) -> dict[str, Any]:
    return {"square": number * number}


def jobs(*numbers: int) -> list[Job[int]]:
    return [Job(f"job {number}", number) for number in numbers]


def test_what_has_a_line_is_not_done_again(tmp_path: Path) -> None:
    file, begun = tmp_path / "lines.jsonl", []

    def do(number: int) -> dict[str, Any]:
        begun.append(number)
        if number == 2 and begun.count(2) == 1:
            raise ValueError("not yet")
        return square(number)

    said: list[str] = []
    done = work_off(jobs(1, 2), do, file, processes=0, say=said.append)
    assert list(done) == ["job 1"]
    assert said[1] == "2 of 2: job 2: ValueError: not yet"
    file.write_text(file.read_text() + '{"key": "job 3", "squ')

    done = work_off(jobs(1, 2, 3), do, file, processes=0, say=said.append)
    assert begun == [1, 2, 2, 3]
    assert {key: record["square"] for key, record in done.items()} == {
        "job 1": 1,
        "job 2": 4,
        "job 3": 9,
    }
    assert work_off(jobs(1, 2, 3), do, file, processes=0) == done == lines_of(file)


def test_workers_do_what_this_process_would(tmp_path: Path) -> None:
    done = work_off(jobs(1, 2, 3), square, tmp_path / "lines.jsonl", processes=2)
    assert {record["square"] for record in done.values()} == {1, 4, 9}


def test_nothing_is_begun_after_the_limit(tmp_path: Path) -> None:
    assert work_off(jobs(1), square, tmp_path / "lines.jsonl", processes=0, limit_s=0) == {}


def test_a_curve_has_the_figures_of_the_train_command(tmp_path: Path) -> None:
    file = small_config(tmp_path / "config.yaml", small_data(tmp_path / "data"), tmp_path / "run")
    options = {"train.epochs": 2, "balance.rule": "multi_balance"}
    st.train(file, nproc=1, **options)
    records = [r for r in st.load_run(tmp_path / "run").metrics().to_pylist() if r["split"]]
    overrides = [f"--{key}={value}" for key, value in options.items()]
    curve = learning_curve(load_config(file, overrides))
    assert [(r["split"], r["epoch"]) for r in curve] == [
        ("valid", 1),
        ("test", 1),
        ("valid", 2),
        ("test", 2),
    ]
    assert [r["auc_mean"] for r in curve[::2] + curve[3:]] == [r["auc_mean"] for r in records]
    best = max(curve[::2], key=lambda record: record["auc_mean"])["epoch"]
    assert [(s, r["epoch"]) for s, r in at_best(curve).items()] == [("valid", best), ("test", best)]
