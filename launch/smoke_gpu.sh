#!/usr/bin/env bash
# Try everything on this machine's GPU, in under three minutes. Further options go to `mtgen smoke`; a later --device wins:
#   launch/smoke_gpu.sh --json smoke.json
#   launch/smoke_gpu.sh --device cpu
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
if [[ ! -x $python ]]; then
    echo "error: there is no $python; run \`make setup\` in $root first" >&2
    exit 1
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m mtgen.cli smoke --device cuda "$@"
