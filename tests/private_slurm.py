"""A private SLURM of two nodes on this host, for the tests that submit jobs to one."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

CONFIGURATION = """ClusterName=n2ntest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/sock
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
FirstJobId={first_job}
JobRequeue=1
ReturnToService=2
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def configure(root: Path, environment: dict[str, str]) -> dict[str, str]:
    """Write what SLURM and munge need; return the environment in which commands find it."""
    for folder in ("munge", "state", "spool.n1", "spool.n2"):
        (root / folder).mkdir()
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    port, n1, n2 = free_ports(3)
    first = random.SystemRandom().randrange(
        1, 10_000
    )  # a job's number decides the port on which its processes meet
    text = CONFIGURATION.format(host=host, root=root, port=port, n1=n1, n2=n2, first_job=first)
    (root / "slurm.conf").write_text(text)
    return {**environment, "SLURM_CONF": str(root / "slurm.conf"), "PATH": f"{environment['PATH']}:/usr/sbin"}


def start_daemons(root: Path, environment: dict[str, str]) -> list[subprocess.Popen]:
    munge = root / "munge"
    commands = [
        [
            *("munged", "--foreground", f"--key-file={munge}/key", f"--socket={munge}/sock"),
            *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        ],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    running = []
    for command in commands:
        with (root / f"{command[0]}.out").open("a") as output:
            running.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
        if command[0] == "munged":
            poll(lambda: (munge / "sock").exists(), 60)
    return running


@pytest.fixture(scope="module")
def slurm(environment):
    """The environment of a private SLURM; ended with the module, by the processes that were started."""
    if os.geteuid() != 0:
        pytest.skip("a private SLURM is started as root")
    root = Path(tempfile.mkdtemp(prefix="n2n-slurm-", dir="/tmp"))
    root.chmod(0o755)
    inside = configure(root, environment)
    daemons = start_daemons(root, inside)
    try:
        if not poll(lambda: ask(inside, "sinfo", "-h", "-o", "%D %T").split() == ["2", "idle"], 120):
            pytest.skip(f"the private SLURM did not start: {(root / 'slurmctld.log').read_text()[-500:]}")
        yield inside
    finally:
        if ask(inside, "squeue", "-h"):  # without its daemons, what a job started would stay behind
            ask(inside, "scancel", f"--user={os.geteuid()}")
            poll(lambda: not ask(inside, "squeue", "-h"), 60)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(20)
        shutil.rmtree(root, ignore_errors=True)


def poll(happened: Callable[[], bool], seconds: float) -> bool:
    """Look again and again until something happened; tell whether it did within so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def ask(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stdout
