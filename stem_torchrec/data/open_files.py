"""Row groups as Arrow tables, from files that stay open for a while."""

from collections import OrderedDict

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.data.manifest import RowGroup
from stem_torchrec.data.parquet_file import open_parquet_file, unreadable
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

_MAX_OPEN = 8


class OpenFiles:
    """Keeps the files used last open: a footer may take longer to parse than its row group.

    Args:
        verify: as in ``open_parquet_file``.
    """

    def __init__(self, *, verify: bool = False) -> None:
        self._verify = verify
        self._files: OrderedDict[Place, pq.ParquetFile] = OrderedDict()

    def read(self, group: RowGroup, columns: list[str], *, use_threads: bool = True) -> pa.Table:
        """The row group's columns.

        Args:
            use_threads: share the columns among Arrow's threads; else the caller's reads them.

        Raises:
            UserError: the file is damaged, missing or no longer the one that was checked.
        """
        try:
            table = self._file(group.file).read_row_group(
                group.index, columns=columns, use_threads=use_threads
            )
        except (pa.ArrowException, OSError, IndexError) as error:
            raise unreadable(group, error) from None
        if table.num_rows != group.num_rows or not set(columns) <= set(table.column_names):
            raise UserError(f"{group.file}: was changed while it was being read")
        return table

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, path: Place) -> pq.ParquetFile:
        if path not in self._files:
            if len(self._files) == _MAX_OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[path] = open_parquet_file(path, verify=self._verify)
        self._files.move_to_end(path)
        return self._files[path]
