"""A checkpoint of before manifests told whose weights are: AITM, by commit 8d8aebf.

Three tasks ``click, like, follow`` in the order like, follow, click; D 4, two features.
"""

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint.manifest import read_manifest
from stem_torchrec.checkpoint.matching import Initial
from stem_torchrec.config.reading import load_config
from stem_torchrec.data.schema import load_schema
from tests.checkpoint.test_initial import load
from tests.support.steps import config_of, load_checkpoint, start, state_of

ORDER = ("like", "follow", "click")
DENSE = "recommender.model."


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("aitm_of_8d8aebf.tar.xz")) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def test_its_run_goes_on(old: Path, alone: Any) -> None:
    options = ["--run.dir", str(old / "run"), "--data.path", str(old / "data")]
    options += ["--run.seed", "8"]  # other initial values than the run had
    config = load_config(old / "run" / "config.yaml", options)
    session = start(config, alone)
    fresh = state_of(session)
    folder = checkpoint.newest_valid(config.run.dir, alone)
    assert load_checkpoint(folder, session, alone)["step"] == 2
    loaded = state_of(session)
    for before, after in zip(fresh, loaded, strict=True):
        assert all((before[name] != after[name]).any() for name in before)


def test_weights_are_found_by_task_in_what_its_config_says(old: Path, alone: Any) -> None:
    options = ["--run.dir", str(old / "run"), "--data.path", str(old / "data")]
    same = start(load_config(old / "run" / "config.yaml", options), alone)
    folder = checkpoint.newest_valid(old / "run", alone)
    assert "owners" not in read_manifest(folder).about
    checkpoint.load(folder, {"model": same.model}, alone)
    saved = state_of(same).dense

    model = {"name": "aitm", "expert_widths": [3], "tower_widths": [2]}
    schema = load_schema(old / "data").select(tasks=("follow", "click"))
    config = config_of(old / "new", schema, model=model, embedding={"dim": 4})
    _, loaded, report = load(alone, config, Initial(old / "run"))
    # Here follow comes first, then click: each in a chain of one, with a last tower after it.
    weight = "hidden.0.weight"
    pairs = [
        (f"chain.towers.{weight}", f"chain.towers.{weight}", 1),
        (f"last_tower.{weight}", f"last_tower.{weight}", 0),
        ("last_transfer.query.weight", "last_transfer.query.weight", None),
    ]
    for here, there, place in pairs:
        expected = saved[DENSE + there]
        expected = expected if place is None else expected[place : place + 1]
        assert torch.equal(loaded.dense[DENSE + here], expected), here
    heads = saved[f"{DENSE}heads.last.weight"]
    expected = heads[[ORDER.index("follow"), ORDER.index("click")]]
    assert torch.equal(loaded.dense[f"{DENSE}heads.last.weight"], expected)
    assert report["initial"] == {}
