"""One line: what is installed, or why Python, torch, FBGEMM and TorchRec do not fit (exit code 1).

Usage: check.py cpu|gpu [--versions-only]
"""

import subprocess
import sys
from pathlib import Path

# Run before anything is known to be installed well.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stem_torchrec.launch.versions import FBGEMM_OF_DEVICE, installed, misfit

# A wrong pair may import and fail, unreadably, where the first operator is called.
TRY = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
device = "cpu"
if sys.argv[1] == "gpu":
    device = "cuda"
    if torch.version.cuda is None:
        sys.exit(f"torch {torch.__version__} is a CPU build, but the packages are for a GPU")
    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU that it can use (is the driver older?)")
import fbgemm_gpu, torchrec, stem_torchrec
torch.ops.fbgemm.asynchronous_complete_cumsum(torch.ones(2, dtype=torch.int32, device=device))
print(torch.cuda.get_device_name() if device == "cuda" else "CPU")
"""


def main(device: str, *flags: str) -> int:
    versions = {
        package: installed(package)
        for package in ("torch", FBGEMM_OF_DEVICE[device], "torchrec", "stem-torchrec")
    }
    problem = misfit(device, versions)
    where = device.upper()
    if problem is None and "--versions-only" not in flags:
        problem, where = import_all(device, versions)
    if problem is not None:
        print(problem)
        return 1
    found = ", ".join(f"{package} {version}" for package, version in versions.items())
    print(f"ready: Python {sys.version.split()[0]}, {found} ({where})")
    return 0


def import_all(device: str, versions: dict[str, str | None]) -> tuple[str | None, str]:
    """Import everything and call an operator, in a process of its own: its output is not for
    people.

    Returns:
        The problem or None, and the device's name.
    """
    tried = subprocess.run([sys.executable, "-c", TRY, device], capture_output=True, text=True)
    if tried.returncode == 0:
        return None, tried.stdout.strip().splitlines()[-1]
    lines = [line for line in tried.stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit code {tried.returncode}"
    found = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"cannot be imported together: {found}: {reason[:300]}", device


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
