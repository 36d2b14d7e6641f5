"""How good a movie is after equal time, against what others would do with it, on movies whose truth is known.

    python benchmarks/quality.py [FOLDER...]                   # all methods, 90 seconds each: 12 minutes a movie
    python benchmarks/quality.py --methods default linear      # some of them
    python benchmarks/quality.py --twins                       # makes seven movies first; pip install de-twin
    python benchmarks/quality.py --work DIR --again            # only scores what an earlier run left there
    python benchmarks/quality.py --table                       # only prints what is in the results

A folder holds ``movie.mrc``, ``truth.mrc`` and, where the camera needs them, ``dark.mrc`` and ``gain.mrc``.
Without one, the folders in the one named by ``N2N_DATA`` are taken. Every movie is stored, aligned and swept once
by the package's own commands, and peers are given what they cannot do themselves: corrected counts, drift, the
window, the halves, and where between pixels each frame has the scene. Each training then gets the same wall time
on the same cores. Figures are means over a dozen frames spread over the movie, after the best linear fit: SNR in
dB, SSIM, and what of the detail (0.05 cycles per pixel and above) is there: its power over the truth's, and its
correlated part. Of what this package trains, the SNR in the squares that it kept from training is told, too:
there, ``clean`` has not seen the answer. Figures and pictures of what is not measured this time stay, if
``--work`` is the same folder.

    default     `n2n-pipeline train` as it comes, and `denoise`
    preview     `n2n-pipeline denoise -m starting`, no training
    clean       the default, with the truth of the target's frames in place of their counts (Noise2Clean)
    paper       the Noise2Noise paper's network and recipe: Table 2, He's initial weights, 4 patches of 256 px,
                rate 0.001 with a ramp down at the end, no averaging of weights
    careamics   CAREamics' Noise2Noise with its default network, on all even and odd averages
    topaz       Topaz-Denoise's pretrained U-Net, on averages
    student     the student project's recipe: adjacent averages of 8 frames as 8-bit PNGs, no alignment, its loop
    bm3d, nlm   BM3D, told the spectrum of the noise that the halves show, and scikit-image's non-local means, told
                its standard deviation, both on averages
    linear      the best averaging window with the best Gaussian, chosen with the truth; no training
    average     the average over the window that the sweep chose
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import MissingPeer, add_option
from judging import draw_sheet, judge, judge_kept_out
from methods import METHODS, Budget, train_here
from prepared import Prepared, prepare

from n2n_pipeline import __version__
from n2n_pipeline.files import read_json
from n2n_pipeline.progress import set_quiet

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "quality.json"
COLUMNS = ("snr_db", "kept_out_snr_db", "ssim", "detail_kept", "detail_power", "verdict")
LACKS = {
    "careamics": "no gain or drift correction, no choice of window, no averages, no verdict: was given ours",
    "topaz": "as careamics; does not learn from the movie",
    "student": "no drift correction, no choice of window, 8-bit images, no verdict",
    "bm3d": "as careamics; was given the spectrum of the noise, too",
    "nlm": "as careamics; was given the noise, too",
    "linear": "cannot be had without the truth",
}


def measure(folder: Path, work: Path, methods: list[str], budget: Budget) -> None:
    """Run methods on one movie, score them, and keep every figure as soon as it is there."""
    prepared = prepare(folder, work)
    for method in methods:
        try:
            frames, figures = METHODS[method](method, prepared, budget)
        except MissingPeer as error:
            found: dict[str, Any] = {"missing": str(error)}
        else:
            np.save(work / f"{method}.npy", frames.astype(np.float32))
            found = score(prepared, method) | figures | {"minutes": budget.minutes}
        print(folder.name, method, json.dumps(found), flush=True)
        keep({folder.name: {"window": prepared.window, method: found}}, budget.seed)
    draw(prepared)


def score_again(folder: Path, work: Path, methods: list[str], seed: int) -> None:
    """Score what an earlier run left."""
    prepared = prepare(folder, work)
    left = [method for method in methods if (work / f"{method}.npy").exists()]
    known: dict[str, Any] = (read_json(FILE) or {"movies": {}})["movies"].get(folder.name, {})
    keep({folder.name: {method: known.get(method, {}) | score(prepared, method) for method in left}}, seed)


def score(prepared: Prepared, method: str) -> dict[str, float]:
    """Score the frames that a method left."""
    frames, truth = np.load(prepared.work / f"{method}.npy"), prepared.truth()
    plan = prepared.work / method / "resume" / "plan.json"
    return judge(frames, truth) | judge_kept_out(frames, truth, plan)


def draw(prepared: Prepared) -> None:
    """Draw the frame in the middle as every method that was run in this folder has it."""
    middle = len(prepared.scored) // 2
    t = prepared.scored[middle]
    whole = (slice(0, side) for side in prepared.truth().shape[1:])
    pictures = {"one frame": prepared.corrected().read(slice(t, t + 1), *whole).values[0]}
    order = sorted(METHODS, key=lambda method: method != "average")
    found = {method: prepared.work / f"{method}.npy" for method in order}
    pictures |= {method: np.load(path)[middle] for method, path in found.items() if path.exists()}
    path = RESULTS / f"quality_{prepared.folder.name}.png"
    draw_sheet(pictures, prepared.truth()[middle], prepared.pixel_size(), path)


def summarise(movies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the mean and the least gain of the default over each other method, over the movies that have both."""
    summary = {}
    for other, figure in [*((method, "snr_db") for method in METHODS), ("clean", "kept_out_snr_db")]:
        gains = {
            name: round(found["default"][figure] - found[other][figure], 2)
            for name, found in movies.items()
            if other != "default" and all(figure in found.get(method, {}) for method in ("default", other))
        }
        if gains:
            least = min(gains, key=lambda name: gains[name])
            where = "" if figure == "snr_db" else ", where neither was trained"
            summary[f"default over {other}{where}"] = {
                "mean_db": round(float(np.mean(list(gains.values()))), 2),
                "least_db": gains[least],
                "least_on": least,
                "movies": len(gains),
            }
    return summary


