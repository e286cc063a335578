#!/usr/bin/env bash
# Set up, check style and types, run the tests.
#
# Usage: launch/test.sh [--cpu | --gpu] [PYTEST ARGUMENT ...]
#
#   launch/test.sh                     everything but the tests marked slow
#   launch/test.sh -m slow             those
#   launch/test.sh tests/data -k bag   some
#
# The exit code is 0 if style, types and tests are all fine.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

device=()
case "${1:-}" in
    -h | --help) usage && exit ;;
    --cpu | --gpu) device=("$1") && shift ;;
esac

cd "$ROOT"
launch/setup.sh --dev "${device[@]}"
export OMP_NUM_THREADS=1

failed=()
run_check() {
    local name="$1" output
    shift
    if output="$("$VENV/bin/python" -m "$@" 2>&1)"; then
        say "$name: fine"
    else
        printf '%s\n' "$output"
        say "$name: failed"
        failed+=("$name")
    fi
}
run_check style ruff check --quiet
run_check format ruff format --check --quiet
run_check types mypy

code=0
"$VENV/bin/python" -m pytest -m "not slow" "$@" || code=$?
if ((${#failed[@]})); then
    say "also failed: ${failed[*]}" >&2
    if ((code == 0)); then code=1; fi
fi
exit "$code"
