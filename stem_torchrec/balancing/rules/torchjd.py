"""Any stateless Gramian weighting of the TorchJD package, an optional dependency."""

import inspect
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options

VERSION = "0.18.0"
PREFIX = "torchjd:"
# Solvers that some weightings need, by TorchJD's name of the extra.
EXTRAS = {
    "CAGrad": "cagrad",
    "DualProj": "quadprog-projector",
    "FairGrad": "fairgrad",
    "UPGrad": "quadprog-projector",
}


@dataclass(frozen=True)
class TorchJdOptions(Options):
    """Settings of ``torchjd:NAME``.

    Attributes:
        torchjd_options: keyword arguments of TorchJD's aggregator.
    """

    torchjd_options: Annotated[
        dict[str, bool | int | float | str], Doc("keyword arguments of the weighting")
    ] = field(default_factory=dict)


class TorchJdRule(Rule[TorchJdOptions]):
    """α = the weights that TorchJD's aggregator NAME gives for the Gram of the active tasks.

    TorchJD computes on the CPU with data-dependent loops: this rule, unlike the others, waits for
    the device once per step. Random weightings draw from torch's CPU generator, seeded by ``seed``
    and the step for the length of the call.

    Args:
        aggregator: one of ``torchjd.aggregation``, such as ``UPGrad``.

    Raises:
        ValueError: TorchJD, or a solver it needs, is not installed (with the install line); an
            unknown name or option.
    """

    name = "torchjd"
    options_type = TorchJdOptions
    recordable = False

    def __init__(
        self, options: TorchJdOptions | None = None, *, aggregator: str, seed: int = 0
    ) -> None:
        super().__init__(options, seed=seed)
        self._weighting = _weighting(aggregator, dict(self.options.torchjd_options))

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) the weights; TorchJD's conventions, so most sum to about 1."""
        gram, active = situation.gram.cpu(), situation.active.cpu()
        found = torch.zeros(gram.shape[0], dtype=gram.dtype)
        if active.any():
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed + step)
                found[active] = self._weighting(gram[active][:, active])
        return found.to(situation.gram.device), state


def gramian_aggregators(package: ModuleType) -> dict[str, type]:
    """The aggregators that weight by the Gramian alone and remember nothing, by name."""
    base = package.GramianWeightedAggregator
    found = {name: getattr(package, name) for name in package.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type)
        and issubclass(kind, base)
        and kind is not base
        and not hasattr(kind, "reset")
    }


def _weighting(name: str, options: dict[str, bool | int | float | str]) -> Any:
    classes = gramian_aggregators(_package(name))
    if name not in classes:
        allowed = ", ".join(PREFIX + known for known in sorted(classes))
        raise ValueError(f"rule: {PREFIX + name!r}; allowed with torchjd: {allowed}")
    signature = inspect.signature(classes[name])
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ValueError(
            f"torchjd_options: {options} for {name} ({error}); allowed: {signature}"
        ) from error
    try:
        return classes[name](**options).gramian_weighting
    except ImportError as error:
        raise ValueError(f"rule: {PREFIX}{name}: {error}; {_install(name)}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"torchjd_options: {options} for {name}: {error}") from error


def _package(name: str) -> ModuleType:
    try:
        import torchjd.aggregation as package
    except ImportError as error:
        raise ValueError(
            f"rule: {PREFIX}{name} needs the TorchJD package; {_install(name)}"
        ) from error
    return package


def _install(name: str) -> str:
    extra = f"[{EXTRAS[name]}]" if name in EXTRAS else ""
    line = f"torchjd{extra}=={VERSION}"
    return f"install it: pip install {repr(line) if extra else line}"
