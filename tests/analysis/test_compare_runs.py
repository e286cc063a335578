"""What is left to do in a folder, and running it with processes that stand for training."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stem_torchrec.analysis import training_process
from stem_torchrec.analysis.compare import runs as compare_runs
from stem_torchrec.analysis.compare.plan import PlannedRun
from stem_torchrec.analysis.compare.runs import Finished, action_for, run_all
from stem_torchrec.analysis.training_process import Ranks
from stem_torchrec.checkpoint.manifest import Manifest, write_manifest
from stem_torchrec.errors import UserError
from tests.analysis.comparison import TRAIN, of_test_split, planned, write_checkpoint, write_run

ONE = Ranks(nproc=1, parallel=1)
SUCCEED = "pass"


def nothing(_: object) -> None:
    pass


def test_nothing_there(tmp_path: Path) -> None:
    assert action_for(planned(tmp_path), 1, overwrite=False) == "overwrite"


def test_finished(tmp_path: Path) -> None:
    """Versions and the place of the folder do not count."""
    run = planned(tmp_path)
    elsewhere = planned(tmp_path / "moved").config.run
    moved = run.config.model_copy(update={"run": elsewhere})
    write_run(run, TRAIN, of_test_split(a=0.7), config=moved)
    assert action_for(run, 1, overwrite=False) == "keep"
    assert action_for(run, 1, overwrite=True) == "overwrite"


def test_interrupted(tmp_path: Path) -> None:
    run = planned(tmp_path)
    write_run(run, TRAIN)
    assert action_for(run, 1, overwrite=False) == "overwrite"
    (run.dir / "checkpoints" / "step_3.partial").mkdir(parents=True)
    assert action_for(run, 1, overwrite=False) == "overwrite"
    (run.dir / "checkpoints" / "step_2").mkdir()
    assert action_for(run, 1, overwrite=False) == "overwrite"
    write_manifest(run.dir / "checkpoints" / "step_2", Manifest({"step": 2}, ()))
    assert action_for(run, 1, overwrite=False) == "resume"


def test_evaluated_on_another_split_only(tmp_path: Path) -> None:
    run = planned(tmp_path)
    write_run(run, of_test_split(a=0.7) | {"split": "valid"})
    write_checkpoint(run.dir, 3)
    assert action_for(run, 1, overwrite=False) == "resume"


def test_a_run_without_its_last_checkpoint_is_not_finished(tmp_path: Path) -> None:
    run = planned(tmp_path)
    write_run(run, TRAIN, of_test_split(a=0.7))
    shutil.rmtree(run.dir / "checkpoints" / "step_3")
    assert action_for(run, 1, overwrite=False) == "overwrite"
    write_checkpoint(run.dir, 2)
    assert action_for(run, 1, overwrite=False) == "resume"


def test_another_config_is_refused(tmp_path: Path) -> None:
    run = planned(tmp_path)
    write_run(run, of_test_split(a=0.7), config=planned(tmp_path, gate_input="task").config)
    with pytest.raises(UserError, match=r"model.gate_input 'task', wanted 'both'.*--overwrite"):
        action_for(run, 1, overwrite=False)
    assert action_for(run, 1, overwrite=True) == "overwrite"


def test_a_key_that_is_no_more_is_refused(tmp_path: Path) -> None:
    run = planned(tmp_path)
    write_run(run, of_test_split(a=0.7))
    file = run.dir / "config.yaml"
    file.write_text(file.read_text().replace("optim:\n", "optim:\n  gone: 1\n"))
    with pytest.raises(UserError, match=r"optim.gone 1, wanted None"):
        action_for(run, 1, overwrite=False)
    file.write_text("run: [")
    with pytest.raises(UserError, match=r"run.seed None, wanted 0"):
        action_for(run, 1, overwrite=False)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Runs are Python scripts by seed; fill in what a run does."""
    by_seed: dict[int, str] = {}
    popen = subprocess.Popen

    def start(command: list[str], **keywords: object) -> "subprocess.Popen[bytes]":
        (seed,) = (int(word.split("=")[1]) for word in command if word.startswith("--run.seed="))
        return popen([sys.executable, "-c", by_seed[seed]], **keywords)  # type: ignore[call-overload]

    monkeypatch.setattr(training_process.subprocess, "Popen", start)
    return by_seed


def runs_of(folder: Path, *scripts: str) -> list[PlannedRun]:
    """One run per script; each has its test record already, as if the script had written it."""
    runs = []
    for seed in range(len(scripts)):
        run = planned(folder, seed)
        run = PlannedRun(run.combination, run.config, [f"--run.seed={seed}"])
        write_run(run, of_test_split(a=0.7))
        runs.append(run)
    return runs


def finish(
    scripts: dict[int, str], folder: Path, *sources: str, ranks: Ranks = ONE
) -> list[Finished]:
    scripts.update(enumerate(sources))
    runs = [(run, "overwrite") for run in runs_of(folder, *sources)]
    return run_all(runs, Path("c.yaml"), ranks, nothing, nothing)  # type: ignore[arg-type]


