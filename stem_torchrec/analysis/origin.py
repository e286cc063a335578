"""What the figures of a report depend on besides its data."""

import os
import platform
from pathlib import Path

import torch

from stem_torchrec.runs.folder import installed_versions


def hardware() -> str:
    """CPU model, cores this process may use, and the GPU if there is one."""
    parts = [cpu_model(), f"{len(os.sched_getaffinity(0))} cores"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return ", ".join(parts)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | installed_versions()
