"""What an averaging window costs and gives, and whether the sweep names the one that a truth would.

    python benchmarks/windows.py [FOLDER...]          # some four minutes a movie, most of them training

A folder holds ``movie.mrc``, ``truth.mrc``, ``meta.json`` and, where the camera needs them, ``dark.mrc`` and
``gain.mrc``. Without one, the folders in the one named by ``N2N_DATA`` are taken. The package is given movie and
references alone; each movie is stored and aligned, and every window scored with two estimators:

    linear    mean of the window under the Gaussian filter whose width the sweep chose for that window
    network   trained once over all these windows (`train --window 4,8,…`), on seven frames of eight, and scored by
              the sweep on the eighth; used as `denoise` uses it

by   N2N loss   mean squared difference of the estimate from even frames and the odd frames' average
     Q          the sweep's risk, on held-out frames, without a truth
     SNR        against the truth, in dB, after the best linear fit, a border left out
     ms/frame   time to read and average both halves of a frame's window

What the sweep loses is the SNR of the best window less that of the one it named; with "filter too", the best is
picked over all filters as well. "stable" is the SNR of the network's frames with drift taken out, less that of the
frames as the camera saw them. Figures of movies that are not measured this time stay in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from prepared import place
from scipy import ndimage

import n2n_pipeline as n2n
from n2n_pipeline.averages import Pair, read_pairs
from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.config import IngestConfig, RunConfig, SweepConfig, TrainConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.geometry import spread_evenly
from n2n_pipeline.metrics.quality import BORDER_PX, fit_to_truth
from n2n_pipeline.plots import COLOURS
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.risks import FILTERS_PX
from n2n_pipeline.shifted import stable_origin, whole_shifts
from n2n_pipeline.store import open_store
from n2n_pipeline.sweep import default_windows, sweep_windows

RESULTS = Path(__file__).parent / "results"
SCORED_FRAMES = 12
WHOLE = (slice(None), slice(None))

Images = np.ndarray
Estimator = Callable[[Pair], tuple[Images, Images]]
"""Of the even and of the odd half."""


class Score(NamedTuple):
    """Means over the scored frames."""

    n2n_loss: float
    snr_db: float


def blur(sigma: float) -> Estimator:
    """Return a Gaussian filter of both halves."""

    def estimate(pair: Pair) -> tuple[Images, Images]:
        if not sigma:
            return pair.even, pair.odd
        even, odd = (ndimage.gaussian_filter(half, (0, sigma, sigma), mode="mirror") for half in pair[:2])
        return even, odd

    return estimate


def denoise(model: Path) -> Estimator:
    """Return a network."""
    denoiser = load_model(model)
    return lambda pair: (denoiser(pair.even, pair.even_count), denoiser(pair.odd, pair.odd_count))


def snr_db(estimate: Images, truth: Images) -> float:
    """Score one frame."""
    inside = (slice(BORDER_PX, -BORDER_PX),) * 2
    wanted = truth[inside].astype(np.float64)
    return float(10 * np.log10(wanted.var() / np.mean((wanted - fit_to_truth(estimate[inside], wanted)) ** 2)))


def score(movie: CorrectedMovie, truth: Images, window: int, estimators: list[Estimator]) -> list[Score]:
    """Score some frames' estimates from windows of one length."""
    found = []
    for t in spread_evenly(len(truth), SCORED_FRAMES):
        pair = read_pairs(movie, range(t, t + 1), WHOLE, window)
        halves = [estimate(pair) for estimate in estimators]
        loss = [np.mean((even - pair.odd) ** 2, dtype=np.float64) for even, _ in halves]
        snr = [snr_db(place(movie, t, window, (even[0] + odd[0]) / 2), truth[t]) for even, odd in halves]
        found.append([loss, snr])
    return [Score(float(loss), float(snr)) for loss, snr in np.mean(found, axis=0).T]


