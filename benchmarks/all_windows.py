"""All windows at once against fixed windows, each trained for the same time.

    python benchmarks/all_windows.py FOLDER[:still]... [--seconds 180] [--windows 8,16,32]
    python benchmarks/all_windows.py --appearing [--seconds 180]
    python benchmarks/all_windows.py --cost FOLDER

A folder holds ``movie.mrc``, ``truth.mrc`` and, where the camera needs them, ``dark.mrc`` and ``gain.mrc``; with
``:still`` behind it, its drift is not estimated, so that the windows see it. The package is given movie and
references alone. ``all`` is `train --window all`; every fixed window is trained for as long, on as many threads.
The whole movie is denoised by `denoise`, in one pass per half; scored are frames spread over it, first and last
included: SNR in dB against the truth after the best linear fit, a border left out. The best fixed window is picked
with the truth, which a user does not have.

``--appearing`` plants an object that is there in frames 40 to 59 alone, and follows its intensity. ``--cost
FOLDER`` compares what denoising and the windows themselves take, with the starting weights.

What is measured is added to ``results/all_windows.json``, a case at a time, and what stands there is not measured
again; the table and the sheets of pictures are drawn from all of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from check import take_turns
from pairs import discard
from windows import RESULTS, SCORED_FRAMES, snr_db

import n2n_pipeline as n2n
from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.config import DenoiseConfig, IngestConfig, RunConfig, TrainConfig, Window
from n2n_pipeline.device import set_threads
from n2n_pipeline.geometry import spread_evenly
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.ladder import ladder_for
from n2n_pipeline.pictures import contact_sheet
from n2n_pipeline.plots import Frame, Line, line_plot
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.store import open_store, write_movie
from n2n_pipeline.training import train_model

FILE = RESULTS / "all_windows.json"
SHEET_PX = 160
ROUNDS = 5  # of what is timed, in turns
THERE = range(40, 60)
PLAIN = DenoiseConfig(augment="off")  # one pass per half

Json = dict[str, Any]
Images = np.ndarray


def train(store: Path, model: Path, window: str | int, told: argparse.Namespace, seed: int) -> Json:
    """Train for so many seconds, and return what came of it; ``all:17`` is all windows with a target of 17."""
    kind, _, target = str(window).partition(":")
    minutes = told.seconds / 60
    config = TrainConfig(
        window=kind if kind == "all" else int(kind),
        time_minutes=minutes,
        target=int(target) if target else "auto",
    )
    start = time.perf_counter()
    train_model([store], model, RunConfig(train=config, threads=told.threads, device="cpu", seed=seed))
    card = load_model(model).card
    row = {"steps": card.steps, "seconds": round(time.perf_counter() - start, 1)}
    return row | ({"target": card.target} if card.ladder else {})


def denoise(store: Path, model: Path) -> Images:
    """Denoise a movie as `denoise` does, which moves every frame to where the camera saw the scene in it."""
    output = model.with_suffix(".zarr")
    denoise_store(store, model, output, PLAIN, "cpu")
    return np.asarray(open_store(output).array[:])


def measure(case: str, told: argparse.Namespace, scratch: Path) -> Json:
    """Train and score all windows at once, and each fixed one."""
    folder, _, still = case.partition(":")
    source = Path(folder)
    given = {name: source / f"{name}.mrc" for name in ("dark", "gain") if (source / f"{name}.mrc").is_file()}
    store = n2n.ingest(source / "movie.mrc", scratch / f"{source.name}.zarr", IngestConfig(**given))
    if not still:
        n2n.align(store)
    truth = mrcfile.read(source / "truth.mrc").astype(np.float32)
    frames = spread_evenly(len(truth), SCORED_FRAMES - 2)
    frames = [0, *frames, len(truth) - 1]
    middle, rows, images = frames[len(frames) // 2], {}, {"truth": truth}
    for window in ["all", *told.windows]:
        runs = []
        for seed in range(told.seed, told.seed + told.runs):
            model = scratch / f"model-{window}-{seed}"
            row = train(store, model, window, told, seed)
            denoised = denoise(store, model)[frames]
            row["snr_db"] = [round(snr_db(image, truth[t]), 3) for image, t in zip(denoised, frames, strict=True)]
            runs.append((float(np.mean(row["snr_db"])), row, denoised[len(frames) // 2]))
            print(case, window, seed, round(runs[-1][0], 2), row, flush=True)
        runs.sort(key=lambda run: run[0])
        _, row, images[str(window)] = runs[len(runs) // 2]
        rows[str(window)] = {**row, "runs_db": [round(score, 3) for score, *_ in runs]}
    draw_sheet(source.name + ("-not-aligned" if still else ""), images | {"truth": truth[middle]}, rows)
    how = {"aligned": not still, "frames": frames, "budget": budget_of(told), "threads": told.threads}
    return {**how, "rows": rows}


def best_fixed(rows: Json) -> str:
    """Return the fixed window with the highest score."""
    return max((window for window in rows if window.isdigit()), key=lambda window: np.mean(rows[window]["snr_db"]))


def draw_sheet(name: str, images: dict[str, Images], rows: Json) -> None:
    """Show truth, the best fixed window and all windows, scaled to the truth, around what changes most."""
    best = best_fixed(rows)
    truth = images["truth"]
    centre = slice((truth.shape[0] - SHEET_PX) // 2, (truth.shape[0] + SHEET_PX) // 2)
    fitted = {"truth": truth}
    for window in (best, "all"):
        slope, offset = np.polyfit(images[window].ravel(), truth.ravel(), 1)
        fitted[f"{window} frames" if window != "all" else "all windows"] = slope * images[window] + offset
    crops = [np.kron(image[centre, centre], np.ones((2, 2))) for image in fitted.values()]
    (RESULTS / f"all_windows_{name}.png").write_bytes(contact_sheet(crops, list(fitted), None, None, 3))


def write_table(found: Json) -> None:
    """Write all cases as a table to read."""
    windows = sorted({int(w) for case in found["cases"].values() for w in case["rows"] if w.isdigit()})
    lines = ["# All windows at once", "", "Made by `benchmarks/all_windows.py`, which says how.", ""]
    lines += [
        "| movie | drift | training, threads | all | " + " | ".join(f"W={w}" for w in windows) + " | all - best |"
    ]
    lines += ["|---|---|---:|---:|" + "---:|" * (len(windows) + 1)]
    others: list[str] = []
    for name, case in found["cases"].items():
        mean = {w: float(np.mean(row["snr_db"])) for w, row in case["rows"].items()}
        cells = [f"{mean[str(w)]:.2f}" if str(w) in mean else "" for w in windows]
        drift = "aligned" if case["aligned"] else "not aligned"
        gain = mean["all"] - mean[best_fixed(case["rows"])]
        lines.append(
            f"| {name.partition(':')[0]} | {drift} | {case['budget']}, {case['threads']} | {mean['all']:.2f} | "
            + " | ".join(cells)
            + f" | {gain:+.2f} |"  # of medians, where there were several runs
        )
        wider = {w: m for w, m in mean.items() if w.startswith("all:")}
        others += [
            f"{name}: {w.partition(':')[2]} frames {m:.2f} dB, by itself {mean['all']:.2f}"
            for w, m in wider.items()
        ]
    if others:
        lines += ["", "Targets of a width that was told: " + "; ".join(others) + "."]
    for budget, one in found.get("appearing", {}).items():
        lines += ["", f"## An object that is there in frames 40 to 59 alone ({budget})", ""]
        lines += [
            "| | half-height, first and last frame | mean inside | mean before and after "
            "| at most, 3 frames off and more | noise of such a disc |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for name, row in one.items():
            first, last = row["half_height"]
            far = np.delete(row["curve"], range(THERE.start - 2, THERE.stop + 2))
            lines.append(
                f"| {name} | {first:.1f}, {last:.1f} | {row['inside']:.3f} | {row['outside']:.3f} "
                f"| {np.abs(far).max():.2f} | {row.get('noise', 0):.2f} |"
            )
    for name, cost in found.get("cost", {}).items():
        lines += ["", f"## What it takes, in seconds ({name}, {cost['frames']} frames; medians)", ""]
        lines += ["| | denoise, one window | all | ratio | halves of one window | of all five | over the sum |"]
        lines += ["|---|" + "---:|" * 6]
        for drift in ("not aligned", "aligned"):
            row = cost[drift]
            *one, ladder = np.array(row["halves"])
            fixed, all_windows = (np.array(row["denoise"][name]) for name in ("fixed", "all"))
            lines.append(
                f"| {drift} | {np.median(fixed):.2f} | {np.median(all_windows):.2f} "
                f"| {np.median(all_windows / fixed):.2f} | {np.median(one):.3f} | {np.median(ladder):.3f} "
                f"| {np.median(ladder / np.sum(one, axis=0)):.2f} |"
            )
    (RESULTS / "all_windows.md").write_text("\n".join(lines) + "\n")


def budget_of(told: argparse.Namespace) -> str:
    """Say how long a training was."""
    return f"{told.steps} steps" if told.steps else f"{told.seconds:g} s"


def read_found() -> Json:
    """Return all that was measured."""
    found: Json = json.loads(FILE.read_text()) if FILE.exists() else {"cases": {}, "appearing": {}}
    return found


def add(kind: str, name: str, figures: Json) -> None:
    """Add figures to what was measured, which others may have done meanwhile, and draw the table anew."""
    found = read_found()
    found.setdefault(kind, {})[name] = figures
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    write_table(found)


def measure_appearing(told: argparse.Namespace, scratch: Path) -> Json:
    """Follow a planted object's intensity, in units of the one it was planted with."""
    simulated = simulate_movie((96, 192, 192), dose=0.5, seed=7)
    rows, columns = np.mgrid[:192, :192]
    disc = 1 / (1 + np.exp(np.hypot(rows - 96, columns - 96) - 10))
    truth = simulated.truth.copy()
    truth[THERE.start : THERE.stop] *= 1 - 0.5 * disc
    counts = np.random.default_rng(7).poisson(truth).astype(np.uint16)
    store = write_movie(scratch / "appearing.zarr", counts, simulated.info).path
    inside = disc > 0.9
    depth = float(np.mean((simulated.truth[50] - truth[50])[inside]))
    elsewhere = [np.hypot(rows - y, columns - x) < 8 for y in range(24, 192, 24) for x in range(24, 192, 24)]
    elsewhere = [place for place in elsewhere if not np.any(place & (disc > 0.001))]
    found: Json = {}
    for window in ("all", "32"):
        train(store, scratch / f"model-{window}", window, told, told.seed)
        images = denoise(store, scratch / f"model-{window}")
        curve = [float(np.mean((t - i)[inside]) / depth) for t, i in zip(simulated.truth, images, strict=True)]
        errors = [np.mean((truth - images)[:, place], axis=1) / depth for place in elsewhere]
        found[window] = {
            "curve": np.round(curve, 4).tolist(),
            **describe_curve(np.array(curve)),
            "noise": float(np.std(errors)),
        }
        print(window, found[window], flush=True)
    truth_curve = np.isin(np.arange(96), THERE).astype(float)
    return found | {"truth": {"curve": truth_curve.tolist(), **describe_curve(truth_curve)}}


