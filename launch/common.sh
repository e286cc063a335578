# shellcheck shell=bash
# What the launch scripts share; sourced, never run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
NAME="$(basename "$0")"

say() { printf '%s: %s\n' "${NAME%.*}" "$*"; }

die() {
    printf '%s: %s\n' "${NAME%.*}" "$*" >&2
    exit 2
}

# The comment at the head of the script that was started.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 && !/^#(SBATCH| shellcheck)/ { sub(/^# ?/, ""); print }' "$0"; }

# Whether the machine has an NVIDIA GPU that answers.
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

num_gpus() {
    if [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then
        awk -F, '{ print NF }' <<<"$CUDA_VISIBLE_DEVICES"
    elif [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]] || ! has_gpu; then
        echo 0
    else
        nvidia-smi -L | grep -c '^GPU'
    fi
}

# The Python that runs stem_torchrec: PYTHON if set, else the one of .venv.
project_python() {
    local python="${PYTHON:-$VENV/bin/python}"
    command -v "$python" >/dev/null || die "$python is not there; run launch/setup.sh, or set PYTHON"
    printf '%s\n' "$python"
}

# Sets NPROC (ranks on this node) and OMP_NUM_THREADS (threads per rank) where they are not set.
set_ranks() {
    local gpus
    gpus="$(num_gpus)"
    NPROC="${NPROC:-$((gpus > 0 ? gpus : 1))}"
    [[ "$NPROC" =~ ^[1-9][0-9]*$ ]] || die "NPROC is '$NPROC', expected a number of ranks, at least 1"
    if [[ -z "${OMP_NUM_THREADS:-}" ]]; then
        local share=$(($(nproc) / NPROC))
        export OMP_NUM_THREADS=$((share > 0 ? share : 1))
    fi
}
