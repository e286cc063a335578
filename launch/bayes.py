"""Compare a run's test AUC with the best possible one, known for generated data.

Usage: bayes.py DATA RUN
"""

import json
import sys
from pathlib import Path


def main(data: str, run: str) -> None:
    bayes = json.loads((Path(data) / "stats.json").read_text()).get("bayes_auc")
    records = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    tests = [record for record in records if record.get("split") == "test"]
    if not bayes or not tests:
        return
    print("AUC reached / best possible (of the true click probabilities):", end=" ")
    reached = tests[-1]["auc"]
    print(", ".join(f"{task} {reached[task]:.4f} / {best:.4f}" for task, best in bayes.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
