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
