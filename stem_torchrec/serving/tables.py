"""The tables of an export: written from the shards of a run, made smaller, read where they lie.

R rows of a table, D embedding dimension, n ids.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.errors import UserError
from stem_torchrec.serving.safetensors import Tensors, create_tensors, open_tensors

TABLES = "tables"
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

_CHUNK_ROWS = 1 << 16


def table_file(folder: Path, owner: str, table: str) -> Path:
    """Where an export keeps a table of an owner."""
    return folder / TABLES / f"{owner}__{table}.safetensors"


def reduce_table(file: Path, precision: Precision) -> None:
    """Replace a table of fp32 by a smaller one, a piece at a time.

    int8 has a scale per row: a value is at most half of 1/127 of its row's largest one off.
    """
    if precision == "fp32":
        return
    values = open_tensors(file)["values"]
    aside = file.with_name(f".{file.name}")
    shape = values.shape[0], values.shape[1]
    if precision == "fp16":
        made = create_tensors(aside, {"values": ("F16", shape)})
    else:
        made = create_tensors(aside, {"scale": ("F32", shape[:1]), "values": ("I8", shape)})
    for start in range(0, len(values), _CHUNK_ROWS):
        _fill(made, values[start : start + _CHUNK_ROWS], slice(start, start + _CHUNK_ROWS))
    for part in made.values():
        part.flush()
    aside.replace(file)


class Table:
    """One table, mapped into memory.

    Raises:
        UserError: the file is missing or damaged, or the table has another shape.
    """

    def __init__(self, file: Path, num_rows: int, dim: int) -> None:
        tensors = open_tensors(file)
        values = tensors.get("values")
        if values is None or values.shape != (num_rows, dim):
            found = "none" if values is None else " x ".join(map(str, values.shape))
            raise UserError(f"{file}: a table of {num_rows} x {dim} is expected, found {found}")
        self._values = torch.from_numpy(values)
        scale = tensors.get("scale")
        self._scale = None if scale is None else torch.from_numpy(scale)

    def rows(self, ids: Tensor) -> Tensor:
        """(n,) ids -> (n, D) float32."""
        found = self._values.index_select(0, ids).float()
        if self._scale is not None:
            found *= self._scale.index_select(0, ids)[:, None]
        return found

    def all_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop - 1``, (stop - start, D)."""
        return self.rows(torch.arange(start, stop)).numpy()


def _fill(made: Tensors, values: NDArray[np.float32], rows: slice) -> None:
    if "scale" not in made:
        made["values"][rows] = values
        return
    scale = np.abs(values).max(axis=1) / 127
    made["scale"][rows] = scale
    divisor = np.where(scale == 0, 1, scale)[:, None]
    made["values"][rows] = np.rint(values / divisor).clip(-127, 127)
