"""First weights from another run's checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.checkpoint.choice import chosen_valid
from stem_torchrec.checkpoint.index import Index, read_index
from stem_torchrec.checkpoint.load import read, say_conversion
from stem_torchrec.checkpoint.manifest import read_manifest
from stem_torchrec.checkpoint.matching import Here, Initial, Match, Piece, Source, matches
from stem_torchrec.checkpoint.weight_owners import owners_in, reading_features, weight_owners
from stem_torchrec.config import Config
from stem_torchrec.data.schema import Schema, schema_from
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.shards import block
from stem_torchrec.storage.place import Place

_MODEL = "model."


@dataclass(frozen=True)
class Other:
    """Another run's checkpoint, and what this model takes from it.

    Attributes:
        found: by tensor's name here.
        shapes: of the tensors here.
    """

    folder: Place
    index: Index
    source: Source
    found: Mapping[str, Match | str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def matches(self) -> dict[str, Match]:
        """Those of tensors that take something."""
        return {name: match for name, match in self.found.items() if isinstance(match, Match)}


def load_initial(
    model: DistributedModelParallel,
    config: Config,
    schema: Schema,
    initial: Initial,
    ranks: Ranks,
) -> dict[str, Any]:
    """Tables and dense weights from one of another run's checkpoints, by name. Collective.

    Optimizers start anew. Old rows of grown tables are copied, new ones keep their initial values.

    Returns:
        What was loaded from where, what keeps its initial values and why, what was not used.

    Raises:
        UserError: there is no such checkpoint, or it is damaged; otherwise as ``matches`` does.
    """
    other = open_other(model, config, schema, initial, ranks)
    load_weights(model, other, ranks)
    return weights_report(other) | {"optimizers": "not loaded"}


def open_other(
    model: DistributedModelParallel,
    config: Config,
    schema: Schema,
    initial: Initial,
    ranks: Ranks,
) -> Other:
    """The checkpoint that is meant, compared with this model. Collective.

    Raises:
        UserError: as ``load_initial``.
    """
    folder = chosen_valid(initial.run_dir, initial.checkpoint, ranks)
    index = ranks.on_first(lambda: read_index(folder))
    source = ranks.on_first(lambda: _source(folder, index, initial.run_dir))
    state = model.state_dict()
    here = Here(
        {name: tuple(value.size()) for name, value in state.items()},
        schema.task_names,
        _features(schema),
        weight_owners(model.module.recommender.model),
        reading_features(config, schema),
    )
    return Other(folder, index, source, matches(here, source, initial), here.shapes)


@torch.no_grad()
def load_weights(model: DistributedModelParallel, other: Other, ranks: Ranks) -> None:
    """Tables and dense weights. Collective."""
    folder, index, loaded = other.folder, other.index, other.matches
    state = model.state_dict()
    if ranks.is_first:
        targets = {_MODEL + match.source: state[name] for name, match in loaded.items()}
        say_conversion(folder, targets, index)
    for part in _rounds({name: match for name, match in loaded.items() if match.rows is not None}):
        _read_tables(folder, index, state, part, ranks)
    dense = {name: match for name, match in loaded.items() if match.rows is None}
    _read_dense(folder, index, state, dense, ranks)
    model.load_state_dict(state)


def _features(schema: Schema) -> list[str]:
    """In the order in which networks read them."""
    return [feature.name for feature in (*schema.sparse, *schema.dense)]


def _source(folder: Place, index: Index, run_dir: Place) -> Source:
    shapes = {
        name.removeprefix(_MODEL): tensor.size
        for name, tensor in index.tensors.items()
        if name.startswith(_MODEL)
    }
    about = read_manifest(folder).about
    schema = schema_from(about["schema"], str(folder)) if "schema" in about else None
    features = _features(schema) if schema is not None else None
    return Source(shapes, about["tasks"], owners_in(about, run_dir), features)


def _rounds(loaded: Mapping[str, Match]) -> Iterator[dict[str, Match]]:
    """The matches in parts in which every source comes once: a reading names its tensors."""
    left = dict(loaded)
    while left:
        by_source = {match.source: name for name, match in reversed(left.items())}
        part = {name: left.pop(name) for name in by_source.values()}
        yield part


def _read_tables(
    folder: Place, index: Index, state: Mapping[str, Any], part: Mapping[str, Match], ranks: Ranks
) -> None:
    targets: dict[str, Any] = {}
    for name, match in part.items():
        assert match.rows is not None
        targets[match.source] = block(state[name], (0, match.rows))
    read(folder, index, {"model": targets}, ranks)


def _read_dense(
    folder: Place, index: Index, state: Mapping[str, Any], loaded: Mapping[str, Match], ranks: Ranks
) -> None:
    values: dict[str, Tensor] = {}
    for name, match in loaded.items():
        for piece in match.pieces:
            shape = index.tensors[_MODEL + piece.source].size
            values[piece.source] = torch.empty(shape, dtype=state[name].dtype)
    read(folder, index, {"model": values}, ranks)
    for name, match in loaded.items():
        for piece in match.pieces:
            copy_piece(state[name], values[piece.source], piece)


def copy_piece(target: Tensor, values: Tensor, piece: Piece) -> None:
    """Write what a dense weight takes from a tensor, or what an optimizer keeps of it."""
    values = values.to(target.device)
    if piece.indices is None:
        target.copy_(values)
        return
    pairs = [torch.tensor(p, dtype=torch.long, device=target.device) for p in piece.indices]
    here, there = ([p.view(-1, 2)[:, side] for p in pairs] for side in (0, 1))
    target[torch.meshgrid(*here, indexing="ij")] = values[torch.meshgrid(*there, indexing="ij")]


def weights_report(other: Other) -> dict[str, Any]:
    """What was loaded from where, what keeps its initial values and why, what was not used."""
    loaded, shapes = other.matches, other.shapes
    used = {piece.source for match in loaded.values() for piece in match.pieces}
    return {
        "from": str(other.folder.absolute()),
        "loaded": {name: match.source for name, match in loaded.items()},
        "new_rows": {
            name: shapes[name][0] - match.rows
            for name, match in loaded.items()
            if match.rows is not None and match.rows < shapes[name][0]
        },
        "in_part": [name for name, match in loaded.items() if match.in_part],
        "initial": {name: why for name, why in other.found.items() if isinstance(why, str)},
        "not_used": sorted(set(other.source.shapes) - used),
    }
