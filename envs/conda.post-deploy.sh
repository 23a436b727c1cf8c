#!/usr/bin/env bash
# Runs inside a fresh conda environment, from the project's folder. Snakemake hashes this file,
# so the line below (written by "make lock") makes a changed lock a changed environment.
lock_sha256=74fd2eb3a65936efee7ebbe8e267142987561979da2703a7727502e0768cc5da
set -euo pipefail

if [[ ! -f envs/requirements.lock ]]; then
    echo "conda.post-deploy.sh: run it from the project's folder (envs/requirements.lock is not here)" >&2
    exit 1
fi
python - "$lock_sha256" <<'CHECK'
import hashlib
import sys
from pathlib import Path

if hashlib.sha256(Path("envs/requirements.lock").read_bytes()).hexdigest() != sys.argv[1]:
    sys.exit("conda.post-deploy.sh: envs/requirements.lock was changed by hand; run: make lock")
CHECK
python -m pip install --disable-pip-version-check --no-deps --require-hashes \
    --requirement envs/requirements.lock
# Last, and anew: the package brings a command `snakemake` in place of the one installed before.
python -m pip install --disable-pip-version-check --no-deps --no-build-isolation \
    --force-reinstall --editable .
