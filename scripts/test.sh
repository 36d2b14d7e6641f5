#!/usr/bin/env bash
# Set everything up and run the tests, on up to four cores: bash scripts/test.sh [PYTEST OPTIONS];
# -m "slow or not slow" runs all of them, -n 0 one after another.
. "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
exec python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
