"""Checkpoints of a run: everything that a run needs to go on as if it had not stopped.

``step_N/`` holds tables, dense weights, both optimizers, the balancing's state and the position in
the data as ``torch.distributed.checkpoint`` writes them, ``rank_R.pt`` with what each rank has for
itself, and ``manifest.json``, without which a folder is no checkpoint.
"""

from stem_torchrec.checkpoint.choice import Choice, chosen_step, chosen_valid
from stem_torchrec.checkpoint.continued import Before, load_continued
from stem_torchrec.checkpoint.folders import (
    FOLDER,
    add_to_manifest,
    epoch_of,
    has_published,
    newest,
    newest_about,
    newest_valid,
    saved_steps,
)
from stem_torchrec.checkpoint.initial import load_initial
from stem_torchrec.checkpoint.keep import best_step, metric_value
from stem_torchrec.checkpoint.load import Parts, SavedStep, Stateful, load, state_of, tell_of_layout
from stem_torchrec.checkpoint.matching import Initial
from stem_torchrec.checkpoint.own import OwnParts, load_own, own_state
from stem_torchrec.checkpoint.rng import RandomNumbers
from stem_torchrec.checkpoint.save import Content, Saver
from stem_torchrec.checkpoint.weight_owners import about_owners

__all__ = [
    "FOLDER",
    "Before",
    "Choice",
    "Content",
    "Initial",
    "OwnParts",
    "Parts",
    "RandomNumbers",
    "SavedStep",
    "Saver",
    "Stateful",
    "about_owners",
    "add_to_manifest",
    "best_step",
    "chosen_step",
    "chosen_valid",
    "epoch_of",
    "has_published",
    "load",
    "load_continued",
    "load_initial",
    "load_own",
    "metric_value",
    "newest",
    "newest_about",
    "newest_valid",
    "own_state",
    "saved_steps",
    "state_of",
    "tell_of_layout",
]
