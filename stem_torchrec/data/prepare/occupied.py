"""Which folder a prepared one may be written to."""

from pathlib import Path

from stem_torchrec.errors import UserError
from stem_torchrec.place import Place
from stem_torchrec.schema import SCHEMA_FILE


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
