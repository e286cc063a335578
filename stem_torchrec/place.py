"""Where data lies: a local path, or a URL of an object store that is used like one.

Local places are plain ``pathlib.Path``. ``StorePath`` has the same names for the same questions, so
that whoever reads a prepared folder need not ask which of both it holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from stem_torchrec.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

STORES = ("s3", "gs", "hdfs")


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
        from stem_torchrec.stores import open_store

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

    def read_text(self) -> str:
        from stem_torchrec.stores import readable_errors

        with readable_errors(self), self.filesystem.open_input_stream(self.key) as stream:
            return stream.read().decode()

    def _at(self, path: str) -> "StorePath":
        return replace(self, path=path, info=None)

    def _found(self) -> "FileInfo":
        from stem_torchrec.stores import readable_errors

        if self.info is not None:
            return self.info
        with readable_errors(self):
            return self.filesystem.get_file_info(self.key)

    def _listing(self, *, recursive: bool) -> Iterator["StorePath"]:
        from pyarrow.fs import FileSelector

        from stem_torchrec.stores import readable_errors

        with readable_errors(self):
            selector = FileSelector(self.key, recursive=recursive)
            found = self.filesystem.get_file_info(selector)
        prefix = len(self.bucket.key)
        for info in found:
            yield replace(self, path=info.path[prefix:].strip("/"), info=info)


Place = Path | StorePath


def relative(place: Place, folder: Place) -> PurePosixPath:
    """The way from a folder to a place in it."""
    return PurePosixPath(*place.parts[len(folder.parts) :])


def place_of(text: str | Place) -> Place:
    """A path, or a URL: ``s3://BUCKET/KEY``, ``gs://``, ``hdfs://HOST:PORT/PATH``, ``file://``.

    Raises:
        UserError: a URL of another kind, without a bucket, or with a password in it.
    """
    if not isinstance(text, str):
        return text
    scheme, marker, _ = text.partition("://")
    if not marker or "/" in scheme:
        return Path(text)
    parts = urlsplit(text)
    if scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if scheme not in STORES:
        allowed = ", ".join(f"{name}://" for name in (*STORES, "file"))
        raise UserError(f"{text!r} is no path and no URL of {allowed}")
    if not parts.netloc and scheme != "hdfs":
        raise UserError(f"{text!r} names no bucket; expected {scheme}://BUCKET/FOLDER")
    if "@" in parts.netloc:
        raise UserError(
            f"{scheme}://...@{parts.netloc.rpartition('@')[2]}: credentials are read from the "
            "environment, not from URLs, which are written to logs"
        )
    return StorePath(scheme, parts.netloc, unquote(parts.path).strip("/"), parts.query)


def _validated(value: Any) -> Place:
    if not isinstance(value, str | Path | StorePath):
        raise ValueError("Input should be a path or URL")
    try:
        return place_of(value)
    except UserError as error:
        raise ValueError(str(error)) from None


_SCHEMA = core_schema.no_info_plain_validator_function(
    _validated, serialization=core_schema.plain_serializer_function_ser_schema(str)
)

DataPlace = Annotated[Place, GetPydanticSchema(lambda source, handler: _SCHEMA)]
"""A place as a key of a config; written back as it was given."""
