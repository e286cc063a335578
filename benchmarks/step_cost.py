"""The model of a step's cost beside what was measured on a GPU.

    python benchmarks/step_cost.py --json FILE [--measured benchmarks/results/gpu_step.json]

Of every row of ``gpu_step.json``: the measured ms of its last commit, the model's ms for one H200,
their ratio, and the part that bounds the step. The model is what a step has to do at the rates of
the hardware. It leaves out metrics, balancing, waits between host and device, and kernels that stay
far below those rates (in the rows so far the weight gradients of layers of width 1 and 3 alone: 13
ms of 45). The times of its host are those of the first workload with 4,096 samples.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from balancer_runner import WORKLOADS, schema_of
from provenance import provenance

from stem_torchrec.config.reading import validate
from stem_torchrec.distributed.constraints import World
from stem_torchrec.distributed.hardware import KNOWN
from stem_torchrec.distributed.step_cost import StepCost
from stem_torchrec.launch.notices import hide_dependency_notices
from stem_torchrec.training.planning import Assumed, cost_of


def modelled(row: dict[str, Any]) -> StepCost:
    """The model's figures for the workload of a measured row, on one H200."""
    shape = WORKLOADS[row["workload"]]
    schema = schema_of(shape, row["tasks"])
    with tempfile.TemporaryDirectory() as folder:
        schema.save(Path(folder))
        config = validate(
            {
                "run": {"dir": f"{folder}/run"},
                "data": {"path": folder},
                "model": {
                    "expert_widths": shape.experts,
                    "gate_widths": shape.hidden,
                    "tower_widths": shape.hidden,
                },
                "embedding": {"dim": shape.dim},
                "train": {"batch_size": row["batch"]},
                "distributed": {"hbm_gib": 139},
            }
        )
        assumed = Assumed(KNOWN["h200"], "tf32" if row["tf32"] else "fp32", shape.bag)
        return cost_of(config, schema, World(1, 1, "cuda"), assumed)


def beside(row: dict[str, Any]) -> dict[str, Any]:
    measured = mean(list(row["step_ms"].values())[-1])
    cost = modelled(row)
    return {
        **{key: row[key] for key in ("workload", "tasks", "batch", "tf32", "balance")},
        "measured_ms": round(measured, 2),
        "model_ms": round(cost.step, 2),
        "model_over_measured": round(cost.step / measured, 2),
        "bound": cost.bound,
        "parts_ms": {part: round(getattr(cost, part), 2) for part in ("compute", "memory", "host")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    default = Path(__file__).parent / "results/gpu_step.json"
    parser.add_argument("--measured", type=Path, default=default)
    options = parser.parse_args()
    hide_dependency_notices()
    rows = [beside(row) for row in json.loads(options.measured.read_text())["rows"]]
    for row in rows:
        print(row)
    content = {
        "what": "ms of a train step on one H200: measured, and by the model of stem-torchrec plan",
        "rows": rows,
        "provenance": provenance(),
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
