#!/usr/bin/env bash
# Runs inside a fresh conda environment, from the project's folder. Snakemake hashes this file,
# so the line below (written by "make lock") makes a changed lock a changed environment.
lock_sha256=6c5f02837a1c78e0ac2c962304f8bf416277b44484dba48a2eea5b81f93d140f
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
python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
