"""One training of the comparison of models, as ``stem-torchrec train`` does it."""

import tempfile
import time
from pathlib import Path
from typing import Any

from models_search import Row, Training


def train(work: tuple[Training, Path]) -> Row:
    """A training's settings, and its figures on valid and test at the best epoch.

    Args:
        work: the training, and the folder of the prepared sets.
    """
    from stem_torchrec import train as run_training
    from stem_torchrec.runs.records import read_records

    training, data = work
    start, keys = time.process_time(), dict(training.settings)
    with tempfile.TemporaryDirectory() as folder:
        places = {"run.dir": f"{folder}/run", "data.path": str(data / training.data)}
        run = run_training(sections(keys | places | {"run.seed": training.seed}), nproc=1)
        records = read_records(run.config.run.dir)
    evaluations = [record for record in records if record["kind"] == "eval"]
    cpu_seconds = round(time.process_time() - start, 2)
    return {
        **training._asdict(),
        "settings": keys,
        "cpu_seconds": cpu_seconds,
        **_figures(evaluations),
    }


def sections(keys: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``section.key`` -> value, as a config has them."""
    content: dict[str, dict[str, Any]] = {}
    for name, value in keys.items():
        section, _, key = name.partition(".")
        content.setdefault(section, {})[key] = value
    return content


def _figures(evaluations: list[Row]) -> Row:
    """Of the tested weights on test and on valid, and of each epoch on valid."""
    *valid, test = evaluations
    assert test["split"] == "test"
    names = ("auc_mean", "auc", "ne", "logloss", "calibration")
    epochs = [{name: each[name] for name in ("epoch", *names)} for each in valid]
    tested = next(each for each in valid if each["step"] == test["step"])
    return {
        "best_epoch": test["epoch"],
        "test": {name: test[name] for name in names},
        "valid_auc_mean": tested["auc_mean"],
        "epochs": epochs,
    }
