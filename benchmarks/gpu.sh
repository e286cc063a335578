#!/usr/bin/env bash
# Everything that is timed on one GPU, side by side.
#
# Usage: benchmarks/gpu.sh [--device cuda | cpu] [--out FOLDER]
#
# Writes gpu.json and gpu.md. --device cpu is a dry run with tiny shapes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=cuda out=benchmarks/results
while (($#)); do
    case "$1" in
        --device) device="$2" && shift 2 ;;
        --out) out="$2" && shift 2 ;;
        *) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
    esac
done
mkdir -p "$out"
python="${PYTHON:-.venv/bin/python}"
"$python" benchmarks/gpu.py --device "$device" --json "$out/gpu.json" --markdown "$out/gpu.md"
cat "$out/gpu.md"
