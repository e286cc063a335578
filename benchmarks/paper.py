"""The tables of the STEM paper (Su et al., AAAI 2024), from the owners' raw files.

    benchmarks/paper.sh --raw DIR --out OUT

DIR holds ``final_track1_train.txt`` (TikTok, ICME 2019 challenge), ``QK-video.csv`` (Tenrec) and
the folder ``KuaiRand-1K``. Each is prepared into ``OUT/data/SET``; ``compare`` trains the models of
``configs/SET.yaml`` into ``OUT/SET/TABLE`` over seeds, and ``analyze negative-transfer`` makes
figure 1's subsets. ``OUT/paper.md`` has the tables, ``paper.json`` every figure:

    models         all models, with their gain over single-task networks
    stop_gradient  STEM-Net with and without it
    gate_input     what STEM-Net's gates read
    fields         which features have tables per task, with the sizes relative to those of PLE
    subsets        gain where one task's expected feedback overwhelms, and where both compare

STEM-Net as configured is trained once and stands in all of them. Interrupted, the same command goes
on: what is prepared, trained and analysed stays. ``--plan`` prepares and checks every run, and
trains none.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from paper_report import SetResult, Subsets, join, write_report

from stem_torchrec.analysis.compare.comparison import compare
from stem_torchrec.analysis.compare.plan import SINGLE_TASK, PlannedRun, Request, make_plan
from stem_torchrec.analysis.compare.runs import Finished
from stem_torchrec.cli import main as command
from stem_torchrec.errors import UserError

STEM_NET = "stem_net"
MODELS = (
    *(SINGLE_TASK, "shared_bottom", "omoe", "mmoe", "ple", "aitm", "esmm"),
    *("me_mmoe", "me_ple", STEM_NET),
)
# What STEM-Net is varied in beside its own values.
VARIED = {
    "stop_gradient": "model.stop_gradient=false",
    "gate_input": "model.gate_input=task;shared",
    "fields": "model.task_specific_features=user;item;none",
}
TABLES = ("models", *VARIED, "subsets")
IN_SUBSETS = ("mmoe", "ple", STEM_NET)
_FLAT = ("omoe", "mmoe", "me_mmoe")


class PaperSet(NamedTuple):
    """A data set as the paper takes it.

    Attributes:
        source: file or folder of the owners under ``--raw``.
        prepare: the words between ``prepare`` and ``--source``.
        pair: the two tasks of figure 1 and of ESMM's product.
        own: settings of single models.
    """

    source: str
    prepare: tuple[str, ...]
    pair: tuple[str, str]
    own: Mapping[str, Sequence[str]]


def _as_many_experts(num: int) -> dict[str, list[str]]:
    """The models whose experts are all shared get as many as those with experts per task."""
    return {model: [f"model.num_shared_experts={num}"] for model in _FLAT}


# Learning rates and towers of STEM's reference code; all but STEM-Net were tuned to a tenth.
_TENTH = ("optim.lr=0.0001", "embedding.lr=0.0001")
_TIKTOK = {model: [*_TENTH] for model in MODELS if model != STEM_NET}
for _model in (SINGLE_TASK, "shared_bottom", "aitm"):
    _TIKTOK[_model].append("model.tower_widths=[128, 128]")
_KUAIRAND_TASKS = "click,like,follow,comment,forward,hate,long_view,profile_enter"

SETS = {
    "tiktok": PaperSet("final_track1_train.txt", ("tiktok",), ("finish", "like"), _TIKTOK),
    "qk_video": PaperSet("QK-video.csv", ("qk-video",), ("click", "like"), _as_many_experts(3)),
    "kuairand1k": PaperSet(
        "KuaiRand-1K",
        ("kuairand", "--fields", "core", "--tasks", _KUAIRAND_TASKS),
        ("click", "like"),
        _as_many_experts(9),
    ),
}


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    missing = [SETS[name].source for name in options.sets if not source_of(name, options).exists()]
    if missing:
        raise UserError(
            f"--raw: {options.raw} has no {', '.join(missing)}; --sets chooses among the sets"
        )
    results = [of_set(name, prepared(name, options), options) for name in options.sets]
    if options.plan:
        return
    print(*write_report(results, options.out), sep="\n")
    failures = [failure for result in results for failure in result.failures]
    if failures:
        raise SystemExit("\n".join(["failed:", *failures]))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="the owners' files")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), metavar="OUT")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, help="of the table models"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nproc", type=int, help="ranks of each run (default: as in train)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--prepare", nargs="*", default=[], metavar="key=value", help="of all sets")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--plan", action="store_true", help="prepare, check every run, train none")
    options = parser.parse_args(arguments)
    for pair in (*options.prepare, *options.set):
        if "=" not in pair:
            parser.error(f"{pair!r}; expected key=value")
    return options


def source_of(name: str, options: argparse.Namespace) -> Path:
    return options.raw / SETS[name].source


def prepared(name: str, options: argparse.Namespace) -> Path:
    """The folder of a set, made by ``prepare`` if it is not there."""
    folder = options.out / "data" / name
    if not (folder / "schema.json").is_file():
        words = ["prepare", *SETS[name].prepare, "--source", str(source_of(name, options))]
        words += ["--out", str(folder), *(f"--{pair}" for pair in options.prepare)]
        if code := command(words):
            raise SystemExit(code)
    return folder


def of_set(name: str, data: Path, options: argparse.Namespace) -> SetResult:
    """Every table of a set; with ``--plan`` its runs are checked only."""
    asked = requests(name, data, options)
    plans = {table: make_plan(request) for table, request in asked.items()}
    runs = {table: list(plan.runs) for table, plan in plans.items()}
    print(f"{name}: {sum(map(len, runs.values()))} runs", flush=True)
    if options.plan:
        return SetResult(name, {}, None, [])
    failures: list[Finished] = []
    for table, request in asked.items():
        line = " ".join(["paper.py", name, table])
        failures += compare(request, line, lambda text: print(name, text, flush=True)).failures
    failed = [outcome.run.dir for outcome in failures]
    trained = {t: [run for run in of if run.dir not in failed] for t, of in runs.items()}
    rows = {table: join(trained, table) for table in options.tables if table != "subsets"}
    subsets = of_subsets(name, trained["models"], options) if "subsets" in options.tables else None
    told = [f"{name} {outcome.run.label}: {outcome.failure}" for outcome in failures]
    return SetResult(name, rows, subsets, told)


def requests(name: str, data: Path, options: argparse.Namespace) -> dict[str, Request]:
    """One comparison per table; that of the models has what the other tables refer to, too."""

    def request(table: str, models: Sequence[str], vary: Sequence[str]) -> Request:
        return Request(
            config=Path(__file__).parents[1] / "configs" / f"{name}.yaml",
            models=models,
            rules=["equal"],
            seeds=options.seeds,
            out=options.out / name / table,
            vary=vary,
            own=own_settings(name, models, options),
            nproc=options.nproc,
            parallel=options.parallel,
            overrides=[f"--data.path={data}", *(f"--{setting}" for setting in options.set)],
        )

    ablations = [table for table in VARIED if table in options.tables]
    return {"models": request("models", trained_models(options), ())} | {
        table: request(table, [STEM_NET], [VARIED[table]]) for table in ablations
    }


def trained_models(options: argparse.Namespace) -> list[str]:
    """Those of the tables: single-task networks, which gains refer to, are always among them."""
    wanted = {SINGLE_TASK}
    if "models" in options.tables:
        wanted |= {*options.models}
    if "subsets" in options.tables:
        wanted |= {*IN_SUBSETS} & {*options.models}
    if {*VARIED} & {*options.tables}:
        wanted |= {STEM_NET}
    return [model for model in MODELS if model in wanted]


def own_settings(name: str, models: Sequence[str], options: argparse.Namespace) -> list[str]:
    """``MODEL:section.key=value`` each, but for keys that ``--set`` gives to all."""
    given = [pair.partition("=")[0] for pair in options.set]
    pair = f"model.task_order=[{', '.join(SETS[name].pair)}]"
    own = [(model, setting) for model, settings in SETS[name].own.items() for setting in settings]
    return [
        f"{model}:{setting}"
        for model, setting in [*own, ("esmm", pair)]
        if model in models and setting.partition("=")[0] not in given
    ]


def of_subsets(
    name: str, runs: Sequence[PlannedRun], options: argparse.Namespace
) -> Subsets | None:
    """The analysis of figure 1, made anew where runs have come; None without single-task runs."""
    singles = [run for run in runs if run.combination.model == SINGLE_TASK]
    seeds = {run.seed for run in singles}
    compared = [r for r in runs if r.combination.model in IN_SUBSETS and r.seed in seeds]
    if not singles or not compared:
        return None
    found = Subsets(options.out / name / "subsets")
    if not found.is_of(compared):
        words = ["analyze", "negative-transfer", "--single", *(str(run.dir) for run in singles)]
        words += ["--runs", *(str(run.dir) for run in compared)]
        words += ["--tasks", ",".join(SETS[name].pair), "--out", str(found.folder)]
        if code := command(words):
            raise SystemExit(code)
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        raise SystemExit(130) from None
