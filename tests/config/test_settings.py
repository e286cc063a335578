"""Files and overrides to a config, and what the user is told about mistakes."""

import re

import pytest
import yaml
from pydantic import BaseModel, Field

from stem_torchrec.config import Config
from stem_torchrec.config.keys import all_keys
from stem_torchrec.config.reading import dump_config, load_config, load_options, validate
from stem_torchrec.errors import UserError

SMALL = {"run": {"dir": "runs/x"}, "data": {"path": "prepared/x"}}


@pytest.fixture
def load(tmp_path):
    """Load ``content`` with overrides."""

    def load(*overrides, content=SMALL):
        path = tmp_path / "config.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load_config(path, overrides)

    return load


def test_the_small_file_gives_defaults(load):
    assert load() == validate(SMALL)
    assert load().train.log_every == 100


@pytest.mark.parametrize(
    ("overrides", "section", "key", "value"),
    [
        (["--train.epochs", "3"], "train", "epochs", 3),
        (["--train.epochs=3"], "train", "epochs", 3),
        (["--train.epochs", "2", "--train.epochs", "4"], "train", "epochs", 4),
        (["--train.max_steps", "null"], "train", "max_steps", None),
        (["--optim.lr", "1e-3"], "optim", "lr", 0.001),
        (["--optim.lr", "0.5"], "optim", "lr", 0.5),
        (["--data.shuffle", "false"], "data", "shuffle", False),
        (["--model.expert_widths", "64,32"], "model", "expert_widths", (64, 32)),
        (["--model.expert_widths", "[64, 32]"], "model", "expert_widths", (64, 32)),
        (["--model.expert_widths", "[64]"], "model", "expert_widths", (64,)),
        (["--model.gate_widths", "[]"], "model", "gate_widths", ()),
        (["--tasks.names", "like,click"], "tasks", "names", ("like", "click")),
        (["--tasks.names", "like"], "tasks", "names", ("like",)),
        (["--tasks.names", "null"], "tasks", "names", None),
        (["--model.task_specific_features", "user"], "model", "task_specific_features", "user"),
        (["--model.task_specific_features", "a,b"], "model", "task_specific_features", ("a", "b")),
        (["--distributed.sharding", "row_wise"], "distributed", "sharding", "row_wise"),
        (["--train.capture", "on"], "train", "capture", "on"),
        (["--train.compile", "off"], "train", "compile", "off"),
        (["--train.profile", "100:5"], "train", "profile", "100:5"),
    ],
)
def test_overrides(load, overrides, section, key, value):
    assert getattr(getattr(load(*overrides), section), key) == value


def test_an_override_wins_over_the_file_and_leaves_the_rest(load):
    content = SMALL | {"train": {"epochs": 5, "batch_size": 7}}
    config = load("--train.epochs", "2", content=content)
    assert (config.train.epochs, config.train.batch_size) == (2, 7)


def test_a_path_is_not_read_as_yaml(load):
    assert str(load("--run.dir", "2024").run.dir) == "2024"
    assert str(load("--data.path", "null").data.path) == "null"


