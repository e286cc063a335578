"""What CONTRIBUTING and the site name is there, and the site can be built."""

import ast
import logging
import re
import warnings
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

import stem_torchrec as st
from tests.house.test_rooms import LOOSE, ORDER

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = re.findall(r"`([a-z_0-9/]+\.py):([A-Za-z_.]+)`", GUIDE)
PATHS = re.findall(r"`([A-Za-z_.0-9-]*/[A-Za-z_./0-9-]*)`", GUIDE)
WALKS = {
    "Where a batch becomes ids": "data/decode.py",
    "Where tasks part": "nn/fork.py",
    "Where tables step": "distributed/step.py",
    "Where a checkpoint is published": "checkpoint/folders.py",
}
PAGES = {"stem_torchrec": "library", "nn": "nn", "balancing": "balancing"}


def defined(file: Path) -> set[str]:
    """Functions and classes of a file, and methods as ``Class.method``."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (part for part in node.body if isinstance(part, ast.FunctionDef))
            names |= {f"{node.name}.{part.name}" for part in inner}
    return names


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda value: str(value))
def test_what_a_walk_names_is_there(file: str, name: str) -> None:
    assert name in defined(ROOT / "stem_torchrec" / file)


@pytest.mark.parametrize("walk", WALKS)
def test_every_walk_is_written_and_passes_its_file(walk: str) -> None:
    text = GUIDE.partition(f"**{walk}.**")[2].partition("\n\n")[0]
    assert WALKS[walk] in [file for file, _ in NAMED if f"{file}:" in text]
    assert len(text.split()) < 120  # a minute


def test_paths_exist() -> None:
    assert len(PATHS) > 10
    assert [path for path in PATHS if not (ROOT / path).exists()] == []


def test_every_room_has_its_line_in_order() -> None:
    rooms = re.findall(r"^\| `([a-z]+)` \|", GUIDE, re.M)
    there = {f.stem for f in (ROOT / "stem_torchrec").iterdir() if f.stem in ORDER}
    assert rooms == [room for room in ORDER if room in there]
    assert set(LOOSE) - {"__init__", "__main__"} <= set(rooms)


@pytest.mark.parametrize(("module", "page"), PAGES.items())
def test_every_public_name_is_in_the_reference(module: str, page: str) -> None:
    names = (st if module == "stem_torchrec" else getattr(st, module)).__all__
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
    listed = re.findall(r"^        - (\w+)$", text, re.M)
    listed += [n for part in re.findall(r"members: \[(.*)\]", text) for n in part.split(", ")]
    own = {"__version__", "nn", "balancing"} if module == "stem_torchrec" else set()
    assert sorted(listed) == sorted(set(names) - own)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, from the repository as it is; a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    before = logging.getLogger("mkdocs").handlers[:]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mkdocs and its plugins run here, not our code
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        try:
            build(config)
        finally:
            config.plugins.on_shutdown()
            logging.getLogger("mkdocs").handlers[:] = before
    return folder


def test_the_site_is_built_and_has_every_page(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        there = site / ("index.html" if str(name) == "index" else f"{name}/index.html")
        assert there.is_file()
    library = (site / "reference" / "library" / "index.html").read_text()
    for name in ("train", "load_run", "Run.predict", "Schema.load", "ParquetReader.epoch"):
        assert f'id="stem_torchrec.{name}"' in library
    assert "rows in the order of the" in library
    assert 'class="mermaid"' in (site / "step" / "index.html").read_text()


def test_links_out_of_the_docs_lead_into_the_site(site: Path) -> None:
    page = (site / "add_a_model" / "index.html").read_text()
    assert 'href="../source/examples/own_model.py.txt"' in page
    copied = site / "source" / "examples" / "own_model.py.txt"
    assert copied.read_text() == (ROOT / "examples" / "own_model.py").read_text()


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)', page.read_text()
        )
        assert loaded == [], page


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]

    def files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry if isinstance(entry, list) else entry.values()  # type: ignore[attr-defined]
        return [file for part in parts for file in files(part)]

    docs = ROOT / "docs"
    assert sorted(files(yaml.safe_load(text))) == sorted(
        str(page.relative_to(docs)) for page in docs.rglob("*.md")
    )
