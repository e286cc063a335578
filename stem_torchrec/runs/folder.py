"""A run's folder, on a disk or in a store: who may write it, and what describes the run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Literal

import yaml

from stem_torchrec.config import Config
from stem_torchrec.config.careful_yaml import careful_load
from stem_torchrec.config.reading import dump_config, load_config
from stem_torchrec.data.schema import SCHEMA_FILE, Schema
from stem_torchrec.errors import UserError
from stem_torchrec.runs.encoder import ENCODER, carry_encoder
from stem_torchrec.runs.records import METRICS, parse_record, record_lines
from stem_torchrec.runs.replayed import REPLAY, Replayed, check_replayed
from stem_torchrec.runs.trackers.mlflow import FILE as MLFLOW
from stem_torchrec.storage.folder_choice import check_writable, refuse_unsafe, usable
from stem_torchrec.storage.place import Place, remove, replace_text, require_bucket

Existing = Literal["refuse", "resume", "overwrite"]
"""What to do with a run that a folder already holds."""

PACKAGES = ("stem-torchrec", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy")
MODEL_SECTIONS = ("tasks", "model", "embedding", "optim", "balance")
CONVERTED = ("embedding.precision", "embedding.layout")
"""Keys of these sections that may change: a checkpoint is converted as it is read."""
JOB = "job.json"
"""Whose run it is, where a launcher may start its workers again."""

OWN_FOLDERS = {"checkpoints": "step_*", "tb": "events.out.tfevents.*", "profile": "rank_0.*"}
"""What is a run's in its folders, which may be links to another disk."""

PAGES = ("days.md", "days.json", "days.html", "days_1.png", "days_2.png")
"""The report on a replay."""

OWN_FILES = (
    *("plan.txt", "init.json", MLFLOW, METRICS, ENCODER, *PAGES, *OWN_FOLDERS),
    *(REPLAY, SCHEMA_FILE, "config.yaml", JOB),
)
"""What a run writes there, in the order in which a run that is replaced goes: what says that the
files are a run's goes last."""


def check_run_dir(run_dir: Place, existing: Existing) -> None:
    """Refuse a folder that holds a run, unless it is to be resumed or overwritten.

    Raises:
        UserError: it holds a run and ``existing`` is ``refuse``; or other files with a run's names
            are to be overwritten; or it is not a folder, cannot be made or written; or its bucket
            does not exist.
    """
    require_bucket(run_dir)
    with usable("run.dir", run_dir):
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"run.dir: {str(run_dir)!r} is a file, expected a folder")
        found = [name for name in OWN_FILES if _is_there(run_dir / name)]
    if found and existing == "refuse":
        raise UserError(
            f"run.dir: {str(run_dir)!r} already holds a run; "
            "choose another folder, or pass --resume or --overwrite"
        )
    if found and existing == "overwrite" and not _is_run(run_dir, found):
        raise UserError(
            f"--overwrite: {str(run_dir)!r} holds {found[0]!r}, but not of a run (no config.yaml "
            "that a run has written); remove it yourself, or choose another run.dir"
        )
    if existing == "resume":
        require_run("--resume", run_dir)
    check_writable("run.dir", run_dir)


def _is_there(path: Place) -> bool:
    """Whether the run's file or folder is there; a link that was put there for it alone is not."""
    pattern = OWN_FOLDERS.get(path.name)
    if pattern is None or not path.is_symlink():
        return path.exists()
    return any(path.glob(pattern))


