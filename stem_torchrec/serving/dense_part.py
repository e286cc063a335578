"""The dense part of a model as a file that needs no code of ours: ``torch.export``, no pickles.

torch keeps the inputs that the model was traced with as a pickle; an export has none of them, and
whoever reads one refuses a file in which there is any.
"""

import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stem_torchrec.errors import UserError

_INPUTS = "/data/sample_inputs/"
_CONFIGS = (
    "/data/weights/model_weights_config.json",
    "/data/constants/model_constants_config.json",
)


def save_dense_part(
    model: nn.Module, pooled_widths: Mapping[str, int], num_dense: int, file: Path
) -> None:
    """Trace ``model(pooled, dense)`` for batches of any size and write it.

    Args:
        pooled_widths: by owner, the columns C_o of its pooled features.
        num_dense: N dense features.

    Raises:
        UserError: torch cannot trace the model; says why.
    """
    batch = torch.export.Dim("batch", min=2)
    pooled = {owner: torch.zeros(4, width) for owner, width in pooled_widths.items()}
    shapes = {"pooled": {owner: {0: batch} for owner in pooled}, "dense": {0: batch}}
    try:
        with torch.no_grad():
            program = torch.export.export(
                model.eval(), (pooled, torch.zeros(4, num_dense)), dynamic_shapes=shapes
            )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model.name: torch.export cannot trace this model: {reason}") from error
    # What nothing reads torch writes, but cannot read again.
    program.graph_module.graph.eliminate_dead_code()
    content = BytesIO()
    torch.export.save(program, content)
    with zipfile.ZipFile(content) as made, zipfile.ZipFile(file, "w") as written:
        for name in made.namelist():
            written.writestr(name, b"" if _INPUTS in name else made.read(name))
    _require_no_pickle(file)


class DensePart:
    """A dense part that was exported; threads may share it.

    Raises:
        UserError: the file is missing or damaged, or holds a pickle.
    """

    def __init__(self, file: Path) -> None:
        _require_no_pickle(file)
        try:
            self._module: Any = torch.export.load(file).module()
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{file}: torch cannot load it: {reason}") from error

    @torch.no_grad()
    def logits(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Pooled features by owner, (B, C_o), and dense features (B, N) -> logits (B, T)."""
        if len(dense) > 1:
            return self._module(pooled, dense)
        # One row is traced as another program than several: it goes twice.
        doubled = {owner: part.repeat(2, 1) for owner, part in pooled.items()}
        return self._module(doubled, dense.repeat(2, 1))[:1]


def _require_no_pickle(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.file_size and (_INPUTS in entry.filename or _is_pickle(archive, entry)):
                    raise UserError(f"{file}: {entry.filename} is a pickle, which is not loaded")
    except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(f"{file}: cannot be read as an exported model ({error})") from None


def _is_pickle(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a pickle, or a list of tensors that says so of one."""
    if entry.filename.endswith(_CONFIGS):
        parts = json.loads(archive.read(entry))["config"].values()
        return any(part.get("use_pickle") or part.get("tensor_meta") is None for part in parts)
    with archive.open(entry) as opened:
        head = opened.read(4)
    return entry.filename.endswith((".pt", ".pkl")) or head == b"PK\x03\x04"
