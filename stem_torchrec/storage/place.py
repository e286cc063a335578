"""Where data lies: a local path, or a URL of an object store that is used like one.

Local places are plain ``pathlib.Path``. ``StorePath`` has the same names for the same questions, so
that whoever reads or writes a folder need not ask which of both it holds.
"""

import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import GetPydanticSchema
from pydantic_core import PydanticCustomError, core_schema
from typing_extensions import TypeIs

from stem_torchrec.errors import UserError, environment_failures, without_passwords
from stem_torchrec.storage.store_path import StorePath

STORES = ("s3", "gs", "hdfs")

WRONG_PLACE = "place"
"""Type of a config's error whose message names what was found, but for a password in it."""

Place = Path | StorePath


def in_store(place: Place) -> TypeIs[StorePath]:
    """Whether it lies in an object store: files there appear whole, and none can be renamed."""
    return isinstance(place, StorePath)


def require_bucket(place: Place) -> None:
    """Tell a bucket that is missing from a key that is; a disk has none.

    Raises:
        UserError: the store has no such bucket.
    """
    if in_store(place):
        place.require_bucket()


def move(place: Place, to: Place) -> None:
    """Give a file another name on the same disk or in the same store."""
    if in_store(place) and in_store(to):
        place.move(to)
    else:
        assert not in_store(place)
        assert not in_store(to)
        place.rename(to)


def replace_text(place: Place, text: str, *, through: bool = False) -> None:
    """Write a file so that at any time there is the old one or the new one.

    Args:
        through: to the disk itself, so that it outlasts the machine.

    Raises:
        EnvironmentFailure: the disk does not take it.
    """
    if in_store(place):
        place.write_text(text)
        return
    aside = place.with_name(f"{place.name}.partial")
    with environment_failures(place):
        with aside.open("w") as file:
            file.write(text)
            if through:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(place)
        if through:
            sync_folder(place.parent)


def sync_folder(folder: Place) -> None:
    """Bring a folder's names through to the disk."""
    if in_store(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(place: Place) -> None:
    """Remove a file, or a folder with all in it, if it is there; of a link, the link alone.

    Raises:
        OSError, UserError: it cannot be removed, here or in a store.
    """
    if isinstance(place, StorePath):
        place.remove()
    elif place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def relative(place: Place, folder: Place) -> PurePosixPath:
    """The way from a folder to a place in it."""
    return PurePosixPath(*place.parts[len(folder.parts) :])


def place_of(text: str | Place) -> Place:
    """A path, or a URL: ``s3://BUCKET/KEY``, ``gs://``, ``hdfs://HOST:PORT/PATH``, ``file://``.

    Raises:
        UserError: a URL of another kind, without a bucket, or with a password in it; or nothing.
    """
    if not isinstance(text, str):
        return text
    if without_passwords(text) != text:
        raise UserError(
            f"{text!r}: credentials are read from the environment, not from URLs, which are "
            "written to logs"
        )
    _refuse_no_path(text)
    scheme, marker, _ = text.partition("://")
    if not marker or "/" in scheme:
        return Path(text)
    scheme, parts = scheme.lower(), urlsplit(text)
    if scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if scheme not in STORES:
        allowed = ", ".join(f"{name}://" for name in (*STORES, "file"))
        raise UserError(f"{text!r} is no path and no URL of {allowed}")
    if not parts.netloc and scheme != "hdfs":
        raise UserError(f"{text!r} names no bucket; expected {scheme}://BUCKET/FOLDER")
    return StorePath(scheme, parts.netloc, unquote(parts.path).strip("/"), parts.query)


def local_path(text: str) -> Path:
    """A path, where a URL cannot be used.

    Raises:
        UserError: it is a URL, or nothing.
    """
    _refuse_no_path(text)
    if "://" in text:
        raise UserError(f"{text!r} is a URL; expected a folder on this machine")
    return Path(text)


def _refuse_no_path(text: str) -> None:
    """An empty path would be the current folder, which nobody means by it."""
    if not text.strip() or "\0" in text:
        raise UserError(f"{text!r} is no path")


def _validated(value: Any) -> Place:
    if not isinstance(value, str | Path | StorePath):
        raise ValueError("Input should be a path or URL")
    try:
        return place_of(value)
    except UserError as error:
        raise PydanticCustomError(WRONG_PLACE, "{reason}", {"reason": str(error)}) from None


_SCHEMA = core_schema.no_info_plain_validator_function(
    _validated, serialization=core_schema.plain_serializer_function_ser_schema(str)
)

PlaceField = Annotated[Place, GetPydanticSchema(lambda source, handler: _SCHEMA)]
"""A place as a key of a config; written back as it was given."""
