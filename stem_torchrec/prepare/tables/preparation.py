"""The stages between raw files and the splits of a prepared folder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stem_torchrec.data.schema import SPLITS, Schema
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.prepare.encoder.definition import write_encoder
from stem_torchrec.prepare.encoder.transforms import Transform, transform_from
from stem_torchrec.prepare.engine.growing_vocabulary import count_distinct
from stem_torchrec.prepare.engine.options import PrepareOptions
from stem_torchrec.prepare.engine.stages import Stage
from stem_torchrec.prepare.engine.vocabulary import copy_to, write_vocabulary
from stem_torchrec.prepare.engine.working_database import WorkingDatabase
from stem_torchrec.prepare.tables.by_day import (
    carry_days,
    days_so_far,
    number_values,
    write_days,
)
from stem_torchrec.prepare.tables.column import Column
from stem_torchrec.prepare.tables.describe import DescribedFeature, Description
from stem_torchrec.prepare.tables.encoder import encoder_of
from stem_torchrec.prepare.tables.encoding import (
    count_collisions,
    count_unseen,
    count_values,
    encode_bags,
    encoded_rows,
    prepared_schema,
    table_owners,
    table_rows,
    with_transforms,
)
from stem_torchrec.prepare.tables.fitting import fit, fitted_features, keep_transforms
from stem_torchrec.prepare.tables.placing import order_sql, place_rows
from stem_torchrec.prepare.tables.raw.checks import compressed, verify_compressed
from stem_torchrec.prepare.tables.raw.files import RawFiles
from stem_torchrec.prepare.tables.raw.rows import read_rows
from stem_torchrec.prepare.tables.report import (
    FEATURE_STATS,
    feature_report,
    rows_without,
    shares_of_id_0,
)
from stem_torchrec.prepare.tables.rows_to_prepare import RowsToPrepare

_UNSEEN, _REPORT = "count unseen ids", "look at features"


@dataclass(frozen=True)
class Preparation:
    """The stages between raw files and written splits."""

    database: WorkingDatabase
    rows: RowsToPrepare
    raw: RawFiles
    columns: dict[str, Column]
    folder: Path

    @property
    def description(self) -> Description:
        return self.rows.description

    @property
    def options(self) -> PrepareOptions:
        return self.rows.options

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
                Stage(f"fit {feature.name}", partial(self._fit, feature))
                for feature in fitted_features(description)
            ),
            *([Stage("keep transforms", self._keep)] if fitted_features(description) else []),
            *(
                Stage(f"count {key}", partial(self._count, feature))
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
            *([Stage("note days", self._note_days)] if self.rows.by_day else []),
            *([Stage("take over earlier days", self._take_over)] if self.rows.earlier else []),
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
        counts = {
            "raw_rows": self._raw_rows,
            "skipped": results[self._reading]["skipped"],
            **{key: results[f"count {key}"] for key in self._counted},
        }
        if self.rows.by_day:
            return counts | results["note days"] | results[_REPORT]
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
    def _raw_rows(self) -> int:
        rows, skipped = self._results["split"], self._results[self._reading]["skipped"]
        return sum(rows[name] for name in SPLITS) + sum(skipped.values())

    @property
    def _counted(self) -> dict[str, DescribedFeature]:
        named = {"users": self.description.user, "items": self.description.item}
        found = {key: self.description.feature(name) for key, name in named.items() if name}
        if not self.rows.by_day:
            return found
        # Of the days before, those in vocabularies alone are known.
        numbered = {o.name for o in table_owners(self.description) if o.encoding == "vocabulary"}
        return {
            key: feature
            for key, feature in found.items()
            if self.description.owner(feature).name in numbered
        }

    @property
    def _hashed(self) -> list[DescribedFeature]:
        owners = table_owners(self.description)
        return [o for o in owners if o.encoding == "hash" and not self.rows.by_day]

    def _verify(self) -> None:
        verify_compressed(self.raw.paths, self.options.num_threads)

    def _read(self) -> dict[str, Any]:
        connection = self.database.connection
        of_all_rows = partial(self.rows.columns, connection, self.raw, of_all_rows=True)
        skipped, columns = read_rows(connection, self.raw, self.columns, of_all_rows)
        write_encoder(encoder_of(self.raw, self.description, columns), self.folder)
        forms = {name: column.form for name, column in columns.items() if column.form is not None}
        return {"skipped": skipped, "forms": forms}

    def _split(self) -> dict[str, Any]:
        earlier = self.rows.earlier
        placed = place_rows(
            self.database.connection,
            self.description,
            self.columns,
            self.options.shuffle_seed,
            needs_train=earlier is None,
        )
        if earlier:
            earlier.require_later(placed["days"])
        return placed

    def _number(self, owner: DescribedFeature) -> int:
        """Count and write a table's vocabulary, if it has one; the table's rows."""
        connection, rows = self.database.connection, self.rows
        if owner.encoding == "vocabulary" and rows.by_day:
            return number_values(
                connection,
                self.description,
                owner,
                self.folder,
                rows.earlier,
                frozen=rows.frozen,
            )
        num_rows = table_rows(connection, self.description, owner)
        if owner.encoding == "vocabulary":
            write_vocabulary(connection, owner.name, self.folder / VOCABULARY_FOLDER)
        return num_rows

    def _fit(self, feature: DescribedFeature) -> dict[str, Any]:
        earlier = self.rows.earlier.folder if self.rows.earlier else None
        return fit(self.database.connection, feature, self.folder, earlier)

    def _keep(self) -> None:
        keep_transforms(self.folder, self._transforms)

    def _count(self, feature: DescribedFeature) -> int:
        connection = self.database.connection
        if self.rows.by_day:
            return count_distinct(connection, self.description.owner(feature).name)
        return count_values(connection, feature)

    def _count_unseen(self) -> dict[str, dict[str, int]]:
        return count_unseen(self.database.connection, self.description)

    def _write(self, split: str) -> None:
        if not self._results["split"][split]:
            return
        connection = self.database.connection
        finished = partial(with_transforms, transforms=self._transforms)
        if self.rows.by_day:
            write_days(
                connection,
                self.description,
                self.schema,
                split,
                self._results["split"]["days"][split],
                self.folder,
                row_group_rows=self.options.row_group_rows,
                finished=finished,
            )
            return
        query = encoded_rows(connection, self.description, self.schema, SPLITS.index(split))
        ordered = self.description.ordered and split == "train"
        # One file: DuckDB keeps the order of several only where one thread writes them.
        copy_to(
            connection,
            f"{query} {order_sql(ordered=ordered)}",
            self.folder / split / "part-00000.parquet",
            row_group_rows=self.options.row_group_rows,
            finished=finished,
        )

    def _report(self) -> dict[str, Any]:
        """Of all days; what tells of raw values only where all of them are here."""
        connection = self.database.connection
        if self.rows.by_day:
            return {FEATURE_STATS: shares_of_id_0(self.schema, self.folder)}
        without = rows_without(connection, self.description)
        report = feature_report(connection, self.schema, self.folder)
        return {FEATURE_STATS: report} | ({"without": without} if without else {})

    def _note_days(self) -> dict[str, Any]:
        """Write what the next day needs; what the statistics say of the days."""
        results = self._results
        so_far = days_so_far(
            self.database.connection,
            self.description,
            self.folder,
            self.rows.earlier,
            days=results["split"]["days"],
            types=self.raw.columns,
            forms=results[self._reading]["forms"],
            raw_rows=self._raw_rows,
            skipped=results[self._reading]["skipped"],
        )
        so_far.save(self.folder)
        dates = {
            split: [str(days[0]), str(days[-1])] for split, days in so_far.days.items() if days
        }
        return {"raw_rows": so_far.raw_rows, "skipped": so_far.skipped, "dates": dates}

    def _take_over(self) -> int:
        assert self.rows.earlier is not None
        return carry_days(self.rows.earlier.folder, self.folder)
