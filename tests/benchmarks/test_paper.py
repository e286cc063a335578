"""The paper's tables from raw files made up here: every run planned, and few of them trained."""

import json
from pathlib import Path

import pytest
from paper import MODELS, SETS, VARIED, main, parsed, requests

from stem_torchrec.errors import UserError
from tests.support.public_raw import write_raw

TINY = [
    *("--prepare", "min_count=2", "--set", "distributed.device=cpu", "train.max_steps=2"),
    *("train.batch_size=64", "embedding.optimizer=rowwise_adagrad", "model.expert_widths=[8]"),
]
ROWS = {"tiktok": [324, 36, 40], "qk_video": [320, 40, 40], "kuairand1k": [400, 50, 50]}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("owners"))


def test_every_run_of_every_table_is_planned_from_the_owners_files(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--raw", str(raw), "--out", str(tmp_path), "--seeds", "1", *TINY, "--plan"])
    assert capsys.readouterr().out.count(": 16 runs") == len(SETS)
    assert not list(tmp_path.rglob("config.yaml"))
    for name, expected in ROWS.items():
        stats = json.loads((tmp_path / "data" / name / "stats.json").read_text())
        found = [stats["samples"][split] for split in ("train", "valid", "test")]
        assert sum(found) == sum(expected)
        assert all(abs(a - b) < 40 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "experts"), [("qk_video", 3), ("kuairand1k", 9)])
def test_shared_experts_are_as_many_as_the_others_have(
    tmp_path: Path, name: str, experts: int
) -> None:
    asked = requests(name, tmp_path, parsed(["--raw", str(tmp_path)]))
    assert asked["models"].models == [*MODELS]
    assert set(asked["models"].own) == {
        *(f"{model}:model.num_shared_experts={experts}" for model in ("omoe", "mmoe", "me_mmoe")),
        "esmm:model.task_order=[click, like]",
    }
    assert {table: [*request.vary] for table, request in asked.items() if table != "models"} == {
        table: [choice] for table, choice in VARIED.items()
    }


def test_models_learn_as_in_the_reference_code_unless_all_are_set(tmp_path: Path) -> None:
    """On TikTok all but STEM-Net at a tenth of its rate."""
    arguments = ["--raw", str(tmp_path), "--sets", "tiktok"]
    own = requests("tiktok", tmp_path, parsed(arguments))["models"].own
    assert {"mmoe:optim.lr=0.0001", "mmoe:embedding.lr=0.0001"} < {*own}
    assert "stem_net:optim.lr=0.0001" not in own
    own = requests("tiktok", tmp_path, parsed([*arguments, "--set", "embedding.lr=1"]))[
        "models"
    ].own
    assert {setting.partition(":")[2] for setting in own if "mmoe:" in setting} == {
        "optim.lr=0.0001"
    }
    few = parsed([*arguments, "--tables", "subsets", "--models", "ple", "aitm"])
    asked = requests("tiktok", tmp_path, few)
    assert {table: request.models for table, request in asked.items()} == {
        "models": ["single_task", "ple"]
    }


def test_what_is_missing_or_unknown_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "QK-video.csv").touch()
    with pytest.raises(UserError, match=r"no final_track1_train.txt, KuaiRand-1K; --sets"):
        main(["--raw", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    for option in ("--sets", "--tables", "--models"):
        with pytest.raises(SystemExit, match="2"):
            main(["--raw", str(tmp_path), option, "flat"])
        assert "flat" in capsys.readouterr().err


@pytest.mark.slow
def test_the_tables_are_written_and_what_is_done_is_kept(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--raw", str(raw), "--out", str(tmp_path), "--sets", "tiktok", "--nproc", "1"]
    arguments += ["--seeds", "1", "--models", "single_task", "ple", "stem_net", *TINY]
    main(arguments)
    [found] = json.loads((tmp_path / "paper.json").read_text())["sets"]
    assert found["failures"] == []
    rows = {table: {row["row"]: row for row in rows} for table, rows in found["tables"].items()}
    assert list(rows["models"]) == ["single_task", "ple", "stem_net"]
    plain, configured = rows["models"]["single_task"], rows["models"]["stem_net"]
    gain = configured["figures"]["gain_mean"]["mean"]
    auc = configured["figures"]["auc_mean"]["mean"] - plain["figures"]["auc_mean"]["mean"]
    assert gain == pytest.approx(auc)
    sizes = {name: row["parameters"]["tables"] for name, row in rows["fields"].items()}
    assert (
        sizes["stem_net, task_specific_features=none"] * 3
        == (sizes["stem_net, task_specific_features=all"])
    )
    assert [len(rows[table]) for table in VARIED] == [3, 4, 5]
    assert {score["model"] for score in found["subsets"]["scores"]} == {
        "single-task", "ple", "stem_net"
    }  # fmt: skip
    page = (tmp_path / "paper.md").read_text()
    assert "| stem_net, gate_input=shared | " in page
    assert "| finish | comparable | stem_net | " in page
    made = (tmp_path / "tiktok" / "subsets" / "negative_transfer.json").stat().st_mtime_ns

    capsys.readouterr()
    main(arguments)
    assert capsys.readouterr().out.count("there already") == 9
    assert json.loads((tmp_path / "paper.json").read_text())["sets"] == [found]
    kept = (tmp_path / "tiktok" / "subsets" / "negative_transfer.json").stat().st_mtime_ns
    assert kept == made
