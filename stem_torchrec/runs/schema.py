"""The schema that a run was trained with: a checkpoint's weights mean nothing without it."""

import logging
from collections.abc import Sequence
from typing import Any

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint import Initial
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.data.identity import (
    Fitted,
    compare_features,
    compare_tasks,
    fitted,
    renamed,
    unknown_ids,
)
from stem_torchrec.data.schema import Schema, load_schema, schema_from
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

_log = logging.getLogger(__name__)


def selected_schema(config: Config) -> Schema:
    """The data's schema with the config's features and tasks only."""
    schema = load_schema(config.data.path)
    return schema.select(features=config.data.features, tasks=config.tasks.names)


def fitted_schema(config: Config) -> Fitted:
    """The schema of the run in ``run.dir``, compared with the folder that it is to read now.

    Not collective.

    Raises:
        UserError: the run has no checkpoint; features or tasks are asked for that are not the
            run's; or as ``fitted``.
    """
    data, there = load_schema(config.data.path), str(config.run.dir)
    about = checkpoint.newest_about(config.run.dir)
    if "schema" in about:
        found = fitted(schema_from(about["schema"], there), there, data, config.data.path)
    else:
        note = (
            f"{there}: its checkpoints hold no schema (an earlier version wrote them); that of "
            f"{config.data.path} is taken, and whether features and ids are the same is not known"
        )
        selected = data.select(features=config.data.features, tasks=about["tasks"])
        found = Fitted(selected, [note])
    schema = found.schema
    asked = _check_asked("data.features", config.data.features, _names(schema), there)
    asked += _check_asked("tasks.names", config.tasks.names, schema.task_names, there)
    return Fitted(schema, found.notes + asked)


def own_schema(config: Config, data: Place | None = None) -> Schema:
    """The schema of the run in ``run.dir`` for rows without labels, weights and groups.

    Not collective.

    Args:
        data: a prepared folder whose features are to be compared with the run's; its tasks do not
            matter.

    Raises:
        UserError: the run has no checkpoint, or one without a schema; a feature is missing in the
            folder or means something else.
    """
    there = str(config.run.dir)
    about = checkpoint.newest_about(config.run.dir)
    if "schema" not in about:
        raise UserError(f"{there}: its checkpoints hold no schema (an earlier version wrote them)")
    schema = schema_from(about["schema"], there)
    if data is not None:
        found = {feature.name: feature for feature in load_schema(data).features}
        if missing := [name for name in _names(schema) if name not in found]:
            raise UserError(
                f"{data}: feature {missing[0]!r} of {there} is missing; it has {', '.join(found)}"
            )
        compare_features([(f, found[f.name]) for f in schema.features], there, data)
    return schema.model_copy(update={"group": None, "sample_weight": None})


def initial_schema(config: Config, initial: Initial) -> Fitted:
    """The config's schema for a run that starts with the weights of another one.

    Features and tasks have the other run's order where they are the same: networks tell them apart
    by their place. Not collective.

    Raises:
        UserError: a feature or task that both have means something else, as ``compare_features``
            and ``compare_tasks`` say; the other run has no checkpoint.
    """
    schema, folder, there = selected_schema(config), config.data.path, str(initial.run_dir)
    about = checkpoint.newest_about(initial.run_dir)
    if "schema" not in about:
        note = (
            f"{there}: its checkpoints hold no schema (an earlier version wrote them): whether "
            "its features, ids and their order are those of this run is not known"
        )
        return Fitted(schema, [note])
    then = renamed(schema_from(about["schema"], there), dict(initial.names))
    if initial.continues:
        _check_continued(config, schema, then, initial)
    features = {feature.name: feature for feature in schema.features}
    tasks = {task.name: task for task in schema.tasks}
    mapped = {new for _, new in initial.names}
    compared = compare_features(
        [(f, features[f.name]) for f in then.features if f.name in features], there, folder
    )
    compare_tasks(
        [(t, tasks[t.name]) for t in then.tasks if t.name in tasks and t.name not in mapped],
        there,
        folder,
    )
    ordered, notes = _in_order_of(then, schema, there)
    return Fitted(ordered, [*notes, *unknown_ids(compared, folder)])


def _check_continued(config: Config, schema: Schema, then: Schema, initial: Initial) -> None:
    """Refuse to go on with another model, other features or fewer tasks.

    Raises:
        UserError: names the key, feature or task.
    """
    option, there = f"{initial.option}: {config.data.path}", str(initial.run_dir)
    names = [feature.name for feature in schema.features]
    if gone := [name for name in _names(then) if name not in names]:
        raise UserError(f"{option} does not extend the data of {there}: no feature {gone[0]!r}")
    if new := [name for name in names if name not in _names(then)]:
        raise UserError(
            f"{option} has a feature {new[0]!r} that {there} has not: leave it out with "
            "data.features, or take the weights alone with --init-from"
        )
    if gone := [name for name in then.task_names if name not in schema.task_names]:
        raise UserError(
            f"{initial.option}: task {gone[0]!r} of {there} is not trained here; map it with "
            "--init-map, or take the weights alone with --init-from"
        )
    before = load_config(initial.run_dir / "config.yaml", ["--run.dir", there])
    old, now = (one.model.model_dump(mode="json") for one in (before, config))
    for key in now:
        if old.get(key) != now[key]:
            raise UserError(
                f"{initial.option}: model.{key} is {now[key]!r}, {there} has {old.get(key)!r}; "
                "take the weights alone with --init-from"
            )


def _in_order_of(then: Schema, schema: Schema, there: str) -> tuple[Schema, list[str]]:
    features = {feature.name: feature for feature in schema.features}
    tasks = {task.name: task for task in schema.tasks}
    update: dict[str, Any] = {}
    if sorted(_names(then)) == sorted(features) and _names(then) != list(features):
        update["features"] = tuple(features[name] for name in _names(then))
    if sorted(then.task_names) == sorted(tasks) and list(then.task_names) != list(tasks):
        update["tasks"] = tuple(tasks[name] for name in then.task_names)
    notes = [
        f"the {what} are taken in the order of {there}, whose weights go by it" for what in update
    ]
    return schema.model_copy(update=update), notes


def schema_of_new(config: Config, initial: Initial | None, ranks: Ranks) -> Schema:
    """The schema of a run that begins. Collective; rank 0 logs what is to be known."""
    if initial is None:
        return ranks.on_first(lambda: selected_schema(config))
    return _told(ranks.on_first(lambda: initial_schema(config, initial)), ranks)


def schema_of_run(config: Config, ranks: Ranks) -> Schema:
    """``fitted_schema`` on every rank. Collective; rank 0 logs what is to be known."""
    return _told(ranks.on_first(lambda: fitted_schema(config)), ranks)


def _told(found: Fitted, ranks: Ranks) -> Schema:
    if ranks.is_first:
        for note in found.notes:
            _log.warning("%s", note)
    return found.schema


def _names(schema: Schema) -> list[str]:
    return [feature.name for feature in schema.features]


def _check_asked(
    key: str, asked: Sequence[str] | None, of_run: Sequence[str], there: str
) -> list[str]:
    if asked is None or list(asked) == list(of_run):
        return []
    if sorted(asked) != sorted(of_run):
        raise UserError(
            f"{key} is {', '.join(asked)}, but {there} was trained with {', '.join(of_run)}"
        )
    if key == "data.features":  # they have the schema's order whatever is asked for
        return []
    return [f"{key}: {there} has them in another order ({', '.join(of_run)}), which stays"]
