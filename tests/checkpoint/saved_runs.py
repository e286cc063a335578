"""Small runs with a checkpoint of each format, and what a stranger can do to one."""

import io
import json
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from stem_torchrec.checkpoint.files import Reader
from stem_torchrec.checkpoint.index import read_index
from stem_torchrec.checkpoint.manifest import (
    BLOCK_BYTES,
    FileEntry,
    Manifest,
    read_manifest,
    write_manifest,
)
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.training.job import train

FORMAT_1 = Path(__file__).with_name("format_1.tar.xz")
"""Data and a run of four steps, saved by the last version whose checkpoints had no number."""


def unpack(folder: Path) -> Path:
    """The run of format 1; its data lies beside it."""
    with tarfile.open(FORMAT_1) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def config_of_run(run_dir: Path, *options: str) -> Config:
    data = run_dir.parent / "data"
    places = ["--run.dir", str(run_dir), "--data.path", str(data)]
    return load_config(run_dir / "config.yaml", [*places, *options])


def go_on(ranks: Any, run_dir: Path, *options: str) -> None:
    """Resume the run up to its sixth step."""
    config = config_of_run(run_dir, "--train.max_steps", "6", *options)
    train(config, ranks, existing="resume", listener=lambda record: None)


def whole_state(folder: Path) -> dict[str, Any]:
    """Everything in a checkpoint but what each rank keeps for itself, nested as it was saved."""
    state: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        _load_state_dict(
            state,
            storage_reader=Reader(folder, read_index(folder)),
            planner=_EmptyStateDictLoadPlanner(),
            no_dist=True,
        )
    return state


def last(run_dir: Path) -> Path:
    """The newest checkpoint, whole or not."""
    return max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))


class Evil:
    """Makes a file when it is unpickled, and becomes ``value``."""

    def __init__(self, mark: Path, value: Any) -> None:
        self.mark, self.value = str(mark), value

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"(open({self.mark!r}, 'w').close(), {self.value!r})[1]",)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def forge_pickled(run_dir: Path, change: Callable[[Any], Any]) -> None:
    """Change the index of a checkpoint of format 1."""
    file = last(run_dir) / ".metadata"
    file.write_bytes(pickle.dumps(change(pickle.loads(file.read_bytes()))))
    sign(run_dir)


def forge_index(run_dir: Path, change: Callable[[Any], None]) -> None:
    """Change the index of a checkpoint of format 2."""
    file = last(run_dir) / "index.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    sign(run_dir)


def forge_part(run_dir: Path, name: str, content: bytes) -> None:
    """Put other bytes in the place of a tensor or value, in either format."""
    folder = last(run_dir)
    file = folder / "__0_0.distcp"
    start = file.stat().st_size
    with file.open("ab") as stream:
        stream.write(content)
    if (folder / "index.json").exists():

        def change(index: Any) -> None:
            for entry in (index["values"].get(name), *_chunks(index, name)):
                if entry is not None:
                    entry["extent"] |= {"start": start, "num_bytes": len(content)}

        forge_index(run_dir, change)
        return

    def change_pickled(metadata: Any) -> Any:
        for key, place in metadata.storage_data.items():
            if key.fqn == name:
                place.offset, place.length = start, len(content)
        return metadata

    forge_pickled(run_dir, change_pickled)


def sign(run_dir: Path) -> None:
    """Make the manifest fit the files, as a stranger would."""
    folder = last(run_dir)
    text = json.loads((folder / "manifest.json").read_text())
    files = tuple(_entry(folder / file["name"]) for file in text["files"])
    write_manifest(folder, Manifest(text["about"], files, text.get("format", 1)))
    read_manifest(folder)


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    blocks = range(0, len(data), BLOCK_BYTES)
    sums = tuple(zlib.crc32(data[start : start + BLOCK_BYTES]) for start in blocks)
    return FileEntry(path.name, len(data), sums)


def _chunks(index: Any, name: str) -> list[Any]:
    tensor = index["tensors"].get(name)
    return tensor["chunks"] if tensor is not None else []
