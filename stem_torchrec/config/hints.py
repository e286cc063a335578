"""Which key a person may have meant."""

import difflib
from collections.abc import Sequence

from stem_torchrec.errors import without_passwords

_MEANT = {
    "learning_rate": ("optim.lr", "embedding.lr"),
    "lr": ("optim.lr", "embedding.lr"),
    "step": ("train.max_steps",),
    "steps": ("train.max_steps",),
    "num_steps": ("train.max_steps",),
    "num_epochs": ("train.epochs",),
    "batch": ("train.batch_size",),
    "bs": ("train.batch_size",),
    "log_steps": ("train.log_every",),
    "eval_every": ("eval.every",),
    "eval_steps": ("eval.every",),
    "save_every": ("checkpoint.every",),
    "save_steps": ("checkpoint.every",),
    "checkpoint_every": ("checkpoint.every",),
    "embedding_dim": ("embedding.dim",),
    "emb_dim": ("embedding.dim",),
    "embedding_dims": ("embedding.dims",),
    "l2": ("embedding.weight_decay", "optim.weight_decay"),
    "wd": ("embedding.weight_decay", "optim.weight_decay"),
    "grad_clip": ("optim.clip_norm",),
    "clip_grad": ("optim.clip_norm",),
    "num_layers": ("model.layers",),
    "hidden_sizes": ("model.expert_widths",),
    "out": ("run.dir",),
    "output": ("run.dir",),
    "output_dir": ("run.dir",),
    "run_dir": ("run.dir",),
    "data_dir": ("data.path",),
    "dataset": ("data.path",),
    "num_workers": ("--nproc",),
    "world_size": ("--nproc",),
    "gpus": ("--nproc",),
}
"""Names that other programs have -> keys and options of this one."""


def unknown_key(name: str, siblings: Sequence[str], known: Sequence[str]) -> str:
    """The message on a key that is not there.

    Args:
        siblings: the keys that its place may hold.
        known: keys and options of other places.
    """
    near = nearest_keys(name, [*siblings, *known])
    allowed = ", ".join(siblings or dict.fromkeys(key.split(".")[0] for key in known))
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{_cut(name)}: unknown key{hint} (allowed: {allowed})"


def nearest_keys(name: str, known: Sequence[str]) -> Sequence[str]:
    """Keys that may be meant, at most three: by spelling, by the name's last part, by meaning."""
    name = name[:100]
    last = _last(name)
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        return near
    if meant := [key for key in _MEANT.get(last, ()) if key in known]:
        return meant
    if same := [key for key in known if "." in key and _last(key) == last]:
        return sorted(same, key=lambda key: (not key.startswith(("optim.", "train.")), key))[:3]
    by_last = {_last(key): key for key in reversed(known)}
    if near := difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.75):
        return [by_last[near[0]]]
    return difflib.get_close_matches(name, known, n=1, cutoff=0.6)


def _last(name: str) -> str:
    return name.rpartition(".")[2].replace("-", "_").lstrip("_")


def _cut(name: str) -> str:
    name = without_passwords(name)
    return name if len(name) <= 100 else f"{name[:97]}..."
