"""Which versions of torch, FBGEMM and TorchRec fit together; imports none of them."""

from importlib import metadata

# FBGEMM's operators are compiled against one release of torch.
TORCH_OF_FBGEMM = {"1.6": "2.11", "1.7": "2.12", "1.8": "2.13"}
FBGEMM_OF_DEVICE = {"cpu": "fbgemm-gpu-cpu", "gpu": "fbgemm-gpu"}


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def version_line() -> str:
    """The program's version, and those of what it trains with."""
    packages = ("torch", "torchrec", *FBGEMM_OF_DEVICE.values())
    found = [f"{package} {version}" for package in packages if (version := installed(package))]
    return f"stem-torchrec {installed('stem-torchrec')} ({', '.join(found)})"


def misfit(device: str, versions: dict[str, str | None]) -> str | None:
    """What the version numbers tell, without importing anything."""
    for package, version in versions.items():
        if version is None:
            return f"{package} is not installed"
    fbgemm_package = FBGEMM_OF_DEVICE[device]
    for other in set(FBGEMM_OF_DEVICE.values()) - {fbgemm_package}:
        if installed(other) is not None:
            return f"{fbgemm_package} and {other} are both installed and overwrite each other"
    torch, fbgemm, torchrec = (
        ".".join(str(versions[package]).split(".")[:2])
        for package in ("torch", fbgemm_package, "torchrec")
    )
    pair = f"torch {versions['torch']} and {fbgemm_package} {versions[fbgemm_package]}"
    if TORCH_OF_FBGEMM.get(fbgemm, torch) != torch:
        return f"{pair} do not fit: FBGEMM {fbgemm} needs torch {TORCH_OF_FBGEMM[fbgemm]}"
    if torchrec != fbgemm:
        return f"torchrec {versions['torchrec']} does not fit FBGEMM {fbgemm}; both go together"
    return None
