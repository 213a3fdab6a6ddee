#!/usr/bin/env bash
# Try everything on this machine's GPUs, in less than five minutes, and say what to send to whom. Checks for which there
# is no time are left out. Further options go to `mtgen smoke`; a later --device wins:
#   launch/smoke_gpu.sh --json smoke.json
#   SMOKE_MINUTES=15 launch/smoke_gpu.sh      with the speed of compiled networks and CUDA graphs, which compile for minutes
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

minutes=${SMOKE_MINUTES:-5}
echo "Testing mtgen on this machine; this takes up to $minutes minutes, and ends with a table."
status=0
timeout --signal=INT --kill-after=15 $((60 * minutes - 20)) "$python" -m mtgen.cli smoke \
    --device cuda --minutes $((minutes - 1)) --json "$report" "$@" || status=$?
if [[ $status == 124 || $status == 137 ]]; then
    echo "error: the check after the last one in $report did not end in time; a GPU or a network may hang: see nvidia-smi and dmesg" >&2
fi
"$python" -m mtgen.cli doctor --json "$doctor" >"${doctor%.json}.txt" || true # its problems are in the file

home=$(git -C "$root" remote get-url origin 2>/dev/null | sed -E 's#//[^@/]*@#//#') || true
cat <<END

Please send the results to the maintainers of mtgen, also if everything has passed: mtgen is developed without a GPU.
  what:  $report and $doctor (names of GPUs, versions, folders, speeds; look through them first)
  where: a new issue on the page of ${home:-the repository that you cloned}, with both files attached
END
exit "$status"
