"""The sets that the models are compared on, prepared from files that are not part of the project.

    python benchmarks/models_data.py --kuairand SLICE --movielens ml-latest-small --out DATA

KuaiRand's four tasks split by day; MovieLens' ratings (>= 4, = 5, <= 2) with the movies' genres,
split at random and by time; and two generated worlds, one whose tasks contradict for half of the
users and one whose tasks have nothing in common.
"""

import argparse
from pathlib import Path

import pyarrow.csv as pc
import pyarrow.parquet as pq

from stem_torchrec.cli import main as command

_RATINGS = """
format: {{type: parquet}}
features:
  - {{name: user_id, column: userId, side: user}}
  - {{name: item_id, column: movieId, side: item}}
  - {{name: genres, kind: bag, separator: "|", pooling: mean, side: item}}
labels: {{like: rating >= 4, love: rating = 5, dislike: rating <= 2}}
user: user_id
item: item_id
split: {split}
min_count: 3
"""
_SPLITS = {
    "movielens_random": "{by: random, shares: [0.8, 0.1, 0.1], seed: 0}",
    "movielens_time": "{by: time, column: timestamp, shares: [0.8, 0.1, 0.1]}",
}
_WORLDS = {"contradicting": ["--conflict_share=0.5"], "independent": []}
_WORLD = [
    *("--train_rows=60000", "--valid_rows=15000", "--test_rows=30000", "--num_users=1000"),
    *("--num_items=500", "--positive_ratios=[0.3, 0.15]", "--latent_dim=4", "--num_clusters=50"),
    *("--individuality=0.3", "--num_user_features=1", "--num_item_features=1"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kuairand", type=Path, metavar="DIR", help="a release, or its slice")
    parser.add_argument("--movielens", type=Path, metavar="DIR", help="ratings.csv, movies.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.kuairand:
        tasks = "--tasks=click,long_view,comment_stay,profile_enter"
        _prepare(options.out / "kuairand", "kuairand", f"--source={options.kuairand}", tasks)
    if options.movielens:
        _movielens(options.movielens, options.out)
    for world, more in _WORLDS.items():
        _prepare(options.out / world, "synthetic", f"--world={world}", *more, *_WORLD)


def _movielens(source: Path, out: Path) -> None:
    ratings = pc.read_csv(source / "ratings.csv")
    movies = pc.read_csv(source / "movies.csv").select(["movieId", "genres"])
    order = [(name, "ascending") for name in ("timestamp", "userId", "movieId")]
    joined = out / "ratings.parquet"
    pq.write_table(ratings.join(movies, "movieId").sort_by(order), joined)
    for name, split in _SPLITS.items():
        described = out / f"{name}.yaml"
        described.write_text(_RATINGS.format(split=split))
        _prepare(out / name, "csv", f"--source={joined}", f"--describe={described}")


def _prepare(folder: Path, kind: str, *arguments: str) -> None:
    if (folder / "schema.json").is_file():
        return
    if command(["prepare", kind, f"--out={folder}", *arguments]) != 0:
        raise SystemExit(f"{folder} was not prepared")


if __name__ == "__main__":
    main()
