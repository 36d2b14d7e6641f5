"""Whether it is still as fast, against a limit measured in the same minute, as when the ratios were recorded.

    python benchmarks/check.py --quick          # four ratios, a minute or two, for every change
    python benchmarks/check.py                  # runs tiles, training, pairs and ingest again: half an hour
    python benchmarks/check.py --quick --record # keeps the ratios as those to be compared with

A ratio is ours over another's in the same run, larger is better, so that the machine's speed drops out; both
sides take turns, and the best of each counts, for a busy machine only ever slows. It fails on a loss over 20 %,
where a second run shows it, too; a quick ratio on one over 40 %, after it was measured three times. What is
recorded holds for one kind of machine: elsewhere, record first, or run the scripts and keep what they write.
(Pairs were 33 and 10 times as fast as filling memory on two hosts, one with fresh memory at half the price.)

    averages    filling two arrays over reading both halves of every window of 16, balanced, from memory
    ingest      Dask's `to_zarr` over `n2n_pipeline.ingest`, the same movie in memory and on disk
    denoise     `denoise` over the bare network on as many pixels, megapixels per CPU second
    train       `train` over the same network on numbers that are there, images per CPU second
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from n2n_pipeline.files import read_json
from n2n_pipeline.progress import set_quiet

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "check.json"
LOSS = 0.2
QUICK_LOSS = 0.4  # what takes seconds scatters by a tenth, and by more where others use the machine
ATTEMPTS = 3
TURNS = 3
SCRIPTS = {
    "tiles_paper_cpu.json": ["tiles.py"],
    "training_paper_cpu.json": ["training.py"],
    "pairs.json": ["pairs.py"],
    "ingest_speed.json": ["ingest.py"],
}


def least_seconds(works: list[Callable[[], object]], turns: int = TURNS) -> list[float]:
    """Let some works take turns; return the least seconds of each."""
    return [min(each) for each in take_turns(works, turns)]


def take_turns(works: list[Callable[[], object]], turns: int) -> list[list[float]]:
    """Let some works take turns; return the seconds of each turn of each."""
    seconds = [[0.0] * turns for _ in works]
    for turn in range(turns):
        for which, work in enumerate(works):
            before = time.perf_counter()
            work()
            seconds[which][turn] = time.perf_counter() - before
    return seconds


def averages() -> float:
    """Compare both halves of every window with filling memory."""
    from pairs import make_counts, start_fill, start_pipeline

    from n2n_pipeline.store import write_movie

    with tempfile.TemporaryDirectory() as folder:
        movie = Path(folder) / "movie.zarr"
        write_movie(movie, make_counts((64, 512, 512)))
        ours, fill = start_pipeline("n2n-pipeline balanced", 16, movie, 64), start_fill("fill", 0, movie, 64)
        ours()
        spent, limit = least_seconds([ours, fill])
    return limit / spent


def ingest() -> float:
    """Compare storing a movie with Dask's way."""
    import shutil

    from ingest import make_movie, store_with_dask

    import n2n_pipeline as n2n

    with tempfile.TemporaryDirectory() as folder:
        movie = Path(folder) / "movie.mrc"
        make_movie(movie, (48, 1024, 1024))

        def fresh(store: Callable[[Path], object]) -> Callable[[], object]:
            def work() -> None:
                output = Path(folder) / "output.zarr"
                store(output)
                shutil.rmtree(output)

            return work

        works = [
            fresh(lambda output: n2n.ingest(movie, output)),
            fresh(lambda output: store_with_dask(movie, output)),
        ]
        works[0]()
        ours, theirs = least_seconds(works)
    return theirs / ours


def denoise() -> float:
    """Compare denoising with the bare network."""
    from tiles import run_in_fresh_process

    key = "mpx_per_cpu_second"
    found: dict[str, list[float]] = {"n2n-pipeline": [], "limit": []}
    for _ in range(2):
        for method, rates in found.items():
            rates.append(run_in_fresh_process(Path(sys.executable), method, "default", 1024)[key])
    return max(found["n2n-pipeline"]) / max(found["limit"])


