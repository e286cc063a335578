"""Searches with scripts that stand for trainings, and one that trains."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import yaml
from optuna.trial import TrialState

from stem_torchrec.analysis.tune.space import load_space
from stem_torchrec.analysis.tune.study import Study
from stem_torchrec.analysis.tune.tuning import Request, tune
from stem_torchrec.checkpoint.manifest import Manifest, write_manifest
from stem_torchrec.cli import main
from stem_torchrec.config.reading import load_config
from stem_torchrec.errors import UserError, WorkerError
from stem_torchrec.storage.lock.holder import Holder
from tests.analysis.tune.conftest import BY_RATE
from tests.support.prepared import small_data

Trainings = Callable[[str], list[list[str]]]
Requests = Callable[..., Request]
LONG_GONE = Holder(Holder.this().host, "4194304 1", "2020-01-01T00:00:00+00:00")


def nothing(_: str) -> None:
    pass


def study_of(request: Request) -> Study:
    return Study(request.out, load_space(request.space, request.config, []), 0, maximize=True)


def states(request: Request) -> list[TrialState]:
    return [trial.state for trial in study_of(request).trials]


def test_the_best_is_found_and_written(trainings: Trainings, request_for: Requests) -> None:
    commands = trainings(BY_RATE)
    request = request_for()
    found = tune(request, "the command", nothing)
    trials = study_of(request).trials
    assert [trial.value for trial in trials] == [0.5 + trial.params["optim.lr"] for trial in trials]
    assert trials[0].params == {"optim.lr": 0.001, "model.gate_input": "both"}  # the config's own
    assert found.best.value == max(trial.value or 0 for trial in trials)
    assert [command[6:] for command in commands] == [["--nproc", "1", "--overwrite"]] * 4
    best = load_config(request.out / "best.yaml")
    base = load_config(request.config)
    assert best.optim.lr == found.best.params["optim.lr"]
    assert (best.run.dir, best.embedding) == (base.run.dir, base.embedding)
    page = json.loads((request.out / "tune.json").read_text())
    assert page["best"]["number"] == found.best.number
    assert page["own"]["number"] == 0
    assert page["importance"].keys() == {"optim.lr", "model.gate_input"}
    assert len(page["trials"]) == 4
    assert {path.name for path in found.written} >= {"tune.html", "tune_3.png", "best.yaml"}

    assert tune(request, "the command", nothing).best.number == found.best.number
    assert len(commands) == 4
    more = tune(request_for(trials=6), "the command", nothing)
    assert len(commands) == 6
    assert (more.best.value or 0) >= (found.best.value or 0)


def test_the_same_seed_chooses_the_same(
    trainings: Trainings, request_for: Requests, tmp_path: Path
) -> None:
    trainings(BY_RATE)
    chosen = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        request = request_for(out=tmp_path / name, seed=seed)
        tune(request, "", nothing)
        chosen[name] = [trial.params for trial in study_of(request).trials]
    assert chosen["a"] == chosen["b"]
    assert chosen["a"][1:] != chosen["c"][1:]


def test_a_trial_below_the_median_is_pruned(trainings: Trainings, request_for: Requests) -> None:
    trainings(
        "auc = 0.7 if number < 5 else 0.6\n"
        "evaluated(1, 0.6); evaluated(2, auc)\n"
        "if number == 5: time.sleep(600)\n"
        "evaluated(3, 0.7)"
    )
    said: list[str] = []
    request = request_for(trials=6)
    tune(request, "", said.append)
    assert states(request) == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]
    assert said[-1].startswith("trial 5  pruned after 2 evaluations")
    page = json.loads((request.out / "tune.json").read_text())
    assert page["trials"][5]["evaluations"] == {"1": 0.6, "2": 0.6}
    assert page["trials"][5]["value"] is None


def test_values_that_do_not_go_together_fail_alone(
    trainings: Trainings, request_for: Requests
) -> None:
    commands = trainings("evaluated(1, 0.7)")
    space = "model.name: [stem_net, single_task]\nbalance.rule: [equal, mgda]\n"
    request = request_for(space, trials=8)
    found = tune(request, "", nothing)
    failed = [t for t in study_of(request).trials if t.state == TrialState.FAIL]
    assert failed
    assert all(trial.params["model.name"] == "single_task" for trial in failed)
    assert all("balance.rule" in trial.user_attrs["failure"] for trial in failed)
    assert found.failures == len(failed) == 8 - len(commands)
    assert "balance.rule" in (request.out / "tune.md").read_text().partition("## Trials")[2]


def test_a_training_that_fails_says_why_and_others_go_on(
    trainings: Trainings, request_for: Requests
) -> None:
    trainings(f"if number == 1: sys.exit('error: no memory')\nif number != 2: {BY_RATE}")
    request = request_for()
    tune(request, "", nothing)
    reasons = [trial.user_attrs.get("failure") for trial in study_of(request).trials]
    never = "valid/auc_mean of the valid split was never defined"
    assert reasons == [None, "error: no memory", never, None]


def test_a_search_in_vain_ends(trainings: Trainings, request_for: Requests) -> None:
    trainings("sys.exit('error: no GPU')")
    with pytest.raises(WorkerError, match="all of 10 trials failed; the last: error: no GPU"):
        tune(request_for(trials=50), "", nothing)


@pytest.mark.usefixtures("ordinary_signals")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_trial_goes_on(
    trainings: Trainings, request_for: Requests, tmp_path: Path, by: signal.Signals
) -> None:
    """With its values, in its folder, from its checkpoint."""
    trainings(
        "evaluated(1, 0.6)\n"
        f"if number == 1: open({str(tmp_path / 'there')!r}, 'w').close(); time.sleep(600)"
    )
    request = request_for(trials=3)

    def interrupt() -> None:
        while not (tmp_path / "there").exists():
            pass
        os.kill(os.getpid(), by)

    thread = Thread(target=interrupt)
    thread.start()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        tune(request, "", nothing)
    thread.join()
    checkpoint = request.out / "runs" / "trial_0001" / "checkpoints" / "step_1"
    checkpoint.mkdir(parents=True)
    write_manifest(checkpoint, Manifest({"step": 1}, ()))

    commands = trainings("evaluated(2, 0.8)")
    tune(request, "", nothing)
    assert [command[-1] for command in commands] == ["--resume", "--overwrite"]
    assert "trial_0001" in commands[0][5]
    trials = study_of(request).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert trials[1].intermediate_values == {1: 0.6, 2: 0.8}
    assert not checkpoint.exists()


def test_a_trial_of_a_killed_process_is_put_right(
    trainings: Trainings, request_for: Requests
) -> None:
    commands = trainings(BY_RATE)
    request = request_for(trials=2)
    study = study_of(request)
    lost, ours = study.next(3), study.next(3)
    assert lost is not None
    assert ours is not None
    lost.trial.set_user_attr("holder", LONG_GONE.text())
    assert study.next(2) is not None  # in the lost one's place
    assert study.next(2) is None
    trials = study.trials
    assert [trial.state for trial in trials] == [TrialState.RUNNING] * 2
    assert trials[1].params == lost.values
    assert trials[1].user_attrs["folder"] == "trial_0000"
    assert commands == []


def work(request: Request, answers: "multiprocessing.Queue[list[int]]") -> None:
    study, numbers = study_of(request), []
    while (chosen := study.next(12)) is not None:
        numbers.append(chosen.number)
        study.finish(chosen, float(chosen.values["optim.lr"]))
    answers.put(numbers)


def test_two_processes_share_a_study(request_for: Requests) -> None:
    request = request_for()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=work, args=(request, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    numbers = sorted(answers.get() + answers.get())
    for worker in workers:
        worker.join()
    assert numbers == list(range(12))
    rates = {trial.params["optim.lr"] for trial in study_of(request).trials}
    assert len(rates) == 12


def test_minutes_end_a_search(trainings: Trainings, request_for: Requests) -> None:
    trainings("evaluated(1, 0.6)\nif number == 1: time.sleep(600)")
    said: list[str] = []
    request = request_for(trials=None, minutes=0.05)
    tune(request, "", said.append)
    assert said[-1] == "trial 1  out of time; the same command goes on with it"
    assert states(request) == [TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": ["--optim.eps", "0.5"]}, "optim.eps 1e-08, wanted 0.5"),
        ({"space": "optim.lr: [0.1]"}, "--space optim.lr "),
        ({"nproc": 2}, "--nproc 1, wanted 2"),
        ({"seed": 1}, "--seed 0, wanted 1"),
    ],
)
def test_another_study_is_refused(
    trainings: Trainings, request_for: Requests, changes: dict[str, object], said: str
) -> None:
    commands = trainings(BY_RATE)
    tune(request_for(trials=1), "", nothing)
    with pytest.raises(UserError, match=f"^--out: the study in .* has {said}"):
        tune(request_for(**changes), "", nothing)
    assert len(commands) == 1


def test_a_study_of_other_data_is_refused(
    trainings: Trainings, request_for: Requests, tmp_path: Path
) -> None:
    trainings(BY_RATE)
    tune(request_for(trials=1), "", nothing)
    other = small_data(tmp_path / "other", train_rows=1999)
    with pytest.raises(UserError, match=r"data.path, files of train '2003 rows, .*'1999 rows"):
        tune(request_for(overrides=["--data.path", str(other)]), "", nothing)


def test_a_file_that_is_no_study_is_refused(request_for: Requests) -> None:
    request = request_for()
    request.out.mkdir()
    (request.out / "study.db").write_text("not a database, but long enough to be read as one" * 9)
    with pytest.raises(UserError, match=r"--out: .*study.db' cannot be read as a study"):
        tune(request, "", nothing)


def test_data_without_a_valid_split_is_refused(request_for: Requests, tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", train_rows=10)
    (data / "valid").rename(data / "other")
    with pytest.raises(UserError, match="has no valid split to judge trials by"):
        tune(request_for(overrides=["--data.path", str(data)]), "", nothing)


def test_the_command_trains(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "out"
    space.write_text("embedding.lr: {low: 0.01, high: 0.1, log: true}\n")
    words = ["tune", "--config", str(config), "--space", str(space), "--out", str(out)]
    assert main([*words, "--train.max_steps", "3"]) == 2
    assert "--trials or --minutes is required" in capsys.readouterr().err
    assert main([*words, "--trials", "2", "--train.max_steps", "3"]) == 0
    said = capsys.readouterr()
    page = json.loads((out / "tune.json").read_text())
    for trial in page["trials"]:
        folder = out / "runs" / f"trial_{trial['number']:04d}"
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        valid = [record for record in records if record.get("split") == "valid"]
        assert trial["value"] == valid[-1]["auc_mean"]
        run = yaml.safe_load((folder / "config.yaml").read_text())
        assert run["embedding"]["lr"] == trial["values"]["embedding.lr"]
        assert not (folder / "checkpoints").exists()
    assert "trial 0  embedding.lr=0.05" in said.err
    assert f"{out / 'best.yaml'}" in said.out
