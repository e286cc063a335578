"""What is to be run, and what is refused before anything runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stem_torchrec.analysis.compare.plan import Request, make_plan
from stem_torchrec.cli import main
from stem_torchrec.errors import UserError
from tests.support.prepared import small_config, small_data


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    return small_config(folder / "c.yaml", small_data(folder / "data"), folder / "unused")


@pytest.fixture
def request_for(config: Path, tmp_path: Path) -> Callable[..., Request]:
    """A request for two seeds of ``stem_net``, with changes."""
    base = Request(config, ["stem_net"], ["equal"], seeds=2, out=tmp_path / "out")
    return lambda **changes: replace(base, **changes)


def test_every_combination_of_a_seed_before_the_next_seed(
    request_for: Callable[..., Request],
) -> None:
    vary = ["model.gate_input=both;task", "optim.lr=0.1;0.2"]
    plan = make_plan(request_for(rules=["equal", "mgda"], vary=vary))
    assert len(plan.combinations) == 8
    assert [run.combination for run in plan.runs] == [*plan.combinations, *plan.combinations]
    assert [run.seed for run in plan.runs] == [0] * 8 + [1] * 8
    assert plan.left_out == []
    second = plan.runs[1]
    assert second.label == "stem_net equal model.gate_input=both optim.lr=0.2 seed 0"
    assert (second.config.model.gate_input, second.config.optim.lr) == ("both", 0.2)
    assert plan.runs[-1].config.balance.rule == "mgda"


def test_a_model_has_settings_of_its_own(request_for: Callable[..., Request]) -> None:
    own = ["mmoe:model.num_shared_experts=3", "esmm:model.task_order=[click, like]"]
    overrides = ["--model.num_shared_experts", "2"]
    models = ["stem_net", "mmoe", "esmm"]
    plan = make_plan(request_for(models=models, own=own, overrides=overrides, seeds=1))
    found = [(r.config.model.num_shared_experts, r.config.model.task_order) for r in plan.runs]
    assert found == [(2, None), (3, None), (2, ("click", "like"))]


def test_runs_have_folders_of_their_own(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    vary = ["model.expert_widths=[8,8];8,4"]
    plan = make_plan(request_for(vary=vary, rules=None))
    folders = {run.dir for run in plan.runs}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "out" / "runs"}
    assert [run.config.model.expert_widths for run in plan.runs[:2]] == [(8, 8), (8, 4)]
    assert not (tmp_path / "out").exists()


def test_overrides_reach_every_run_and_move_the_seeds(
    request_for: Callable[..., Request],
) -> None:
    overrides = ["--run.seed", "7", "--train.max_steps", "3"]
    plan = make_plan(request_for(overrides=overrides))
    assert [run.config.run.seed for run in plan.runs] == [7, 8]
    assert {run.config.train.max_steps for run in plan.runs} == {3}


def test_a_rule_that_does_not_fit_a_model_is_left_out(
    request_for: Callable[..., Request],
) -> None:
    asked = request_for(rules=["equal", "mgda"], vary=["model.layers=1;2"])
    plan = make_plan(asked)
    ((combination, why),) = plan.left_out
    assert combination.label == "stem_net mgda model.layers=2"
    assert why.startswith("balance.rule")
    assert len(plan.combinations) == 3
    assert len(plan.runs) == 6
    with pytest.raises(UserError, match=r"stem_net mgda model.layers=2: balance.rule"):
        make_plan(replace(asked, rules=["mgda"]))


def test_a_rule_that_is_wrong_by_itself_is_a_mistake(
    request_for: Callable[..., Request],
) -> None:
    """Not left out: it would be with every model."""
    with pytest.raises(UserError, match=r"balance\.gamma"):
        make_plan(request_for(rules=["equal", "multi_balance"], vary=["balance.gamma=0.1;7"]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--models", "stem_net,stemnet"], ["--models", "'stemnet'", "stem_net"]),
        (["--models", "stem_net,stem_net"], ["--models", "'stem_net'", "twice"]),
        (["--models", ","], ["--models", "no name"]),
        (["--balance", "equal,eqal"], ["balance.rule", "'eqal'", "multi_balance"]),
        (["--balance", "equal,torchjd:Nope"], ["balance.rule", "torchjd"]),
        (["--balance", "static,equal"], ["balance.weights"]),
        (["--seeds", "0"], ["--seeds", "0", "1 or more"]),
        (["--parallel", "0"], ["--parallel", "0"]),
        (["--nproc", "-1"], ["--nproc", "-1"]),
        (["--vary", "model.gate_input"], ["--vary", "'model.gate_input'", "section.key=value"]),
        (["--vary", "model.gate_input=both;"], ["--vary", "'model.gate_input=both;'"]),
        (["--vary", "=both"], ["--vary", "'=both'"]),
        (["--vary", "model.gate_inp=both"], ["model.gate_inp:", "did you mean model.gate_input"]),
        (["--vary", "model.gate_input=both;bth"], ["model.gate_input", "'bth'"]),
        (["--vary", "model.gate_input=both;both"], ["model.gate_input", "'both'", "twice"]),
        (["--vary", "model.name=stem_net"], ["model.name", "--models"]),
        (["--vary", "data.path=a;b"], ["data.path", "in common"]),
        (["--vary", "optim.lr=1", "--vary", "optim.lr=2"], ["optim.lr", "twice"]),
        (["--vary", "optim.lr=1", "--optim.lr", "2"], ["optim.lr", "twice"]),
        (["--own", "mmoe:model.dropout=0.1"], ["--own", "'mmoe'", "not compared"]),
        (["--own", "stem_net:dropout"], ["--own", "'stem_net:dropout'", "MODEL:section"]),
        (["--own", "stem_net:model.dropuot=1"], ["model.dropuot", "did you mean model.dropout"]),
        (["--own", "stem_net:run.seed=1"], ["--own", "run.seed", "differ"]),
        (
            ["--vary", "optim.lr=1;2", "--own", "stem_net:optim.lr=1"],
            ["--own", "optim.lr", "--vary"],
        ),
        (["--balance.rule", "mgda"], ["balance.rule", "--balance"]),
        (["--run.dir", "x"], ["run.dir", "--out"]),
        (["--optim.lrr", "2"], ["optim.lrr", "did you mean optim.lr"]),
        (["--data.path", "nowhere"], ["data.path", "nowhere"]),
    ],
)
def test_bad_input(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    expected: list[str],
) -> None:
    models = [] if "--models" in options else ["--models", "stem_net"]
    command = ["compare", "--config", str(config), "--out", str(tmp_path / "out")]
    assert main([*command, *models, *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert [part for part in expected if part not in message] == []
    assert not (tmp_path / "out").exists()


def test_without_a_test_split_there_is_nothing_to_compare(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    data = small_data(tmp_path / "data")
    (data / "test").rename(data / "aside")
    with pytest.raises(UserError, match="no test split"):
        make_plan(request_for(overrides=["--data.path", str(data)]))


def test_torchrun_does_not_start_it(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of its ranks would start every run."""
    monkeypatch.setenv("RANK", "0")
    command = ["compare", "--config", str(config), "--models", "stem_net", "--out", "unused"]
    assert main(command) == 2
    assert "use --nproc, not torchrun" in capsys.readouterr().err


def test_interrupted_by_hand(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stem_torchrec.analysis.compare.comparison.run_all", interrupted)
    command = ["compare", "--config", str(config), "--models", "stem_net", "--out", "unused"]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 130
    assert "goes on where this one stopped" in capsys.readouterr().err
