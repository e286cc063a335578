"""What a prepared folder holds of each feature: for people, and for ``stats.json``."""

from pathlib import Path
from typing import Any

import duckdb

from stem_torchrec.data.schema import SPLITS, Feature, Schema
from stem_torchrec.prepare.engine.prepared import written_rows
from stem_torchrec.prepare.engine.sql import fetch_one, quoted
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.placing import SPLIT_COLUMN
from stem_torchrec.prepare.tables.row_columns import missing_column

FEATURE_STATS = "features"
"""Key of ``stats.json``: what ``feature_report`` gives."""


def feature_report(
    connection: duckdb.DuckDBPyConnection, schema: Schema, folder: Path
) -> dict[str, dict[str, Any]]:
    """By feature: ``values``, how many different ones there are in train (of a bag in its lists);
    ``null_share`` of train's rows, without a value; ``id_0_share`` by split, of the ids, where it
    has ids; ``constant``: it is the same in all rows of train, or missing in all.
    """
    shares = shares_of_id_0(schema, folder)
    found: dict[str, dict[str, Any]] = {}
    for feature in schema.features:
        values, nulls, differing = _counted(connection, feature)
        found[feature.name] = {
            "values": values,
            "null_share": nulls,
            **shares.get(feature.name, {}),
            "constant": differing == 1,
        }
    return found


def rows_without(
    connection: duckdb.DuckDBPyConnection, description: Description
) -> dict[str, dict[str, int]]:
    """Rows whose key has no row in a side table that may have none, by table and split."""
    found: dict[str, dict[str, int]] = {}
    for name, table in description.tables.items():
        if table.missing == "allow":
            counted = connection.execute(
                f"SELECT {SPLIT_COLUMN}, count(*) FILTER ({quoted(missing_column(name))}) "
                "FROM placed GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            found[name] = {SPLITS[split]: count for split, count in counted}
    return found


def shares_of_id_0(schema: Schema, folder: Path) -> dict[str, dict[str, Any]]:
    """``id_0_share`` alone: of the ids that are written, by feature and split; an empty bag has
    none."""
    found: dict[str, dict[str, float]] = {feature.name: {} for feature in schema.sparse}
    asked = [_share_of_0(feature) for feature in schema.sparse]
    with duckdb.connect() as connection:
        for split in SPLITS:
            rows = written_rows(folder, split)
            if rows is None:
                continue
            connection.register("rows", rows)
            [shares] = connection.execute(f"SELECT {', '.join(asked)} FROM rows").fetchall()
            for name, share in zip(found, shares, strict=True):
                found[name][split] = share
    return {name: {"id_0_share": shares} for name, shares in found.items()}


def _counted(connection: duckdb.DuckDBPyConnection, feature: Feature) -> tuple[int, float, int]:
    """Different values in train, the share of rows without one, and how many different things
    there are in its rows: values, lists, and nothing; 0 of each where train has no rows."""
    name, rows = quoted(feature.name), f"placed WHERE {SPLIT_COLUMN} = 0"
    missing = f"{name} IS NULL"
    if feature.kind == "bag":
        missing = f"coalesce(len({name}), 0) = 0"
    elif feature.kind == "dense":
        missing = f"coalesce(isnan(TRY_CAST({name} AS DOUBLE)), {name} IS NULL)"
    nulls, all_rows = fetch_one(
        connection, f"SELECT count(*) FILTER ({missing}), count(*) FROM {rows}"
    )
    value = f"unnest({name})" if feature.kind == "bag" else name
    known = f"SELECT DISTINCT {value} AS value FROM {rows} AND NOT ({missing})"
    [values] = fetch_one(connection, f"SELECT count(value) FROM ({known})")
    differing = values
    if feature.kind == "bag":
        lists = f"SELECT DISTINCT {name} FROM {rows} AND NOT ({missing}) LIMIT 2"
        [differing] = fetch_one(connection, f"SELECT count(*) FROM ({lists})")
    return values, nulls / all_rows if all_rows else 0.0, differing + (nulls > 0)


def _share_of_0(feature: Feature) -> str:
    name = quoted(feature.name)
    if feature.kind == "id":
        return f"avg(({name} = 0)::INTEGER)"
    zeros = f"sum(len([v for v in {name} if v = 0]))"
    return f"coalesce({zeros} / nullif(sum(len({name})), 0), 0)::DOUBLE"
