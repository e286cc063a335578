#!/usr/bin/env bash
# Set up, generate data with known truth, train STEM-Net on 2 local processes and evaluate it.
#
# Usage: launch/quickstart.sh [--cpu | --gpu]
#
# Leaves prepared/synthetic (kept if it is there) and runs/synthetic (replaced) in the repository.
# With one GPU it trains on one process: a GPU serves one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    -h | --help) usage && exit ;;
    "" | --cpu | --gpu) (($# < 2)) || die "unexpected argument '$2'; see --help" ;;
    *) die "unknown option '$1'; see --help" ;;
esac

cd "$ROOT"
launch/setup.sh "$@"

DATA=prepared/synthetic
if [[ -f "$DATA/schema.json" ]]; then
    say "using $DATA"
else
    say "generating $DATA"
    "$VENV/bin/stem-torchrec" prepare synthetic --out "$DATA"
fi

ranks=2
if [[ "$(<"$VENV/.setup-device")" == gpu && "$(num_gpus)" == 1 ]]; then ranks=1; fi
say "training on $ranks local process(es)"
"$VENV/bin/stem-torchrec" train --config configs/synthetic.yaml --nproc "$ranks" --overwrite
"$VENV/bin/python" launch/bayes.py "$DATA" runs/synthetic
