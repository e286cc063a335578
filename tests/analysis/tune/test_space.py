"""What a space file may hold, and what is refused before any trial starts."""

from collections.abc import Callable

import pytest

from stem_torchrec.analysis.tune.space import Choices, Range, load_space, own_values
from stem_torchrec.analysis.tune.tuning import Request
from stem_torchrec.config.reading import load_config
from stem_torchrec.errors import UserError


def test_ranges_and_choices(request_for: Callable[..., Request]) -> None:
    text = (
        "optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
        "embedding.dim: {low: 4, high: 16, step: 4}\n"
        "model.expert_widths: [[16, 8], [32]]\n"
        "optim.clip_norm: [null, 1]\n"
    )
    request = request_for(text)
    space = load_space(request.space, request.config, [])
    assert space["optim.lr"] == Range(1e-4, 1e-2, True, None, False)
    assert space["embedding.dim"] == Range(4, 16, False, 4, True)
    assert space["model.expert_widths"] == Choices(("[16, 8]", "[32]"))
    assert own_values(space, load_config(request.config)) == {
        "optim.lr": 1e-3,
        "embedding.dim": 4,
        "model.expert_widths": "[16, 8]",
        "optim.clip_norm": "null",
    }
    outside = load_config(request.config, ["--embedding.dim", "20"])
    assert own_values(space, outside) is None
    between = load_config(request.config, ["--optim.clip_norm", "1.0"])
    assert (own_values(space, between) or {})["optim.clip_norm"] == "1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key"),
        ("optim.lrr: [1]", "optim.lrr: unknown key; did you mean optim.lr?"),
        ("optim: {lr: [1]}", "optim: unknown key"),
        ("run.seed: [1, 2]", "run.seed cannot be searched"),
        ("eval.metric: [valid/auc_mean]", "eval.metric cannot be searched"),
        ("train.epochs: [1, 2]", "train.epochs is set by --train.epochs too"),
        ("optim.lr: 0.1", "optim.lr: 0.1; expected {low, high"),
        ("optim.lr: []", "optim.lr: an empty list"),
        ("optim.lr: {}", "optim.lr.low: required"),
        ("optim.lr: [0.1, 0.1]", "optim.lr: 0.1 is there twice"),
        ("optim.lr: {low: 1, hihg: 2}", "optim.lr.hihg: unknown .*did you mean 'high'"),
        ("optim.lr: {low: 0.2, high: 0.1}", "optim.lr: low 0.2, high 0.1; low has to be below"),
        ("optim.lr: {low: a, high: 0.1}", "optim.lr.low: 'a'; expected a number"),
        ("optim.lr: {low: .nan, high: 0.1}", "optim.lr.low: nan; expected a number"),
        ("optim.warmup_steps: {low: 0, high: 2.5}", "warmup_steps.high: 2.5; expected an integer"),
        ("optim.warmup_steps: {low: 0, high: 9, log: true}", "low 0 with log; allowed: above 0"),
        ("optim.lr: {low: 0.1, high: 1, log: 1}", "optim.lr.log: 1; allowed: true, false"),
        ("optim.lr: {low: 0.1, high: 1, log: true, step: 0.1}", "step 0.1 with log"),
        ("embedding.dim: {low: 8, high: 32, step: 5}", "steps of 5 do not lead from 8 to 32"),
        ("embedding.dim: {low: 8, high: 32}", "embedding.dim: .*multiple of 4, found 9"),
        ("optim.lr: {low: -1, high: 0.1}", "optim.lr: .*greater than 0, found -1.0"),
        ("model.gate_input: [both, al]", "model.gate_input: .*found 'al'"),
        ("model.gate_input: {low: 1, high: 2}", "gate_input: both | task | shared has no range"),
    ],
)
def test_refused(request_for: Callable[..., Request], text: str, said: str) -> None:
    request = request_for(text)
    with pytest.raises(UserError, match=said.replace("|", r"\|")) as refused:
        load_space(request.space, request.config, ["--train.epochs", "2"])
    assert str(refused.value).startswith(str(request.space))
