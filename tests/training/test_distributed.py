"""Two processes train as one would, stop together, and continue together.

They are started by the package's own launcher, in the test's process: what struck them, and when, is decided by
the processes themselves, so that a loaded machine changes nothing.
"""

import csv
import signal
from pathlib import Path

import numpy as np
import pytest
from launching import launch

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
import os
import sys
from pathlib import Path
from n2n_pipeline.config import RunConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.records import catch_signals
from n2n_pipeline.training import train_model
from n2n_pipeline.training.loop import Trainer

store, output, config, struck, number, at = sys.argv[1:]
after_step = Trainer._after_step

def strike(trainer):
    if os.environ["RANK"] == struck and trainer.state.counters.step == int(at):
        os.kill(os.getpid(), int(number))
    after_step(trainer)

Trainer._after_step = strike
try:
    with catch_signals():
        train_model([Path(store)], Path(output), RunConfig.model_validate_json(config))
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(error.code)
"""


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movie")
    simulated = simulate_movie((16, 48, 48), dose=2.0, seed=1)
    write_movie(folder / "movie.zarr", simulated.counts, simulated.info)
    return folder / "movie.zarr"


def train_two(movie: Path, output: Path, struck: int = -1, number: int = 0, at: int = 0) -> int:
    """Train with two processes, one of which may be sent a signal at some step; return the launcher's code."""
    script = output.with_suffix(".py")
    script.write_text(CHILD)
    return launch(script, movie, output, CONFIG.model_dump_json(), struck, number, at, processes=2)


@pytest.fixture(scope="module")
def whole(movie, tmp_path_factory):
    """A training by two processes that nothing struck."""
    output = tmp_path_factory.mktemp("whole") / "model"
    assert train_two(movie, output) == ExitCode.DONE
    return output


def last_loss(output: Path) -> float:
    with (output / "metrics.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["validation_loss"])


def test_two_processes_train_as_one_with_the_same_batch(whole, movie, tmp_path):
    train_model([movie], tmp_path / "one", CONFIG)
    assert last_loss(whole) == pytest.approx(last_loss(tmp_path / "one"), abs=1e-4)
    assert load_model(whole).card.steps == 50


@pytest.mark.parametrize("struck", [0, 1])  # the one that writes, and the other
def test_a_killed_process_stops_both_and_a_rerun_continues(whole, movie, tmp_path, struck):
    assert train_two(movie, tmp_path / "killed", struck, signal.SIGKILL, at=25) == ExitCode.STOPPED
    assert max((tmp_path / "killed" / "resume").glob("*.json")).name == "step-000000020.json"
    assert train_two(movie, tmp_path / "killed") == ExitCode.DONE
    assert weights_digest(tmp_path / "killed") == weights_digest(whole)


def test_a_signal_to_one_process_stops_both_with_a_state_saved(movie, tmp_path, capfd):
    assert train_two(movie, tmp_path / "model", 1, signal.SIGTERM, at=25) == ExitCode.STOPPED
    assert "stopped; run the same command again to continue" in capfd.readouterr().err
    assert max((tmp_path / "model" / "resume").glob("*.json")).name == "step-000000025.json"


def test_a_batch_is_shared_out_completely_and_only_once():
    shares = [Ranks(rank, 4).share(12) for rank in range(4)]
    assert sorted(index for share in shares for index in share) == list(range(12))


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(InputError, match="6 patches cannot be shared evenly by 4 processes"):
        Ranks(0, 4).share(6)


def test_what_the_first_process_refuses_is_the_reason_that_comes_out(tmp_path, capfd):
    write_movie(tmp_path / "movie.zarr", np.full((16, 48, 48), 7, np.uint8))
    assert train_two(tmp_path / "movie.zarr", tmp_path / "model") == ExitCode.BAD_DATA
    assert "all pixels equal 7; nothing to learn" in capfd.readouterr().err
