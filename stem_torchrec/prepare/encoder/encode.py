"""Raw rows -> the columns of a prepared folder, by DuckDB in this process.

R rows.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.definition import (
    ENCODER_FILE,
    EncodedFeature,
    Encoder,
    Input,
    encoder_from,
    text_column,
)
from stem_torchrec.prepare.encoder.plain_values import plain_values
from stem_torchrec.prepare.encoder.vocabularies import VocabularyIds
from stem_torchrec.prepare.engine.row_hash import HASH_MACROS
from stem_torchrec.prepare.engine.sql import literal, quoted
from stem_torchrec.prepare.engine.sql_text import SqlText

VOCABULARIES = "vocab"
_BAD = "\x02bad"
_INT32_ROWS = 2**31
_EXACT = 2**53
_FLOATS = ("FLOAT", "DOUBLE")


class RawEncoder:
    """An encoder at work; threads may share it.

    Args:
        encoder: for the features that are wanted.
        folder: of ``vocab/FEATURE.parquet``.
        num_threads: of DuckDB.

    Raises:
        UserError: a vocabulary is missing or damaged; the SQL is more than functions of a row.
    """

    def __init__(self, encoder: Encoder, folder: Path, num_threads: int = 1) -> None:
        self.encoder = encoder
        self._num_threads = num_threads
        _require_expressions(encoder, folder)
        self._vocabularies = {
            table: VocabularyIds(folder / VOCABULARIES / f"{table}.parquet", column)
            for table, column in _lookups(encoder, folder)
        }
        self._of_thread = threading.local()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The raw columns that are read."""
        return tuple(column.name for column in self.encoder.inputs)

    def encode(self, table: pa.Table, first_row: int = 0) -> pa.Table:
        """The features' columns of raw rows, as a prepared split has them.

        A value that is not in a vocabulary has id 0. Columns that no feature reads are ignored.

        Args:
            first_row: number of the first row, for messages.

        Raises:
            UserError: a column is missing or of a type that it cannot have, or a value is none of
                its column's or feature's; names it.
        """
        for name in self.inputs:
            if table.column_names.count(name) != 1:
                what = "occurs twice" if name in table.column_names else "is missing"
                raise UserError(f"column {name!r} {what}; needed are {', '.join(self.inputs)}")
        for column in self.encoder.inputs:
            _require_form(column, table.schema.field(column.name).type)
        plain = self._plain(table)
        others = [f.name for f in self.encoder.features if f.name not in plain]
        if others:
            plain |= self._by_sql(others, table, first_row)
        return pa.table({f.name: plain[f.name] for f in self.encoder.features})

    def _plain(self, table: pa.Table) -> dict[str, pa.Array]:
        """The columns of features that need no SQL here."""
        found = {}
        for feature in self.encoder.features:
            if feature.plain is not None:
                vocabulary = self._vocabularies[feature.table]
                column, nulls = _joined(table.column(feature.plain)), self.encoder.null_strings
                values = plain_values(feature, column, nulls, is_integer=vocabulary.is_integer)
                if values is not None:
                    found[feature.name] = self._number(feature, pa.array(vocabulary(values)))
        return found

    def _by_sql(self, names: list[str], table: pa.Table, first_row: int) -> dict[str, pa.Array]:
        encoder = self.encoder.only(names, "encoder")
        values = self._values(encoder, table.select([column.name for column in encoder.inputs]))
        bad = values.column(_BAD)
        if bad.null_count < len(bad):
            row = int(np.argmax(bad.is_valid().to_numpy()))
            raise UserError(f"row {first_row + row:,}: {bad[row].as_py()}")
        return {f.name: self._column(f, _joined(values.column(f.name))) for f in encoder.features}

    def _values(self, encoder: Encoder, table: pa.Table) -> pa.Table:
        connection = self._connection()
        connection.register("raw", table)
        try:
            found = connection.execute("DESCRIBE raw").fetchall()
            types = {name: type_name for name, type_name, *_ in found}
            return connection.sql(_query(encoder, types)).to_arrow_table()
        except duckdb.Error as error:
            del self._of_thread.connection  # whatever state it is in
            raise UserError(f"rows: {str(error).splitlines()[0]}") from None
        finally:
            connection.unregister("raw")

    def _column(self, feature: EncodedFeature, array: pa.Array) -> pa.Array:
        if feature.kind != "bag":
            return self._number(feature, self._found(feature, array))
        lengths = pc.list_value_length(array).fill_null(0)
        offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
        flat = self._number(feature, self._found(feature, array.flatten()))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)

    def _number(self, feature: EncodedFeature, found: pa.Array) -> pa.Array:
        """Ids, counts or numbers as the column has them."""
        if feature.transform is not None:
            found = feature.transform(found)
        if feature.kind == "dense":
            return found.cast(pa.float32())
        return found.cast(_id_type(self._num_rows(feature)))

    def _num_rows(self, feature: EncodedFeature) -> int:
        return feature.num_embeddings or self._vocabularies[feature.table].num_values + 1

    def _found(self, feature: EncodedFeature, values: pa.Array) -> pa.Array:
        """What SQL gives as the id, count or number that it stands for."""
        if feature.encoding in ("dense", "bucket"):
            return values
        if feature.encoding == "direct":
            return values.cast(pa.int64()).fill_null(0)
        vocabulary = self._vocabularies[feature.table]
        wanted = pa.int64() if vocabulary.is_integer else pa.string()
        return pa.array(vocabulary(values.cast(wanted)))

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """This thread's own, which reaches no file and no network."""
        if not hasattr(self._of_thread, "connection"):
            connection = duckdb.connect(
                ":memory:",
                config={
                    "threads": self._num_threads,
                    "autoload_known_extensions": False,
                    "autoinstall_known_extensions": False,
                },
            )
            connection.execute("SET TimeZone = 'UTC'")
            for macro in HASH_MACROS:
                connection.execute(macro)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            self._of_thread.connection = connection
        return self._of_thread.connection


