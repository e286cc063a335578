"""The example on the library runs, and the examples are those that there should be."""

from pathlib import Path

import pytest

from examples import train_and_predict

EXAMPLES = Path(train_and_predict.__file__).parent


def test_trains_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auc = train_and_predict.main(tmp_path)
    assert all(value > 0.7 for value in auc.values())
    assert "[{'click': 0." in capsys.readouterr().out


def test_all_examples_are_there_and_short() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {
        "multi_balance_own_model",
        "neighbours",
        "own_model",
        "own_rule",
        "prepare_with_spark",
        "stem_net_plain_pytorch",
        "train_and_predict",
    }
    for file in EXAMPLES.glob("*.py"):
        assert len(file.read_text().splitlines()) < 60, file.name
