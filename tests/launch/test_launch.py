"""Scripts and documentation: they run, and what they name exists."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from stem_torchrec import cli
from stem_torchrec.cli.evaluate import evaluate
from stem_torchrec.cli.plan import plan
from stem_torchrec.cli.prepare import prepare_kuairand, prepare_synthetic
from stem_torchrec.cli.prepare_files import prepare_csv, prepare_qk_video, prepare_tiktok
from stem_torchrec.cli.train import train
from stem_torchrec.config import Config
from stem_torchrec.config.keys import all_keys, keys_for
from stem_torchrec.config.reading import load_config, parse_options, validate
from stem_torchrec.launch.versions import misfit
from stem_torchrec.prepare.engine.options import KuaiRandConfig, PrepareOptions, PublicSetOptions
from stem_torchrec.prepare.synthetic.config import SyntheticConfig

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"])
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
KEYS = {
    train: all_keys(Config),
    evaluate: all_keys(Config),
    plan: all_keys(Config),
    prepare_synthetic: all_keys(SyntheticConfig),
    prepare_kuairand: all_keys(KuaiRandConfig),
    prepare_csv: all_keys(PrepareOptions),
    prepare_tiktok: all_keys(PublicSetOptions),
    prepare_qk_video: all_keys(PublicSetOptions),
}
KEYS = {command: list(keys) for command, keys in KEYS.items()}


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)


def example(name: str) -> str:
    """The README's or a document's block after ``<!-- example: NAME -->``."""
    texts = "\n".join(document.read_text() for document in DOCUMENTS)
    found = re.findall(rf"<!-- example: {name} -->\n```\w+\n(.*?)^```", texts, re.M | re.S)
    assert len(found) == 1
    return found[0]


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of a bash block, without comment and environment."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words and words[-1] == "&":
                    words.pop()
                if words:
                    found.append((document.name, words))
    return found


def ids(values: Sequence[tuple[str, list[str]]]) -> list[str]:
    return [f"{document}: {' '.join(words)}" for document, words in values]


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(script: Path):
    result = run("bash", "-n", script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "script",
    [script for script in SCRIPTS if script.name not in ("common.sh", "run")],
    ids=lambda path: path.name,
)
def test_help_works_from_any_folder(script: Path, tmp_path: Path):
    result = run("bash", script, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "Usage" in result.stdout
    assert "#" not in result.stdout
    assert "set -euo pipefail" not in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "message"),
    [
        ("train.sh", [], {}, "config file"),
        ("train.sh", ["nowhere.yaml"], {}, "nowhere.yaml"),
        ("train.sh", ["configs/synthetic.yaml"], {"NPROC": "none"}, "NPROC is 'none'"),
        ("train.sh", ["configs/synthetic.yaml"], {"PYTHON": "/nowhere"}, "/nowhere"),
        ("multinode.sh", ["configs/synthetic.yaml"], {}, "NNODES"),
        ("multinode.sh", ["configs/synthetic.yaml"], {"NNODES": "2"}, "RDZV_ENDPOINT"),
        ("multinode.sh", ["configs/synthetic.yaml"], {"NNODES": "x"}, "NNODES is 'x'"),
        ("slurm.sbatch", ["configs/synthetic.yaml"], {}, "sbatch"),
        ("setup.sh", ["--gqu"], {}, "--gqu"),
        ("quickstart.sh", ["--fast"], {}, "--fast"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    script: str, arguments: list[str], environment: dict[str, str], message: str
):
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    result = run("bash", LAUNCH / script, *arguments, cwd=ROOT, env=path | environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup.sh reads, in a folder without a .venv."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def fake_python(path: Path, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = version.replace(".", ", ")
    code = f"import sys; sys.version_info = ({info}); exec(sys.argv[1])"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    path.chmod(0o755)


def test_setup_refuses_a_python_that_is_too_old(checkout: Path):
    python = checkout / "old" / "python"
    fake_python(python, "3.9.1")
    result = run("bash", checkout / "launch/setup.sh", env={"PATH": "/bin", "PYTHON": str(python)})
    assert result.returncode == 2
    assert "is Python 3.9.1, but 3.11 or 3.12 is needed" in result.stderr
    assert not (checkout / ".venv").exists()


def test_setup_refuses_a_venv_of_another_python(checkout: Path):
    fake_python(checkout / ".venv" / "bin" / "python", "3.13.0")
    result = run("bash", checkout / "launch/setup.sh")
    assert result.returncode == 2
    assert ".venv has Python 3.13.0" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_setup_passes_over_a_python_that_does_not_run(checkout: Path):
    broken = checkout / "shims" / "python3.11"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    for name in ("python3.12", "python3"):
        shutil.copy(broken, broken.with_name(name))
    path = f"{broken.parent}:/usr/bin:/bin"
    result = run("bash", checkout / "launch/setup.sh", env={"PATH": path})
    assert result.returncode == 2
    assert "no Python 3.11 or 3.12 found" in result.stderr


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"torch": "2.13.0+cpu", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"}, None),
        ({"torch": "2.11.0", "fbgemm-gpu-cpu": "1.6.0", "torchrec": "1.6.1"}, None),
        (
            {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.7.0", "torchrec": "1.8.0"},
            "torch 2.13.0 and fbgemm-gpu-cpu 1.7.0 do not fit: FBGEMM 1.7 needs torch 2.12",
        ),
        (
            {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.7.0"},
            "torchrec 1.7.0 does not fit",
        ),
        (
            {"torch": "2.13.0", "fbgemm-gpu-cpu": None, "torchrec": "1.8.0"},
            "fbgemm-gpu-cpu is not installed",
        ),
        (
            {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0", "fbgemm-gpu": "1.8.0"},
            "both installed",
        ),
    ],
)
def test_versions_that_do_not_fit_are_named(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], message: str | None
):
    monkeypatch.setattr("stem_torchrec.launch.versions.installed", versions.get)
    asked = {name: version for name, version in versions.items() if name != "fbgemm-gpu"}
    problem = misfit("cpu", asked)
    assert (problem is None) if message is None else (message in (problem or ""))


def test_every_direct_dependency_is_pinned():
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'"([A-Za-z-]+)>=|"(types-PyYAML)"', project)
    lines = [
        line
        for file in (LAUNCH / "requirements").glob("*.txt")
        for line in file.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z-]+(\[[a-z0-9-]+\])?==[0-9.]+", line) for line in lines)
    pinned = {line.partition("==")[0].partition("[")[0].lower() for line in lines}
    assert {(a or b).lower() for a, b in wanted} <= pinned


@pytest.mark.parametrize(("document", "words"), commands(), ids=ids(commands()))
def test_documented_command_exists(document: str, words: list[str]):
    if words[0].startswith("launch/") or words[0] == "sbatch":
        script = next(word for word in words if word.startswith("launch/"))
        assert (ROOT / script).is_file()
        assert words[0] == "sbatch" or (ROOT / script).stat().st_mode & 0o100
        options = [word for word in words[words.index(script) + 1 :] if word != "--resume"]
        configs, options = [w for w in options if w.endswith(".yaml")], options
        for config in configs:
            options.remove(config)
        if Path(script).name not in ("setup.sh", "quickstart.sh", "test.sh"):
            dict(parse_options(options, KEYS[train]))
    elif words[0] == "stem-torchrec":
        if words[-1] == "--help":
            with pytest.raises(SystemExit) as stopped:
                cli._parser().parse_known_args(words[1:])
            assert stopped.value.code == 0
        else:
            known, rest = cli._parser().parse_known_args(words[1:])
            keys = KEYS.get(known.run, [])
            own = keys_for({}, rest) if known.run in (train, evaluate, plan) else []
            dict(parse_options(rest, [*keys, *own]))
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0].startswith("benchmarks/"):
        assert (ROOT / words[0]).stat().st_mode & 0o100
    else:
        known = ("source", "pip", "curl", "venv-pack", "spark-submit")
        assert words[0] in known, f"{document}: unknown command {words[0]}"
    for word in words:
        if word.startswith("configs/spaces/"):
            assert (ROOT / word).is_file()
        elif word.startswith("configs/"):
            load_config(ROOT / word)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_config_keys_exist(document: Path):
    names = {key.name for key in all_keys(Config)}
    sections = "|".join(Config.model_fields)
    found = re.findall(rf"`((?:{sections})\.[a-z_]+)\b[^`/]*`", document.read_text())
    assert [name for name in found if name not in names] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\((?!https://)([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_documented_schema_is_valid(tmp_path: Path):
    from stem_torchrec.data.schema import load_schema

    (schema,) = blocks(ROOT / "docs" / "data.md", "json")
    (tmp_path / "schema.json").write_text(schema)
    assert load_schema(tmp_path).task_names == ("click", "buy")


def test_documented_table_constraints_are_valid():
    content = {"run": {"dir": "runs/mine"}, "data": {"path": "prepared/mine"}}
    config = validate(content | yaml.safe_load(example("tables")))
    assert config.distributed.tables["shared__item_id"].min_partition == 8


def test_documented_description_prepares_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tests.prepare.raw_tables import rows_of

    monkeypatch.chdir(tmp_path)
    (tmp_path / "ratings").mkdir()
    header = "userId,movieId,genres,price,rating,bought,timestamp\n"
    rows = [f"{k % 9},{k % 7},a|b,1.5,{k % 6},{k % 2},{10**9 + k}\n" for k in range(200)]
    (tmp_path / "ratings" / "1.csv").write_text(header + "".join(rows))
    (tmp_path / "ratings.yaml").write_text(example("describe"))
    (words,) = (
        words
        for document, words in commands()
        if document == "data.md" and "ratings.yaml" in words and "--out" in words
    )
    assert cli.main(words[1:]) == 0
    train = rows_of(tmp_path / "prepared" / "ratings", "train")
    assert [row["like"] for row in train] == [int(k % 6 >= 4) for k in range(160)]
    assert {row["buy"] for row in train} == {0, 1, None}


@pytest.mark.filterwarnings("ignore:Please use DTensor instead:FutureWarning")
def test_the_readme_trains_on_your_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    exec(compile(example("data"), "README.md", "exec"), {})
    (tmp_path / "mine.yaml").write_text(example("config"))
    here = ["--nproc", "1", "--distributed.device", "cpu"]
    assert cli.main(["train", "--config", "mine.yaml", "--train.max_steps", "3", *here]) == 0
    assert cli.main(["evaluate", "--run", "runs/mine", "--json", *here]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["samples"] == 1000
    assert record["labels"]["click"] == 1000
    assert 0 < record["labels"]["buy"] < 500
    names: dict[str, Any] = {}
    exec(compile(example("library"), "README.md", "exec"), names)
    assert names["user_table"].shape[0] == 501
    assert "click: double" in capsys.readouterr().out
    assert cli.main(["plan", "--config", "mine.yaml", "--world-size", "8", "--device", "cuda"]) == 0
    assert "buy__item_tags" in capsys.readouterr().out
