"""The files of a checkpoint as ``torch.distributed.checkpoint`` writes and reads them.

The same for a folder on a disk and one in an object store.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _ReaderView

from stem_torchrec.checkpoint.index import INDEX, Index, index_of, metadata_of
from stem_torchrec.checkpoint.manifest import BLOCK_BYTES, FileEntry
from stem_torchrec.checkpoint.plain import NotPlain, check_stored
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place, in_store, move, remove


class Files(FileSystemBase):
    """A place's files; keeps the entries of those it has written.

    Checksums are of what was meant to be written, so they find, too, what went wrong on its way.

    Attributes:
        written: by name.
    """

    def __init__(self) -> None:
        self.written: dict[str, FileEntry] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode == "rb":
            with path.open("rb") as stream:
                yield stream
            return
        with path.open("wb") as stream:
            summed = Summed(stream)
            try:
                yield summed
            except RuntimeError:
                if summed.error is None:
                    raise
                raise summed.error from None  # torch.save tells where it was instead
        self.written[path.name] = FileEntry(path.name, summed.size, summed.crc32)

    def concat_path(self, path: Any, suffix: str) -> Any:
        return path / suffix

    def init_path(self, path: Any) -> Any:
        return path

    def rename(self, path: Any, new_path: Any) -> None:
        move(path, new_path)
        entry = self.written.pop(path.name)
        self.written[new_path.name] = entry._replace(name=new_path.name)

    def mkdir(self, path: Any) -> None:
        path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def exists(self, path: Any) -> bool:
        return bool(path.exists())

    def rm_file(self, path: Any) -> None:
        remove(path)

    def ls(self, path: Any) -> list[str]:
        return [str(entry) for entry in path.iterdir()]


class Summed:
    """A stream to write to from its start to its end, which counts and sums what passes.

    Attributes:
        size: bytes so far.
        error: why the last ``write`` failed, if it did.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sums: list[int] = []
        self.size = 0
        self.error: OSError | None = None

    @property
    def crc32(self) -> tuple[int, ...]:
        """Of each block of ``BLOCK_BYTES``, the last one shorter."""
        return tuple(self._sums)

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        done = 0
        while done < len(view):
            filled = self.size % BLOCK_BYTES
            piece = view[done : done + BLOCK_BYTES - filled]
            self._sums += [0] * (filled == 0)
            self._sums[-1] = zlib.crc32(piece, self._sums[-1])
            self.size += len(piece)
            done += len(piece)
        try:
            self._stream.write(view)
        except OSError as error:
            self.error = error
            raise
        return done

    def tell(self) -> int:
        return self.size

    def fileno(self) -> int:
        self._stream.flush()  # torch syncs by this number, and what is buffered here has none
        return self._stream.fileno()

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class Writer(FileSystemWriter):
    """Writes into ``folder``, on a disk through to it; ``entries`` are this rank's files."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        super().__init__(str(folder), sync_files=not in_store(folder))
        self._files = Files()
        self.fs, self.path = self._files, cast(Any, folder)

    @property
    def checkpoint_id(self) -> str:
        return self.folder.name  # it is written into the checkpoint, which others may read

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        return tuple(self._files.written.values())

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, as the last of DCP's files."""
        places = {result.index: result.storage_data for part in results for result in part}
        self.write(INDEX, index_of(metadata, places).model_dump_json().encode())

    def write(self, name: str, content: bytes) -> None:
        """One more file."""
        with self.fs.create_stream(self.folder / name, "wb") as stream:
            stream.write(content)
            if self.sync_files:
                stream.flush()
                os.fsync(stream.fileno())


class _Part(_ReaderView):
    """Some bytes of a file; DCP's own seeks beyond the end where it is to seek before it."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            offset, whence = self.len + offset, os.SEEK_SET
        return super().seek(offset, whence) - self.offset


class Reader(FileSystemReader):
    """Reads from ``folder`` what its index names; tensors and plain values only."""

    def __init__(self, folder: Place, index: Index) -> None:
        super().__init__(str(folder))
        self.fs, self.path = Files(), cast(Any, folder)
        self._metadata = metadata_of(index)

    def read_metadata(self) -> Metadata:
        """For DCP, whose own reads a pickle."""
        return self._metadata

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        part = _Part(file, sinfo.offset, sinfo.length)
        try:
            check_stored(part)
        except NotPlain as error:
            raise UserError(f"{self.path / sinfo.relative_path}: {error}") from None
        return part