def _is_run(run_dir: Place, found: Sequence[str]) -> bool:
    """Whether a run of ours has written the files with these names."""
    if JOB in found:
        return True
    if "config.yaml" not in found:
        return False
    try:
        content = careful_load((run_dir / "config.yaml").read_bytes().decode())
    except (OSError, UserError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and {"run", "data", "versions"} <= content.keys()


def check_run(config: Config, existing: Existing, replayed: Replayed | None = None) -> None:
    """As ``check_run_dir``; also refuse folders of other things, and to resume another model or
    other days.
    """
    if existing != "resume":  # a run that is there is where it was made
        refuse_unsafe("run.dir", config.run.dir, config.data.path)
    elif config.run.dir.resolve() == config.data.path.resolve():  # both have a schema.json
        raise UserError(f"run.dir: {str(config.run.dir)!r} is data.path; move one of both")
    check_run_dir(config.run.dir, existing)
    check_links(config.run.dir)
    if existing == "resume":
        check_resumed(config)
        check_replayed(config.run.dir, replayed)


def load_run_config(
    option: str, run_dir: Place, overrides: Sequence[str] = (), options: Sequence[str] = ()
) -> Config:
    """The config of a run as it lies there now, with overrides.

    Args:
        options: the command's own, for hints.

    Raises:
        UserError: an override names another run's folder; or as ``load_config`` does.
    """
    if any(word.partition("=")[0] == "--run.dir" for word in overrides):
        raise UserError(f"--run.dir: has no place here; {option} names the run that is read")
    words = ["--run.dir", str(run_dir), *overrides]
    return load_config(run_dir / "config.yaml", words, options=options)


def check_links(run_dir: Place) -> None:
    """Refuse links of a run's folder that lead nowhere or to no folder, before anything is removed.

    Raises:
        UserError: ``run.dir`` or one of its folders is such a link.
    """
    for path in (run_dir, *(run_dir / name for name in OWN_FOLDERS)):
        if path.is_symlink() and not path.is_dir():
            raise UserError(
                f"run.dir: {str(path)!r} is a link to {str(path.readlink())!r}, expected a folder"
            )


def require_run(option: str, run_dir: Place) -> None:
    """Raise UserError if the folder holds no run."""
    require_bucket(run_dir)
    with usable(option, run_dir):
        found = (run_dir / "config.yaml").is_file()
    if not found:
        raise UserError(f"{option}: {str(run_dir)!r} holds no run (no config.yaml)")


def clear_run(run_dir: Place, existing: Existing) -> None:
    """Make or empty the folder; whose run it is stays until another job says so."""
    if existing == "overwrite":
        left = run_dir.glob("bad_batch_rank*.pt") if run_dir.is_dir() else ()
        for path in (*(run_dir / name for name in OWN_FILES if name != JOB), *left):
            _clear(path)
    with usable("run.dir", run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)


def _clear(path: Place) -> None:
    """Remove what is the run's; a link to a folder stays, and others' files behind it."""
    pattern = OWN_FOLDERS.get(path.name)
    if pattern is None or not (path.is_symlink() and path.is_dir()):
        remove(path)
        return
    entries: list[Place] = [*path.glob(pattern)]
    for entry in entries:
        remove(entry)


def create_run(config: Config, schema: Schema, plan_report: str) -> None:
    """Write the resolved config, the schema of what is trained, the plan and the encoder."""
    run_dir = config.run.dir
    carry_encoder(config.data.path, schema, run_dir / ENCODER)
    replace_text(run_dir / "config.yaml", dump_config(config, installed_versions()))
    schema.save(run_dir)
    (run_dir / "plan.txt").write_text(plan_report)


def write_init(run_dir: Place, report: Mapping[str, Any]) -> None:
    """Keep what a run has taken from another one."""
    (run_dir / "init.json").write_text(json.dumps(report, indent=1) + "\n")


def continue_run(config: Config, schema: Schema, plan_report: str, step: int) -> None:
    """Bring the folder of a run to where it goes on, after ``step``: config, schema, plan, records.

    Records of later steps, and those of the test split, come anew; a line that the run's end has
    cut off goes with them.
    """
    run_dir = config.run.dir
    replace_text(run_dir / "config.yaml", dump_config(config, installed_versions()))
    schema.save(run_dir)
    replace_text(run_dir / "plan.txt", plan_report)
    cut_records(run_dir, step)


def cut_records(run_dir: Place, step: int) -> None:
    """Leave the records up to ``step`` but for those of the test split; damaged lines go too."""
    lines = record_lines(run_dir)
    if (run_dir / METRICS).exists():
        replace_text(run_dir / METRICS, "".join(line for line in lines if _stays(line, step)))


def _stays(line: str, step: int) -> bool:
    record = parse_record(line)
    return record is not None and record["step"] <= step and record.get("split") != "test"


def check_resumed(config: Config) -> None:
    """Refuse to go on with another model than the run's.

    Raises:
        UserError: a key that the model or its optimizers depend on has another value than in the
            run's ``config.yaml``.
    """
    path = config.run.dir / "config.yaml"
    before = load_config(path).model_dump(mode="json")
    now = config.model_dump(mode="json")
    for section, keys in now.items():
        if section in MODEL_SECTIONS or section == "data":
            for key, value in keys.items():
                old = before[section][key]
                if value != old and _is_of_model(section, key):
                    raise UserError(
                        f"--resume: {section}.{key} is {value!r}, but the run has {old!r}; train, "
                        f"eval, checkpoint, distributed, {' and '.join(CONVERTED)} may change. To "
                        "train a changed model on from this one, start another run with "
                        "--init-from"
                    )


def _is_of_model(section: str, key: str) -> bool:
    """Whether what has been trained depends on it."""
    return (section != "data" or key == "features") and f"{section}.{key}" not in CONVERTED


def about_run(config: Config, schema: Schema, table_sharding: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint's manifest says of the run."""
    content = config.model_dump(mode="json", exclude={"run": {"dir"}, "versions": True})
    return {
        "versions": installed_versions(),
        "config_sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "tasks": list(schema.task_names),
        "schema": schema.content(),
        "layout": config.embedding.layout,
        "plan": dict(table_sharding),
    }


def installed_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
