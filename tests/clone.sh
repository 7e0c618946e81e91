# Sourced: a clone of the repository of its own, removed at the end, as the working folder.
set -euo pipefail
unset "${!DVC_@}" "${!MLFLOW_@}"
export MLFLOW_DISABLE_TELEMETRY=true
root=$(git rev-parse --show-toplevel)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git clone --quiet "$root" "$copy/instant-soup"
cd "$copy/instant-soup"
export PYTHONPATH="$PWD/src"
rm -f dvc.lock  # DVC rewrites it after each stage, the entries of the full run too
