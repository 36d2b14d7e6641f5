"""Measure how close a trained network's halo keeps tiled to untiled, and whether seams show.

    python benchmarks/halo.py OUTDIR...                # folders that `n2n-pipeline run` wrote
    python benchmarks/halo.py                          # runs every movie in the folder of N2N_DATA first

For each movie and its model `halo_px: auto` chooses a halo, for cores far smaller than the movie, from its usual
three samples. Then frames spread over the movie are denoised with that halo and in one piece, in float32, and the
largest difference of all their pixels is set against the standard deviation of the output's noise: the error that
`halo_px: auto` promises is 1 % of it. What the halo saves is counted in pixels that the network computes, for a
frame of 4096 x 4096 px in tiles of 512 and of 1024 px.

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

import numpy as np
import numpy.typing as npt
import torch

from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.geometry import TilePlan, Tiling, plan_tiles
from n2n_pipeline.inference.forward import denoise_frames
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.inference.job import Job, Order, plan_job
from n2n_pipeline.inference.noise import output_noise
from n2n_pipeline.metrics.artefacts import seam_metric
from n2n_pipeline.model import exact_halo, stride

RESULTS = Path(__file__).parent / "results"
CORE_PX = 32
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


def largest_difference(job: Job, frames: list[int]) -> tuple[dict[str, float], Floats, TilePlan]:
    """Denoise frames in tiles and in one piece; return the differences, and the tiled frames with their plan."""
    network = job.denoiser.card.network
    denoiser, step = replace(job.denoiser, dtype=None), stride(network)
    tiled, untiled = (
        plan_tiles(job.inputs.shape, Tiling(step, core, halo, border=step))
        for core, halo in ((CORE_PX, job.choice.halo_px), (2**16, exact_halo(network)))
    )
    (whole,) = untiled.tiles
    worst, images = [], []
    for t in frames:
        halves = job.inputs.read(range(t, t + 1), whole)
        inside = [unmirror(half, untiled) for half in halves]
        both = [[denoise_frames(denoiser, *half, plan) for half in inside] for plan in (tiled, untiled)]
        difference = np.abs(np.mean(both[0], axis=0) - np.mean(both[1], axis=0))
        worst.append(float(difference.max()) / output_noise(denoiser, inside, both[1]))
        images.append(np.mean(both[0], axis=0, dtype=np.float32)[0])
    return {"largest": max(worst), "median_of_frames": float(np.median(worst))}, np.stack(images), tiled


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
    costs = {
        name: plan_tiles(LARGE, Tiling(stride(network), core, halo, border=stride(network))).cost
        for name, halo in halos.items()
    }
    return costs | {"saved": 1 - costs["auto"] / costs["exact"]}


def measure(store: Path, model: Path, n_frames: int) -> dict[str, object]:
    """Choose a halo for a movie and its model, and check what it promises."""
    config = DenoiseConfig(tile=TileConfig(core_px=CORE_PX), augment="off")
    job = plan_job(Order(store, model, Path("not-written.zarr"), config, "cpu"))
    total = job.inputs.movie.store.info.shape[0]
    frames = [(2 * i + 1) * total // (2 * n_frames) for i in range(n_frames)]
    differences, images, plan = largest_difference(job, frames)
    network = job.denoiser.card.network
    return {
        "network": network.model_dump(),
        "exact_halo_px": exact_halo(network),
        "halo_px": job.choice.halo_px,
        "promised": config.tile.halo_error,
        "seen_in_samples": job.choice.halo_error,
        "difference_over_noise": differences,
        "tiles_per_frame": len(plan.tiles),
        "computed_pixels": {f"cores of {core} px": computed_pixels(job, core) for core in LARGE_CORES_PX},
        "seams": seams(images, plan),
    }


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("outputs", nargs="*", type=Path, help="folders with movie.zarr and model")
    parser.add_argument("--frames", type=int, default=6)
    told = parser.parse_args()
    tune_allocator()
    set_threads()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for output in told.outputs or run_movies(Path(folder)):
            found[output.name] = measure(output / "movie.zarr", output / "model", told.frames)
            print(output.name, json.dumps(found[output.name], indent=1), flush=True)
    result = {"movies": found, "torch": torch.__version__, "core_px": CORE_PX, "frames": told.frames}
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "halo.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
