import json
from html.parser import HTMLParser
from pathlib import Path

from matplotlib.figure import Figure

from stem_torchrec.analysis.report import Report, Section, Table


def a_report() -> Report:
    plot = Figure()
    plot.subplots().plot([1, 2])
    table = Table(["model", "auc"], [["a|b", "0.7"], ["<c>", "0.8"]], frozenset({(1, 1)}))
    return Report(
        "A & B",
        [Section("Scores", "Of the test split.", table), Section("Curve", plot=plot)],
        {"auc": 0.8},
        "made by a test",
    )


def test_markdown_marks_the_best_and_links_the_plot(tmp_path: Path) -> None:
    written = a_report().write(tmp_path, "scores")
    text = (tmp_path / "scores.md").read_text()
    assert "| <c> | **0.8** |" in text
    assert "a\\|b" in text
    assert "![Curve](scores_1.png)" in text
    assert (tmp_path / "scores_1.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in written} == {
        "scores.md",
        "scores.json",
        "scores.html",
        "scores_1.png",
    }
    assert all(path.is_file() for path in written)


def test_json_holds_the_figures(tmp_path: Path) -> None:
    a_report().write(tmp_path, "scores")
    assert json.loads((tmp_path / "scores.json").read_text()) == {"auc": 0.8}


def test_html_is_one_page_that_fetches_nothing(tmp_path: Path) -> None:
    a_report().write(tmp_path, "scores")
    text = (tmp_path / "scores.html").read_text()

    sources = []

    class Sources(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend(value for name, value in attrs if name in ("src", "href"))

    Sources().feed(text)
    assert len(sources) == 1
    assert str(sources[0]).startswith("data:image/png;base64,")
    assert "&lt;c&gt;" in text
    assert "<b>0.8</b>" in text
    assert "<title>A &amp; B</title>" in text
