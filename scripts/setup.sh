#!/usr/bin/env bash
# Make a virtual environment beside the package, with the versions it was tested with. Sourced by demo.sh and
# test.sh, or run by itself; a second call only checks. N2N_VENV names another folder, PYTHON another interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${N2N_VENV:-$root/.venv}
extras=${N2N_EXTRAS:-dev,video,view}

if [ ! -x "$venv/bin/python" ]; then
    for python in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "$python" ] && "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null && break
        python=
    done
    if [ -z "$python" ]; then
        echo "setup.sh: error: no Python >= 3.11 with venv found; install one, or name it: PYTHON=/path/to/python" >&2
        exit 69
    fi
    "$python" -m venv "$venv"
fi
wanted=$(cat "$root/constraints.txt" "$root/pyproject.toml" | cksum) 
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted $extras" ]; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root[$extras]"
    echo "$wanted $extras" >"$venv/installed"
fi
export PATH="$venv/bin:$PATH"
