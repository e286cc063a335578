"""The replay command: its pages, its exit codes, and a run that continues another one."""

import json
from pathlib import Path

import pytest

from stem_torchrec.analysis.replay import mean_figures
from stem_torchrec.cli import main
from stem_torchrec.runs.folder import OWN_FILES
from tests.support.prepared import small_config, small_data

LAST = "2024-01-03:2024-01-04"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four days of 200 rows, of which two have been replayed."""
    folder = tmp_path_factory.mktemp("replay")
    data = small_data(folder / "data", world="drift", days=4, train_rows=800)
    file = small_config(folder / "c.yaml", data, folder / "run")
    assert main(["replay", "--config", str(file), "--days", "2024-01-01:2024-01-02"]) == 0
    return file


def test_a_page_with_plots(config: Path) -> None:
    run_dir = config.parent / "run"
    for name in ("days.md", "days.html", "days_1.png"):
        assert (run_dir / name).stat().st_size > 0
    assert {path.name for path in run_dir.iterdir()} <= set(OWN_FILES)
    records = json.loads((run_dir / "days.json").read_text())["days"]
    assert [record["day"] for record in records] == ["2024-01-01", "2024-01-02"]
    assert mean_figures(records)["ne/click"] == records[1]["ne"]["click"]
    text = (run_dir / "days.md").read_text()
    assert f"{records[1]['auc']['like']:.4f}" in text
    assert "figures are of initial weights" in text


def test_the_next_days_continue_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = config.parent / "next"
    words = ["replay", "--config", str(config), "--days", LAST, "--run.dir", str(run_dir)]
    assert main([*words, "--continue-from", str(config.parent / "run"), "--horizon", "2"]) == 0
    assert (
        "optimizers go on after 4 steps; balancing: anew (the rule keeps nothing)"
        in capsys.readouterr().err
    )
    records = json.loads((run_dir / "days.json").read_text())["days"]
    assert [record["untrained"] for record in records] == [False, False]
    assert records[0]["ahead"]["2"]["day"] == "2024-01-04"
    assert (run_dir / "days_2.png").exists()


def write_day(folder: Path, number: int) -> list[str]:
    """How a day of 40 rows is prepared; each brings two new users."""
    lines = [
        f"2024-01-0{number},{row % (2 * number + 2)},{row % 7},{row * number % 3 % 2}"
        for row in range(40)
    ]
    file = folder / f"day{number}.csv"
    file.write_text("\n".join(["day,user,item,bought", *lines]) + "\n")
    return ["prepare", "csv", "--source", str(file)]


def test_a_run_goes_on_with_a_day_that_was_prepared_after_it(tmp_path: Path) -> None:
    data, described = tmp_path / "data", tmp_path / "days.yaml"
    described.write_text(
        "features: [{name: user, side: user}, {name: item, side: item}]\n"
        "labels: {buy: bought}\nsplit: {by: day, column: day}\nmin_count: 1\n"
    )
    first = [*write_day(tmp_path, 1), "--describe", str(described), "--out", str(data)]
    assert main(first) == 0
    assert main([*write_day(tmp_path, 2), "--extend", str(data)]) == 0
    words = ["replay", "--config", str(small_config(tmp_path / "c.yaml", data, tmp_path / "run"))]
    assert main(words) == 0
    assert main([*write_day(tmp_path, 3), "--extend", str(data)]) == 0
    words += ["--days", "2024-01-03", "--run.dir", str(tmp_path / "next")]
    assert main([*words, "--continue-from", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "next" / "init.json").read_text())
    grown = {name.split(".")[-2]: rows for name, rows in report["new_rows"].items()}
    assert grown == {"shared__user": 2, "buy__user": 2}
    assert report["optimizers"]["initial"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--days", "2024-01-02:2024-01-01"], "the last day lies before the first"),
        (["--days", "2024-01-04:2024-01-06"], "no 2024-01-05, 2024-01-06"),
        (["--days", LAST, "--horizon", "3"], "--horizon: 3; allowed: 1 to 2"),
        (["--days", LAST], "already holds a run"),
        (["--days", LAST, "--resume"], "the replay there goes through 2024-01-01:2024-01-02"),
        (["--days", LAST, "--continue-from", "RUN", "--resume"], "--continue-from: starts a run"),
        (["--days", LAST, "--continue-from", "nowhere"], "holds no run"),
        (["--days", LAST, "--init-map", "a=b"], "--init-map: has no meaning without"),
    ],
)
def test_mistakes_end_with_exit_code_2(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    run = str(config.parent / "run")
    words = [run if word == "RUN" else word for word in words]
    assert main(["replay", "--config", str(config), *words]) == 2
    assert message in capsys.readouterr().err


def test_train_does_not_go_on_with_a_replay(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(config), "--resume"]) == 2
    assert "holds a replay; go on with replay" in capsys.readouterr().err
