"""Two processes train as one would, stop together, and continue together."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from n2n_pipeline.checkpoint import load_model, weights_digest
from n2n_pipeline.config import NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.store import write_movie
from n2n_pipeline.training import train_model
from n2n_pipeline.training.distributed import Ranks

TRAIN = TrainConfig(
    window=8, steps=50, batch=4, patch_px=16, validate_every=25, save_every=10, precision="float32"
)
CONFIG = RunConfig(network=NetworkConfig(width=6, depth=2), train=TRAIN, threads=1, device="cpu")

CHILD = """
import sys
from pathlib import Path
from n2n_pipeline.config import RunConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.records import catch_signals
from n2n_pipeline.training import train_model
try:
    with catch_signals():
        train_model([Path(sys.argv[1])], Path(sys.argv[2]), RunConfig.model_validate_json(sys.argv[3]))
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(error.code)
"""


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movie")
    (folder / "child.py").write_text(CHILD)
    simulated = simulate_movie((16, 48, 48), dose=2.0, seed=1)
    write_movie(folder / "movie.zarr", simulated.counts, simulated.info)
    return folder / "movie.zarr"


def start_two(
    movie: Path, output: Path, config: RunConfig = CONFIG, launcher: str = "torch.distributed.run"
) -> subprocess.Popen:
    words = [sys.executable, "-m", launcher, "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    words += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    words += [str(movie.parent / "child.py"), str(movie), str(output), config.model_dump_json()]
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONFAULTHANDLER": "1",
    }
    with output.with_suffix(".err").open("a") as errors:
        return subprocess.Popen(words, env=environment, stderr=errors)


def wait_for(path: Path, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def last_loss(output: Path) -> float:
    with (output / "metrics.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["validation_loss"])


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batch(movie, tmp_path):
    train_model([movie], tmp_path / "one", CONFIG)
    child = start_two(movie, tmp_path / "two")
    assert child.wait(240) == 0
    assert last_loss(tmp_path / "two") == pytest.approx(last_loss(tmp_path / "one"), abs=1e-4)
    assert load_model(tmp_path / "two").card.steps == 50


@pytest.mark.slow
def test_a_killed_process_stops_both_and_a_rerun_continues(movie, tmp_path):
    whole = start_two(movie, tmp_path / "whole")
    assert whole.wait(240) == 0
    long = CONFIG.model_copy(update={"train": TRAIN.model_copy(update={"save_every": 1})})
    child = start_two(movie, tmp_path / "killed", long)
    wait_for(tmp_path / "killed" / "resume" / "step-000000010.json", child)
    workers = [
        p for p in psutil.Process(child.pid).children(recursive=True) if "child.py" in " ".join(p.cmdline())
    ]
    workers[-1].send_signal(signal.SIGKILL)
    assert child.wait(120) != 0
    again = start_two(movie, tmp_path / "killed", long)
    assert again.wait(240) == 0
    assert weights_digest(tmp_path / "killed") == weights_digest(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_state_saved(movie, tmp_path):
    child = start_two(
        movie, tmp_path / "model", CONFIG.model_copy(update={"train": TRAIN.model_copy(update={"steps": 3000})})
    )
    wait_for(tmp_path / "model" / "resume" / "step-000000010.json", child)
    workers = [
        p for p in psutil.Process(child.pid).children(recursive=True) if "child.py" in " ".join(p.cmdline())
    ]
    workers[-1].send_signal(signal.SIGTERM)
    assert child.wait(120) != 0
    assert "stopped; run the same command again to continue" in (tmp_path / "model.err").read_text()


def test_a_batch_is_shared_out_completely_and_only_once():
    shares = [Ranks(rank, 4).share(12) for rank in range(4)]
    assert sorted(index for share in shares for index in share) == list(range(12))


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(InputError, match="6 patches cannot be shared evenly by 4 processes"):
        Ranks(0, 4).share(6)


@pytest.mark.slow
def test_what_the_first_process_refuses_is_the_reason_that_comes_out(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    write_movie(tmp_path / "movie.zarr", np.full((16, 48, 48), 7, np.uint8))
    child = start_two(tmp_path / "movie.zarr", tmp_path / "model", launcher="n2n_pipeline.training.torchrun")
    assert child.wait(120) == ExitCode.BAD_DATA
    assert "all pixels equal 7; nothing to learn" in (tmp_path / "model.err").read_text()
