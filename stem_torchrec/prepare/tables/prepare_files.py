"""Raw files and their description -> prepared folder, out of core: all adapters of one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stem_torchrec.data.schema import SPLITS, Schema
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.prepare.encoder.definition import write_encoder
from stem_torchrec.prepare.encoder.transforms import Transform, transform_from
from stem_torchrec.prepare.engine.building import building
from stem_torchrec.prepare.engine.options import PrepareOptions
from stem_torchrec.prepare.engine.prepared import (
    folders_of_splits,
    write_metadata,
)
from stem_torchrec.prepare.engine.request import request_of
from stem_torchrec.prepare.engine.stages import Stage, Unseen, Watcher
from stem_torchrec.prepare.engine.vocabulary import copy_to, write_vocabulary
from stem_torchrec.prepare.engine.working_database import WorkingDatabase, working_database
from stem_torchrec.prepare.tables.describe import DescribedFeature, Description
from stem_torchrec.prepare.tables.disk_need import needed_bytes
from stem_torchrec.prepare.tables.encoder import encoder_of
from stem_torchrec.prepare.tables.encoding import (
    count_collisions,
    count_unseen,
    count_values,
    encode_bags,
    encoded_rows,
    prepared_schema,
    require_schema,
    table_owners,
    table_rows,
    with_transforms,
)
from stem_torchrec.prepare.tables.fitting import fit, fitted_features, keep_transforms
from stem_torchrec.prepare.tables.placing import order_sql, place_rows
from stem_torchrec.prepare.tables.raw.checks import compressed, verify_compressed
from stem_torchrec.prepare.tables.raw.files import RawFiles, open_raw_files
from stem_torchrec.prepare.tables.raw.headers import find_files
from stem_torchrec.prepare.tables.raw.rows import read_rows
from stem_torchrec.prepare.tables.raw.side_tables import side_files, with_side_tables
from stem_torchrec.prepare.tables.report import FEATURE_STATS, feature_report, rows_without
from stem_torchrec.prepare.tables.row_columns import Column, row_columns

_UNSEEN, _REPORT = "count unseen ids", "look at features"


def prepare_files(
    sources: Sequence[str | Path],
    description: Description,
    out: Path,
    *,
    options: PrepareOptions | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Prepare raw files as described.

    Vocabularies are counted in train only. The rows of train are shuffled over all files, or
    ordered by time (``Description.shuffle``), others keep the order of the files. The same
    sources, description and seeds give the same rows in the same order on any number of threads.
    After an interruption the same call goes on with the stages that were done (see ``building``).

    Args:
        sources: files or patterns, read in this order.
        fresh: start anew even so.
        watcher: who is told what goes on.

    Returns:
        The statistics (see ``compute_stats``), with ``raw_rows``, ``skipped`` (bad rows by reason)
        and ``hash`` (values, ids and collisions of each hashed table); of a split by time with
        ``cuts`` (its bounds) and ``unseen`` (see ``count_unseen``).

    Raises:
        UserError: files, columns, values or expressions are wrong, or ``out`` is occupied.
        EnvironmentFailure: the disk is full.
    """
    options, watcher = options or PrepareOptions(), watcher or Unseen()
    require_schema(description)
    files = (*find_files(sources), *side_files(description.tables))
    request = request_of(files, options, description=description)
    with (
        building(out, overwrite=overwrite, request=request, fresh=fresh) as made,
        folders_of_splits(made.prepared),
    ):
        with working_database(made.work, options) as database:
            database.lock(files, [made.prepared])
            raw = open_raw_files(
                database.connection,
                sources,
                description.format,
                skip_bad_rows=options.on_bad_row == "skip",
            )
            raw = with_side_tables(database.connection, raw, description.tables)
            columns = row_columns(database.connection, raw, description)
            needed = needed_bytes(database.connection, raw, columns.values())
            database.expect_bytes(needed, watcher)
            work = _Work(database, raw, description, options, columns, made.prepared)
            made.note_to(watcher)
            database.log.run(work.stages(), watcher, made.keep)
        # After it, for counting takes memory of its own.
        with watcher.stage("count labels", lambda: -1):
            return write_metadata(
                made.prepared, work.schema, user_column=None, item_column=None, extra=work.counts
            )


