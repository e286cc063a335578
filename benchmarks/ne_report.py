"""The Markdown table and the plot of ``ne.py``."""

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def markdown(rows: list[Row], origin: dict[str, Any]) -> str:
    lines = ["# Quality of balancing rules", ""]
    lines += ["Test split; mean ± standard deviation over seeds. NE change: mean over tasks of the"]
    lines += ["difference to `equal` with the same seed; below 0 is better.", ""]
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        tasks = list(own[0]["ne"])
        lines += [f"## {data}", ""]
        lines += ["| rule | NE change | mean AUC | " + " | ".join(f"NE {t}" for t in tasks) + " |"]
        lines += ["|---|---|---|" + "---|" * len(tasks)]
        for row in own:
            name = (
                f"{row['rule']}@{row['boundary']}"
                if row["rule"] not in ("equal", "static")
                else row["rule"]
            )
            if row["weights"]:
                name += f" {row['weights']} (best of {row['grid_runs']} runs)"
            cells = [_figure(row["ne_change"], "+"), _figure(row["auc_mean"])]
            cells += [_figure(row["ne"][task]) for task in tasks]
            lines += ["| " + " | ".join([_name(row), *cells]) + " |"]
        lines += [""]
    lines += [f"Seeds: {rows[0]['seeds']}. " + ", ".join(f"{k} {v}" for k, v in origin.items())]
    return "\n".join(lines) + "\n"


def _name(row: Row) -> str:
    if row["weights"]:
        return f"static {row['weights']} (best of a grid, {row['grid_runs']} runs)"
    return row["rule"] if row["rule"] == "equal" else f"{row['rule']}@{row['boundary']}"


def _figure(value: list[float], sign: str = "") -> str:
    return f"{value[0]:{sign}.4f} ± {value[1]:.4f}"


def plot(rows: list[Row], speeds: list[Row], file: Path) -> None:
    """Speed against NE change, a panel per data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    for axis, data in zip(axes[0], names, strict=True):
        for row in (r for r in rows if r["data"] == data):
            tasks = len(row["ne"])
            found = [
                s["ratio"]
                for s in speeds
                if (s["rule"], s["boundary"], s["tasks"]) == (row["rule"], row["boundary"], tasks)
                and s["gram_rows"] is None
            ]
            if not found and row["rule"] != "equal":
                continue  # no speed measured
            ratio = found[0] if found else 1.0
            change, spread = row["ne_change"]
            axis.errorbar(ratio, change, yerr=spread, fmt="o", capsize=3)
            side = {"ha": "right", "xytext": (-6, 4)} if ratio > 0.8 else {"xytext": (6, 4)}
            place = {"textcoords": "offset points", "fontsize": 7}
            axis.annotate(_name(row), (ratio, change), **place, **side)
        axis.axhline(0, linewidth=0.5, color="gray")
        axis.set(title=data, xlabel="speed relative to equal", ylabel="NE change (lower is better)")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
