#!/usr/bin/env bash
# Make .venv hold exactly envs/requirements.lock plus this package, editable.
# Does nothing when the lock, pyproject.toml and the folder are those of the last run.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.counterlens
state="$(pwd) $(cat envs/requirements.lock pyproject.toml | cksum)"
if [[ -x .venv/bin/counterlens && -f $stamp && "$(cat "$stamp")" == "$state" ]] &&
    grep -q counterlens .venv/bin/snakemake; then
    exit 0
fi

source envs/uv.sh

# An environment of a folder since moved, of an older Python or half made starts anew.
kept=no
if [[ -f $stamp && "$(cat "$stamp")" == "$(pwd) "* ]] && recent .venv/bin/python; then
    kept=yes
fi
rm -f "$stamp"
if [[ $kept == no ]]; then
    "$uv" venv --quiet --clear --python "$python" .venv
fi
export VIRTUAL_ENV="$PWD/.venv"
"$uv" pip sync --compile-bytecode --require-hashes envs/requirements.lock
# Last, and anew: the package brings a command `snakemake` in place of the one synced before.
"$uv" pip install --quiet --no-deps --no-build-isolation --reinstall --editable .
printf '%s\n' "$state" > "$stamp"
echo "setup: .venv is ready"
