"""TorchJD's weightings as rules; skipped where the package is not installed."""

import pytest
import torch

from stem_torchrec.balancing.rule import balance
from stem_torchrec.balancing.rules.torchjd import (
    VERSION,
    TorchJdOptions,
    TorchJdRule,
    gramian_aggregators,
)
from tests.balancing.grams import apply, gradients, gram_of

torchjd = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
OPTIONS = {"CAGrad": {"c": 0.5}, "FairGrad": {"alpha": 2.0}, "Krum": {"n_byzantine": 1}}


def made(name: str, **options: object) -> TorchJdRule:
    return TorchJdRule(TorchJdOptions(torchjd_options=options), aggregator=name)


def rule_of(name: str) -> TorchJdRule:
    try:
        return made(name, **OPTIONS.get(name, {}))
    except ValueError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", sorted(gramian_aggregators(torchjd)))
def test_gives_torchjds_weights_of_the_active_tasks(name):
    rows = gradients("torn", 5, 30)
    rule = rule_of(name)
    found = apply(rule, gram_of(rows), step=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        options = OPTIONS.get(name, {})
        theirs = getattr(torchjd, name)(**options).gramian_weighting(gram_of(rows).double())
    torch.testing.assert_close(found.multipliers, theirs.float(), rtol=1e-4, atol=1e-5)
    labelled = torch.tensor([True, False, True, True, True])
    gram, losses = gram_of(rows), torch.ones(5)
    without = balance(rule, gram, losses, {}, 4, labelled=labelled).multipliers
    alone = apply(rule, gram[labelled][:, labelled], step=4).multipliers
    assert without[1] == 0
    torch.testing.assert_close(without[labelled], alone)


def test_random_weighting_draws_by_step_alone():
    gram = gram_of(gradients("random", 8, 3))
    before = torch.random.get_rng_state()
    first = apply(made("PCGrad"), gram, step=7).multipliers
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, apply(made("PCGrad"), gram, step=7).multipliers)
    assert not torch.equal(first, apply(made("PCGrad"), gram, step=8).multipliers)


def test_nothing_active_falls_back():
    found = apply(made("MGDA"), torch.zeros(3, 3))
    assert found.fallback
    assert found.multipliers.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["GradVac", "Mean", "GramianWeightedAggregator", "upgrad"])
def test_unknown_or_stateful_name_lists_what_is_allowed(name):
    with pytest.raises(ValueError, match=r"^rule: .*torchjd:AlignedMTL.*torchjd:UPGrad"):
        made(name)


@pytest.mark.parametrize("options", [{}, {"n_byzantine": 1, "speed": 2}, {"n_byzantine": -1}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=r"^torchjd_options: .*Krum"):
        made("Krum", **options)


def test_pin_is_what_was_tested():
    from importlib.metadata import version

    if version("torchjd") != VERSION:
        pytest.skip(f"torchjd {version('torchjd')} is installed, the pin is {VERSION}")
    assert "MGDA" in gramian_aggregators(torchjd)
