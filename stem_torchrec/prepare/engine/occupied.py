"""Which folder a prepared one may be written to."""

from pathlib import Path

from stem_torchrec.data.schema import SCHEMA_FILE, SPLITS
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place, relative

_OWN = {*SPLITS, SCHEMA_FILE, "stats.json", "encoder.json", "vocab", "truth", "days.json", "rare"}
"""What a prepared folder may hold; files of other programs start with . or _."""


def refuse_occupied(out: Place, *, overwrite: bool) -> None:
    """Raise UserError for a file, and for a folder that holds files, unless it is a prepared one
    and may be overwritten."""
    if out.exists() and not out.is_dir():
        raise UserError(f"output folder {str(out)!r} is a file")
    # Whether an empty folder is there at all differs from store to store.
    if not out.is_dir() or not any(out.iterdir() if isinstance(out, Path) else out.files()):
        return
    if not overwrite:
        raise UserError(f"output folder {str(out)!r} is not empty; allow overwriting to replace it")
    if not (out / SCHEMA_FILE).is_file():
        raise UserError(
            f"output folder {str(out)!r} holds files but no {SCHEMA_FILE}: it is not a prepared "
            "folder and is not replaced"
        )
    for name in _names(out):
        others_mark = name.startswith((".", "_")) and not (out / name).is_dir()
        if name not in _OWN and not others_mark:
            raise UserError(
                f"output folder {str(out)!r} holds {name!r}, which preparing does not write: the "
                "folder is not replaced; move it away, or choose another folder"
            )


def _names(out: Place) -> set[str]:
    """Of files and folders in it."""
    if isinstance(out, Path):
        return {entry.name for entry in out.iterdir()}
    return {relative(file, out).parts[0] for file in out.files()}
