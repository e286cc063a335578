#!/usr/bin/env bash
# Train on one node with torchrun: one rank per GPU, or one on a CPU.
#
# Usage: launch/train.sh CONFIG [--resume | --overwrite] [--section.key value ...]
#
#   NPROC=2 launch/train.sh configs/synthetic.yaml --train.max_steps 100 --run.dir runs/short
#
# Environment:
#   NPROC             ranks (default: the number of GPUs, 1 without)
#   MAX_RESTARTS      how often lost ranks are started again, from the newest checkpoint (default: 0)
#   OMP_NUM_THREADS   threads per rank (default: the cores divided by the ranks)
#   PYTHON            interpreter (default: .venv/bin/python)
#
# Relative paths are relative to the current folder. `stem-torchrec train --help` lists the keys.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    -h | --help) usage && exit ;;
    "" | -*) die "the first argument is the config file; see --help" ;;
esac
config="$1" && shift
[[ -f "$config" ]] || die "no config file '$config'"

python="$(project_python)"
set_ranks
say "$NPROC rank(s), $OMP_NUM_THREADS thread(s) each"
exec "$python" "$ROOT/launch/torchrun.py" --standalone --nproc-per-node "$NPROC" --max-restarts "${MAX_RESTARTS:-0}" \
    -m stem_torchrec train --config "$config" "$@"
