"""The models by name; each is built from (model config, schema, embedding dimension)."""

from typing import Protocol

from stem_torchrec.config import ModelConfig
from stem_torchrec.nn.models.aitm import Aitm
from stem_torchrec.nn.models.esmm import Esmm
from stem_torchrec.nn.models.me_mmoe import MeMmoe
from stem_torchrec.nn.models.me_ple import MePle
from stem_torchrec.nn.models.mmoe import Mmoe
from stem_torchrec.nn.models.model import Model
from stem_torchrec.nn.models.omoe import Omoe
from stem_torchrec.nn.models.ple import Ple
from stem_torchrec.nn.models.shared_bottom import SharedBottom
from stem_torchrec.nn.models.single_task import SingleTask
from stem_torchrec.nn.models.stem_net import StemNet
from stem_torchrec.schema import Schema


class ModelClass(Protocol):
    """How the rest of the program sees a model's class."""

    settings: frozenset[str]

    def __call__(self, config: ModelConfig, schema: Schema, dim: int) -> Model: ...


MODELS: dict[str, ModelClass] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "omoe": Omoe,
    "mmoe": Mmoe,
    "ple": Ple,
    "esmm": Esmm,
    "aitm": Aitm,
    "me_mmoe": MeMmoe,
    "me_ple": MePle,
    "stem_net": StemNet,
}