def load_raw_encoder(folder: Path, features: list[str] | None = None) -> RawEncoder:
    """The encoder of a folder with ``encoder.json`` and ``vocab/``, for some of its features.

    Raises:
        UserError: there is none, or it is damaged or has no such feature.
    """
    file = folder / ENCODER_FILE
    try:
        text = file.read_bytes()
    except OSError:
        raise UserError(f"{file}: is missing, which turns raw values into ids") from None
    encoder = encoder_from(text, str(file))
    return RawEncoder(encoder if features is None else encoder.only(features, str(file)), folder)


def _lookups(encoder: Encoder, folder: Path) -> set[tuple[str | None, str]]:
    """The vocabularies that are needed, each with the column that is looked up.

    Raises:
        UserError: a transform is missing.
    """
    for feature in encoder.features:
        if feature.encoding in ("count", "bucket") and feature.transform is None:
            raise UserError(f"{folder / ENCODER_FILE}: {feature.name}: has no transform")
    columns = {"vocabulary": "id", "count": "count"}
    return {(f.table, columns[f.encoding]) for f in encoder.features if f.encoding in columns}


def _query(encoder: Encoder, types: dict[str, str]) -> str:
    """SQL of the values by feature, and of what is wrong with a row."""
    texts, typed = [], []
    for column in encoder.inputs:
        found, name = types[column.name], quoted(column.name)
        text = quoted(text_column(column.name))
        texts += [name, f"{_text(encoder, name, found)} AS {text}"]
        same = found == column.type != "VARCHAR"
        source = name if same or column.type.endswith("]") else text
        value = source if same else column.value or f"TRY_CAST({source} AS {column.type})"
        typed += [f"{value} AS {name}", text]
    selected = [f"{f.sql} AS {quoted(f.name)}" for f in encoder.features]
    selected.append(f"{_fault(encoder, types)} AS {quoted(_BAD)}")
    inputs = f"SELECT {', '.join(typed)} FROM (SELECT {', '.join(texts)} FROM raw)"
    return f"SELECT {', '.join(selected)} FROM ({inputs if texts else 'raw'})"


def _text(encoder: Encoder, name: str, type_name: str) -> str:
    """A raw value as a delimited file has it; a float that is whole as an integer."""
    if type_name in _FLOATS or (type_name.startswith("DECIMAL") and encoder.decimal != "."):
        name = f"({name})::DOUBLE" if type_name.startswith("DECIMAL") else name
        whole = f"{name} = trunc({name}) AND abs({name}) <= {_EXACT}"
        return (
            f"CASE WHEN isnan({name}) THEN NULL WHEN {whole} THEN {name}::BIGINT::VARCHAR "
            f"ELSE replace({name}::VARCHAR, '.', {literal(encoder.decimal)}) END"
        )
    if type_name != "VARCHAR" or not encoder.null_strings:
        return f"{name}::VARCHAR"
    nulls = ", ".join(map(literal, encoder.null_strings))
    return f"CASE WHEN {name} IN ({nulls}) THEN NULL ELSE {name} END"


def _fault(encoder: Encoder, types: dict[str, str]) -> str:
    cases = [
        f"WHEN {column.wrong} THEN {_type_fault(column)}"
        for column in encoder.inputs
        if column.wrong and column.type != types[column.name]
    ]
    cases += [f"WHEN {f.wrong} THEN {f.fault}" for f in encoder.features if f.wrong]
    return f"CASE {' '.join(cases)} END" if cases else "NULL::VARCHAR"


def _require_form(column: Input, found: pa.DataType) -> None:
    """Refuse a list or mapping for a single value: its text would be a value never seen."""
    is_single = not (column.type.endswith("]") or column.type.startswith(("STRUCT(", "MAP(")))
    if is_single and pa.types.is_nested(found):
        raise UserError(f"column {column.name!r}: {found}; expected single values ({column.type})")


def _joined(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _id_type(num_rows: int) -> pa.DataType:
    """As ``arrow_schema`` has it."""
    return pa.int32() if num_rows <= _INT32_ROWS else pa.int64()


def _type_fault(column: Input) -> str:
    shown = f"coalesce(left({quoted(text_column(column.name))}, 80), 'nothing')"
    what, allowed = literal(f"column {column.name!r}: "), literal(f" is no {column.type}")
    return f"concat({what}, {shown}, {allowed})"


def _require_expressions(encoder: Encoder, folder: Path) -> None:
    """Refuse SQL that is not one expression over a row: the file may be a stranger's."""
    names = [name for i in encoder.inputs for name in (i.name, text_column(i.name))]
    with SqlText() as parser:
        for key, text in _expressions(encoder):
            parser.require_expression(f"{folder / ENCODER_FILE}: {key}", text, names)
        for column in encoder.inputs:
            parser.type_name(f"{folder / ENCODER_FILE}: {column.name}", column.type)


def _expressions(encoder: Encoder) -> Iterator[tuple[str, str]]:
    for column in encoder.inputs:
        yield from ((column.name, text) for text in (column.wrong, column.value) if text)
    for feature in encoder.features:
        texts = feature.sql, feature.wrong, feature.fault
        yield from ((feature.name, text) for text in texts if text)
