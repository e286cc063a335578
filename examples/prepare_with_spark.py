"""A raw set that one machine does not prepare, prepared by a Spark cluster: docs/spark.md.

spark-submit examples/prepare_with_spark.py --source 's3a://logs/2026-*/*.parquet' \
    --describe day.yaml --out s3://prepared/day
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pyspark.sql import SparkSession

from stem_torchrec.config.reading import load_file
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.spark.prepare import prepare_with_spark
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.storage.place import place_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", nargs="+", required=True, help="raw files, or patterns")
    parser.add_argument("--describe", type=Path, required=True, help="as prepare csv reads it")
    parser.add_argument("--out", required=True, help="new folder, a path or a URL")
    parser.add_argument("--shuffle-seed", type=int, default=0, help="of the order of train")
    given = parser.parse_args(arguments)
    try:
        description = load_file(Description, given.describe, "--describe")
        spark = SparkSession.builder.appName("prepare").getOrCreate()
        stats = prepare_with_spark(
            spark,
            given.source,
            description,
            place_of(given.out),
            shuffle_seed=given.shuffle_seed,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.out}: {stats['samples']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
