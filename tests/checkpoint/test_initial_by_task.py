"""A model that starts from one with other tasks: every weight lands where its task is.

Which weights are a task's is written down here once more, model by model, from how the model is
built; T tasks, M experts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stem_torchrec.checkpoint.matching import Initial
from stem_torchrec.nn import MODELS
from tests.checkpoint.test_initial import load, save, schema
from tests.support.steps import config_of

Weights = dict[str, Tensor]
Parts = Iterator[tuple[str, Tensor]]
OLD = ("click", "like", "share")
NUM_SHARED, NUM_OWN = 2, 2
KEYS: dict[str, Any] = {"num_shared_experts": NUM_SHARED, "num_task_experts": NUM_OWN}


def order_of(name: str, tasks: tuple[str, ...]) -> tuple[str, ...] | None:
    """Neither in the tasks' order nor, for the longer ones, with the same task at the end."""
    if name == "esmm":
        return (tasks[-1], tasks[0])
    return tasks[::-1] if name == "aitm" else None


def pieces(weights: Weights, beginning: str) -> Iterator[tuple[str, Tensor]]:
    start = f"recommender.model.{beginning}."
    for name, value in weights.items():
        if name.startswith(start):
            yield name.removeprefix(start), value


def rows(weights: Weights, part: str, index: int) -> Parts:
    """A slice of the first dimension of every weight of a part."""
    for name, value in pieces(weights, part):
        yield f"{part} {name}", value[index]


def networks(weights: Weights, tasks: tuple[str, ...], task: str) -> Parts:
    first, _ = order_of("esmm", tasks) or ("", "")
    if task == first:
        found = rows(weights, "first_network", 0)
    else:
        found = rows(weights, "networks", [t for t in tasks if t != first].index(task))
    for name, value in found:
        yield name.partition(" ")[2], value


def chain(weights: Weights, tasks: tuple[str, ...], task: str) -> Parts:
    place = tasks[::-1].index(task)
    is_last = place == len(tasks) - 1
    tower = ("last_tower", 0) if is_last else ("chain.towers", place)
    yield from ((n.partition(" ")[2], v) for n, v in rows(weights, *tower))
    if place > 0:
        transfer = "last_transfer" if is_last else f"chain.transfers.{place - 1}"
        yield from ((f"transfer {n}", v) for n, v in pieces(weights, transfer))
    yield from rows(weights, "heads", place)


def extraction(weights: Weights, tasks: tuple[str, ...], task: str, own: bool) -> Parts:
    t = tasks.index(task)
    for block in (0, 1):
        start = f"stack.blocks.{block}"
        for k in range(NUM_OWN):
            place = t * NUM_OWN + k
            for name, value in rows(weights, f"{start}.task_experts", place):
                yield f"{name} of {k}", value
        for name, value in rows(weights, f"{start}.gates", t):
            if "last" not in name:
                yield name, value
                continue
            yield f"{name} shared", value[..., :NUM_SHARED]
            mine = NUM_SHARED + (0 if own else t * NUM_OWN)
            yield f"{name} own", value[..., mine : mine + NUM_OWN]
        if block == 0:
            for name, value in pieces(weights, f"{start}.shared_gate.mlp.last"):
                mine = NUM_SHARED + t * NUM_OWN
                yield f"{name} of the shared gate", value[..., mine : mine + NUM_OWN]


def parts_of(name: str, weights: Weights, tasks: tuple[str, ...], task: str) -> Weights:
    """Every weight that is one task's, by what it does."""
    t = tasks.index(task)
    found = dict(rows(weights, "towers", t))
    match name:
        case "single_task":
            found |= rows(weights, "experts", t)
        case "mmoe" | "me_mmoe":
            found |= rows(weights, "gates", t)
        case "home":
            found |= rows(weights, "gates", t)
            found |= {f"self {n}": v for n, v in rows(weights, "self_gates", t)}
            for k in range(NUM_OWN):
                own = rows(weights, "experts", t * NUM_OWN + k)
                found |= {f"{n} of {k}": v for n, v in own}
        case "esmm":
            found |= networks(weights, tasks, task)
        case "aitm":
            found |= chain(weights, tasks, task)
        case "ple" | "me_ple" | "stem_net":
            found |= extraction(weights, tasks, task, own=name != "stem_net")
    return found


