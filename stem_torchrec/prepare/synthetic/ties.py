"""How the preferences of tasks hang together: what the named worlds differ in."""

from typing import NamedTuple

from stem_torchrec.prepare.synthetic.config import SyntheticConfig


class Ties(NamedTuple):
    """Strengths are standard deviations in the logit.

    Attributes:
        shared_strength: preference that all tasks follow.
        task_strength: preference of each task.
        common_bias: share of the variance of main effects that is common to the tasks.
        contrary_users: share of the users who want from every second task the opposite of what
            they want from the first.
        contrary_biases: whether main effects, too, are the opposite for every second task.
        own_items: whether each task looks at items in its own way; else all look at one vector of
            an item, so that one task's labels tell another what the item is like.
    """

    shared_strength: float
    task_strength: float
    common_bias: float
    contrary_users: float
    contrary_biases: bool
    own_items: bool


def ties_of(config: SyntheticConfig) -> Ties:
    """The ties of a configuration's world; the logits have the same variance in each."""
    shared, own = config.shared_strength, config.task_strength
    if config.world == "contradicting":
        return Ties(shared, own, 0.5, config.conflict_share, False, own_items=False)
    strength = (shared**2 + own**2) ** 0.5
    if config.world == "opposite":
        return Ties(0.0, strength, 0.0, 1.0, True, own_items=False)
    common = 0.0 if config.world == "independent" else config.shared_share
    return Ties(
        strength * common**0.5, strength * (1 - common) ** 0.5, common, 0.0, False, own_items=True
    )
