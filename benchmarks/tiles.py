"""Time one large image: how fast it is denoised, in how much memory, and what the limit would be.

    python benchmarks/tiles.py                         # 2048 x 2048, the paper's network, 3 rounds
    python benchmarks/tiles.py --network default       # with the network that a CPU gets by default

Every method runs in a fresh process, for the allocator's settings hold for a whole process, and other libraries in
a virtual environment that this script makes for each of them. They take turns, so that a noisy machine is unfair
to none; ratios are medians over rounds of the ratio within a round. Images are in memory before and after; neither
start-up nor a small image first are counted. Megapixels per CPU second hold on a machine that others use too.

    n2n-pipeline   tiles, halo, mirrored border and blending as `n2n-pipeline denoise` plans them
    limit          the same network on as many pixels: 512 x 512 pieces side by side with nothing around them,
                   channels last, the allocator tuned
    monai          monai.inferers.sliding_window_inference, 512 x 512, overlap 0.25, Gaussian, same network

The first two run in the precision that n2n-pipeline chooses on this machine, and again in float32, as MONAI does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from n2n_pipeline import model
from n2n_pipeline.checkpoint import Denoiser, ModelCard
from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.device import autocast, autocast_dtype, set_threads, tune_allocator
from n2n_pipeline.geometry import plan_tiles
from n2n_pipeline.inference.choice import choose
from n2n_pipeline.inference.forward import denoise_frames
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.inference.plan import tiling_of
from n2n_pipeline.model import CPU_NETWORK, PAPER_NETWORK, UNet, as_channels_last
from n2n_pipeline.store import write_movie

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"paper": PAPER_NETWORK, "default": CPU_NETWORK}
PACKAGES = {"monai": "monai==1.6.1"}
METHODS = ("n2n-pipeline", "limit", "n2n-pipeline float32", "limit float32", "monai")
PIECE_PX = 512

Floats = npt.NDArray[np.float32]
Denoise = Callable[[Floats], object]


def make_network(name: str) -> UNet:
    """Make an untrained network; speed does not depend on its weights."""
    torch.manual_seed(0)
    return UNet(NETWORKS[name]).eval().requires_grad_(False)


def start_pipeline(network: UNet, precision: torch.dtype | None) -> Denoise:
    """Return what `n2n-pipeline denoise` does with the only frame of a movie."""
    tune_allocator()
    card = ModelCard(network=network.config, mean=0.0, scale=1.0, window=2)
    denoiser = Denoiser(network.to(memory_format=torch.channels_last), card, torch.device("cpu"), precision)
    config = DenoiseConfig(tile=TileConfig(halo_px="exact"), augment="off")
    with tempfile.TemporaryDirectory() as folder:
        movie = CorrectedMovie(write_movie(Path(folder) / "movie.zarr", np.zeros((1, 8, 8), np.float32)))
        choice = choose(denoiser, Inputs(movie, card.window), config, n_pixels=1)

    def denoise(image: Floats) -> object:
        plan = plan_tiles(image.shape, tiling_of(choice, config.tile, network.config))
        return denoise_frames(denoiser, image[None], np.ones_like(image[None]), plan)

    return denoise


def start_limit(network: UNet, precision: torch.dtype | None) -> Denoise:
    """Return the bare network on pieces of the image that know nothing of each other."""
    tune_allocator()
    network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def denoise(image: Floats) -> object:
        denoised = np.empty_like(image)
        for y in range(0, len(image), PIECE_PX):
            for x in range(0, len(image), PIECE_PX):
                place = (slice(y, y + PIECE_PX), slice(x, x + PIECE_PX))
                piece = as_channels_last(torch.from_numpy(image[place].copy())[None, None])
                with autocast(piece.device, precision):
                    denoised[place] = network(piece)[0, 0].numpy()
        return denoised

    return denoise


def start_monai(network: UNet, _precision: torch.dtype | None) -> Denoise:
    """Return MONAI's sliding windows, with the network in the layout that its users would have."""
    from monai.inferers import sliding_window_inference

    model.as_channels_last = lambda images: images

    @torch.inference_mode()
    def denoise(image: Floats) -> object:
        tensor = torch.from_numpy(image)[None, None]
        return sliding_window_inference(tensor, (PIECE_PX, PIECE_PX), 1, network, overlap=0.25, mode="gaussian")

    return denoise


STARTS = {"n2n-pipeline": start_pipeline, "limit": start_limit, "monai": start_monai}


def measure(method: str, network: str, side: int) -> dict[str, float]:
    """Time one image in this process."""
    set_threads()
    name, _, precision = method.partition(" ")
    chosen = None if precision else autocast_dtype(torch.device("cpu"))
    denoise = STARTS[name](make_network(network), chosen)
    image = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    denoise(image[:PIECE_PX, :PIECE_PX].copy())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    denoise(image)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megapixels = image.size / 1e6
    return {
        "mpx_per_second": megapixels / wall,
        "mpx_per_cpu_second": megapixels / cpu,
        "peak_memory_mib_above_a_small_image": (peak - before) / 1024,
    }


def make_environment(name: str, folder: Path) -> Path:
    """Make a virtual environment with a method's package, which sees this one's PyTorch; return its Python."""
    environment = folder / name
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    theirs = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    Path(theirs.strip(), "this.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGES[name]], check=True)
    return python


def run_in_fresh_process(python: Path, method: str, network: str, side: int) -> dict[str, float]:
    """Measure a method in a process of its own."""
    words = [python, __file__, "--child", method, "--network", network, "--side", str(side)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(network: str, side: int, rounds: int) -> dict[str, object]:
    """Let the methods take turns, and sum up."""
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        pythons = {name: make_environment(name, Path(folder)) for name in PACKAGES}
        for number in range(rounds):
            for method in METHODS:
                python = pythons.get(method, Path(sys.executable))
                found[method].append(run_in_fresh_process(python, method, network, side))
                print(f"round {number + 1}: {method} {found[method][-1]}", flush=True)

    def ratio(ours: str, theirs: str, key: str) -> float:
        pairs = zip(found[ours], found[theirs], strict=True)
        return round(statistics.median(one[key] / other[key] for one, other in pairs), 2)

    compared = [
        ("n2n-pipeline", "limit"),
        ("n2n-pipeline float32", "limit float32"),
        ("n2n-pipeline", "monai"),
        ("n2n-pipeline float32", "monai"),
    ]
    keys = ("mpx_per_second", "mpx_per_cpu_second")
    ratios = {f"{key}: {ours} / {theirs}": ratio(ours, theirs, key) for key in keys for ours, theirs in compared}
    return {"ratios": ratios, "rounds": found}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="paper")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", metavar="METHOD", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        print(json.dumps(measure(told.child, told.network, told.side)))
        return
    result = compare(told.network, told.side, told.rounds)
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result |= {"torch": torch.__version__, "side_px": told.side, "packages": list(PACKAGES.values())}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"tiles_{told.network}_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
