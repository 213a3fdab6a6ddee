#!/usr/bin/env bash
# Try everything on this machine's GPUs, in less than five minutes, and say what to send to whom. Further options go to
# `mtgen smoke`; a later --device wins:
#   launch/smoke_gpu.sh --json smoke.json
#   launch/smoke_gpu.sh --device cpu
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
if [[ ! -x $python ]]; then
    echo "error: there is no $python; run \`make setup\` in $root first" >&2
    exit 1
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

report=mtgen-smoke.json
for ((i = 1; i < $#; i++)); do
    if [[ ${!i} == --json ]]; then
        next=$((i + 1))
        report=${!next}
    fi
done
[[ $report == - ]] && doctor=mtgen-doctor.json || doctor=${report%.json}-doctor.json

status=0
timeout --signal=INT --kill-after=10 290 "$python" -m mtgen.cli smoke --device cuda --json "$report" "$@" || status=$?
if [[ $status == 124 || $status == 137 ]]; then
    echo "error: the smoke test did not end within 290 seconds; a GPU or a network may hang: see nvidia-smi and dmesg" >&2
fi
"$python" -m mtgen.cli doctor --json "$doctor" >"${doctor%.json}.txt" || true # its problems are in the file

home=$(git -C "$root" remote get-url origin 2>/dev/null | sed -E 's#//[^@/]*@#//#') || true
cat <<END

Please send the results to the maintainers of mtgen, also if everything has passed: mtgen is developed without a GPU.
  what:  $report and $doctor (names of GPUs, versions, folders, speeds; look through them first)
  where: a new issue on the page of ${home:-the repository that you cloned}, with both files attached
END
exit "$status"
