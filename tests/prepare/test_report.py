"""What is said of each feature after preparing."""

from pathlib import Path

import pytest

from stem_torchrec.cli import main
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from tests.prepare.raw_tables import describe, write_text

DESCRIPTION = """
features:
  - {name: user}
  - {name: shop, encoding: hash, num_embeddings: 50}
  - {name: tags, kind: bag, separator: "|", pooling: mean}
  - {name: price, kind: dense}
  - {name: count, column: user, kind: dense, transform: count}
  - {name: country}
  - {name: empty, kind: dense}
labels: {y: y}
split: {by: column, column: part, train: [a], test: [b]}
min_count: 2
"""
ROWS = [
    ("user", "shop", "tags", "price", "country", "empty", "y", "part"),
    (1, "s", "x|y", 1.5, "de", "", 1, "a"),
    (1, "t", "x", "nan", "de", "", 0, "a"),
    (2, "", "", 3, "de", "", 0, "a"),
    (3, "u", "x|z|z", "", "de", "", 0, "a"),
    (1, "v", "z|q", 1, "de", 5, 0, "b"),
    (9, "w", "", 1, "fr", 5, 0, "b"),
]


def ids(values: int, null: float, train: float, test: float, *, constant: bool = False) -> dict:
    shares = {"train": pytest.approx(train), "test": pytest.approx(test)}
    return {"values": values, "null_share": null, "id_0_share": shares, "constant": constant}


def dense(values: int, null: float, *, constant: bool = False) -> dict:
    return {"values": values, "null_share": null, "constant": constant}


EXPECTED = {
    "user": ids(3, 0, 0.5, 0.5),
    "shop": ids(3, 0.25, 0.25, 0),
    "tags": ids(3, 0.25, 1 / 6, 0.5),
    "price": dense(2, 0.5),
    "count": dense(3, 0),
    "country": ids(1, 0, 0, 0.5, constant=True),
    "empty": dense(0, 1, constant=True),
}


def test_of_each_feature(tmp_path: Path) -> None:
    source = write_text(tmp_path / "raw.csv", ROWS)
    stats = prepare_files([source], describe(DESCRIPTION), tmp_path / "out")
    assert stats["features"] == EXPECTED


def test_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_text(tmp_path / "raw.csv", ROWS)
    (tmp_path / "d.yaml").write_text(DESCRIPTION)
    command = ["prepare", "csv", "--source", str(source), "--describe", str(tmp_path / "d.yaml")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    [user] = [line for line in printed.out.splitlines() if line.startswith("│ user ")]
    cells = [cell.strip() for cell in user.split("│")[1:-1]]
    assert cells == ["user", "3", "0.00%", "50.00%", "50.00%"]
    everything = printed.out + printed.err
    assert "feature 'country': constant in train, it tells nothing" in everything
    assert "feature 'user'" not in everything
