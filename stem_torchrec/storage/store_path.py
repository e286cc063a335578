"""A file or folder of an object store, with the names of ``pathlib.Path``."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

from stem_torchrec.errors import UserError
from stem_torchrec.storage.stores import open_store, readable_errors

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# What a read asks for at least: every request to a store takes tens of milliseconds.
_BUFFER_BYTES = 1 << 20


class StoreStat(NamedTuple):
    """What a store tells of a file, named as in ``os.stat_result``."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True, order=True)
class StorePath:
    """A file or folder of an object store; holds no connection, so it can go to other processes.

    Every question that goes to the store raises UserError with the URL if it gets no answer after
    the retries (see ``stores``).

    Attributes:
        host: bucket of ``s3`` and ``gs``, name node of ``hdfs``.
        path: key without slashes at its ends; signs are not escaped.
        query: options of the file system as in ``pyarrow.fs``.
        info: what a listing told of it, where it comes from one.
    """

    scheme: str
    host: str
    path: str
    query: str = ""
    info: "FileInfo | None" = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[type["StorePath"], tuple[str, ...]]:
        # What a listing told cannot be pickled, and may no longer be true elsewhere.
        return StorePath, (self.scheme, self.host, self.path, self.query)

    def __str__(self) -> str:
        path = self.path.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
        return f"{self.scheme}://{self.host}/{path}" + f"?{self.query}" * bool(self.query)

    def __truediv__(self, name: str) -> "StorePath":
        return self._at(f"{self.path}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"{self.scheme}://{self.host}/", *PurePosixPath(self.path).parts)

    @property
    def parent(self) -> "StorePath":
        return self._at(self.path.rpartition("/")[0])

    @property
    def bucket(self) -> "StorePath":
        """The root of the store's namespace."""
        return self._at("")

    @property
    def filesystem(self) -> "FileSystem":
        return open_store(self.scheme, self.host, self.query)

    @property
    def key(self) -> str:
        """The path as ``filesystem`` takes it."""
        if self.scheme == "hdfs":
            return f"/{self.path}"
        return f"{self.host}/{self.path}".strip("/")

    def require_bucket(self) -> None:
        """Tell a bucket that is missing from a key that is.

        Raises:
            UserError: the store has no such bucket.
        """
        if self.scheme != "hdfs" and not self.bucket.exists():
            raise UserError(f"{self}: the bucket {self.host!r} does not exist")

    def absolute(self) -> "StorePath":
        return self

    def resolve(self) -> "StorePath":
        return self

    def expanduser(self) -> "StorePath":
        return self

    def is_symlink(self) -> bool:
        """Stores have no links."""
        return False

    def readlink(self) -> "StorePath":
        return self

    def is_dir(self) -> bool:
        return self._found().type.name == "Directory"

    def is_file(self) -> bool:
        return self._found().type.name == "File"

    def exists(self) -> bool:
        return self._found().type.name != "NotFound"

    def stat(self) -> StoreStat:
        found = self._found()
        return StoreStat(found.size, found.mtime_ns)

    def iterdir(self) -> Iterator["StorePath"]:
        """What lies in the folder; one request whatever is asked of it then."""
        return self._listing(recursive=False)

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """Entries of the folder whose name fits."""
        return (entry for entry in self.iterdir() if fnmatchcase(entry.name, pattern))

    def files(self) -> list["StorePath"]:
        """All files in the folder and the folders within."""
        return sorted(entry for entry in self._listing(recursive=True) if entry.is_file())

    @contextmanager
    def open(self, mode: Literal["rb", "wb"], buffering: int = -1) -> Iterator[IO[bytes]]:
        """The file for reading at any place, or for writing from its start to its end.

        A file is written when the block ends. After an error in the block it goes; if the store
        does not take it, the one that was there before stays (not with ``hdfs``). The store's
        errors in the block are raised as ours. ``buffering`` is as in ``pathlib.Path``.
        """
        with readable_errors(self):
            if mode == "rb":
                with self.filesystem.open_input_file(self.key) as source:
                    yield source if buffering == 0 else io.BufferedReader(source, _BUFFER_BYTES)
                return
            target = self.filesystem.open_output_stream(self.key)
            try:
                yield target
            except BaseException:
                # Left alone, Arrow would complete the file with what it has.
                with suppress(OSError):
                    target.close()
                    self.filesystem.delete_file(self.key)
                raise
            target.close()

    def read_bytes(self) -> bytes:
        with readable_errors(self), self.filesystem.open_input_stream(self.key) as stream:
            content: bytes = stream.read()
        return content

    def read_text(self, errors: str = "strict") -> str:
        return self.read_bytes().decode(errors=errors)

    def write_bytes(self, content: bytes) -> None:
        """Write the whole file; at any time there is the old one or the new one."""
        with self.open("wb") as stream:
            stream.write(content)

    def write_text(self, content: str) -> None:
        self.write_bytes(content.encode())

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        """Make the folder where the store has folders; elsewhere names alone make them."""
        assert parents
        assert exist_ok
        if self.scheme == "hdfs":
            with readable_errors(self):
                self.filesystem.create_dir(self.key, recursive=True)

    def move(self, to: "StorePath") -> None:
        """Give the file another name; a store copies it for that."""
        with readable_errors(self):
            self.filesystem.move(self.key, to.key)

    def remove(self) -> None:
        """Remove the file, or the folder with all in it, if it is there."""
        found = self._at(self.path)._found().type.name
        with readable_errors(self):
            if found == "File":
                self.filesystem.delete_file(self.key)
            elif found == "Directory":
                self.filesystem.delete_dir(self.key)

    def _at(self, path: str) -> "StorePath":
        return replace(self, path=path, info=None)

    def _found(self) -> "FileInfo":
        if self.info is not None:
            return self.info
        with readable_errors(self):
            return self.filesystem.get_file_info(self.key)

    def _listing(self, *, recursive: bool) -> Iterator["StorePath"]:
        from pyarrow.fs import FileSelector

        with readable_errors(self):
            selector = FileSelector(self.key, recursive=recursive)
            found = self.filesystem.get_file_info(selector)
        prefix = len(self.bucket.key)
        for info in found:
            yield replace(self, path=info.path[prefix:].strip("/"), info=info)
