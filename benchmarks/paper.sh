#!/usr/bin/env bash
# The tables of the STEM paper from the owners' files: benchmarks/paper.sh --raw DIR --out OUT
# (see paper.py; --help). Interrupted, the same command goes on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH="$here/../.venv/bin:$PATH"
exec python "$here/paper.py" "$@"
