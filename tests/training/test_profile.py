"""``train.profile``: a trace and a table in the run's folder."""

import json
import re
from pathlib import Path

import pytest

import stem_torchrec as st
from stem_torchrec.config.reading import validate
from stem_torchrec.errors import UserError
from stem_torchrec.training.profile import FOLDER, TABLE, TRACE
from tests.support.prepared import small_config, small_data

STEP = re.compile(r"step (\d+)")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    return small_config(folder / "c.yaml", small_data(folder / "data"), folder / "run")


def profiled_steps(run_dir: Path) -> list[int]:
    events = json.loads((run_dir / FOLDER / TRACE).read_text())["traceEvents"]
    steps = [STEP.fullmatch(event["name"]) for event in events]
    return sorted(int(step[1]) for step in steps if step is not None)


def test_the_steps_of_the_window_are_profiled(file: Path) -> None:
    run = st.train(file, train={"max_steps": 6, "profile": "2:3"})
    run_dir = Path(str(run.config.run.dir))
    assert profiled_steps(run_dir) == [2, 3, 4]
    table = (run_dir / FOLDER / TABLE).read_text()
    assert "Self CPU" in table
    assert "aten::" in table
    again = st.train(file, existing="overwrite", train={"max_steps": 3})
    assert not (Path(str(again.config.run.dir)) / FOLDER).exists()
    st.train(file, existing="resume", train={"max_steps": 6, "profile": "3:8"})
    assert profiled_steps(run_dir) == [4, 5, 6]  # resumed in the window, ended in it


@pytest.mark.parametrize(
    "text", ["", "5", "5:", ":5", "0:5", "5:0", "a:b", "-1:5", "1:5:2", "1:9999"]
)
def test_another_text_is_the_users_error(text: str) -> None:
    sections = {"run": {"dir": "r"}, "data": {"path": "d"}, "train": {"profile": text}}
    with pytest.raises(UserError, match=r"train\.profile.*START:STEPS"):
        validate(sections)
