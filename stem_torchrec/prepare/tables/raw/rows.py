"""Raw files -> the table ``rows`` (see ``row_columns``), in file order; bad rows are named or
counted, never lost in silence."""

from collections.abc import Callable, Mapping

import duckdb

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.sql import fetch_one, literal, quoted
from stem_torchrec.prepare.tables.column import Column
from stem_torchrec.prepare.tables.raw.checks import refuse_changed_types
from stem_torchrec.prepare.tables.raw.errors import readable_errors
from stem_torchrec.prepare.tables.raw.files import RawFiles

_TRIPPED = "a bad row"


def read_rows(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    columns: Mapping[str, Column],
    columns_of_all_rows: Callable[[], Mapping[str, Column]],
) -> tuple[dict[str, int], Mapping[str, Column]]:
    """Create ``rows``, with a column ``_bad``: what is wrong with a row, null if nothing is.

    Args:
        columns: those that fit the first rows.
        columns_of_all_rows: gives, at the price of a look at every row, those that fit them all.

    Returns:
        Number of bad rows by reason, where ``raw`` skips them; ``_bad`` marks those in the table.
        The columns that fit all rows.

    Raises:
        UserError: a row is bad and bad rows are not skipped, no row is left, or a column is not of
            one type in all files.
    """
    if raw.format.type == "parquet":
        refuse_changed_types(raw.paths, _typed(raw, columns) - raw.from_elsewhere)
    _create_rows(connection, raw, columns)
    if fetch_one(connection, "SELECT bool_or(_misfit) FROM rows")[0]:
        for table in ("rows", "reject_errors", "reject_scans"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        columns = columns_of_all_rows()
        _create_rows(connection, raw, columns)
    skipped = _count_skipped(connection) if raw.bad_rows == "record" else {}
    if not fetch_one(connection, "SELECT count(*) FROM rows WHERE _bad IS NULL")[0]:
        counted = ", ".join(f"{count:,} × {reason}" for reason, count in skipped.items())
        files = ", ".join(str(path) for path in raw.paths[:3])
        raise UserError(f"--source: no rows in {files}" + f"; skipped: {counted}" * bool(skipped))
    return skipped, columns


def _create_rows(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, columns: Mapping[str, Column]
) -> None:
    """Read the files once; ``_misfit`` is true where a column needs a wider form."""
    selected = ", ".join(f"{column.sql} AS {quoted(name)}" for name, column in columns.items())
    fault = _fault(raw, columns) if raw.bad_rows == "record" else _tripwire(raw, columns)
    misfits = [column.misfit for column in columns.values() if column.misfit]
    misfit = " OR ".join(misfits) or "false"
    with readable_errors(raw.paths):
        try:
            connection.execute(
                f"CREATE TABLE rows AS SELECT {selected}, {fault} AS _bad, {misfit} AS _misfit "
                f"FROM {raw.relation()}"
            )
        except duckdb.InvalidInputException as error:
            if _TRIPPED in str(error):
                raise UserError(_first_bad_row(connection, raw, columns)) from None
            raise


def _typed(raw: RawFiles, columns: Mapping[str, Column]) -> set[str]:
    """Raw columns whose values must be of their type."""
    return {name for column in columns.values() for name in column.typed} | raw.join_keys


def _faults(raw: RawFiles, columns: Mapping[str, Column]) -> tuple[str, str]:
    """SQL that is true for a bad row, and SQL of what is wrong with it."""
    wrong_type, faults = raw.type_faults(_typed(raw, columns))
    faults += raw.join_faults
    own = [(column.wrong, column.fault) for column in columns.values() if column.wrong is not None]
    wrong = " OR ".join(
        [f"({wrong_type})", *(f"({wrong})" for wrong, _ in (*raw.join_faults, *own))]
    )
    cases = "".join(f" WHEN {wrong} THEN {fault}" for wrong, fault in (*faults, *own))
    return wrong, f"CASE{cases} END" if cases else "NULL::VARCHAR"


def _fault(raw: RawFiles, columns: Mapping[str, Column]) -> str:
    """What is wrong with a row, null if nothing is."""
    wrong, fault = _faults(raw, columns)
    return f"CASE WHEN {wrong} THEN {fault} END"


def _tripwire(raw: RawFiles, columns: Mapping[str, Column]) -> str:
    """Stops at any bad row; threads read at once, so the first one is found by reading again."""
    return f"CASE WHEN {_faults(raw, columns)[0]} THEN error({literal(_TRIPPED)})::VARCHAR END"


def _first_bad_row(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, columns: Mapping[str, Column]
) -> str:
    selected = f"row_number() OVER () AS number, {_fault(raw, columns)} AS bad"
    for path in raw.paths:
        # In a transaction of its own: the error has ended the one it came from.
        found = (
            connection.cursor()
            .execute(
                f"SELECT number, bad FROM (SELECT {selected} FROM {raw.only(path).relation()}) "
                "WHERE bad IS NOT NULL LIMIT 1"
            )
            .fetchone()
        )
        if found:
            return f"{path}, row {found[0]:,}: {found[1]}"
    raise AssertionError("a bad row was there and is gone")


def _count_skipped(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Bad rows by what is wrong with them, without the value found."""
    reasons = ["SELECT split_part(_bad, ': ', 1) AS reason FROM rows WHERE _bad IS NOT NULL"]
    if connection.execute("FROM duckdb_tables() WHERE table_name = 'reject_errors'").fetchone():
        reasons.append(
            """
            SELECT CASE min(error_type)::VARCHAR
                WHEN 'INVALID ENCODING' THEN 'not UTF-8'
                WHEN 'MISSING COLUMNS' THEN 'too few columns'
                ELSE lower(min(error_type)::VARCHAR) END
            FROM reject_errors GROUP BY scan_id, file_id, line
            """
        )
    found = connection.execute(
        f"SELECT reason, count(*) FROM ({' UNION ALL '.join(reasons)}) GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return dict(found)