def as_table(kept: dict[str, Any]) -> str:
    """Lay out the results as a table, a method a row."""
    lines = []
    for name, found in kept["movies"].items():
        lines.append(f"\n{name:14} " + " ".join(f"{column:>12}" for column in COLUMNS))
        for method in (method for method in METHODS if method in found):
            cells = (str(found[method].get(column, "-")) for column in COLUMNS)
            lines.append(f"  {method:12} " + " ".join(f"{cell:>12}" for cell in cells))
    lines += ["", *(f"{what}: {figures}" for what, figures in kept["summary"].items())]
    return "\n".join([*lines, "", *(f"{method}: {lack}" for method, lack in LACKS.items())])


def keep(found: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Add figures to those of other movies and methods, with what they were measured on."""
    kept: dict[str, Any] = read_json(FILE) or {"movies": {}}
    for name, figures in found.items():
        kept["movies"][name] = kept["movies"].get(name, {}) | figures
    kept["summary"] = summarise(kept["movies"])
    kept["lacks"] = LACKS
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=RESULTS, capture_output=True, text=True, check=False)
    kept |= {"seed": seed, "cores": os.cpu_count(), "machine": platform.processor() or platform.machine()}
    kept |= {"torch": torch.__version__, "n2n_pipeline": __version__, "commit": commit.stdout.strip()}
    FILE.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def find_movies(told: argparse.Namespace, scratch: Path) -> list[Path]:
    """Return the folders to be measured, made first if so told."""
    if told.twins:
        from quality_movies import make_all

        return make_all(scratch / "twins")
    return told.folders or sorted(path.parent for path in Path(os.environ["N2N_DATA"]).glob("*/truth.mrc"))


def main() -> None:
    """Measure, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=1.5, help="of training, each")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--twins", action="store_true", help="make movies with de-twin, and measure them")
    parser.add_argument("--work", type=Path, help="where stores, models and pictures are kept; default: nowhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="only score what an earlier run left in --work")
    parser.add_argument("--table", action="store_true", help="only print what is in the results")
    add_option(parser)
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "FOLDER", "WORK"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    set_quiet(True)
    budget = Budget(told.minutes, told.seed, told.environments.absolute())
    if told.child:
        method, folder, work = told.child
        train_here(method, Prepared(Path(folder), Path(work)), budget)
        return
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (told.work or Path(temporary)).absolute()
        for folder in [] if told.table else find_movies(told, scratch):
            if told.again:
                score_again(folder.absolute(), scratch / folder.name, told.methods, told.seed)
            else:
                measure(folder.absolute(), scratch / folder.name, told.methods, budget)
    print(as_table(keep({}, told.seed)))


if __name__ == "__main__":
    main()