SHARED_PARTS = {
    "shared_bottom": ["bottom"],
    "omoe": ["mixture"],
    "mmoe": ["experts"],
    "home": ["trunk"],
    "me_mmoe": ["experts"],
    "ple": ["stack.blocks.0.shared_experts", "stack.blocks.1.shared_experts"],
}
SHARED_PARTS |= dict.fromkeys(("me_ple", "stem_net"), SHARED_PARTS["ple"])


@pytest.fixture(scope="module", params=MODELS)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, alone: Any
) -> tuple[str, Path, Any]:
    """A model with the old tasks: its name, its run's folder, its weights."""
    folder = tmp_path_factory.mktemp(request.param)
    config = config_for(request.param, folder / "old", OLD)
    return request.param, config.run.dir, save(alone, config)


def config_for(name: str, folder: Path, tasks: tuple[str, ...]) -> Any:
    layers = {"layers": 2} if hasattr(MODELS[name].options_type, "layers") else {}
    keys = {"name": name, "task_order": order_of(name, tasks), **KEYS, **layers}
    run = {"seed": len(tasks) + len(folder.name)}
    return config_of(folder, schema(tasks), run=run, model=keys)


ADDED = ("share", "buy", "click", "like")
CASES = {
    "permuted": (("share", "click", "like"), {}, "shared"),
    "dropped": (("like", "click"), {}, "shared"),
    "added": (ADDED, {}, "shared"),
    "added afresh": (ADDED, {}, "fresh"),
    "renamed": (("buy", "like", "click"), {"share": "buy"}, "shared"),
    "exchanged": (("like", "click", "share"), {"click": "like", "like": "click"}, "shared"),
}


@pytest.mark.parametrize(("tasks", "names", "new_tasks"), CASES.values(), ids=CASES)
def test_every_weight_lands_where_its_task_is(
    saved: tuple[str, Path, Any],
    tmp_path: Path,
    alone: Any,
    tasks: tuple[str, ...],
    names: dict[str, str],
    new_tasks: Any,
) -> None:
    name, run_dir, old = saved
    initial = Initial(run_dir, tuple(names.items()), new_tasks)
    fresh, loaded, _ = load(alone, config_for(name, tmp_path / "new", tasks), initial)
    origin = {names.get(task, task): task for task in OLD}
    compared = set()
    for task in tasks:
        here = parts_of(name, loaded.dense, tasks, task)
        of_fresh = parts_of(name, fresh.dense, tasks, task)
        there = parts_of(name, old.dense, OLD, origin[task]) if task in origin else {}
        for part, value in here.items():
            assert torch.equal(value, there.get(part, of_fresh[part])), (task, part)
            compared.add(value.untyped_storage().data_ptr())
    for part in SHARED_PARTS.get(name, []):
        for weight, value in pieces(loaded.dense, part):
            assert torch.equal(value, old.dense[f"recommender.model.{part}.{weight}"]), weight
            compared.add(value.untyped_storage().data_ptr())
    left = {n for n, v in loaded.dense.items() if v.untyped_storage().data_ptr() not in compared}
    assert all(".shared_gate." in weight for weight in left), left
    for table, values in loaded.tables.items():
        owner, _, feature = table.partition("__")
        source = f"{origin.get(owner, owner)}__{feature}"
        if owner not in origin and owner in tasks:
            source = f"shared__{feature}" if new_tasks == "shared" else ""
        expected = old.tables.get(source, fresh.tables[table])
        assert torch.equal(values, expected), table