@dataclass(frozen=True)
class _Work:
    """The stages between raw files and written splits."""

    database: WorkingDatabase
    raw: RawFiles
    description: Description
    options: PrepareOptions
    columns: dict[str, Column]
    folder: Path

    def stages(self) -> list[Stage]:
        description, connection = self.description, self.database.connection
        owners = table_owners(description)
        encoded_bags = [
            feature
            for feature in description.features
            if feature.kind == "bag" and description.owner(feature).encoding == "vocabulary"
        ]
        verify = Stage("verify compressed files", self._verify)
        return [
            *([verify] if compressed(self.raw.paths) else []),
            Stage(self._reading, self._read),
            Stage("split", self._split),
            *(Stage(f"ids of {owner.name}", partial(self._number, owner)) for owner in owners),
            *(
                Stage(f"bags of {bag.name}", partial(encode_bags, connection, description, bag))
                for bag in encoded_bags
            ),
            *(
                Stage(f"fit {feature.name}", partial(fit, connection, feature, self.folder))
                for feature in fitted_features(description)
            ),
            *([Stage("keep transforms", self._keep)] if fitted_features(description) else []),
            *(
                Stage(f"count {key}", partial(count_values, connection, feature))
                for key, feature in self._counted.items()
            ),
            *(
                Stage(
                    f"collisions of {owner.name}",
                    partial(count_collisions, connection, description, owner),
                )
                for owner in self._hashed
            ),
            *([Stage(_UNSEEN, self._count_unseen)] if self.description.split.by == "time" else []),
            *(Stage(f"write {split}", partial(self._write, split)) for split in SPLITS),
            Stage(_REPORT, self._report),
        ]

    @property
    def schema(self) -> Schema:
        """Of the folder, once the ids are counted."""
        owners = table_owners(self.description)
        rows = {owner.name: self._results[f"ids of {owner.name}"] for owner in owners}
        return prepared_schema(self.description, rows)

    @property
    def counts(self) -> dict[str, Any]:
        """What the raw files hold: rows, and the raw values that the written ids merge."""
        results = self._results
        skipped = results[self._reading]
        counts = {
            "raw_rows": sum(results["split"][name] for name in SPLITS) + sum(skipped.values()),
            "skipped": skipped,
            **{key: results[f"count {key}"] for key in self._counted},
        }
        hashed = {owner.name: results[f"collisions of {owner.name}"] for owner in self._hashed}
        return (
            counts
            | ({"hash": hashed} if hashed else {})
            | ({"cuts": results["split"]["cuts"]} if "cuts" in results["split"] else {})
            | ({"unseen": results[_UNSEEN]} if results.get(_UNSEEN) else {})
            | results[_REPORT]
        )

    @property
    def _results(self) -> dict[str, Any]:
        return self.database.log.results

    @property
    def _transforms(self) -> dict[str, Transform]:
        """By feature, once they are fitted."""
        names = [feature.name for feature in fitted_features(self.description)]
        return {name: transform_from(self._results[f"fit {name}"]) for name in names}

    @property
    def _reading(self) -> str:
        return f"read {len(self.raw.paths)} files ({self.raw.num_bytes / 1e9:.2f} GB)"

    @property
    def _counted(self) -> dict[str, DescribedFeature]:
        named = {"users": self.description.user, "items": self.description.item}
        return {key: self.description.feature(name) for key, name in named.items() if name}

    @property
    def _hashed(self) -> list[DescribedFeature]:
        return [owner for owner in table_owners(self.description) if owner.encoding == "hash"]

    def _verify(self) -> None:
        verify_compressed(self.raw.paths, self.options.num_threads)

    def _read(self) -> dict[str, int]:
        connection = self.database.connection
        of_all_rows = partial(row_columns, connection, self.raw, self.description, of_all_rows=True)
        skipped, columns = read_rows(connection, self.raw, self.columns, of_all_rows)
        write_encoder(encoder_of(self.raw, self.description, columns), self.folder)
        return skipped

    def _split(self) -> dict[str, int]:
        seed = self.options.shuffle_seed
        return place_rows(self.database.connection, self.description, self.columns, seed)

    def _number(self, owner: DescribedFeature) -> int:
        """Count and write a table's vocabulary, if it has one; the table's rows."""
        connection = self.database.connection
        rows = table_rows(connection, self.description, owner)
        if owner.encoding == "vocabulary":
            write_vocabulary(connection, owner.name, self.folder / VOCABULARY_FOLDER)
        return rows

    def _count_unseen(self) -> dict[str, dict[str, int]]:
        return count_unseen(self.database.connection, self.description)

    def _write(self, split: str) -> None:
        if not self._results["split"][split]:
            return
        connection = self.database.connection
        query = encoded_rows(connection, self.description, self.schema, SPLITS.index(split))
        ordered = self.description.ordered and split == "train"
        # One file: DuckDB keeps the order of several only where one thread writes them.
        copy_to(
            connection,
            f"{query} {order_sql(ordered=ordered)}",
            self.folder / split / "part-00000.parquet",
            row_group_rows=self.options.row_group_rows,
            finished=partial(with_transforms, transforms=self._transforms),
        )

    def _report(self) -> dict[str, Any]:
        connection, description = self.database.connection, self.description
        report = feature_report(connection, self.schema, self.folder)
        without = rows_without(connection, description)
        return {FEATURE_STATS: report} | ({"without": without} if without else {})

    def _keep(self) -> None:
        keep_transforms(self.folder, self._transforms)
