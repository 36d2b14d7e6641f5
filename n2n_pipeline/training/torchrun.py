"""``torchrun`` that ends with the exit code of the process that ended first.

Plain torchrun ends with 1 whatever happened, so a batch system could not tell "run me again" (75) from "your
file is bad" (65). Takes torchrun's own words::

    python -m n2n_pipeline.training.torchrun --nproc-per-node=2 -m n2n_pipeline train movie.zarr -o model
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from n2n_pipeline.errors import ExitCode


def main(words: Sequence[str] | None = None) -> int:
    """Start the processes, wait for them, and return the exit code.

    A process that was killed, or a launcher that was asked to stop, counts as stopped: running the same again
    continues.
    """
    try:
        run.main(words)
    except ChildFailedError as error:
        ends = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        reasons = [failure.exitcode for failure in ends if failure.exitcode != ExitCode.PEER]
        first = reasons[0] if reasons else ExitCode.PEER
        return first if first > 0 else ExitCode.STOPPED
    except SignalException:
        return ExitCode.STOPPED
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