def train() -> float:
    """Compare training with the same network on numbers that are there."""
    from training import NETWORKS, prepare, run_in_fresh_process

    from n2n_pipeline.config import RunConfig, TrainConfig

    config = RunConfig(network=NETWORKS["default"], train=TrainConfig(window=32, steps=12, batch=8, patch_px=128))
    found: dict[str, list[float]] = {"n2n-pipeline": [], "synthetic": []}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), config.train.patch_px)
        for _ in range(2):
            for method, rates in found.items():
                rates.append(run_in_fresh_process(method, Path(folder), config)["images_per_cpu_second"])
    return max(found["n2n-pipeline"]) / max(found["synthetic"])


QUICK = {"averages": averages, "ingest": ingest, "denoise": denoise, "train": train}


def compare(measure: Callable[[], float], recorded: float | None) -> float:
    """Measure a ratio, again where it seems to have lost; return the best."""
    best = measure()
    for _ in range(ATTEMPTS - 1):
        if recorded is None or best >= (1 - QUICK_LOSS) * recorded:
            break
        best = max(best, measure())
    return best


def check_quick(names: list[str], record: bool) -> list[str]:
    """Compare the quick ratios with those recorded; return what has lost."""
    kept = read_json(FILE) or {"ratios": {}}
    recorded: dict[str, float] = kept["ratios"]
    found = {name: round(compare(QUICK[name], None if record else recorded.get(name)), 3) for name in names}
    for name, ratio in found.items():
        print(f"{name:10} {ratio:7.3f}   recorded {recorded.get(name, float('nan')):7.3f}", flush=True)
    if record:
        FILE.write_text(json.dumps({"ratios": recorded | found}, indent=1) + "\n")
        return []
    return lost(found, recorded, QUICK_LOSS)


def lost(found: dict[str, float], recorded: dict[str, float], most: float = LOSS) -> list[str]:
    """Return a line for each ratio that has lost more than so much.

    Examples
    --------
    >>> lost({"a": 0.9, "b": 0.79, "new": 1.0}, {"a": 1.0, "b": 1.0})
    ['b: 0.79, recorded 1.0: a loss of 21 %']
    """
    return [
        f"{name}: {ratio:g}, recorded {recorded[name]}: a loss of {1 - ratio / recorded[name]:.0%}".replace(
            "%", " %"
        )
        for name, ratio in found.items()
        if name in recorded and ratio < (1 - most) * recorded[name]
    ]


def check_scripts() -> list[str]:
    """Run the scripts again, twice where a ratio seems lost; compare with the committed ones, which stay."""
    losses = []
    for name, (script, *words) in SCRIPTS.items():
        command = [sys.executable, str(Path(__file__).parent / script), *words]
        recorded = ratios_of(json.loads((RESULTS / name).read_text()))
        best = fresh_ratios(command, RESULTS / name)
        if lost(best, recorded):
            best = {key: max(ratio, best[key]) for key, ratio in fresh_ratios(command, RESULTS / name).items()}
        losses += [f"{name}: {line}" for line in lost(best, recorded)]
    return losses


def fresh_ratios(command: list[str], file: Path) -> dict[str, float]:
    """Run a script; return the ratios of the results that it writes, and put the file back as it was."""
    committed = file.read_text()
    try:
        subprocess.run(command, check=True)
        return ratios_of(json.loads(file.read_text()))
    finally:
        file.write_text(committed)


def ratios_of(result: dict[str, Any]) -> dict[str, float]:
    """Return the ratios of a script's results, larger is better.

    Examples
    --------
    >>> ratios_of({"ratios": {"speed / limit": 0.9}, "rounds": []}), ratios_of({"speed_over_dask": 4.0})
    ({'speed / limit': 0.9}, {'speed_over_dask': 4.0})
    """
    ratios = result.get("ratios") or {key: value for key, value in result.items() if key.startswith("speed_over")}
    costs = [
        key for key in ratios if "over balanced" not in key and "over interleaved" not in key and " over " in key
    ]
    return {key: 1 / max(value, 1e-9) if key in costs else value for key, value in ratios.items()}


def main() -> None:
    """Compare, and fail on a loss."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=QUICK, default=list(QUICK), help="of the quick ones")
    parser.add_argument("--record", action="store_true")
    told = parser.parse_args()
    set_quiet(True)
    losses = check_quick(told.only, told.record) if told.quick else check_scripts()
    print("\n".join(losses) or "no ratio has lost too much")
    sys.exit(bool(losses))


if __name__ == "__main__":
    main()
