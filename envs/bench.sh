#!/usr/bin/env bash
# `counterlens bench --peer torchattacks`, with torchattacks in a folder of its own for this run.
# It stays out of the lock: it pins a requests of 2020, and everything else with it.
#   bash envs/bench.sh --experiment c3lt-mnist --pair 4-9 --threads 2
set -euo pipefail
cd "$(dirname "$0")/.."

bash envs/setup.sh
source envs/uv.sh
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$uv" pip install --quiet --python .venv/bin/python --target "$folder" --no-deps \
    --require-hashes --requirement /dev/stdin <<'PIN'
torchattacks==3.5.1 --hash=sha256:10c1b05f3a0b52869a91dfa9f9d5adf613750276a15f41fdbd361127cc6bd703
PIN
PYTHONPATH="$folder${PYTHONPATH:+:$PYTHONPATH}" .venv/bin/counterlens bench --peer torchattacks "$@"
