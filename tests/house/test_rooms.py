"""The rooms of the package: who may import whom, and what."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import stem_torchrec

ROOT = Path(stem_torchrec.__file__).parent
ORDER = (
    *("errors", "stopping", "storage", "nn", "balancing", "config", "data", "prepare"),
    *("distributed", "checkpoint", "launch", "runs", "training", "serving", "analysis"),
    *("console", "cli"),
)
LOOSE = ("__init__", "__main__", "errors")

MAY_IMPORT = {
    "torchrec": ("data", "distributed", "checkpoint", "training"),
    "fbgemm_gpu": ("distributed",),
    "pydantic": ("storage", "config", "data", "checkpoint", "prepare", "training", "cli"),
    "duckdb": ("prepare",),
    "pyspark": ("prepare",),
    "pyarrow": ("storage", "data", "prepare", "runs", "training", "serving"),
    "rich": ("console",),
    "matplotlib": ("analysis",),
    "optuna": ("analysis",),
    "mlflow": ("runs",),
}


class Import(NamedTuple):
    """One name that one file imports, wherever in the file."""

    file: str
    line: int
    room: str
    module: str

    @property
    def target(self) -> str | None:
        """The room that is imported; None for another package or our ``__init__``."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "stem_torchrec" and len(parts) > 1 else None

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def room_of(file: Path) -> str:
    parts = file.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else file.stem


def imports_in(file: Path, source: str | None = None) -> Iterator[Import]:
    tree = ast.parse(file.read_text() if source is None else source)
    name, room = str(file.relative_to(ROOT)), room_of(file)
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            modules = [str(node.module)]
            if node.module == "stem_torchrec":
                modules = [f"stem_torchrec.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                modules = [str(argument.value)]
        yield from (Import(name, node.lineno, room, module) for module in modules)


IMPORTS = [found for file in sorted(ROOT.rglob("*.py")) for found in imports_in(file)]


def upward(imports: list[Import]) -> list[str]:
    """Imports of a room that stands later in the order; those of no room at all, too."""
    wrong = []
    for found in imports:
        if found.room in ("__init__", "__main__") or found.target in (None, "__version__"):
            continue
        if found.target not in ORDER or ORDER.index(found.target) > ORDER.index(found.room):
            wrong.append(str(found))
    return wrong


def test_nothing_is_loose() -> None:
    assert sorted(file.stem for file in ROOT.glob("*.py")) == sorted(LOOSE)
    folders = {f.name for f in ROOT.iterdir() if f.is_dir() and f.name != "__pycache__"}
    assert folders <= set(ORDER)


def test_imports_go_down_the_rooms_only() -> None:
    assert len(IMPORTS) > 1000
    assert upward(IMPORTS) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("nn/x.py", "import stem_torchrec.config"),
        ("nn/x.py", "def late():\n    from stem_torchrec.config.reading import validate"),
        ("data/x.py", "from stem_torchrec import checkpoint"),
        ("errors.py", "from stem_torchrec.storage.place import Place"),
        ("stopping/x.py", "from stem_torchrec.storage.place import Place"),
        ("cli/x.py", "from stem_torchrec.nowhere import thing"),
        ("runs/x.py", "from importlib import import_module\nimport_module('stem_torchrec.cli')"),
    ],
)
def test_an_import_upward_is_found(room: str, source: str) -> None:
    assert len(upward(list(imports_in(ROOT / room, source)))) == 1


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_heavy_packages_stay_in_their_rooms(package: str) -> None:
    names = {package, f"{package}_core"} if package == "pydantic" else {package}
    using = [found for found in IMPORTS if found.module.partition(".")[0] in names]
    assert using
    assert [str(found) for found in using if found.room not in MAY_IMPORT[package]] == []


@pytest.mark.parametrize("room", ["nn", "balancing"])
def test_plain_rooms_import_plain_packages(room: str) -> None:
    allowed = {"torch", "numpy", "annotated_types", "typing_extensions", "scipy", "torchjd"}
    found = {f.module.partition(".")[0] for f in IMPORTS if f.room == room}
    outside = found - allowed - {"stem_torchrec"} - set(sys.stdlib_module_names)
    assert outside == set()
