"""Plans, runs, kills, errors and damage in any order: a store that says it is whole holds what NumPy holds."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults import KILLED, counted, die, in_memory, raise_error
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from n2n_pipeline.errors import InputError
from n2n_pipeline.files import PARTIAL
from n2n_pipeline.records import is_complete, verify
from n2n_pipeline.store import open_store, write_movie

MOST_OPERATIONS = 90
DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut by half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


class InterruptedRuns(RuleBasedStateMachine):
    """One output and the array that it shall hold; `settings` stand for all that decides its bytes."""

    @initialize(
        seed=st.integers(0, 99),
        shape=st.tuples(st.integers(1, 11), st.integers(1, 9), st.integers(1, 9)),
        dtype=st.sampled_from(["uint8", "int16", "float32"]),
    )
    def plan(self, seed: int, shape: tuple[int, int, int], dtype: str) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("n2n_pipeline.layout.SMALL_SHARD_BYTES", 0)  # 4 frames to a shard
        self.folder = tempfile.TemporaryDirectory(dir=in_memory())
        self.path = Path(self.folder.name) / "movie.zarr"
        self.model = np.random.default_rng(seed).poisson(5, shape).astype(dtype)
        self.settings = {"kind": "movie", "seed": seed}

    def teardown(self) -> None:
        if hasattr(self, "path"):
            self.run_to_the_end()
            self.folder.cleanup()
            self.patch.undo()

    def write(self) -> None:
        write_movie(self.path, self.model, provenance=self.settings)

    @rule()
    def run_to_the_end(self) -> None:
        self.write()
        np.testing.assert_array_equal(open_store(self.path).read(slice(None)), self.model)
        assert verify(self.path)["ok"]

    @rule(at=st.integers(1, MOST_OPERATIONS))
    def run_and_be_killed(self, at: int) -> None:
        child = os.fork()
        if child == 0:
            with counted(at, die):
                self.write()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, KILLED)
        event("killed" if code else "too fast for the kill")

    @rule(at=st.integers(1, MOST_OPERATIONS), number=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def run_into_an_error(self, at: int, number: int) -> None:
        try:
            with counted(at, raise_error(number)):
                self.write()
        except InputError:
            event("stopped by an error")

    @precondition(lambda self: (self.path / "records/plan.json").exists())
    @rule()
    def run_with_other_settings(self) -> None:
        with pytest.raises(InputError, match="made with other settings"):
            write_movie(self.path, self.model, provenance=self.settings | {"seed": -1})

    @precondition(lambda self: self.shards())
    @rule(which=st.integers(0, 99), damage=st.sampled_from(list(DAMAGES)))
    def damage(self, which: int, damage: str) -> None:
        shards = self.shards()
        DAMAGES[damage](shards[which % len(shards)])

    @precondition(lambda self: self.shards())
    @rule()
    def leave_something_half_written(self) -> None:
        shard = self.shards()[0]
        shard.with_name(f"{shard.name}.123{PARTIAL}").write_bytes(b"half")

    def shards(self) -> list[Path]:
        found = (path for path in (self.path / "0/c").rglob("*") if path.is_file())
        return sorted(path for path in found if path.suffix != PARTIAL)

    @invariant()
    def what_says_that_it_is_whole_is_right(self) -> None:
        if hasattr(self, "path") and is_complete(self.path):
            np.testing.assert_array_equal(open_store(self.path).read(slice(None)), self.model)
            assert verify(self.path)["ok"]


TestInterruptedRuns = InterruptedRuns.TestCase
TestInterruptedRuns.settings = settings(
    max_examples=20, stateful_step_count=8, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestInterruptedRuns.pytestmark = [pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]
