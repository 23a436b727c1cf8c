# shellcheck shell=bash
# Sourced by setup.sh and lock.sh from the project's folder. Sets:
#   python  a Python of the system: $PYTHON, else the first that is 3.11 or newer
#   uv      the system's uv, else one of our own in .venv-uv

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if recent "$candidate"; then
        python="$(command -v "$candidate")"
        break
    fi
done
if [[ -z $python ]]; then
    echo "setup: no Python 3.11 or newer found; install one or name it: make setup PYTHON=/path/to/python3" >&2
    exit 1
fi

uv=uv
if ! uv --version >/dev/null 2>&1; then
    uv=.venv-uv/bin/uv
    if ! "$uv" --version >/dev/null 2>&1; then
        echo "setup: installing uv into .venv-uv" >&2
        "$python" -m venv --clear .venv-uv
        .venv-uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
    fi
fi
