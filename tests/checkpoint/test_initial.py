"""A model that starts from another run's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint.initial import load_initial
from stem_torchrec.checkpoint.matching import Initial
from stem_torchrec.config import CheckpointConfig, Config
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError
from tests.distributed.processes import Processes
from tests.distributed.test_checkpoint import POSITION
from tests.support.steps import SCHEMA, State, config_of, parts_of, start, state_of

TABLE = "recommender.embeddings.tables.embedding_bags.{}.weight"


def schema(tasks: tuple[str, ...], users: int = 30, user: str = "user") -> Schema:
    features = tuple(
        Feature(name=user, kind="id", side="user", num_embeddings=users) if f.name == "user" else f
        for f in SCHEMA.features
    )
    return Schema(features=features, tasks=tuple(Task(name=t) for t in tasks))


def config(
    folder: Path,
    of: Schema,
    sharding: str = "table_wise",
    layout: str = "separate",
    **model: Any,
) -> Config:
    return config_of(
        folder,
        of,
        run={"seed": len(folder.name)},
        model=model,
        embedding={"layout": layout},
        distributed={"sharding": sharding},
    )


def save(ranks: Any, config: Config, step: int = 3) -> State:
    session = start(config, ranks)
    saver = checkpoint.Saver(CheckpointConfig(), config.run.dir / checkpoint.FOLDER, ranks)
    state = checkpoint.state_of(parts_of(session, POSITION))
    about = checkpoint.about_owners(session.model.module.recommender.model)
    about |= {"tasks": session.schema.task_names, "schema": session.schema.content()}
    saver.save(checkpoint.Content(step, state, b"", about))
    saver.wait()
    saver.close()
    return state_of(session)


def load(ranks: Any, config: Config, initial: Initial) -> tuple[State, State, dict[str, Any]]:
    session = start(config, ranks)
    fresh = state_of(session)
    report = load_initial(session.model, config, session.schema, initial, ranks)
    return fresh, state_of(session), report


OLD = schema(("click", "like"))


def test_an_older_checkpoint_is_taken_where_it_is_asked_for(tmp_path: Path, alone: Any) -> None:
    old = config(tmp_path / "old", OLD)
    saved = save(alone, old, step=3)
    save(alone, old.model_copy(update={"run": old.run.model_copy(update={"seed": 99})}), step=5)
    here = config(tmp_path / "changed", OLD)
    _, loaded, report = load(alone, here, Initial(old.run.dir, checkpoint=3))
    assert report["from"].endswith("step_3")
    for ours, theirs in zip(loaded, saved, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert load(alone, here, Initial(old.run.dir))[2]["from"].endswith("step_5")
    with pytest.raises(UserError, match="checkpoint 4: none of this step is whole"):
        load(alone, here, Initial(old.run.dir, checkpoint=4))


def test_the_same_model_starts_as_it_was(tmp_path: Path, alone: Any) -> None:
    saved = save(alone, config(tmp_path / "old", OLD))
    here = config(tmp_path / "changed", OLD)
    _, loaded, report = load(alone, here, Initial(tmp_path / "old" / "run"))
    for ours, theirs in zip(loaded, saved, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert report["initial"] == report["new_rows"] == {}
    assert report["not_used"] == report["in_part"] == []


@pytest.mark.parametrize(
    ("sharding", "layouts"),
    [
        ("table_wise", ("separate", "separate")),
        ("row_wise", ("separate", "separate")),
        ("column_wise", ("separate", "separate")),
        ("data_parallel", ("separate", "separate")),
        ("row_wise", ("separate", "fused")),
        ("column_wise", ("fused", "fused")),
        ("table_wise", ("fused", "separate")),
    ],
)
@pytest.mark.parametrize("new_tasks", ["shared", "fresh"])
def test_an_added_task_and_more_rows(
    tmp_path: Path,
    alone: Any,
    pair: Processes,
    sharding: str,
    layouts: tuple[str, str],
    new_tasks: Any,
) -> None:
    saved = save(alone, config(tmp_path / "old", OLD, layout=layouts[0]))
    grown = schema(("share", "click", "like"), users=37)
    initial = Initial(tmp_path / "old" / "run", (), new_tasks)
    here = config(tmp_path / "new", grown, sharding, layouts[1])
    fresh, loaded, report = pair.run(load, here, initial)[0]
    for table, values in loaded.tables.items():
        owner, feature = table.split("__")
        origin = f"shared__{feature}" if owner == "share" else table
        expected = fresh.tables[table].clone()
        if owner != "share" or new_tasks == "shared":
            expected[: len(saved.tables[origin])] = saved.tables[origin]
        assert torch.equal(values, expected), table
    assert report["new_rows"][TABLE.format("click__user")] == 7
    fresh_tables = {name for name in report["initial"] if "embedding_bags" in name}
    assert len(fresh_tables) == (4 if new_tasks == "fresh" else 0)
    assert_dense_by_task(fresh.dense, loaded.dense, saved.dense)


def assert_dense_by_task(fresh: Any, loaded: Any, saved: Any) -> None:
    """The new task is the first of three; one expert per task and two shared ones."""
    tower = "recommender.model.towers.mlp.last.weight"
    assert torch.equal(loaded[tower][0], fresh[tower][0])
    assert torch.equal(loaded[tower][1:], saved[tower])
    experts = "recommender.model.stack.blocks.0.task_experts.hidden.0.weight"
    assert torch.equal(loaded[experts][1:], saved[experts])
    gate = "recommender.model.stack.blocks.0.gates.mlp.last.weight"
    assert torch.equal(loaded[gate][1:, :, [0, 1, 3, 4]], saved[gate])
    assert torch.equal(loaded[gate][:, :, 2], fresh[gate][:, :, 2])
    shared = "recommender.model.stack.blocks.0.shared_experts.hidden.0.weight"
    assert torch.equal(loaded[shared], saved[shared])


def test_names_are_mapped(tmp_path: Path, alone: Any) -> None:
    saved = save(alone, config(tmp_path / "old", OLD))
    here = config(tmp_path / "new", schema(("buy", "like"), user="member"))
    names = (("click", "buy"), ("user", "member"))
    _, loaded, report = load(alone, here, Initial(tmp_path / "old" / "run", names))
    assert torch.equal(loaded.tables["buy__member"], saved.tables["click__user"])
    assert all(torch.equal(loaded.dense[name], saved.dense[name]) for name in saved.dense)
    assert report["initial"] == {}


def test_what_has_no_counterpart_is_listed(tmp_path: Path, alone: Any) -> None:
    saved = save(alone, config(tmp_path / "old", OLD))
    here = config(tmp_path / "new", schema(("buy", "like")), tower_widths=[12])
    initial = Initial(tmp_path / "old" / "run", (), "fresh")
    fresh, loaded, report = load(alone, here, initial)
    assert TABLE.format("click__user") in report["not_used"]
    assert report["initial"][TABLE.format("buy__user")] == "not in the other run"
    tower = "recommender.model.towers.mlp.hidden.0.weight"
    assert "[2, 16, 12], there [2, 16, 16]" in report["initial"][tower]
    assert torch.equal(loaded.dense[tower], fresh.dense[tower])
    # Of the experts and of a gate's outputs those of the task in common, and the shared ones.
    experts = "recommender.model.stack.blocks.0.task_experts.hidden.0.weight"
    assert torch.equal(loaded.dense[experts][1], saved.dense[experts][1])
    assert torch.equal(loaded.dense[experts][0], fresh.dense[experts][0])
    gate = "recommender.model.stack.blocks.0.gates.mlp.last.weight"
    assert torch.equal(loaded.dense[gate][1][:, [0, 1, 3]], saved.dense[gate][1][:, [0, 1, 3]])
    assert torch.equal(loaded.dense[gate][1][:, 2], fresh.dense[gate][1][:, 2])
    assert gate in report["in_part"]


@pytest.mark.parametrize(
    ("of", "names", "message"),
    [
        (schema(("click",), users=29), (), r"click__user has 29 rows, .* there has 30"),
        (OLD, (("buy", "click"),), r"--init-map: 'buy' is no part of a name .*click, like"),
        (OLD, (("click", "buy"),), r"--init-map: 'buy' is no part of a name here; tasks: click, l"),
        (OLD, (("click", "like"),), r"--init-map: click=like, but .* has a 'like' of its own"),
        (OLD, (("click", "like"), ("click", "click")), r"--init-map: 'click' is mapped twice"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, alone: Any, of: Schema, names: Any, message: str
) -> None:
    save(alone, config(tmp_path / "old", OLD))
    with pytest.raises(UserError, match=message):
        load(alone, config(tmp_path / "new", of), Initial(tmp_path / "old" / "run", names))


def test_two_tasks_change_their_names(tmp_path: Path, alone: Any) -> None:
    saved = save(alone, config(tmp_path / "old", OLD))
    names = (("click", "like"), ("like", "click"))
    here = config(tmp_path / "new", OLD)
    _, loaded, _ = load(alone, here, Initial(tmp_path / "old" / "run", names))
    assert torch.equal(loaded.tables["like__user"], saved.tables["click__user"])
    tower = "recommender.model.towers.mlp.last.weight"
    assert torch.equal(loaded.dense[tower], saved.dense[tower].flip(0))


@pytest.mark.parametrize(
    ("model", "weight"),
    [("single_task", "experts.hidden.0.weight"), ("mmoe", "gates.mlp.last.weight")],
)
def test_a_task_in_the_place_of_another_gets_none_of_its_weights(
    tmp_path: Path, alone: Any, model: str, weight: str
) -> None:
    """As many tasks, so that the shapes are the same."""
    saved = save(alone, config(tmp_path / "old", OLD, name=model))
    here = config(tmp_path / "new", schema(("like", "buy")), name=model)
    fresh, loaded, _ = load(alone, here, Initial(tmp_path / "old" / "run"))
    name = f"recommender.model.{weight}"
    assert torch.equal(loaded.dense[name][0], saved.dense[name][1])
    assert torch.equal(loaded.dense[name][1], fresh.dense[name][1])


def test_a_feature_in_the_place_of_another_gets_none_of_its_weights(
    tmp_path: Path, alone: Any
) -> None:
    save(alone, config(tmp_path / "old", OLD))
    here = config(tmp_path / "changed", schema(("click", "like"), user="member"))
    fresh, loaded, report = load(alone, here, Initial(tmp_path / "old" / "run"))
    experts = "recommender.model.stack.blocks.0.shared_experts.hidden.0.weight"
    assert report["initial"][experts] == "reads other features there"
    assert torch.equal(loaded.dense[experts], fresh.dense[experts])


def test_a_chain_of_tasks_in_another_order_is_loaded_by_task(tmp_path: Path, alone: Any) -> None:
    old = config(tmp_path / "old", OLD, name="aitm")
    saved = save(alone, old)
    here = config(tmp_path / "changed", OLD, name="aitm", task_order=["like", "click"])
    fresh, loaded, report = load(alone, here, Initial(old.run.dir))
    model = "recommender.model."
    heads, tower = f"{model}heads.last.weight", "hidden.0.weight"
    assert torch.equal(loaded.dense[heads], saved.dense[heads].flip(0))
    for one, other in (("chain.towers", "last_tower"), ("last_tower", "chain.towers")):
        expected = saved.dense[f"{model}{other}.{tower}"]
        assert torch.equal(loaded.dense[f"{model}{one}.{tower}"], expected)
    # Only a task after another one has weights for what it takes over: that was like.
    transfer = f"{model}last_transfer.query.weight"
    assert torch.equal(loaded.dense[transfer], fresh.dense[transfer])
    assert "the other run does not have" in report["initial"][transfer]


def test_a_feature_of_another_width_is_refused(tmp_path: Path, alone: Any) -> None:
    """Also where the experts would read as many columns."""
    old, here = config(tmp_path / "old", OLD), config(tmp_path / "new", OLD)
    widths = {"user": 4, "hour": 12}
    embedding = here.embedding.model_copy(update={"dims": widths})
    save(alone, old)
    with pytest.raises(UserError, match=r"__(user|hour) has dimension \d+, .* there has 8; set"):
        load(alone, here.model_copy(update={"embedding": embedding}), Initial(old.run.dir))
