"""One place as Spark and as this package write it: ``s3://`` is Hadoop's ``s3a://``."""

from pathlib import Path

from stem_torchrec.storage.place import Place


def spark_address(place: Place) -> str:
    """A place as Spark names it; a path is on a disk, whatever file system is the default."""
    if isinstance(place, Path):
        return f"file://{place.absolute()}"
    address = str(place)
    return f"s3a{address.removeprefix('s3')}" if address.startswith("s3://") else address
