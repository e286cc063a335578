"""The examples on balancing run, and do what they say."""

from pathlib import Path

import torch

from examples import multi_balance_own_model, own_rule

EXAMPLES = Path(own_rule.__file__).parent


def test_multi_balance_on_a_module_of_ones_own(capsys):
    before = multi_balance_own_model.main(steps=1)
    after = multi_balance_own_model.main(steps=120)
    assert all(late < 0.9 * early for early, late in zip(before, after, strict=True))
    assert "cosine of the gradients" in capsys.readouterr().out


def test_own_rule_lets_small_gradients_count():
    weights = own_rule.main()
    assert (weights[:-1] > weights[1:]).all()
    torch.testing.assert_close(own_rule.main(), weights)


def test_examples_stay_short():
    for name in ("multi_balance_own_model.py", "own_rule.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < 60
