"""A training as a SLURM job: the script's text, and a private SLURM of two nodes on this host that runs it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launching import launch
from private_slurm import ask, poll

from n2n_pipeline.checkpoint import load_model, weights_digest
from n2n_pipeline.cluster import job_script
from n2n_pipeline.config import SlurmConfig
from n2n_pipeline.errors import ExitCode
from n2n_pipeline.records import is_complete
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.store import write_movie

STEPS = 150
SETTINGS = """
partition: test
nodes: 2
cores: 1
memory_gb: 2
time: "00:20:00"
interface: lo
setup: ["export OMP_NUM_THREADS=1"]
"""


def test_names_cannot_break_out_of_the_script(tmp_path):
    words = ["train", "a$(touch x).zarr", "-o", "m;touch y", "--set", "train.init=`touch z`"]
    text = job_script(SlurmConfig(), words, "m;touch y\n#SBATCH --uid=0")
    assert "'a$(touch x).zarr'" in text
    assert "'m;touch y'" in text
    assert "'train.init=`touch z`'" in text
    assert "#SBATCH --job-name=m_touch_y__SBATCH_--uid_0\n" in text


def test_the_script_is_valid_shell():
    text = job_script(SlurmConfig(interface="ib0", setup=("module load cuda",)), ["train", "a b"], "m")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_the_script_starts_what_the_settings_say():
    asked = SlurmConfig(nodes=3, processes_per_node=4, directives=("--gres=gpu:4",))
    text = job_script(asked, ["train", "m.zarr", "-o", "m"], "m")
    assert "#SBATCH --nodes=3\n" in text
    assert "--nproc-per-node=4" in text
    assert "#SBATCH --gres=gpu:4\n" in text
    assert "#SBATCH --signal=TERM@120\n" in text
    assert "#SBATCH --requeue\n" in text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(65)", 65),
        ("raise SystemExit(75)", 75),
        ("import os; os.kill(os.getpid(), 9)", ExitCode.STOPPED),  # killed: run it again
    ],
)
def test_the_launcher_ends_with_the_code_of_its_process(tmp_path, code, expected):
    script = tmp_path / "child.py"
    script.write_text(code)
    assert launch(script) == expected


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    simulated = simulate_movie((16, 48, 48), dose=2.0, seed=1)
    write_movie(folder / "movie.zarr", simulated.counts.astype(np.uint8), simulated.info)
    (folder / "slurm.yaml").write_text(SETTINGS)
    return folder


def submit(slurm: dict[str, str], folder: Path, model: str) -> str:
    words = [
        sys.executable,
        "-m",
        "n2n_pipeline",
        "train",
        "movie.zarr",
        "-o",
        model,
        "--window",
        "8",
        "--device",
        "cpu",
        "--slurm",
        "slurm.yaml",
    ]
    words += ["--set", "network={width: 6, depth: 2}", "--threads", "1"]
    words += ["--set", f"train={{steps: {STEPS}, batch: 4, patch_px: 16, save_every: 1, validate_every: {STEPS}}}"]
    done = subprocess.run(words, cwd=folder, env=slurm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def wait_until(happened: Callable[[], bool], folder: Path) -> None:
    if not poll(happened, 900):
        pytest.fail("\n".join(log.read_text() for log in folder.glob("*.log")))


def start_again_at_once(slurm: dict[str, str], job: str, folder: Path) -> None:
    """Let a job that requeued itself start; SLURM would hold it for two minutes."""

    def waits() -> bool:
        told = ask(slurm, "scontrol", "show", "job", job)
        return "Restarts=1" in told and "JobState=PENDING" in told

    wait_until(waits, folder)
    stopped = int(time.time())
    # slurmd counts whole seconds: a job that starts in the one in which it was stopped is stopped again
    wait_until(lambda: int(time.time()) > stopped + 1, folder)
    ask(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.mark.slurm
@pytest.mark.timeout(3600)
def test_a_job_on_two_nodes_trains_and_one_that_is_signalled_requeues_to_the_same_result(slurm, workplace):
    submit(slurm, workplace, "whole")
    wait_until(lambda: is_complete(workplace / "whole"), workplace)
    assert load_model(workplace / "whole").card.steps == STEPS

    job = submit(slurm, workplace, "signalled")
    states = workplace / "signalled" / "resume"
    wait_until(lambda: any(state.stem > f"step-{0:09d}" for state in states.glob("step-*.json")), workplace)
    ask(slurm, "scancel", "--signal=TERM", job)
    start_again_at_once(slurm, job, workplace)
    wait_until(lambda: is_complete(workplace / "signalled"), workplace)
    assert weights_digest(workplace / "signalled") == weights_digest(workplace / "whole")