def stable_less_camera(movie: CorrectedMovie, truth: Images, window: int, estimate: Estimator) -> float:
    """Return how many dB better frames are with drift taken out, on the pixels that the camera saw at the time."""
    shifts = whole_shifts(movie)
    difference = []
    for t in spread_evenly(len(truth), SCORED_FRAMES):
        moved = (shifts[t] - stable_origin(shifts)).tolist()
        inside = tuple(
            slice(max(by, 0), size + min(by, 0)) for by, size in zip(moved, truth.shape[1:], strict=True)
        )
        scores = []
        for frame in ("stable", "camera"):
            even, odd = estimate(read_pairs(movie, range(t, t + 1), WHOLE, window, frame_of_reference=frame))
            image = place(movie, t, window, (even[0] + odd[0]) / 2)
            image = np.roll(image, moved, (0, 1)) if frame == "stable" else image
            scores.append(snr_db(image[inside], truth[t][inside]))
        difference.append(scores[0] - scores[1])
    return float(np.mean(difference))


def time_pairs(movie: CorrectedMovie, window: int) -> float:
    """Return the milliseconds that a frame's pair takes, of a run of frames."""
    n_frames = movie.store.info.shape[0]
    read_pairs(movie, range(2), WHOLE, window)  # compiles what is not
    start = time.perf_counter()
    read_pairs(movie, range(n_frames), WHOLE, window)
    return 1e3 * (time.perf_counter() - start) / n_frames


def compare(store: Path, truth: Images, windows: tuple[int, ...], steps: int, model: Path) -> dict[str, Any]:
    """Score every window of a movie both ways, and see what the sweep names."""
    movie = CorrectedMovie(open_store(store))
    linear = sweep_windows(store, SweepConfig(windows=windows))
    train = TrainConfig(window=windows, steps=steps)
    start = time.perf_counter()
    n2n.train([store], model, RunConfig(train=train))
    seconds = time.perf_counter() - start
    network = sweep_windows(store, SweepConfig(windows=windows), model=model)
    estimators = [*(blur(sigma) for sigma in FILTERS_PX), denoise(model)]
    rows = []
    for window, by_filter, by_network in zip(windows, linear["scores"], network["scores"], strict=True):
        scores = score(movie, truth, window, estimators)
        used = FILTERS_PX.index(by_filter["filter_px"])
        best = int(np.argmax([one.snr_db for one in scores[:-1]]))
        row: dict[str, Any] = {"window": window, "ms_per_frame": time_pairs(movie, window)}
        row["linear"] = {**scores[used]._asdict(), "q": by_filter["risk"], "filter_px": FILTERS_PX[used]}
        row["linear"] |= {"best_snr_db": scores[best].snr_db, "best_filter_px": FILTERS_PX[best]}
        row["network"] = {**scores[-1]._asdict(), "q": by_network["risk"]}
        rows.append(row)
    named = {"linear": linear["window"], "network": load_model(model).card.window}
    stable = stable_less_camera(movie, truth, named["network"], estimators[-1])
    found = {"named": named, "lost_db": losses(rows, named), "stable_less_camera_db": stable}
    return {**found, "training_seconds": seconds, "windows": rows}


def losses(rows: list[dict[str, Any]], named: dict[str, int]) -> dict[str, float]:
    """Return how far the windows that were named are from the best ones."""
    by_window = {row["window"]: row for row in rows}
    lost = {
        name: max(row[name]["snr_db"] for row in rows) - by_window[named[name]][name]["snr_db"]
        for name in ("linear", "network")
    }
    used = by_window[named["linear"]]["linear"]["snr_db"]
    lost["linear, filter picked with the truth too"] = max(row["linear"]["best_snr_db"] for row in rows) - used
    return lost


def measure(folder: Path, steps: int, scratch: Path) -> dict[str, Any]:
    """Take one movie from its file to its figures."""
    given = {name: folder / f"{name}.mrc" for name in ("dark", "gain") if (folder / f"{name}.mrc").is_file()}
    store = n2n.ingest(folder / "movie.mrc", scratch / f"{folder.name}.zarr", IngestConfig(**given))
    n2n.align(store)
    meta = json.loads((folder / "meta.json").read_text())
    truth = mrcfile.read(folder / "truth.mrc")
    windows = tuple(window for window in default_windows(len(truth)) if window >= 4)
    found = compare(store, truth, windows, steps, scratch / folder.name)
    about = {"frames": len(truth), "side_px": truth.shape[-1], "specimen": meta["specimen"]}
    about |= {key: meta[key] for key in ("electrons_per_pixel_per_frame", "local_motion_px", "seed")}
    about["drift_px"] = round(float(np.hypot(*np.ptp(meta["drift_px"], axis=0))), 1)
    return {**about, **found}


