"""Time and memory of storing a movie, against what users would do instead and against the codec's own limit.

    python benchmarks/ingest.py            # 1 GiB of counts, 3 rounds
    python benchmarks/ingest.py --memory   # peak memory for 1 and 4 GiB of 2048 x 4096 frames
    python benchmarks/ingest.py --limit    # what lies between the command and the codec's own limit
    python benchmarks/ingest.py --cores    # two cores against one, for LZW TIFF and EER
    python benchmarks/ingest.py --sizes    # compressed over raw bytes, for faint and brighter counts

Every method runs as a whole command in a fresh process, start-up included, on a movie that is not in the page
cache, and is timed until the output is on the disk (`os.sync`). The methods take turns, so that a noisy machine is
unfair to none; ratios are medians over rounds of the ratio within a round. CPU seconds say more on a busy one.

    n2n-pipeline   the command `n2n-pipeline ingest`, with its statistics, checks, digests and records
    dask           dask.array.from_array(memmap).to_zarr, chunks of 4 x 512 x 512, zarr's default codec
    rosettasciio   its lazy reader to Zarr, the same chunks: its best
    flat           the limit: the same codec on as many threads into one flat file, no Zarr, no checks, no digests
    flat-default   the same with Blosc's own choice of block, 32 KiB instead of 1 MiB
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from environments import add_option, python_of, with_package

RESULTS = Path(__file__).parent / "results"
CHUNKS = (4, 512, 512)
MEAN_COUNT = 10.0


def make_movie(path: Path, shape: tuple[int, int, int]) -> None:
    """Write an MRC movie of Poisson counts, int16, mean 10 (a few frames, shifted about)."""
    import mrcfile

    rng = np.random.default_rng(0)
    rows, cols = np.arange(shape[1])[:, None], np.arange(shape[2])
    scene = MEAN_COUNT + np.sin(cols / 50) * np.cos(rows / 70)
    frames = [rng.poisson(scene).astype(np.int16) for _ in range(8)]
    with mrcfile.new_mmap(path, shape=shape, mrc_mode=1, overwrite=True) as file:
        file.voxel_size = 1.1
        for t in range(shape[0]):
            file.data[t] = np.roll(frames[t % 8], (7 * t, 13 * t + t // 64), (0, 1))  # none twice


def store_with_dask(movie: Path, output: Path) -> None:
    """Do what a user would write first."""
    import dask.array as da
    import mrcfile

    with mrcfile.mmap(movie) as file:
        da.from_array(file.data, chunks=CHUNKS).to_zarr(str(output))


def store_with_rosettasciio(movie: Path, output: Path) -> None:
    """Do what HyperSpy's readers offer."""
    from rsciio.mrc import file_reader

    file_reader(str(movie), lazy=True, chunks=CHUNKS)[0]["data"].to_zarr(str(output))


def store_flat(movie: Path, output: Path, block_bytes: int = 1 << 20) -> None:
    """Compress on all cores into one file, in order; nothing else."""
    from numcodecs import Blosc

    codec = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE, blocksize=block_bytes)
    header = np.fromfile(movie, "<i4", 3)
    width, height, n_frames = (int(side) for side in header)

    def compress(start: int) -> list[bytes]:
        count = min(CHUNKS[0], n_frames - start)
        offset = 1024 + start * height * width * 2
        frames = np.fromfile(movie, "<i2", count * height * width, offset=offset).reshape(count, height, width)
        return [
            codec.encode(np.ascontiguousarray(frames[:, y : y + CHUNKS[1], x : x + CHUNKS[2]]))
            for y in range(0, height, CHUNKS[1])
            for x in range(0, width, CHUNKS[2])
        ]

    starts = range(0, n_frames, CHUNKS[0])
    threads = len(os.sched_getaffinity(0)) + 1  # as many as the command's
    running: deque[Future[list[bytes]]] = deque()
    with output.open("wb") as file, ThreadPoolExecutor(threads) as pool:
        for start in starts:
            running.append(pool.submit(compress, start))
            if len(running) > threads:
                file.writelines(running.popleft().result())
        for future in running:
            file.writelines(future.result())


def store_flat_default(movie: Path, output: Path) -> None:
    """Compress with Blosc's own choice of block."""
    store_flat(movie, output, 0)


OURS = {
    "n2n-pipeline": "",
    "no statistics": "from n2n_pipeline.gathering import Statistics as S; S.accumulate = lambda *_, **__: None; ",
}
"""Ways to start the command, and what is left out: statistics of pixels over time, and defects found by them."""

