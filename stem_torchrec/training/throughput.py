"""Samples per second of a training loop."""

import time

import torch


class Throughput:
    """Counts real samples of all ranks against the clock.

    The first ``warmup_steps`` steps are left out, and so is what happens between ``pause`` and
    ``resume`` (evaluation, checkpoints). Reading waits for the device; counting does not, but for
    the end of the warm-up.
    """

    def __init__(self, device: torch.device, warmup_steps: int) -> None:
        self._device = device
        self._warmup_left = warmup_steps
        self._samples = self._lap_samples = 0
        self._seconds = self._lap_seconds = 0.0
        self._since: float | None = None
        self.resume()

    def count(self, samples: int) -> None:
        """After each step: its real samples, all ranks."""
        if self._warmup_left > 0:
            self._warmup_left -= 1
            self.resume()
            return
        self._samples += samples
        self._lap_samples += samples

    def pause(self) -> None:
        self._settle()
        self._since = None

    def resume(self) -> None:
        if self._warmup_left == 0:
            self._since = self._now()

    def lap(self) -> float | None:
        """Samples per second since the last lap; None while warming up."""
        self._settle()
        rate = self._lap_samples / self._lap_seconds if self._lap_samples else None
        self._lap_samples, self._lap_seconds = 0, 0.0
        return rate

    def total(self) -> float | None:
        """Samples per second since the warm-up."""
        self._settle()
        return self._samples / self._seconds if self._samples else None

    def _settle(self) -> None:
        if self._since is None:
            return
        now = self._now()
        self._seconds += now - self._since
        self._lap_seconds += now - self._since
        self._since = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