def measure_cost(folder: Path, scratch: Path) -> Json:
    """Time denoising, and the halves of windows alone, with and without drift undone, in turns."""
    given = {name: folder / f"{name}.mrc" for name in ("dark", "gain") if (folder / f"{name}.mrc").is_file()}
    store = n2n.ingest(folder / "movie.mrc", scratch / "movie.zarr", IngestConfig(**given))
    n_frames = open_store(store).info.shape[0]
    kinds: dict[str, Window] = {"fixed": min(32, n_frames), "all": "all"}
    models = {name: start_only(store, scratch / name, window) for name, window in kinds.items()}
    found: Json = {"frames": n_frames}
    for drift in ("not aligned", "aligned"):
        if drift == "aligned":
            n2n.align(store)
        output = scratch / "out.zarr"
        ladder = ladder_for(n_frames)
        windows = [*(min(window, n_frames) for window in ladder), ladder]
        halves = take_turns([partial(average, store, window) for window in windows], ROUNDS)
        denoising = [partial(denoise_store, store, model, output, PLAIN, "cpu", True) for model in models.values()]
        found[drift] = {
            "halves": np.round(halves, 4).tolist(),
            "denoise": dict(zip(models, np.round(take_turns(denoising, ROUNDS), 3).tolist(), strict=True)),
        }
        print(drift, found[drift], flush=True)
    return found


