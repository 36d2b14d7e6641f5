"""What a frame of even and odd averages costs, by window, against rolling means and against filling memory.

    python benchmarks/pairs.py                        # 512 x 1024 x 1024 counts of 8 bits, 3 rounds

Every method runs in a fresh process; other libraries in the virtual environment that ``peers.sh`` makes. They
take turns, so that a noisy machine is unfair to none; figures are medians over rounds, ratios medians of the ratio
within a round. Output goes block by block into a sink that discards it, but for the two that fill memory.

    n2n-pipeline   both halves, `n2n_pipeline.pairs` through `dask.array.store`, from counts in memory and, as
                   "stored", from a compressed store on disk
    fill           two fresh float32 arrays of the movie's shape filled with a number by NumPy
    xarray         `DataArray.rolling(t=W).mean()` with bottleneck, chunked as xarray advises: ONE average a frame
    dask           `map_overlap` of SciPy's `uniform_filter1d`: ONE average a frame
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from environments import add_option, python_of

import n2n_pipeline as n2n
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import MovieStore, References, open_store, write_movie

RESULTS = Path(__file__).parent / "results" / "pairs.json"
METHODS = {
    "n2n-pipeline interleaved": (8, 16, 64),
    "n2n-pipeline balanced": (8, 16, 64),
    "n2n-pipeline interleaved stored": (8, 16, 64),
    "n2n-pipeline balanced stored": (8, 16, 64),
    "fill": (0,),
    "xarray": (16,),
    "dask": (16,),
}


class InMemory(NamedTuple):
    """Counts that pass for an array of a store."""

    counts: np.ndarray
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the counts."""
        return self.counts.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``(t, y, x)``."""
        return self.counts.shape

    def __getitem__(self, region: tuple[slice, ...]) -> np.ndarray:
        return self.counts[region]


class Sink:
    """Takes blocks and keeps nothing."""

    def __setitem__(self, region: object, block: np.ndarray) -> None:
        pass


def discard(*arrays: da.Array) -> None:
    """Compute arrays a block at a time, and keep nothing."""
    da.store(arrays, [Sink() for _ in arrays], lock=False)


def make_counts(shape: tuple[int, int, int]) -> np.ndarray:
    """Draw counts of a few electrons per pixel."""
    rng = np.random.default_rng(0)
    frames = rng.poisson(2.0, (16, *shape[1:])).astype(np.uint8)
    return np.stack([np.roll(frames[t % 16], 7 * t, axis=0) for t in range(shape[0])])


def start_pipeline(method: str, window: int, movie: Path, frames: int) -> Callable[[], object]:
    """Return both halves of every window, into a sink."""
    stored = open_store(movie)
    split = "balanced" if "balanced" in method else "interleaved"
    if "stored" not in method:
        counts = np.asarray(stored.array[:frames])
        info = MovieInfo(counts.shape, counts.dtype, "memory")
        stored = MovieStore(Path("memory"), info, InMemory(counts, stored.array.chunks), References(), None, {})
    dataset = n2n.pairs(stored, window, split=split)
    halves = [dataset[half].data[:frames] for half in ("even", "odd")]
    return lambda: discard(*halves)


def start_fill(_method: str, _window: int, movie: Path, frames: int) -> Callable[[], object]:
    """Return the filling of two fresh arrays."""
    shape = (frames, *open_store(movie).info.shape[1:])
    return lambda: [np.full(shape, 1.5, np.float32) for _ in range(2)]


def start_xarray(_method: str, window: int, movie: Path, frames: int) -> Callable[[], object]:
    """Return rolling means by xarray and bottleneck, on spatial chunks as its manual advises."""
    import bottleneck  # noqa: F401  xarray uses it where it is installed
    import xarray as xr

    counts = np.asarray(open_store(movie).array[:frames])
    lazy = xr.DataArray(da.from_array(counts, chunks=(-1, 256, 256)), dims=("t", "y", "x"))
    with xr.set_options(use_bottleneck=True):
        mean = lazy.astype(np.float32).rolling(t=window, center=True, min_periods=1).mean()
    return lambda: discard(mean.data)


def start_dask(_method: str, window: int, movie: Path, frames: int) -> Callable[[], object]:
    """Return a running mean by SciPy over blocks that overlap in time."""
    from scipy.ndimage import uniform_filter1d

    counts = np.asarray(open_store(movie).array[:frames])
    lazy = da.from_array(counts, chunks=(128, 256, 256))

    def average(block: np.ndarray) -> np.ndarray:
        return uniform_filter1d(block, window, axis=0, output=np.float32, mode="nearest")

    mean = lazy.map_overlap(average, depth=(window // 2, 0, 0), boundary="nearest", dtype=np.float32)
    return lambda: discard(mean)


STARTS = {"n2n-pipeline": start_pipeline, "fill": start_fill, "xarray": start_xarray, "dask": start_dask}


def status_kib(name: str) -> int:
    """Read what Linux tells of this process's memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def measure(method: str, window: int, movie: Path, frames: int) -> dict[str, float]:
    """Time one method in this process; its compiled loops are compiled before."""
    start = STARTS[method.split()[0]]
    if method.startswith("n2n"):
        start(method, window, movie, max(2 * window, 16))()
    work = start(method, window, movie, frames)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    before = status_kib("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "ms_per_frame": 1e3 * wall / frames,
        "cpu_ms_per_frame": 1e3 * cpu / frames,
        "peak_mib_above_start": (status_kib("VmHWM") - before) / 1024,
    }