def test_constraints_of_tables(load):
    tables = {"shared__*": {"sharding": ["row_wise"], "kernel": ["fused"], "min_partition": 8}}
    constraint = load(content=SMALL | {"distributed": {"tables": tables}}).distributed.tables
    assert constraint["shared__*"].sharding == ("row_wise",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train.epoch", "3"], r"train\.epoch: unknown key; did you mean train\.epochs\?"),
        (["--trian.epochs", "3"], r"trian\.epochs: unknown key; did you mean train\.epochs\?"),
        (["--train.zzzz", "3"], r"train\.zzzz: unknown key.*allowed:.*train\.batch_size"),
        (["--train", "3"], "train: unknown key"),
        (["--train.epochs"], r"--train\.epochs: a value is missing"),
        (["train.epochs", "3"], "unexpected argument 'train.epochs'"),
        (["--train.batch_size", "0"], r"train\.batch_size: .*greater than or equal to 1, found 0"),
        (["--train.epochs", "two"], r"train\.epochs: .*valid integer.*found 'two'"),
        (["--train.epochs", "1.5"], r"train\.epochs: .*integer.*found 1.5"),
        (["--optim.lr", ".inf"], r"optim\.lr: .*finite.*found inf"),
        (["--optim.lr", "-1"], r"optim\.lr: .*greater than 0, found -1"),
        (["--data.shuffle", "perhaps"], r"data\.shuffle: .*boolean.*found 'perhaps'"),
        (["--train.profile", "3"], r"train\.profile: expected START:STEPS.*found 3"),
        (["--checkpoint.keep_best", "true"], r"keep_best: expected valid/auc_mean.*found True"),
        (["--eval.metric", "7"], r"eval\.metric: expected valid/auc_mean or.*found 7"),
        (["--model.dropout", "1"], r"model\.dropout: .*less than 1, found 1"),
        (["--model.expert_widths", "64,x"], r"model\.expert_widths: .*integer.*found 'x'"),
        (["--model.expert_widths", "[]"], r"model\.expert_widths: .*at least 1"),
        (
            ["--embedding.optimizer", "ftrl"],
            r"embedding\.optimizer: .*'rowwise_adagrad', 'adagrad', 'sgd' or 'adam', found 'ftrl'",
        ),
        (["--distributed.sharding", "rows"], r"distributed\.sharding: .*'row_wise'.*found 'rows'"),
        (
            ["--model.num_shared_experts", "0", "--model.num_task_experts", "0"],
            "num_shared_experts and num_task_experts are both 0",
        ),
        (
            ["--model.num_shared_experts", "0", "--model.layers", "2"],
            "layers > 1 needs num_shared_experts",
        ),
    ],
)
def test_a_wrong_override_is_the_users_error(load, overrides, message):
    with pytest.raises(UserError, match=message):
        load(*overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SMALL | {"trian": {"epochs": 1}}, r"trian: unknown key; did you mean train\?"),
        (SMALL | {"train": {"epoch": 1}}, r"train\.epoch: unknown key.*train\.epochs"),
        (SMALL | {"train": {"epochs": "x", "batch_size": 0}}, r"epochs(.|\n)*\n.*batch_size"),
        (SMALL | {"train": 3}, "train: .*found 3"),
        ({"run": {"dir": "x"}, "data": {}}, r"data\.path: required"),
        ({"run": {"dir": "x"}, "data": None}, r"data\.path: required"),
        ({"data": {"path": "x"}}, "run: required"),
        ("- 1", r"expected sections.*found \[1\]"),
        ("a: [", "not valid YAML"),
        ("", "run: required"),
        ("0", r"expected sections.*found 0"),
        ("1: 2", r"expected a name.*found 1"),
        ("run: {dir: x}\ndata: {path: y}\nrun: {dir: z}", r"line 3: key 'run' is there twice"),
        ("run: {dir: x}\ndata: {path: y,\n path: z}", r"line 3: key 'path' is there twice"),
        ("train: [" + "9," * 5000 + "]", r"train: .{,100}found \[9, 9, .{,100}\.\.\.\]"),
        ("a: &a [*a]", "line 1: alias 'a' stands for what it is in"),
        (
            SMALL | {"distributed": {"tables": {"x": {"shard": 1}}}},
            r"tables\.x\.shard: unknown key",
        ),
        (
            SMALL | {"distributed": {"tables": {"x": {"sharding": ["rows"]}}}},
            r"distributed\.tables\.x\.sharding\.0: .*'row_wise'.*found 'rows'",
        ),
    ],
)
def test_a_wrong_file_is_the_users_error(load, content, message):
    with pytest.raises(UserError, match=message):
        load(content=content)


HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.days", "2022-02-30"], r"data\.days: .*expected a day.*found '2022-02-30'"),
        (["--data.days", "2022-04-08 25:00:00"], r"data\.days: .*expected a day"),
        (["--train.epochs", HUGE], r"train\.epochs: .{,100}found .{,160}$"),
        (["--train.epochs", "0x" + "f" * 9000], r"train\.epochs: .{,200}$"),
        (["--model.name", "0x" + "f" * 9000], r"model\.name: .*more than 4,300 digits$"),
        (["--optim.lr", "!!float x"], r"optim\.lr: .*valid number.*found '!!float x'"),
        (["--tasks.names", "[" * 900 + "]" * 900], r"--tasks\.names: line 1: nested deeper than"),
        (["--train.batch_size", "true"], r"train\.batch_size: .*a number, found True"),
        (["--model.expert_widths", "[true]"], r"model\.expert_widths: .*a number, found \[True\]"),
        (["--balance.weights", "[1, no]"], r"balance\.weights: .*a number"),
        (["--embedding.dim", "6"], r"embedding\.dim: .*multiple of 4, found 6"),
        (["--model.name", "stemnet"], r"model\.name: 'stemnet'; .*; did you mean 'stem_net'\?"),
        (["--train.epochs="], r"--train\.epochs: a value is missing; null stands for none"),
        (["--run.dir", ""], r"--run\.dir: a value is missing"),
        (["--distributed.tables", "{a: {}, a: {}}"], r"--distributed\.tables: line 1: key 'a' is"),
        (
            ["--model.expert_widths", "[9223372036854775808]"],
            r"expert_widths: [^\n]*less than[^\n]*$",
        ),
        (["--model.layers", "1000000"], r"model\.layers: .*less than or equal to 64"),
        (["--run.seed", str(2**64)], r"run\.seed: .*less than or equal to"),
        (["--distributed.timeout_s", "1000000000000000"], r"distributed\.timeout_s: .*less than"),
        (["--distributed.hbm_gib", "1.0e300"], r"distributed\.hbm_gib: .*less than"),
    ],
)
def test_values_that_only_look_right(load, overrides, message):
    with pytest.raises(UserError, match=message) as found:
        load(*overrides)
    assert len(str(found.value)) < 500


