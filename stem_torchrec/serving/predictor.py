"""Raw rows -> probabilities, from an export: torch and pyarrow, DuckDB where there is an encoder.

B rows, T tasks.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from stem_torchrec.errors import UserError
from stem_torchrec.serving.features import Inputs, inputs_of
from stem_torchrec.serving.manifest import check_manifest, version_of
from stem_torchrec.serving.model import ServedModel, read_about
from stem_torchrec.serving.rows import table_of, unknown_columns

if TYPE_CHECKING:
    from stem_torchrec.prepare.encoder.encode import RawEncoder

CHECK_ROWS = "check.parquet"
PROBABILITY_OF = "probability of "
"""Before a task's name: its column in the rows that loading checks."""

_CHUNK_ROWS = 4096
_TOLERANCE = 1e-4

_log = logging.getLogger(__name__)


class Predictor:
    """An export that answers; threads may share it.

    Args:
        folder: what ``stem-torchrec export`` has made.
        verify: compare every byte with the manifest; else only the files' sizes.

    Attributes:
        about: the model's name, tasks and features.
        inputs: columns that rows need.
        version: differs for exports that differ.

    Raises:
        UserError: the folder is no export, is of another version or damaged, or does not give the
            probabilities that were written with it.

    Example:
        >>> from stem_torchrec.serving import Predictor
        >>> predictor = Predictor("exported/mine")
        >>> predictor.predict([{"user_id": 3, "item_id": 5}]).column_names
        ['click', 'like']
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        folder = Path(folder)
        check_manifest(folder, every_byte=verify)
        self.version = version_of(folder)
        self.about = read_about(folder)
        self._model = ServedModel(folder, self.about)
        self._encoder: RawEncoder | None = None
        names = [feature.name for feature in self.about.features]
        if self.about.has_encoder:
            from stem_torchrec.prepare.encoder.encode import load_raw_encoder

            self._encoder = load_raw_encoder(folder, names)
        self.inputs = tuple(names) if self._encoder is None else self._encoder.inputs
        self._told = False
        self._check(folder / CHECK_ROWS)

    def predict(self, rows: Any) -> pa.Table:
        """The probability of every task for every row.

        Args:
            rows: a pyarrow.Table, a pandas frame or a list of dicts, of raw values as the files
                have them that were prepared; of ids where the export has no encoder. A value that
                training has not seen has id 0. Further columns are ignored, and named once in the
                log.

        Returns:
            A float64 column per task, values in [0, 1], in the order of the rows.

        Raises:
            UserError: a column is missing, or a value is of another type; names it.
        """
        return self.probabilities(self.encode(rows))

    def encode(self, rows: Any) -> Inputs:
        """What ``predict`` makes of rows before the tables are asked; raises as it does."""
        table = table_of(rows, self.inputs)
        if not self._told and (unknown := unknown_columns(rows, self.inputs)):
            self._told = True
            _log.warning("columns that no feature reads are ignored: %s", ", ".join(unknown))
        columns = table if self._encoder is None else self._encoder.encode(table)
        return inputs_of(columns, self.about.features)

    def probabilities(self, inputs: Inputs) -> pa.Table:
        """The probabilities of rows that ``encode`` has made, (B,) by task."""
        return self.table_of(self.logits(inputs))

    def table_of(self, logits: NDArray[np.float64]) -> pa.Table:
        """The probabilities of logits (B, T), a column per task."""
        probabilities = np.exp(-np.logaddexp(0.0, -logits)).T
        tasks = self.about.tasks
        return pa.table({task: pa.array(probabilities[t].copy()) for t, task in enumerate(tasks)})

    def logits(self, inputs: Inputs) -> NDArray[np.float64]:
        """(B, T), some rows at a time, so that memory does not grow with B."""
        parts = [self._model.logits(part) for part in _cut(inputs)]
        return torch.cat(parts).double().numpy()

    def vectors(self, owner: str, feature: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop - 1`` of an owner's table, (stop - start, D)."""
        return self._model.table(owner, feature).all_rows(start, stop)

    def _check(self, file: Path) -> None:
        """Predict the rows that were written with the model."""
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: cannot be read as Parquet ({error})") from None
        found = self.probabilities(inputs_of(table, self.about.features))
        for task in self.about.tasks:
            expected = table[PROBABILITY_OF + task].to_numpy()
            if not np.allclose(found[task].to_numpy(), expected, rtol=0, atol=_TOLERANCE):
                raise UserError(
                    f"{file}: the model does not give the probabilities of {task!r} that were "
                    "written with it; export anew with the torch that serves"
                )


def _cut(inputs: Inputs) -> list[Inputs]:
    """The rows in parts of ``_CHUNK_ROWS``."""
    num_rows = len(inputs.dense)
    if num_rows <= _CHUNK_ROWS:
        return [inputs]
    return [inputs.cut(start, start + _CHUNK_ROWS) for start in range(0, num_rows, _CHUNK_ROWS)]
