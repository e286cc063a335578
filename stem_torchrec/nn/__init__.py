"""Multi-task models for recommendation, and the layers they are built of, in plain PyTorch.

    import stem_torchrec as st

    inputs = st.nn.Inputs({"user_id": "user", "item_id": "item"}, dim=16, tasks=("click", "like"))
    model = st.nn.StemNet(inputs, st.nn.StemNetOptions(num_shared_experts=2))

A model maps pooled embeddings by owner of tables and dense features to a logit per task. Nothing
here knows of ranks, optimizers, files or configs. Mistakes in arguments raise ``ValueError``.
"""

from stem_torchrec.nn.calibrator import Calibrator
from stem_torchrec.nn.experts import FieldWeightedExperts, experts
from stem_torchrec.nn.extraction import Extraction, ExtractionStack
from stem_torchrec.nn.fork import Fork, Forked, GateGradient, Handle, PlainFork
from stem_torchrec.nn.gates import Gates, mix
from stem_torchrec.nn.inputs import Columns, Inputs
from stem_torchrec.nn.losses import Labelled, labelled, task_losses
from stem_torchrec.nn.mlp import BatchedLinear, BatchedMlp
from stem_torchrec.nn.model import (
    DeepOptions,
    ExpertOptions,
    ExtractionOptions,
    GatedOptions,
    Model,
)
from stem_torchrec.nn.models import MODELS
from stem_torchrec.nn.models.aitm import Aitm, AitmOptions
from stem_torchrec.nn.models.esmm import Esmm, EsmmOptions
from stem_torchrec.nn.models.home import Home, HomeOptions
from stem_torchrec.nn.models.me_mmoe import MeMmoe, MeMmoeOptions
from stem_torchrec.nn.models.me_ple import MePle, MePleOptions
from stem_torchrec.nn.models.mmoe import Mmoe, MmoeOptions
from stem_torchrec.nn.models.omoe import Omoe, OmoeOptions
from stem_torchrec.nn.models.ple import Ple, PleOptions
from stem_torchrec.nn.models.shared_bottom import SharedBottom, SharedBottomOptions
from stem_torchrec.nn.models.single_task import SingleTask, SingleTaskOptions
from stem_torchrec.nn.models.stem_net import StemNet, StemNetOptions
from stem_torchrec.nn.options import Options
from stem_torchrec.nn.owners import Owned, Ownership, numbered, ownership
from stem_torchrec.nn.towers import Towers

__all__ = [
    "MODELS",
    "Aitm",
    "AitmOptions",
    "BatchedLinear",
    "BatchedMlp",
    "Calibrator",
    "Columns",
    "DeepOptions",
    "Esmm",
    "EsmmOptions",
    "ExpertOptions",
    "Extraction",
    "ExtractionOptions",
    "ExtractionStack",
    "FieldWeightedExperts",
    "Fork",
    "Forked",
    "GateGradient",
    "GatedOptions",
    "Gates",
    "Handle",
    "Home",
    "HomeOptions",
    "Inputs",
    "Labelled",
    "MeMmoe",
    "MeMmoeOptions",
    "MePle",
    "MePleOptions",
    "Mmoe",
    "MmoeOptions",
    "Model",
    "Omoe",
    "OmoeOptions",
    "Options",
    "Owned",
    "Ownership",
    "PlainFork",
    "Ple",
    "PleOptions",
    "SharedBottom",
    "SharedBottomOptions",
    "SingleTask",
    "SingleTaskOptions",
    "StemNet",
    "StemNetOptions",
    "Towers",
    "experts",
    "labelled",
    "mix",
    "numbered",
    "ownership",
    "task_losses",
]
