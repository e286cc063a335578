"""The schema that a run was trained with: a checkpoint's weights mean nothing without it."""

import logging
from collections.abc import Sequence

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.identity import Fitted, fitted
from stem_torchrec.schema import Schema, load_schema, schema_from

_log = logging.getLogger(__name__)


def fitted_schema(config: Config) -> Fitted:
    """The schema of the run in ``run.dir``, compared with the folder that it is to read now.

    Not collective.

    Raises:
        UserError: the run has no checkpoint; features or tasks are asked for that are not the
            run's; or as ``fitted``.
    """
    data, there = load_schema(config.data.path), str(config.run.dir)
    about = checkpoint.newest_about(config.run.dir)
    saved = schema_from(about["schema"], there) if "schema" in about else None
    notes: list[str] = []
    if saved is None:  # written by a version that did not keep it
        saved = data.select(features=config.data.features, tasks=about["tasks"])
        notes.append(
            f"{there}: its checkpoints hold no schema (an earlier version wrote them); that of "
            f"{config.data.path} is taken, and whether features and ids are the same is not known"
        )
    notes += _check_asked("data.features", config.data.features, _names(saved), there)
    notes += _check_asked("tasks.names", config.tasks.names, saved.task_names, there)
    found = fitted(saved, there, data, config.data.path)
    return Fitted(found.schema, notes + found.notes)


def schema_of_run(config: Config, ranks: Ranks) -> Schema:
    """``fitted_schema`` on every rank; rank 0 logs the notes. Collective."""
    found = ranks.on_first(lambda: fitted_schema(config))
    if ranks.is_first:
        for note in found.notes:
            _log.warning("%s", note)
    return found.schema


def _names(schema: Schema) -> Sequence[str]:
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