def test_failed_runs_say_why_and_the_others_go_on(scripts: dict[int, str], tmp_path: Path) -> None:
    outcomes = finish(
        scripts,
        tmp_path,
        "import sys; print('step 1'); sys.exit('error: optim.lr: too\\nhigh\\n')",
        "import os; os.kill(os.getpid(), 9)",
        "import sys; sys.exit(3)",
        SUCCEED,
    )
    failures = [outcome.failure for outcome in outcomes]
    assert failures == ["high", "ended by SIGKILL", "exit code 3", None]
    assert outcomes[0].run.log.read_text().startswith("step 1\n")


def test_success_without_results_is_none(scripts: dict[int, str], tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, SUCCEED)
    scripts[0] = SUCCEED
    write_run(run, TRAIN)
    (outcome,) = run_all([(run, "overwrite")], Path("c"), ONE, nothing, nothing)
    assert outcome.failure == "it wrote no test record"
    write_run(run, of_test_split(a=0.7), config=planned(tmp_path, gate_input="task").config)
    (outcome,) = run_all([(run, "overwrite")], Path("c"), ONE, nothing, nothing)
    assert outcome.failure is not None
    assert "model.gate_input 'task'" in outcome.failure
    write_run(run, of_test_split(a=0.7))
    shutil.rmtree(run.dir / "checkpoints")
    (outcome,) = run_all([(run, "overwrite")], Path("c"), ONE, nothing, nothing)
    assert outcome.failure is not None
    assert outcome.failure.startswith("no checkpoint of step 3")


def test_finished_runs_are_not_started(scripts: dict[int, str], tmp_path: Path) -> None:
    first, second = runs_of(tmp_path, SUCCEED, SUCCEED)
    scripts[1] = SUCCEED
    started: list[PlannedRun] = []
    actions = [(first, "keep"), (second, "resume")]
    outcomes = run_all(actions, Path("c"), ONE, started.append, nothing)  # type: ignore[arg-type]
    assert started == [second]
    assert [outcome.run for outcome in outcomes] == [first, second]
    assert outcomes[0].seconds is None


@pytest.mark.parametrize("parallel", [1, 2])
def test_so_many_at_a_time(scripts: dict[int, str], tmp_path: Path, parallel: int) -> None:
    active, most = set(), []

    def started(run: PlannedRun) -> None:
        active.add(run.seed)
        most.append(len(active))

    runs = runs_of(tmp_path, *[SUCCEED] * 4)
    scripts.update(dict.fromkeys(range(4), SUCCEED))
    actions = [(run, "overwrite") for run in runs]
    ranks = Ranks(nproc=1, parallel=parallel)
    ended = run_all(  # type: ignore[arg-type]
        actions, Path("c"), ranks, started, lambda outcome: active.discard(outcome.run.seed)
    )
    assert max(most) == parallel
    assert len(ended) == 4
    assert compare_runs.runs_at_a_time(runs) == parallel


def test_other_number_of_ranks_is_refused(scripts: dict[int, str], tmp_path: Path) -> None:
    (outcome,) = finish(scripts, tmp_path, SUCCEED, ranks=Ranks(nproc=2, parallel=1))
    assert outcome.failure is None
    assert action_for(outcome.run, 2, overwrite=False) == "keep"
    with pytest.raises(UserError, match=r"--nproc 2, wanted 1"):
        action_for(outcome.run, 1, overwrite=False)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("ordinary_signals")
def test_interruption_ends_the_processes(
    scripts: dict[int, str], tmp_path: Path, by: signal.Signals
) -> None:
    before = signal.getsignal(by)
    runs = runs_of(tmp_path, SUCCEED, SUCCEED)
    pid_file = tmp_path / "pid"
    scripts[0] = (
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )

    def interrupt_the_second(run: PlannedRun) -> None:
        if run.seed == 1:
            while not (pid_file.exists() and pid_file.read_text()):
                pass
            signal.raise_signal(by)

    actions = [(run, "overwrite") for run in runs]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_all(actions, Path("c"), Ranks(1, 2), interrupt_the_second, nothing)  # type: ignore[arg-type]
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    assert signal.getsignal(by) == before


def test_the_command_is_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **keywords: object) -> "subprocess.Popen[bytes]":
        commands.append(command)
        return popen([sys.executable, "-c", SUCCEED], **keywords)  # type: ignore[call-overload]

    monkeypatch.setattr(training_process.subprocess, "Popen", start)
    runs = runs_of(tmp_path, SUCCEED, SUCCEED)
    actions = [(runs[0], "overwrite"), (runs[1], "resume")]
    run_all(actions, Path("c.yaml"), Ranks(2, 1), nothing, nothing)  # type: ignore[arg-type]
    start_of = [sys.executable, "-m", "stem_torchrec", "train", "--config", "c.yaml"]
    assert commands == [
        [*start_of, "--run.seed=0", "--nproc", "2", "--overwrite"],
        [*start_of, "--run.seed=1", "--nproc", "2", "--resume"],
    ]
    beside = runs[0].dir.with_name("seed0.json")
    assert json.loads(beside.read_text()) == {"nproc": 2, "parallel": 1}