@pytest.mark.parametrize(
    "key",
    [k for k in all_keys() if {"integer", "number"} & {*k.allowed.split(" | ")}],
    ids=lambda key: key.name,
)
def test_every_number_has_bounds(load, key):
    for value in ("1e300", "-1e300"):
        with pytest.raises(UserError, match=rf"{key.name}: "):
            load(f"--{key.name}", value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train.lr", "optim.lr or embedding.lr"),
        ("model.dim", "embedding.dim"),
        ("embedding.learning_rate", "optim.lr or embedding.lr"),
        ("train.step", "train.max_steps"),
        ("max_steps", "train.max_steps"),
        ("train.evaluate_every", "train.log_every"),
        ("train.checkpoint_every", "checkpoint.every"),
        ("bs", "train.batch_size"),
        ("optim.weight_deacy", "optim.weight_decay"),
    ],
)
def test_a_hint_looks_into_all_sections(load, name, expected):
    with pytest.raises(UserError, match=re.escape(f"did you mean {expected}?")):
        load(f"--{name}", "3")


def test_a_mistyped_option_of_the_command(tmp_path, load):
    load()
    path = tmp_path / "config.yaml"
    with pytest.raises(UserError, match=r"--init-form: unknown option; did you mean --init-from\?"):
        load_config(path, ["--init-form", "run"], options=["--init-from", "--nproc"])
    with pytest.raises(UserError, match="did you mean --nproc"):
        load_config(path, ["--num_workers", "2"], options=["--init-from", "--nproc"])


def test_a_missing_file_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"--config: no file '.*nothing\.yaml'"):
        load_config(tmp_path / "nothing.yaml")


def test_a_section_that_is_no_mapping_takes_no_override(load):
    with pytest.raises(UserError, match="train: expected keys, found 3"):
        load("--train.epochs", "2", content=SMALL | {"train": 3})


def test_a_dumped_config_starts_the_same_run_from_any_folder(tmp_path, load, monkeypatch):
    content = SMALL | {
        "model": {"expert_widths": [8], "task_specific_features": ["a"]},
        "distributed": {"tables": {"a*": {"sharding": ["row_wise"]}}},
    }
    config = load("--train.max_steps", "7", content=content)
    text = dump_config(config, {"torch": "2"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text(text)
    loaded = load_config(tmp_path / "other.yaml")
    assert loaded.run.dir.is_absolute()
    assert loaded.data.path.is_absolute()
    same = {"run": config.run, "data": config.data}
    assert loaded.model_copy(update=same) == config
    assert yaml.safe_load(text)["versions"] == {"torch": "2"}


def test_every_key_has_a_description_and_words_for_its_values():
    keys = list(all_keys())
    assert len(keys) == len({key.name for key in keys}) > 50
    for key in keys:
        assert len(key.description) > 10, key.name
        assert key.allowed, key.name
        assert "typing" not in key.allowed, key.name
        assert "<" not in key.allowed, key.name
        assert key.default_text, key.name


def test_every_key_of_every_section_is_listed():
    names = {key.name for key in all_keys()}
    for section, field in Config.model_fields.items():
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"{section}.{key}" in names


class Options(BaseModel):
    count: int = Field(2, ge=1, description="how many")
    names: tuple[str, ...] = ()


def test_options_of_a_command():
    assert load_options(Options, []) == Options()
    assert load_options(Options, ["--count", "3", "--names=a,b"]) == Options(
        count=3, names=("a", "b")
    )
    with pytest.raises(UserError, match="coutn: unknown key; did you mean count"):
        load_options(Options, ["--coutn", "3"])
    with pytest.raises(UserError, match=r"count: .*greater than or equal to 1, found 0"):
        load_options(Options, ["--count", "0"])
