#!/usr/bin/env bash
# Submit a run with Ray's own command. It makes the same job as `mtgen submit`: the same code, environment and entrypoint.
#   launch/ray-job.sh configs/digits-32.yaml data.path=/shared/digits runs=/shared/runs workers=2
# Paths are those of the cluster's nodes: give absolute ones, or URLs. RAY_API_SERVER_ADDRESS names the cluster. Ray reads
# its token from RAY_AUTH_TOKEN, or from the file that RAY_AUTH_TOKEN_PATH names. `mtgen jobs list` shows the job.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if (($# == 0)) || [[ ! -f $1 ]]; then
    echo "usage: launch/ray-job.sh CONFIG.yaml [KEY=VALUE]..." >&2
    exit 2
fi
config=$1
shift
command -v ray >/dev/null || PATH=$root/.venv/bin:$PATH

name=$(sed -n 's/^name:[[:space:]]*\([^[:space:]#]*\).*/\1/p' "$config")
runs=$PWD/runs
for word in "$@"; do
    case $word in
        name=*) name=${word#name=} ;;
        runs=*) runs=${word#runs=} ;;
    esac
done
if [[ ! $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ || $runs != /* || $runs == *[\"\\]* ]]; then
    echo "error: the run needs a plain name and an absolute folder; here: name=$name runs=$runs" >&2
    exit 2
fi
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/mtgen/version.py")

folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
tar --create --dereference --exclude=__pycache__ --directory "$root" mtgen | tar --extract --directory "$folder"
cp -- "$config" "$folder/$name.yaml"

# A job that is stopped gets SIGINT and ten minutes for its checkpoint. Ray's own default is SIGTERM and three seconds.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
ray job submit \
    --submission-id "$name-$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')" \
    --working-dir "$folder" \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600", "RAY_JOB_STOP_SIGNAL": "SIGINT"}}' \
    --metadata-json "{\"mtgen\": \"$version\", \"run\": \"$name\", \"folder\": \"$runs/$name\"}" \
    -- python -m mtgen.cli train "$name.yaml" "runs=$runs" "$@"
