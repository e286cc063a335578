"""Folders that are refused before anything is written there, with one message."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from stem_torchrec.cli import main
from stem_torchrec.config.reading import load_config
from stem_torchrec.data.schema import load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.occupied import refuse_occupied
from stem_torchrec.runs.folder import check_run_dir, clear_run, require_run
from stem_torchrec.storage import folder_choice
from stem_torchrec.storage.folder_choice import check_writable, refuse_unsafe, usable
from stem_torchrec.storage.place import local_path, place_of, remove
from tests.support.prepared import small_config

LONG = Path("x" * 300)


@pytest.mark.parametrize("text", ["", " ", "a\0b"])
@pytest.mark.parametrize("read", [place_of, local_path])
def test_an_empty_path_is_not_the_current_folder(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(UserError, match="is no path"):
        read(text)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "CONFIG", "--overwrite", "--run.dir", ""],
        ["prepare", "synthetic", "--overwrite", "--out", ""],
        ["evaluate", "--run", ""],
        ["prepare", "--check", ""],
        ["compare", "--config", "CONFIG", "--models", "stem_net", "--out", ""],
        ["analyze", "gates", "--runs", "r", "--out", ""],
        ["train", "--config", "CONFIG", "--init-from", ""],
    ],
)
def test_no_command_takes_one(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = small_config(tmp_path / "c.yaml", tmp_path / "data", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    try:
        code = main([str(config) if word == "CONFIG" else word for word in words])
    except SystemExit as left:  # argparse
        code = int(left.code or 0)
    assert code == 2
    refusal = "--run.dir: a value is missing" if "--run.dir" in words else "'' is no path"
    assert refusal in capsys.readouterr().err
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("folder", ["/", ".", "..", "~", "data", "data/../", "link"])
def test_unsafe_folders(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "place" / "here", tmp_path / "home" / "me"
    for made in (here, home, tmp_path / "set" / "data"):
        made.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    (here / "link").symlink_to(tmp_path / "set")
    places = {"~": home.parent, "data": tmp_path / "set" / "data", "data/../": tmp_path / "set"}
    with pytest.raises(UserError, match=r"run\.dir: .* or lies above it"):
        refuse_unsafe("run.dir", places.get(folder, Path(folder)), tmp_path / "set" / "data")
    for safe in (here / "run", home / "run", tmp_path / "set" / "run", tmp_path / "set" / "dat"):
        refuse_unsafe("run.dir", safe, tmp_path / "set" / "data")


def test_unsafe_places_in_a_store() -> None:
    for place in ("s3://bucket", "s3://bucket/a", "s3://bucket/a/data"):
        with pytest.raises(UserError, match="the data folder"):
            refuse_unsafe("run.dir", place_of(place), place_of("s3://bucket/a/data"))
    refuse_unsafe("run.dir", place_of("s3://bucket/a/run"), place_of("s3://bucket/a/data"))
    refuse_unsafe("run.dir", place_of("s3://bucket/a"), Path("a"))


def test_overwriting_takes_a_run_only(tmp_path: Path) -> None:
    """Others' files may have the names of a run's."""
    for name, content in (("config.yaml", "lr: 1"), ("plan.txt", "go"), ("config.yaml", "a: [")):
        folder = tmp_path / "foreign"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=rf"--overwrite: .* holds .*{name}.* not of a run"):
            check_run_dir(folder, "overwrite")
        (folder / name).unlink()
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="not of a run"):
        check_run_dir(folder, "overwrite")
    (folder / "config.yaml").write_text("run: {dir: a}\ndata: {path: b}\nversions: {}\n")
    (folder / "notes.txt").write_text("mine")
    check_run_dir(folder, "overwrite")
    clear_run(folder, "overwrite")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    check_run_dir(folder, "overwrite")


def test_a_clearing_that_is_cut_off_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: a}\ndata: {path: b}\nversions: {}\n")
    for name in ("checkpoints", "tb"):
        (tmp_path / name).mkdir()

    def full(place: Path) -> None:
        if place.name == "tb":
            raise OSError(errno.EIO, "broken")
        remove(place)

    with monkeypatch.context() as patch:
        patch.setattr("stem_torchrec.runs.folder.remove", full)
        with pytest.raises(OSError, match="broken"):
            clear_run(tmp_path, "overwrite")
    check_run_dir(tmp_path, "overwrite")
    clear_run(tmp_path, "overwrite")
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_folder_is_replaced_only_if_all_in_it_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("schema.json", "_SUCCESS", ".DS_Store"):
        (tmp_path / name).touch()
    refuse_occupied(tmp_path, overwrite=True)
    for name in (".git", "raw"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"holds '{name}', which preparing does not write"):
            refuse_occupied(tmp_path, overwrite=True)
        (tmp_path / name).rmdir()


@pytest.mark.parametrize(
    ("key", "use"),
    [
        ("run.dir", lambda place: check_run_dir(place, "refuse")),
        ("--run", lambda place: require_run("--run", place)),
        ("--config", load_config),
        ("data.path", load_schema),
        ("--out", lambda place: check_writable("--out", place)),
    ],
)
def test_paths_that_the_system_refuses(
    key: str, use: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^{key}: 'x+' cannot be used: File name too long$"):
        use(LONG)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^{key}: "):
        use(tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_choice.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"run\.dir: .* cannot be written"):
        check_run_dir(tmp_path / "run", "refuse")
    assert list(tmp_path.iterdir()) == []


def test_what_another_path_would_not_mend_is_no_mistake(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), usable("run.dir", tmp_path):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(UserError, match="denied"), usable("run.dir", tmp_path):
        raise OSError(errno.EACCES, "denied")
