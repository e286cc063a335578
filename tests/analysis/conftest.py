"""Short finished runs that the analyses read."""

from pathlib import Path

import pytest

from stem_torchrec.cli import main
from tests.support.prepared import small_config, small_data

ONE_TASK = ("click", "like")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of one task (``click``, ``like``) and of both (``both`` with seeds 0 and
    1, ``plain`` without tables per task, ``single`` with nothing shared)."""
    folder = tmp_path_factory.mktemp("finished")
    data = small_data(folder / "data")
    options: dict[str, list[str]] = {task: ["--tasks.names", task] for task in ONE_TASK}
    options |= {"both": [], "both_1": ["--run.seed", "1"]}
    options["plain"] = ["--model.task_specific_features", "none"]
    options["single"] = ["--model.name", "single_task"]
    for name, own in options.items():
        config = small_config(folder / f"{name}.yaml", data, folder / name)
        assert main(["train", "--config", str(config), *own]) == 0
    return folder