def average(store: Path, window: int | tuple[int, ...]) -> None:
    """Average both halves of the windows of all frames, a block at a time."""
    halves = n2n.pairs(store, window=window)
    discard(halves["even"].data, halves["odd"].data)


def start_only(store: Path, model: Path, window: Window) -> Path:
    """Write the package's starting weights, in a movie's units: a training of one step that changes nothing."""
    train = TrainConfig(window=window, steps=1, lr=1e-9)
    return train_model([store], model, RunConfig(train=train, device="cpu"))


def draw_curves(curves: Json) -> bytes:
    """Plot the planted object's intensity over time, as PNG."""
    names = {"truth": "truth", "all": "all windows", "32": "windows of 32 frames"}
    frames = np.arange(96)
    lines = [Line(frames, np.array(curves[key]["curve"]), name) for key, name in names.items()]
    return line_plot(lines, Frame("frame", "intensity of the object"))


def describe_curve(curve: Images) -> Json:
    """Say where a curve crosses half of its height, and what it is inside and outside of the object's time."""
    before = np.flatnonzero(curve[:50] < 0.5)[-1]
    after = 50 + np.flatnonzero(curve[50:] < 0.5)[0]
    first = before + (0.5 - curve[before]) / (curve[before + 1] - curve[before])
    last = after - (0.5 - curve[after]) / (curve[after - 1] - curve[after])
    far = np.r_[0 : THERE.start - 3, THERE.stop + 3 : len(curve)]
    return {
        "half_height": [float(first), float(last)],
        "outside": float(np.mean(curve[far])),
        "outside_spread": float(np.std(curve[far])),
        "inside": float(np.mean(curve[THERE.start + 3 : THERE.stop - 3])),
    }


def main() -> None:
    """Measure what is asked for and not yet there, and write figures, table and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--steps", type=int, help="train for so many instead, as long as that takes")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--runs", type=int, default=1, help="of each window, with seeds that follow; the median counts"
    )
    parser.add_argument("--windows", type=lambda text: text.split(","), default=["8", "16", "32"])
    parser.add_argument("--appearing", action="store_true")
    parser.add_argument("--cost", type=Path)
    told = parser.parse_args()
    told.threads = set_threads(told.threads)
    set_quiet(True)
    RESULTS.mkdir(exist_ok=True)
    if told.cost:
        with tempfile.TemporaryDirectory() as scratch:
            add("cost", told.cost.name, measure_cost(told.cost, Path(scratch)))
    for case in [*told.cases, *(["appearing"] if told.appearing else [])]:
        name = Path(case).name
        if name in read_found()["cases"]:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            if case == "appearing":
                found = measure_appearing(told, Path(scratch))
                add("appearing", budget_of(told), found)
                (RESULTS / "all_windows_appearing.png").write_bytes(draw_curves(found))
            else:
                add("cases", name, measure(case, told, Path(scratch)))


if __name__ == "__main__":
    main()