def write_table(movies: dict[str, dict[str, Any]], file: Path) -> None:
    """Write the figures as a table to read."""
    lines = ["# Averaging windows", "", "Made by `benchmarks/windows.py`, which says what the columns are.", ""]
    lines += ["## What the sweep named, and what that costs", ""]
    lines += ["| movie | linear: window | lost, dB | (filter too) | network: window | lost, dB | stable, dB |"]
    lines += ["|---|" + "---:|" * 6]
    for name, movie in movies.items():
        named, lost = movie["named"], movie["lost_db"]
        strict = lost["linear, filter picked with the truth too"]
        lines.append(
            f"| {name} | {named['linear']} | {lost['linear']:.2f} | {strict:.2f} | {named['network']} "
            f"| {lost['network']:.2f} | {movie['stable_less_camera_db']:+.2f} |"
        )
    for name, movie in movies.items():
        lines += ["", f"## {name}: {movie['specimen']}, {movie['frames']} frames, drift {movie['drift_px']} px, "]
        lines[-1] += f"parts move {movie['local_motion_px']:g} px, {movie['electrons_per_pixel_per_frame']:g} e/px"
        lines += ["", "| W | ms/frame | linear: N2N loss | Q | SNR dB | network: N2N loss | Q | SNR dB |"]
        lines += ["|" + "---:|" * 8]
        for row in movie["windows"]:
            cells = [f"{row['window']}", f"{row['ms_per_frame']:.1f}"]
            for way in ("linear", "network"):
                cells += [f"{row[way]['n2n_loss']:.4g}", f"{row[way]['q']:.4g}", f"{row[way]['snr_db']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    file.write_text("\n".join(lines) + "\n")


def draw(movies: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw N2N loss, Q and true error by window, each from its best to its worst, one panel a movie."""
    columns = min(len(movies), 4)
    rows = -(-len(movies) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, movie) in enumerate(movies.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        window = [row["window"] for row in movie["windows"]]
        for way, dash in (("linear", "-"), ("network", "--")):
            error = 10 ** (-np.array([row[way]["snr_db"] for row in movie["windows"]]) / 10)
            curves = {"true error": error}
            curves |= {key: np.array([row[way][key] for row in movie["windows"]]) for key in ("q", "n2n_loss")}
            for colour, (label, values) in zip(COLOURS, curves.items(), strict=False):
                label = f"{label.replace('n2n_loss', 'N2N loss').replace('q', 'Q')}, {way}"
                scaled = (values - values.min()) / np.ptp(values)
                axes.plot(window, scaled, dash, color=colour, marker="o", markersize=3, label=label)
            axes.plot(movie["named"][way], -0.06, "kv" if way == "linear" else "k^", markersize=6)
        axes.set(xscale="log", title=name, xlabel="window (frames)", xticks=window)
        axes.set_xticks(window, list(map(str, window)))
        axes.minorticks_off()
        if number == 1:
            axes.set_ylabel("0 best, 1 worst")
            axes.legend(fontsize=6, frameon=False)
    figure.savefig(file, metadata={"Software": None})


def main() -> None:
    """Measure movies and write table, plot and figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--steps", type=int, default=TrainConfig().steps)
    told = parser.parse_args()
    folders: list[Path] = told.folders
    if not folders and "N2N_DATA" in os.environ:
        folders = sorted(path for path in Path(os.environ["N2N_DATA"]).iterdir() if (path / "truth.mrc").is_file())
    set_quiet(True)
    file = RESULTS / "windows.json"
    RESULTS.mkdir(exist_ok=True)
    for folder in folders:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(folder, told.steps, Path(scratch))
        movies = json.loads(file.read_text())["movies"] if file.exists() else {}
        movies[folder.name] = found
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "n2n_pipeline": n2n.__version__}
        file.write_text(json.dumps({"machine": machine, "steps": told.steps, "movies": movies}, indent=1) + "\n")
        write_table(movies, RESULTS / "windows.md")
        draw(movies, RESULTS / "windows.png")
        print(
            folder.name,
            json.dumps({key: found[key] for key in ("named", "lost_db", "stable_less_camera_db")}),
            flush=True,
        )


if __name__ == "__main__":
    main()
