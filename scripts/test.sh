#!/usr/bin/env bash
# Set everything up and run the tests: bash scripts/test.sh [PYTEST OPTIONS]; -m "slow or not slow" runs all of them.
. "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
exec python -m pytest "$@"
