"""What a GPU makes of a large movie, stage by stage, and of the whole command.

    python benchmarks/gpu_stages.py

A movie of 64 frames of 2048 x 2048 px is stored, aligned on the GPU and on the processor in turns, and denoised by
the paper's network, untrained; one frame of it on the processor as well, to see that both come to the same. Then
`n2n-pipeline run` on 64 frames of 512 x 512 px, with the seconds of each stage. `costs.py` reads what is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from costs import CORE_PX, RESULTS
from environments import with_package
from scaling import make_model, make_movie

import n2n_pipeline as n2n
from n2n_pipeline.config import AlignConfig, DenoiseConfig, TileConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.store import open_store

LARGE, SMALL, WARM = (64, 2048, 2048), (64, 512, 512), (16, 192, 192)
TINY = ((8, 256, 256), (16, 128, 128), (16, 128, 128))
ROUNDS = 2


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 3)


class Stages:
    """The stages of one movie, on either device."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        make_model(folder / "model", device)

    def ingest(self, name: str, shape: tuple[int, int, int]) -> float:
        """Make a movie and time its storing."""
        make_movie(self.folder / f"{name}.mrc", shape)
        return timed(lambda: n2n.ingest(self.folder / f"{name}.mrc", self.folder / f"{name}.zarr"))

    def align(self, name: str, device: str) -> float:
        """Time the search for a movie's drift."""
        return timed(lambda: n2n.align(self.folder / f"{name}.zarr", AlignConfig(), device=device))

    def denoise(self, name: str, device: str, output: str, frames: tuple[int, int] | None = None) -> float:
        """Time the denoising of a movie."""
        told = DenoiseConfig(tile=TileConfig(core_px=CORE_PX, halo_px="exact"), augment="off", frames=frames)
        places = (self.folder / f"{name}.zarr", self.folder / "model", self.folder / f"{output}.zarr")
        return timed(lambda: n2n.denoise(*places, told, device))

    def read_first(self, output: str) -> np.ndarray:
        """Return a denoised frame."""
        return open_store(self.folder / f"{output}.zarr").read(slice(0, 1)).astype(np.float32)


def measure(device: str, folder: Path, shapes: tuple[tuple[int, int, int], ...]) -> dict[str, object]:
    """Run everything, what is loaded and compiled only once before it is timed."""
    large, small, warm = shapes
    stages = Stages(folder, device)
    stages.ingest("warm", warm)
    for kind in (device, "cpu"):
        stages.align("warm", kind)
    stages.denoise("warm", device, "warm_denoised")
    found: dict[str, object] = {"shape": large, "ingest_s": stages.ingest("large", large)}
    align: dict[str, list[float]] = {device: [], "cpu": []}
    for _ in range(ROUNDS):
        for kind, seconds in align.items():
            seconds.append(stages.align("large", kind))
    found["align_s"] = align
    found["denoise_s"] = [stages.denoise("large", device, f"denoised{n}") for n in range(ROUNDS)]
    if device == "cuda":
        found["most_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    found["denoise_one_frame_on_cpu_s"] = stages.denoise("large", "cpu", "one", (0, 1))
    here, there = stages.read_first("one"), stages.read_first("denoised0")
    found["spread_of_difference_over_spread"] = float((there - here).std() / here.std())
    make_movie(folder / "small.mrc", small)
    words = [sys.executable, "-m", "n2n_pipeline", "run", folder / "small.mrc", folder / "run", "--device", device]
    command = [*map(str, words), "--quiet", *(["--steps", "4"] if shapes == TINY else [])]
    found["run_shape"] = small
    found["run_s"] = timed(lambda: subprocess.run(command, env=with_package(), check=True))
    found["run_stages_s"] = json.loads((folder / "run" / "timings.json").read_text())
    found["run_verdict"] = json.loads((folder / "run" / "metrics.json").read_text())["verdict"]
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="to see that it runs")
    told = parser.parse_args()
    set_quiet(True)
    tune_allocator()
    set_threads()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(told.device, Path(folder), TINY if told.tiny else (LARGE, SMALL, WARM))
    name = torch.cuda.get_device_name() if told.device == "cuda" else told.device
    found |= {"gpu": name, "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps(found, indent=1), flush=True)
    if not told.tiny:
        (RESULTS / f"stages_{told.device}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