METHODS: dict[str, Callable[[Path, Path], None] | None] = {
    "n2n-pipeline": None,
    "dask": store_with_dask,
    "rosettasciio": store_with_rosettasciio,
    "flat": store_flat,
    "flat-default": store_flat_default,
}


def command(method: str, movie: Path, output: Path, python: Path) -> list[str]:
    """Return the words that start one method in a fresh process."""
    if method in OURS:
        start = f"{OURS[method]}from n2n_pipeline.cli import main; main()"
        return [str(python), "-c", start, "ingest", str(movie), str(output), "--quiet"]
    return [str(python), __file__, "--run", method, str(movie), str(output)]


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_anonymous(pid: int, ended: threading.Event) -> float:
    """Watch a process until it ends, and return the most anonymous memory it had, in MiB."""
    peak = 0
    while not ended.wait(0.02):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            break
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
    return peak / 1024


def run(
    method: str,
    movie: Path,
    folder: Path,
    n_cores: int | None = None,
    words: Sequence[str] = (),
    python: Path = Path(sys.executable),
) -> dict[str, float]:
    """Time one whole command, from a cold source to the disk."""
    cores = sorted(os.sched_getaffinity(0))[:n_cores]
    output = folder / ("output.flat" if method.startswith("flat") else "output.zarr")
    forget(movie)
    os.sync()
    ended = threading.Event()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command(method, movie, output, python), *words],
        stdout=subprocess.DEVNULL,
        env=with_package(),
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    with ThreadPoolExecutor(1) as pool:
        watch = pool.submit(peak_anonymous, process.pid, ended)
        if process.wait():
            raise RuntimeError(f"{method} failed")
        ended.set()
    os.sync()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    result = {
        "seconds": round(seconds, 2),
        "mb_per_s": round(movie.stat().st_size / 1e6 / seconds, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_anonymous_mib": round(watch.result(), 1),
        "output_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "files": len(files),
    }
    shutil.rmtree(output) if output.is_dir() else output.unlink()
    return result


def ratio(rounds: list[dict[str, dict[str, float]]], key: str, method: str, other: str) -> float:
    """Return the median over rounds of one figure over another method's in the same round."""
    return round(statistics.median(turn[method][key] / turn[other][key] for turn in rounds), 3)


def compare_speed(folder: Path, n_rounds: int, environments: Path) -> dict[str, object]:
    """Compare all methods on 1 GiB of counts."""
    pythons = {"rosettasciio": python_of("rosettasciio", environments)}
    movie = folder / "movie.mrc"
    make_movie(movie, (128, 2048, 2048))
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(n_rounds):
        rounds.append({})
        for method in METHODS:
            rounds[-1][method] = run(method, movie, folder, python=pythons.get(method, Path(sys.executable)))
            print(method, rounds[-1][method], flush=True)
    ours = "n2n-pipeline"
    speed = {f"speed_over_{other}": ratio(rounds, "mb_per_s", ours, other) for other in METHODS if other != ours}
    cpu = {f"cpu_over_{other}": ratio(rounds, "cpu_s", ours, other) for other in METHODS if other != ours}
    size = {
        "bytes_over_default_codec": ratio(rounds, "output_mb", ours, "dask"),
        "bytes_over_raw": round(rounds[0][ours]["output_mb"] * 1e6 / movie.stat().st_size, 3),
    }
    return {"movie": "128 x 2048 x 2048 int16, mean 10", **speed, **cpu, **size, "rounds": rounds}


def compare_limit(folder: Path, n_rounds: int) -> dict[str, object]:
    """Measure what the command spends beyond the codec: on its start, on statistics and defects, on all else."""
    movie, short = folder / "movie.mrc", folder / "short.mrc"
    make_movie(movie, (128, 2048, 2048))
    make_movie(short, (2, 256, 256))
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(n_rounds):
        rounds.append({method: run(method, movie, folder) for method in (*OURS, "flat")})
        rounds[-1]["start"] = run("n2n-pipeline", short, folder)
        print(
            {method: (figures["seconds"], figures["cpu_s"]) for method, figures in rounds[-1].items()}, flush=True
        )
    result: dict[str, object] = {"movie": "128 x 2048 x 2048 int16, mean 10; start: two frames of 256 x 256"}
    for method in (*OURS, "start"):
        for key in ("seconds", "cpu_s"):
            result[f"{key}: {method} over flat"] = ratio(rounds, key, method, "flat")
    return {**result, "rounds": rounds}


def compare_memory(folder: Path) -> dict[str, object]:
    """Measure peak memory for two lengths of movie."""
    peaks = {}
    for gigabytes in (1, 4):
        movie = folder / "movie.mrc"
        make_movie(movie, (64 * gigabytes, 2048, 4096))
        peaks[f"{gigabytes}_gib"] = run("n2n-pipeline", movie, folder)
        print(gigabytes, "GiB", peaks[f"{gigabytes}_gib"], flush=True)
        movie.unlink()
    figures = [peak["peak_anonymous_mib"] for peak in peaks.values()]
    return {"frames": "2048 x 4096 int16", "grows_by": round(figures[1] / figures[0] - 1, 3), **peaks}


def make_lzw(path: Path) -> None:
    """Write an LZW TIFF of 1024 frames of 2048 x 2048 counts, uint8, mean 0.8."""
    import tifffile

    rng = np.random.default_rng(0)
    frames = [rng.poisson(0.8, (2048, 2048)).astype(np.uint8) for _ in range(4)]
    with tifffile.TiffWriter(path) as file:
        for t in range(1024):
            file.write(np.roll(frames[t % 4], 13 * t, 1), compression="lzw", contiguous=False)


def make_eer(path: Path) -> None:
    """Write an EER movie of 2400 camera frames of 4096 x 4096 pixels, an electron in every 50."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sources"))
    from camera_files import write_eer

    shape, rng = (4096, 4096), np.random.default_rng(0)
    frames = []
    for _ in range(16):  # so that hardly two sums of 40 are equal
        y, x = np.nonzero(rng.random(shape) < 0.02)
        frames.append(np.stack([y, x, *rng.integers(0, 4, (2, y.size))], axis=1))
    write_eer(path, [frames[k] for k in rng.integers(0, 16, 2400)], shape)


def compare_cores(folder: Path, n_rounds: int) -> dict[str, object]:
    """Measure what a second core brings where decoding is the work."""
    cases = {
        "lzw": ("movie.tif", make_lzw, []),
        "eer": ("movie.eer", make_eer, ["--group", "40"]),
    }
    result: dict[str, object] = {}
    for name, (file, make, words) in cases.items():
        movie = folder / file
        make(movie)
        rounds = []
        for _ in range(n_rounds):
            timed = {n: run("n2n-pipeline", movie, folder, n, words) for n in (1, 2)}
            rounds.append({str(n): figures for n, figures in timed.items()})
            print(name, rounds[-1], flush=True)
        what = (make.__doc__ or "").removeprefix("Write an ").rstrip(".")
        result[name] = {"movie": what, "speed_2_over_1": ratio(rounds, "mb_per_s", "2", "1"), "rounds": rounds}
        movie.unlink()
    return result


def compare_sizes(folder: Path) -> dict[str, object]:
    """Measure compressed over raw bytes of Poisson counts."""
    import tifffile

    cases = {"uint8_mean_0.8": ("u1", 0.8), "int16_mean_10": ("i2", 10.0), "int16_mean_0.8": ("i2", 0.8)}
    result: dict[str, object] = {}
    for name, (dtype, mean) in cases.items():
        movie = folder / "movie.tif"
        counts = np.random.default_rng(0).poisson(mean, (16, 2048, 2048)).astype(dtype)
        tifffile.imwrite(movie, counts, photometric="minisblack")
        figures = run("n2n-pipeline", movie, folder)
        result[name] = round(figures["output_mb"] * 1e6 / counts.nbytes, 3)
        print(name, result[name], flush=True)
    return result


def main() -> None:
    """Run what was asked for, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", nargs=3, metavar=("METHOD", "MOVIE", "OUTPUT"), help="one method, in this process"
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--limit", action="store_true")
    parser.add_argument("--cores", action="store_true")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for movies and stores, on the disk to be measured")
    add_option(parser)
    chosen = parser.parse_args()
    if chosen.run:
        method = METHODS[chosen.run[0]]
        if method is not None:
            method(Path(chosen.run[1]), Path(chosen.run[2]))
        return
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as scratch:
        folder = Path(scratch)
        if chosen.memory:
            name, result = "ingest_memory", compare_memory(folder)
        elif chosen.limit:
            name, result = "ingest_limit", compare_limit(folder, chosen.rounds)
        elif chosen.cores:
            name, result = "ingest_cores", compare_cores(folder, chosen.rounds)
        elif chosen.sizes:
            name, result = "ingest_sizes", compare_sizes(folder)
        else:
            name, result = "ingest_speed", compare_speed(folder, chosen.rounds, chosen.environments)
    machine = {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
