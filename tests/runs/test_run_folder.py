"""A run's folder whose parts are links to another disk."""

from pathlib import Path

import pytest

from stem_torchrec.errors import UserError
from stem_torchrec.runs.folder import check_links, check_run_dir, clear_run, load_run_config
from stem_torchrec.storage.place import remove


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A run with its checkpoints and TensorBoard's files on a larger disk, beside others' files."""
    run_dir, big = tmp_path / "run", tmp_path / "big"
    run_dir.mkdir()
    for name, own in (("checkpoints", "step_8"), ("tb", "events.out.tfevents.1")):
        (big / name / own).mkdir(parents=True)
        (big / name / "other").write_text("somebody else's")
        (run_dir / name).symlink_to(big / name)
    for name in ("config.yaml", "metrics.jsonl"):
        (run_dir / name).write_text("old")
    return run_dir


def test_overwriting_keeps_links_and_clears_what_is_ours_behind_them(linked: Path) -> None:
    check_links(linked)
    with pytest.raises(UserError, match="already holds a run"):
        check_run_dir(linked, "refuse")
    clear_run(linked, "overwrite")
    assert sorted(path.name for path in linked.iterdir()) == ["checkpoints", "tb"]
    for name in ("checkpoints", "tb"):
        assert (linked / name).is_symlink()
        assert [path.name for path in (linked / name).iterdir()] == ["other"]
    check_run_dir(linked, "refuse")  # links may be made before a run, too


def test_a_run_folder_that_is_a_link_itself(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(linked)
    check_links(tmp_path / "link")
    clear_run(tmp_path / "link", "overwrite")
    assert (tmp_path / "link").is_symlink()
    assert not (linked / "config.yaml").exists()


def test_a_linked_file_is_not_followed(linked: Path, tmp_path: Path) -> None:
    """It may be somebody's config."""
    (tmp_path / "mine.yaml").write_text("mine")
    (linked / "config.yaml").unlink()
    (linked / "config.yaml").symlink_to(tmp_path / "mine.yaml")
    clear_run(linked, "overwrite")
    assert not (linked / "config.yaml").is_symlink()
    assert (tmp_path / "mine.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "checkpoints", "tb"])
@pytest.mark.parametrize("is_file", [False, True])
def test_links_to_no_folder_are_refused_before_anything_is_removed(
    tmp_path: Path, name: str, is_file: bool
) -> None:
    target = tmp_path / "not mounted"
    if is_file:
        target.write_text("")
    link = tmp_path / "run" / name if name else tmp_path / "run"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    with pytest.raises(UserError, match=r"run.dir: .*run.* is a link to .*not mounted"):
        check_links(tmp_path / "run")


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "in it").is_dir()


@pytest.mark.parametrize("words", [["--run.dir", "other"], ["--run.dir=other"]])
def test_a_run_that_is_read_has_one_name(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: {dir: there}\ndata: {path: data}\n")
    assert load_run_config("--run", tmp_path).run.dir == tmp_path
    assert load_run_config("--run", tmp_path, ["--train.epochs", "3"]).train.epochs == 3
    with pytest.raises(UserError, match=r"^--run\.dir: has no place here; --run names the run"):
        load_run_config("--run", tmp_path, words)
