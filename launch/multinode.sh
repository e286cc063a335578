#!/usr/bin/env bash
# Train on several nodes: run the same command on each of them, in any order.
#
# Usage: NNODES=n RDZV_ENDPOINT=host:port launch/multinode.sh CONFIG [--section.key value ...]
#
#   NNODES=2 RDZV_ENDPOINT=node1:29500 launch/multinode.sh configs/tiktok.yaml
#
# Environment, the same on every node:
#   NNODES            number of nodes
#   RDZV_ENDPOINT     host:port where the nodes meet; the host is one of them, the port is free there
#   RUN_ID            name of the job (default: stem); two jobs at one endpoint need two names
#   NPROC             ranks per node (default: the number of GPUs, 1 without)
# Environment, of a node:
#   LOCAL_ADDR        address at which the others reach this node (default: its host name, or where
#                     that resolves to 127...: the address from which it reaches RDZV_ENDPOINT)
#   MAX_RESTARTS      how often lost ranks are started again, from the newest checkpoint (default: 0)
#   OMP_NUM_THREADS   threads per rank (default: the cores divided by the ranks)
#   PYTHON            interpreter (default: .venv/bin/python)
#
# torchrun numbers the nodes (c10d rendezvous). data.path and run.dir are folders that every node
# sees under the same path. A node that fails ends the job on all; --resume goes on from the last
# checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    -h | --help) usage && exit ;;
    "" | -*) die "the first argument is the config file; see --help" ;;
esac
config="$1" && shift
[[ -f "$config" ]] || die "no config file '$config'"
[[ "${NNODES:-}" =~ ^[1-9][0-9]*$ ]] || die "NNODES is '${NNODES:-}', expected the number of nodes"
[[ "${RDZV_ENDPOINT:-}" =~ ^[^:]+:[0-9]+$ ]] ||
    die "RDZV_ENDPOINT is '${RDZV_ENDPOINT:-}', expected host:port of one of the nodes"

python="$(project_python)"
set_ranks
say "$NNODES node(s), $NPROC rank(s) here, $OMP_NUM_THREADS thread(s) each, meeting at $RDZV_ENDPOINT"
exec "$python" "$ROOT/launch/torchrun.py" \
    --nnodes "$NNODES" --nproc-per-node "$NPROC" --max-restarts "${MAX_RESTARTS:-0}" \
    --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RUN_ID:-stem}" \
    ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} \
    -m stem_torchrec train --config "$config" "$@"