def largest_error(movie: Path) -> float:
    """Return the largest relative difference from a loop in float64, over splits and windows, on a part."""
    counts = np.asarray(open_store(movie).array[:96, :40, :56])
    info = MovieInfo(counts.shape, counts.dtype, "memory")
    store = MovieStore(Path("memory"), info, InMemory(counts, (4, 16, 32)), References(), None, {})
    worst = 0.0
    for split in ("interleaved", "balanced", "adjacent", "random"):
        for window in (8, 16, 64):
            dataset = n2n.pairs(store, window, split=split)
            for half in ("even", "odd"):
                members = dataset[f"{half}_frames"].values
                expected = np.stack([counts[frames].astype(np.float64).mean(axis=0) for frames in members])
                error = np.abs(dataset[half].values - expected) / np.maximum(expected, 1e-3)
                worst = max(worst, float(error.max()))
    return worst


def run_in_fresh_process(python: Path, method: str, window: int, movie: Path, frames: int) -> dict[str, float]:
    """Measure a method in a process of its own."""
    words = [python, __file__, "--child", method, "--window", window, "--movie", movie, "--frames", frames]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(list(map(str, words)), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(movie: Path, frames: int, rounds: int, python: Path) -> dict[str, list[dict[str, float]]]:
    """Let the methods take turns."""
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for method, windows in METHODS.items():
            for window in windows:
                name = f"{method} {window}".removesuffix(" 0")
                its = Path(sys.executable) if method.startswith(("n2n", "fill")) else python
                found.setdefault(name, []).append(run_in_fresh_process(its, method, window, movie, frames))
                print(f"round {number + 1}: {name:36} {found[name][-1]}", flush=True)
    return found


def sum_up(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return the ratios that matter, each the median over rounds."""

    def ratio(one: str, other: str) -> float:
        pairs = zip(found[one], found[other], strict=True)
        return round(statistics.median(a["ms_per_frame"] / b["ms_per_frame"] for a, b in pairs), 2)

    ratios = {}
    for split in ("interleaved", "balanced"):
        ours = f"n2n-pipeline {split}"
        for source in ("", " stored"):
            ratios[f"{split}{source}, W = 64 over W = 8"] = ratio(f"{ours}{source} 64", f"{ours}{source} 8")
        for peer in ("xarray 16", "dask 16"):
            ratios[f"{peer} over {split} 16"] = ratio(peer, f"{ours} 16")
        ratios[f"{split} 16 over fill"] = ratio(f"{ours} 16", "fill")
    return ratios


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    parser.add_argument("--child", metavar="METHOD", help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--movie", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        print(json.dumps(measure(told.child, told.window, told.movie, told.frames)))
        return
    with tempfile.TemporaryDirectory() as folder:
        movie = Path(folder, "movie.zarr")
        write_movie(movie, make_counts((told.frames, told.side, told.side)))
        found = compare(movie, told.frames, told.rounds, python_of("xarray", told.environments))
        half = run_in_fresh_process(
            Path(sys.executable), "n2n-pipeline balanced stored", 16, movie, told.frames // 2
        )
        error = largest_error(movie)
    result: dict[str, Any] = {"ratios": sum_up(found), "largest_relative_error": error}
    result["peak_mib_of_half_as_many_frames"] = half["peak_mib_above_start"]
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result |= {"shape": [told.frames, told.side, told.side], "rounds": found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
