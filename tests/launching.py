"""The package's own launcher in the test's process: its children are real, and a test waits for nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from n2n_pipeline.training import torchrun

ROOT = Path(__file__).parents[1]
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def launch(script: Path, *words: object, processes: int = 1) -> int:
    """Run a script in so many processes that can meet on this host; return the launcher's exit code."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    told = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    before = {number: signal.getsignal(number) for number in HANDLED}  # torchrun leaves its own behind
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}.items():
            patch.setenv(name, value)
        try:
            return torchrun.main([f"--nproc-per-node={processes}", *told, str(script), *map(str, words)])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
