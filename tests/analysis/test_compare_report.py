"""The report: what is marked, what it says of failures, spread and speed."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stem_torchrec.analysis.compare.plan import Combination
from stem_torchrec.analysis.compare.report import Circumstances, make_report
from stem_torchrec.analysis.compare.results import Figures, Parameters, summarize
from stem_torchrec.analysis.report import Report, Table

SINGLE, STEM = Combination("single_task", "equal"), Combination("stem_net", "equal")
MMOE = Combination("mmoe", "equal")
SIZES = {SINGLE: Parameters(60, 40), STEM: Parameters(100, 150), MMOE: Parameters(60, 60)}
CIRCUMSTANCES = Circumstances(
    command="stem-torchrec compare --models a",
    num_seeds=2,
    data={"folder": "prepared/x", "samples": {"train": 2003}},
    nproc=1,
    runs_at_a_time=1,
    left_out=[],
    failures=[],
)


def figures(auc: float, *, qps: float = 1000.0, memory: float = 2.0**30) -> Figures:
    return {
        "logloss/a": 1 - auc,
        "ne/a": 2 - auc,
        "auc/a": auc,
        "auc_mean": auc,
        "qps": qps,
        "peak_memory_bytes": memory,
    }


RESULTS = {
    SINGLE: {0: figures(0.70, qps=3000), 1: figures(0.72, qps=3100)},
    STEM: {0: figures(0.80), 1: figures(0.84)},
    MMOE: {0: figures(0.75, memory=2.0**29), 1: figures(0.79, memory=2.0**29)},
}


def report_of(
    results: dict[Combination, dict[int, Figures]], made_of: Circumstances = CIRCUMSTANCES
) -> Report:
    return make_report(summarize(results, SIZES), made_of)


def table(report: Report, heading: str) -> Table:
    (found,) = (section.table for section in report.sections if section.heading == heading)
    assert found is not None
    return found


def marked(found: Table) -> dict[str, list[str]]:
    """Column -> the marked combinations."""
    names: dict[str, list[str]] = {}
    for i, j in sorted(found.best):
        names.setdefault(found.columns[j], []).append(found.rows[i][0].split()[0])
    return names


def test_the_best_of_each_column_is_marked() -> None:
    report = report_of(RESULTS)
    assert marked(table(report, "Overview")) == {
        "mean AUC": ["stem_net"],
        "mean gain": ["stem_net"],
        "samples/s": ["single_task"],
        "peak GiB": ["mmoe"],
    }
    assert marked(table(report, "AUC")) == {"a": ["stem_net"], "mean": ["stem_net"]}
    assert marked(table(report, "AUC gain")) == {"a": ["stem_net"], "mean": ["stem_net"]}
    assert marked(table(report, "Log loss")) == {"a": ["stem_net"]}
    assert marked(table(report, "Normalized entropy")) == {"a": ["stem_net"]}


def test_a_combination_that_lacks_seeds_is_not_marked() -> None:
    results = RESULTS | {STEM: {0: figures(0.99)}}
    overview = table(report_of(results), "Overview")
    assert marked(overview)["mean AUC"] == ["mmoe"]
    assert overview.rows[1][:3] == ["stem_net equal", "1/2", "0.9900"]


def test_a_figure_that_one_seed_has_not_is_not_marked() -> None:
    undefined = {k: v for k, v in figures(0.99).items() if k not in ("ne/a", "logloss/a")}
    results = RESULTS | {STEM: {0: figures(0.99), 1: undefined}}
    report = report_of(results)
    assert marked(table(report, "Normalized entropy")) == {"a": ["mmoe"]}
    assert marked(table(report, "AUC")) == {"a": ["stem_net"], "mean": ["stem_net"]}


def test_cells() -> None:
    report = report_of(RESULTS)
    assert table(report, "Overview").rows[1] == [
        "stem_net equal",
        "2/2",
        "0.8200 ± 0.0283",
        "+0.1100 ± 0.0141",
        "1,000 ± 0",
        "1.000 ± 0.000",
        "250",
        "2.50×",
    ]
    assert table(report, "Parameters").rows[2] == ["mmoe equal", "60", "60", "120", "1.20×"]
    assert table(report, "Paired differences").rows == [
        ["single_task equal", "-", "-", "-"],
        ["stem_net equal", "single_task equal", "+0.1100 ± 0.0141", "2 of 2"],
        ["mmoe equal", "single_task equal", "+0.0600 ± 0.0141", "2 of 2"],
    ]
    assert table(report, "AUC gain").rows[0] == ["single_task equal", "-", "-"]


def test_without_single_task_there_is_no_gain() -> None:
    report = report_of({STEM: RESULTS[STEM], MMOE: RESULTS[MMOE]})
    assert [cells[3] for cells in table(report, "Overview").rows] == ["-", "-"]
    assert [cells[-1] for cells in table(report, "Overview").rows] == ["1.00×", "0.48×"]
    (section,) = (s for s in report.sections if s.heading == "AUC gain")
    assert "single_task" in section.text
    assert section.plot is None


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    one = {combination: {0: by_seed[0]} for combination, by_seed in RESULTS.items()}
    report = report_of(one, CIRCUMSTANCES._replace(num_seeds=1))
    report.write(tmp_path, "compare")
    text = (tmp_path / "compare.md").read_text()
    assert "without spread" in text
    assert "| ± " not in text
    assert "nan" not in text.lower()
    assert table(report, "Overview").rows[1][2] == "0.8000"
    assert json.loads((tmp_path / "compare.json").read_text())["rows"][1]["qps"]["std"] is None


def test_failed_runs_are_rows_that_say_why(tmp_path: Path) -> None:
    failure = ("stem_net equal seed 1", "out of | memory", "runs/x.log")
    results = {SINGLE: RESULTS[SINGLE], STEM: {}, MMOE: {}}
    report = report_of(results, CIRCUMSTANCES._replace(failures=[failure]))
    assert table(report, "Failed runs").rows == [failure]
    assert table(report, "Overview").rows[1] == [
        "stem_net equal",
        "0/2",
        *["-"] * 4,
        "250",
        "2.50×",
    ]
    report.write(tmp_path, "compare")
    assert "out of \\| memory" in (tmp_path / "compare.md").read_text()
    data = json.loads((tmp_path / "compare.json").read_text())
    assert data["failures"] == [
        {"run": "stem_net equal seed 1", "why": "out of | memory", "log": "runs/x.log"}
    ]


def test_when_every_run_failed_there_is_still_a_report(tmp_path: Path) -> None:
    failure = ("stem_net equal seed 0", "why", "log")
    report_of({STEM: {}}, CIRCUMSTANCES._replace(failures=[failure])).write(tmp_path, "compare")
    assert "| stem_net equal seed 0 | why | log |" in (tmp_path / "compare.md").read_text()


def test_speeds_of_runs_beside_each_other_are_not_comparable() -> None:
    def speed(made_of: Circumstances) -> str:
        (text,) = (s.text for s in report_of(RESULTS, made_of).sections if s.heading == "Speed")
        return text

    assert "not comparable" not in speed(CIRCUMSTANCES)
    assert "not comparable" in speed(CIRCUMSTANCES._replace(runs_at_a_time=2))


def test_figures_for_programs(tmp_path: Path) -> None:
    made_of = CIRCUMSTANCES._replace(left_out=[(MMOE, "balance.rule: no")])
    report_of(RESULTS, made_of).write(tmp_path, "compare")
    data = json.loads((tmp_path / "compare.json").read_text())
    stem = data["rows"][1]
    assert (stem["model"], stem["rule"], stem["seeds"]) == ("stem_net", "equal", [0, 1])
    assert stem["auc"]["a"]["values"] == [0.80, 0.84]
    assert stem["gain_mean"]["mean"] == pytest.approx(0.11)
    assert stem["parameters"] == {"tables": 100, "dense": 150, "total": 250}
    assert stem["reference"] == "single_task equal"
    assert data["left_out"] == [{"combination": "mmoe equal", "why": "balance.rule: no"}]
    assert data["num_seeds"] == 2
    assert "torch" in data["versions"]
    assert "cores" in data["hardware"]


def test_page_and_text_say_what_they_are_made_of(tmp_path: Path) -> None:
    report_of(RESULTS).write(tmp_path, "compare")
    images = []

    class Images(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            images.extend(value for name, value in attrs if tag == "img" and name == "alt")

    page = (tmp_path / "compare.html").read_text()
    Images().feed(page)
    assert images == ["AUC gain", "Parameters", "Speed"]
    for text in (page, (tmp_path / "compare.md").read_text()):
        for part in ("compare --models a", "2 seeds", "prepared/x", "2,003", "torch ", "cores"):
            assert part in text


def test_plots_show_every_combination() -> None:
    report = report_of(RESULTS)
    plots = {section.heading: section.plot for section in report.sections if section.plot}
    bars = plots["AUC gain"].axes[0]
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == pytest.approx([0.11, 0.06])
    for heading, places in (("Speed", [3050, 1000, 1000]), ("Parameters", [100, 250, 120])):
        axes = plots[heading].axes[0]
        handles = axes.get_legend_handles_labels()[0]
        assert [float(handle[0].get_xdata()[0]) for handle in handles] == places
        assert [float(handle[0].get_ydata()[0]) for handle in handles] == pytest.approx(
            [0.71, 0.82, 0.77]
        )
