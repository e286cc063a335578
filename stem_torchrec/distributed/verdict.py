"""What the device has found, and when the host may look at it."""

import torch
from torch import Tensor


class OnTheWay:
    """A () tensor on its way to the host; the device is waited for when it is asked for.

    On a CPU it is there at once.
    """

    def __init__(self, value: Tensor) -> None:
        on_gpu = value.device.type == "cuda"
        self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=on_gpu)
        self._host.copy_(value, non_blocking=True)
        self._copied = torch.cuda.Event() if on_gpu else None
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(value.device))

    def is_set(self) -> bool:
        """Whether it is not 0. Waits for what came before it on the device, and no more."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._host.numpy())


def known_unset(flag: Tensor) -> bool:
    """Whether the () bool is known not to be set without a wait; never of one on a GPU.

    On a CPU looking costs nothing, and passes over gradients and weights that it saves do.
    """
    return flag.device.type == "cpu" and not flag.numpy()
