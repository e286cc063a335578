#!/usr/bin/env bash
# STEM-Net's ablations and the analyses on a generated contradiction, all models at the rates of
# configs/contradiction.yaml; benchmarks/models.py compares models at their own best rates.
#
# Usage: benchmarks/analyses.sh OUT
#
# Makes prepared/contradiction. OUT gets a folder per comparison. Interrupted, the same command goes
# on. About 40 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?usage: benchmarks/analyses.sh OUT}
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
parallel=${PARALLEL:-1}

[[ -f prepared/contradiction/schema.json ]] || stem-torchrec prepare synthetic \
    --out prepared/contradiction --train_rows 1000000 --valid_rows 50000 --test_rows 200000 \
    --num_users 20000 --num_items 3000 --conflict_share 0.5 --latent_dim 4 --num_clusters 200 \
    --individuality 0.5 --positive_ratios "[0.3, 0.15]" --num_user_features 1 --num_item_features 1

compare() { # NAME CONFIG OPTIONS...
    local name=$1 config=$2
    shift 2
    stem-torchrec compare --config "configs/$config.yaml" --out "$out/$name" --seeds "${SEEDS:-3}" \
        --parallel "$parallel" "$@"
}

# Every model has three experts.
compare contradiction contradiction --models single_task,shared_bottom,mmoe,ple,stem_net \
    --own mmoe:model.num_shared_experts=3

runs() { # NAME MODEL: the folders of a comparison's runs
    printf '%s\n' "$out/$1/runs/$2"-equal*seed?
}
mapfile -t single < <(runs contradiction single_task)
mapfile -t compared < <(runs contradiction mmoe; runs contradiction ple; runs contradiction stem_net)
pair=(--single "${single[@]}" --tasks click,like --out "$out/contradiction")
stem-torchrec analyze negative-transfer "${pair[@]}" --runs "${compared[@]}"
compared=("$out"/contradiction/runs/{ple,stem_net}-equal-seed0)
stem-torchrec analyze preference --single "${single[0]}" --tasks click,like \
    --out "$out/contradiction" --runs "${compared[@]}"
mapfile -t compared < <(runs contradiction ple; runs contradiction stem_net)
stem-torchrec analyze gates --runs "${compared[@]}" --out "$out/contradiction"

compare contradiction_ablations contradiction --models stem_net \
    --vary "model.stop_gradient=true;false" model.gate_input=both
# One seed each: these show the form of an effect, not its size.
SEEDS=1 compare contradiction_gate_inputs contradiction --models stem_net \
    --vary "model.stop_gradient=true;false" "model.gate_input=both;task;shared"
SEEDS=1 compare contradiction_fields contradiction --models stem_net \
    --vary "model.task_specific_features=user;item;none"
