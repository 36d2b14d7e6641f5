#!/usr/bin/env bash
# Set everything up and run the demo: bash scripts/demo.sh [OUTDIR]
. "$(dirname "$0")/setup.sh"
exec n2n-pipeline demo "$@"
