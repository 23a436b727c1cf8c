#!/usr/bin/env bash
# Write envs/requirements.lock: every package for every platform, with hashes, and the
# lock's own checksum into conda.post-deploy.sh, so that a new lock means a new conda environment.
# Versions of an existing lock are kept; UPGRADE=1 takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
source envs/uv.sh

UV_CUSTOM_COMPILE_COMMAND="make lock" "$uv" pip compile pyproject.toml \
    --all-extras --universal --python-version 3.11 --generate-hashes \
    --no-annotate --no-emit-index-url --no-emit-find-links --quiet ${UPGRADE:+--upgrade} \
    --output-file envs/requirements.lock
"$python" - <<'SUM'
import hashlib
import re
from pathlib import Path

script = Path("envs/conda.post-deploy.sh")
digest = hashlib.sha256(Path("envs/requirements.lock").read_bytes()).hexdigest()
text = re.sub(r"(?m)^lock_sha256=.*$", f"lock_sha256={digest}", script.read_text())
script.write_text(text)
SUM
