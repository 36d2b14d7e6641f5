"""More machines: Dask clients for stages that spread units over workers, and SLURM jobs for those that do not.

Dask only executes. What is done stands in a store's records, so workers, and the scheduler itself, may die at any
time. A Dask scheduler runs what anybody who reaches it sends: ours listen on this host alone, or, between nodes of
a cluster, speak TLS with certificates made for the occasion. Dashboards are off.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster
from distributed.security import Security

from n2n_pipeline.config import SlurmConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.settings_file import read_settings

LOOPBACK = "127.0.0.1"
REACH_SECONDS = 10
NO_DASHBOARD = {
    "dashboard": False,
    "dashboard_address": f"{LOOPBACK}:0",
}  # its port is asked for all the same: any free one
STOP_SECONDS = 120
"""How long before its end SLURM asks a job to stop; a unit takes seconds."""
_LAUNCH = r"""first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
address=${{address:-$first}}
port=$((20000 + SLURM_JOB_ID % 10000))
srun {python} -m n2n_pipeline.training.torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node={processes} --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" --rdzv-endpoint="$address:$port" \
    -m n2n_pipeline {words}
code=$?
[ $code -eq {stopped} ] && scontrol requeue "$SLURM_JOB_ID"
exit $code
"""


@contextmanager
def connect(where: str) -> Iterator[Client | None]:
    """Start workers, or find them.

    Parameters
    ----------
    where : str
        ``threads`` (none: this process does the work), ``local`` or ``local:N`` (N processes on this host),
        ``slurm:FILE`` (jobs as the YAML file says, see `config.SlurmConfig`), or the ``tcp://`` or ``tls://``
        address of a scheduler.

    Yields
    ------
    distributed.Client or None
        None for ``threads``.

    Raises
    ------
    InputError
        If there is no such place, or no worker came.
    """
    kind, _, detail = where.partition(":")
    with ExitStack() as stack:
        if where == "threads":
            yield None
        elif kind == "local" and re.fullmatch(r"\d*", detail):
            yield stack.enter_context(Client(stack.enter_context(_local_workers(int(detail or 0)))))
        elif kind == "slurm":
            workers = stack.enter_context(_slurm_workers(Path(detail)))
            yield stack.enter_context(Client(workers, security=workers.security))
        elif kind in ("tcp", "tls"):
            yield stack.enter_context(_reach(where))
        else:
            raise InputError(
                where, "not a cluster", "use threads, local:N, slurm:FILE or tcp://HOST:PORT", ExitCode.USAGE
            )


def _local_workers(count: int) -> Any:
    return LocalCluster(
        n_workers=count or None,
        threads_per_worker=1,
        processes=True,
        host=LOOPBACK,
        dashboard_address=None,
        scheduler_kwargs=NO_DASHBOARD,
    )


def _slurm_workers(file: Path) -> Any:
    """Ask SLURM for workers that end by themselves before SLURM ends them."""
    try:
        from dask_jobqueue.slurm import SLURMCluster  # noqa: PLC0415 - an extra that few have

        certificates = Security.temporary()
    except ImportError as error:
        raise InputError(
            "--cluster slurm",
            "dask-jobqueue or cryptography is not installed",
            "pip install 'n2n-pipeline[slurm]'",
            ExitCode.UNAVAILABLE,
        ) from error
    asked = read_settings(SlurmConfig, file)
    hours, minutes, seconds = (int(part) for part in asked.time.rpartition("-")[2].split(":"))
    days = int(asked.time.rpartition("-")[0] or 0)
    lifetime = max(60, ((24 * days + hours) * 60 + minutes) * 60 + seconds - STOP_SECONDS)
    cluster = SLURMCluster(
        queue=asked.partition,
        account=asked.account,
        cores=1,
        job_cpu=asked.cores,
        processes=1,
        memory=f"{asked.memory_gb}GB",
        walltime=asked.time,
        interface=asked.interface,
        job_extra_directives=list(asked.directives),
        job_script_prologue=[f"export OMP_NUM_THREADS={asked.cores}", *asked.setup],
        python=shlex.quote(sys.executable),
        protocol="tls://",
        security=certificates,
        shared_temp_directory=str(Path.cwd()),
        scheduler_options={**NO_DASHBOARD, "allowed_failures": 10},
        worker_extra_args=["--lifetime", f"{lifetime}s", "--lifetime-stagger", "30s"],
    )
    cluster.scale(jobs=asked.jobs)
    return cluster


def _reach(address: str) -> Client:
    try:
        return Client(address, timeout=REACH_SECONDS)
    except OSError as error:
        raise InputError(address, "no scheduler answers there", code=ExitCode.UNAVAILABLE) from error


def job_script(asked: SlurmConfig, words: Sequence[str], name: str) -> str:
    """Write the text of a job that trains, on one node or several, again and again until it is done.

    A training that was stopped, by SLURM before the time limit or by the loss of a process, ends with exit code
    75, and the job puts itself back into the queue; it then continues.

    Parameters
    ----------
    asked : SlurmConfig
        What the job needs.
    words : sequence of str
        The command line after ``n2n-pipeline``.
    name : str
        Of the job; what SLURM or a shell might misread is left out.
    """
    options = {
        "job-name": re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64],
        "output": "%x-%j.log",
        "open-mode": "append",
        "partition": asked.partition,
        "account": asked.account,
        "nodes": asked.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": asked.cores,
        "mem": f"{round(asked.memory_gb * 1000)}M",
        "time": asked.time,
        "signal": f"TERM@{STOP_SECONDS}",
    }
    interface = asked.interface
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None),
        "#SBATCH --requeue",
        *(f"#SBATCH {directive}" for directive in asked.directives),
        *asked.setup,
        *([f"export GLOO_SOCKET_IFNAME={interface} NCCL_SOCKET_IFNAME={interface}"] if interface else []),
    ]
    launch = _LAUNCH.format(
        python=shlex.quote(sys.executable),
        processes=asked.processes_per_node,
        words=shlex.join(words),
        stopped=ExitCode.STOPPED.value,
    )
    return "\n".join(lines) + "\n" + launch


def submit_job(script: Path) -> str:
    """Hand a job's script to SLURM.

    Parameters
    ----------
    script : pathlib.Path
        As `job_script` wrote it.

    Returns
    -------
    str
        The job's number.

    Raises
    ------
    InputError
        If there is no SLURM, or it refuses.
    """
    try:
        answer = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise InputError("sbatch", "not found: there is no SLURM here", code=ExitCode.UNAVAILABLE) from error
    except subprocess.CalledProcessError as error:
        raise InputError(script, f"SLURM refused it: {error.stderr.strip()}", code=ExitCode.UNAVAILABLE) from error
    return answer.stdout.strip().split(";")[0]
