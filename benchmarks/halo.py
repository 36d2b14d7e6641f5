"""Measure how close a trained network's halo keeps tiled to untiled, and whether seams show.

    python benchmarks/halo.py OUTDIR...                # folders that `n2n-pipeline run` wrote
    python benchmarks/halo.py                          # runs every movie in the folder of N2N_DATA first

For each movie and its model `halo_px: auto` chooses a halo, for cores far smaller than the movie, from its usual
three samples. Then frames spread over the movie are denoised with that halo and in one piece, in float32, and the
largest difference of all their pixels is set against the standard deviation of the output's noise: the error that
`halo_px: auto` promises is 1 % of it, unless told otherwise (`halo_error`). What the halo saves is counted in the
pixels that the network computes, for a frame of 4096 x 4096 px in tiles of 512 and of 1024 px. A sample shows what
lies up to a quarter of the movie's side from a cut: of a movie below 384 px nothing short of exact can be trusted,
and one of 256 px is a single tile, without seams. So larger movies tell more; what is found of one is kept with
what is known of others.

Seams: mean step across the lines where tiles meet over that beside them, less 1. The noise of that number is its
spread over the same lattice of lines moved elsewhere, where no tiles meet; `z` counts in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.files import read_json
from n2n_pipeline.geometry import TilePlan, Tiling, plan_tiles
from n2n_pipeline.inference.forward import denoise_frames
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.inference.job import Job, Order, plan_job
from n2n_pipeline.inference.noise import output_noise
from n2n_pipeline.metrics.artefacts import seam_metric
from n2n_pipeline.model import exact_halo, stride

RESULTS = Path(__file__).parent / "results"
CORE_PX = 32
PROMISES = (0.01, 0.05, 0.25)  # the first is the default
LARGE = (4096, 4096)
LARGE_CORES_PX = (512, 1024)
EDGE_PX = 16  # lines closer to an end of the frame are not lines between tiles

Floats = npt.NDArray[np.float32]


def run_movies(folder: Path) -> list[Path]:
    """Run the pipeline on every example movie."""
    if "N2N_DATA" not in os.environ:
        sys.exit("name folders that `n2n-pipeline run` wrote, or set N2N_DATA")
    outputs = []
    for movie in sorted(Path(os.environ["N2N_DATA"]).glob("*/movie.mrc")):
        outputs.append(folder / movie.parent.name)
        references = [("--" + kind, movie.with_name(f"{kind}.mrc")) for kind in ("dark", "gain")]
        words = [word for pair in references if pair[1].exists() for word in pair]
        subprocess.run([sys.executable, "-m", "n2n_pipeline", "run", movie, outputs[-1], *words], check=True)
    return outputs


class Frame(NamedTuple):
    """One frame, denoised in one piece."""

    halves: list[Half]
    denoised: Floats
    noise: float


def denoise_whole(job: Job, frames: list[int]) -> list[Frame]:
    """Denoise frames in one piece, in float32."""
    network = job.denoiser.card.network
    denoiser, step = replace(job.denoiser, dtype=None), stride(network)
    plan = plan_tiles(job.inputs.shape, Tiling(step, 2**16, exact_halo(network), border=job.choice.border_px))
    found = []
    for t in frames:
        halves = [unmirror(half, plan) for half in job.inputs.read(range(t, t + 1), plan.tiles[0])]
        denoised = [denoise_frames(denoiser, *half, plan) for half in halves]
        found.append(Frame(halves, np.mean(denoised, axis=0), output_noise(denoiser, halves, denoised)))
    return found


def check_halo(job: Job, frames: list[Frame]) -> dict[str, object]:
    """Denoise frames in tiles with the halo that was chosen, and set the difference against the noise."""
    network = job.denoiser.card.network
    denoiser, step = replace(job.denoiser, dtype=None), stride(network)
    plan = plan_tiles(job.inputs.shape, Tiling(step, CORE_PX, job.choice.halo_px, border=job.choice.border_px))
    images = [np.mean([denoise_frames(denoiser, *half, plan) for half in one.halves], axis=0) for one in frames]
    worst = [
        float(np.abs(tiled - one.denoised).max()) / one.noise for tiled, one in zip(images, frames, strict=True)
    ]
    return {
        "halo_px": job.choice.halo_px,
        "seen_in_samples": job.choice.halo_error,
        "largest_difference_over_noise": max(worst),
        "tiles_per_frame": len(plan.tiles),
        "computed_pixels": {f"cores of {core} px": computed_pixels(job, core) for core in LARGE_CORES_PX},
        "seams": seams(np.concatenate(images), plan),
    }


def unmirror(half: Half, plan: TilePlan) -> Half:
    """Cut the image out of what a tile reads of it and of its mirrored border."""
    (tile,) = plan.tiles
    rows, columns = (
        slice(-span.read.start, size - span.read.start) for span, size in zip(tile, plan.shape, strict=True)
    )
    return Half(half.values[:, rows, columns], half.counts[:, rows, columns])


def seams(images: Floats, plan: TilePlan) -> dict[str, dict[str, float]]:
    """Return the seam metric along both axes, with its noise from lines where no tiles meet."""
    found = {}
    for axis, spans, name in ((1, plan.rows, "y"), (2, plan.columns, "x")):
        borders = [span.core.start for span in spans[1:]]
        if not borders:  # one tile holds it all
            continue
        least, most = EDGE_PX - min(borders), images.shape[axis] - EDGE_PX - max(borders)
        moves = [move for move in range(max(least, -CORE_PX // 2), min(most, CORE_PX // 2)) if abs(move) > 4]
        elsewhere = [seam_metric(images, axis, [border + move for border in borders]) for move in moves]
        spread = float(np.sqrt(np.mean(np.square(elsewhere))))
        metric = seam_metric(images, axis, borders)
        found[name] = {"metric": metric, "noise": spread, "z": metric / spread}
    return found


def computed_pixels(job: Job, core: int) -> dict[str, float]:
    """Return pixels computed per pixel of a large frame, with the halo that was chosen and with the exact one."""
    network = job.denoiser.card.network
    halos = {"auto": job.choice.halo_px, "exact": exact_halo(network)}
    costs = {name: plan_tiles(LARGE, Tiling(stride(network), core, halo)).cost for name, halo in halos.items()}
    return costs | {"saved": 1 - costs["auto"] / costs["exact"]}


def measure(store: Path, model: Path, n_frames: int) -> dict[str, object]:
    """Choose a halo for a movie and its model, and check what it promises, for several promises."""
    jobs = {}
    for error in PROMISES:
        config = DenoiseConfig(tile=TileConfig(core_px=CORE_PX, halo_error=error), augment="off")
        jobs[error] = plan_job(Order(store, model, Path("not-written.zarr"), config, "cpu"))
    first = jobs[PROMISES[0]]
    total = first.inputs.movie.store.info.shape[0]
    frames = denoise_whole(first, [(2 * i + 1) * total // (2 * n_frames) for i in range(n_frames)])
    network = first.denoiser.card.network
    checked = {job.choice.halo_px: job for job in jobs.values()}
    found = {halo: check_halo(job, frames) for halo, job in checked.items()}
    promised = {f"promised {error:g} of the noise": found[job.choice.halo_px] for error, job in jobs.items()}
    return {"network": network.model_dump(), "exact_halo_px": exact_halo(network)} | promised


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("outputs", nargs="*", type=Path, help="folders with movie.zarr and model")
    parser.add_argument("--frames", type=int, default=6)
    told = parser.parse_args()
    tune_allocator()
    set_threads()
    file = RESULTS / "halo.json"
    found = (read_json(file) or {}).get("movies", {})
    with tempfile.TemporaryDirectory() as folder:
        for output in told.outputs or run_movies(Path(folder)):
            found[output.name] = measure(output / "movie.zarr", output / "model", told.frames)
            print(output.name, json.dumps(found[output.name], indent=1), flush=True)
    result = {
        "movies": dict(sorted(found.items())),
        "torch": torch.__version__,
        "core_px": CORE_PX,
        "frames": told.frames,
    }
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
