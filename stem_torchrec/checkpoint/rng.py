"""The random number generators of a process."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


class RandomNumbers:
    """Python's generator, NumPy's global one, torch's on the host and on this rank's device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        kind, keys, *place = np.random.get_state(legacy=True)
        on_device = self._device.type == "cuda"
        return {
            "python": random.getstate(),
            "numpy": (kind, np.asarray(keys).tolist(), *place),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if on_device else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where it was taken; a device of another kind keeps its generator."""
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if self._device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self._device)

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on with the run's seed: other ranks draw other numbers."""
