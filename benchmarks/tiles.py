"""Time one large image: how fast it is denoised, in how much memory, and what the limit would be.

    python benchmarks/tiles.py                         # 2048 x 2048, the paper's network, 3 rounds
    python benchmarks/tiles.py --network default       # with the network that a CPU gets by default
    python benchmarks/tiles.py --environments DIR      # where other libraries are installed, and kept

Every method runs in a fresh process, for the allocator's settings hold for a whole process, and other libraries in
the virtual environments that ``peers.sh`` makes, with this one's PyTorch. They take turns, so that a
noisy machine is unfair to none; ratios are medians over rounds of the ratio within a round. Images are in memory
before and after; neither start-up nor a small image first are counted. Megapixels per CPU second hold on a machine
that others use too. A library that cannot be installed is named in the results, with the reason.

    n2n-pipeline   tiles, halo, mirrored border and blending as `n2n-pipeline denoise` plans them
    limit          the same network on as many pixels: 512 x 512 pieces side by side with nothing around them,
                   channels last, the allocator tuned
    monai          monai.inferers.sliding_window_inference, 512 x 512, overlap 0.25, Gaussian, same network and
                   weights, as PyTorch's layers compute it where nobody has changed anything
    careamics      CAREamist.predict, tiles of 512 x 512, its default overlap, its default Noise2Noise U-Net
    careamics 48   the same with 48 channels, which makes its U-Net about as much work as the paper's
    topaz          topaz denoise with its default U-Net, pieces of 1024 x 1024 and padding of 500 px

The first two run in the precision that n2n-pipeline chooses on this machine, and again in float32, as the others
do. CAREamics and topaz bring their own networks, so the table says how much work a pixel is for each: the
floating-point operations of the bare network per pixel of a 512 x 512 image.
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
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from environments import MissingPeer, add_option, python_of
from torch.utils.flop_counter import FlopCounterMode

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
PEERS = ("monai", "careamics", "topaz")
OURS = ("n2n-pipeline", "limit", "n2n-pipeline float32", "limit float32")
PIECE_PX = 512

Floats = npt.NDArray[np.float32]


class Denoise(NamedTuple):
    """A way to denoise, ready to be timed."""

    run: Callable[[Floats], object]
    network: torch.nn.Module


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

    return Denoise(denoise, network)


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

    return Denoise(denoise, network)


def start_monai(network: UNet, _precision: torch.dtype | None) -> Denoise:
    """Return MONAI's sliding windows, with the network as its users would write it."""
    from monai.inferers import sliding_window_inference

    model.as_channels_last = lambda images: images
    model.convolve_doubled = convolve_larger

    @torch.inference_mode()
    def denoise(image: Floats) -> object:
        tensor = torch.from_numpy(image)[None, None]
        return sliding_window_inference(tensor, (PIECE_PX, PIECE_PX), 1, network, overlap=0.25, mode="gaussian")

    return Denoise(denoise, network)


def convolve_larger(layer: torch.nn.Conv2d, features: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Double features and convolve the larger image, as the paper has it."""
    larger = torch.nn.functional.interpolate(features, scale_factor=2, mode="nearest")
    return layer(torch.cat((larger, beside), dim=1))  # type: ignore[no-any-return]


def start_careamics(_network: UNet, _precision: torch.dtype | None, channels: int = 32) -> Denoise:
    """Return CAREamics' tiled prediction, after one step of training, which it asks for."""
    from peers.unused_torchvision import declare_operators

    declare_operators()
    from careamics import CAREamist
    from careamics.config.factories import create_advanced_n2n_config

    data = {"data_type": "array", "axes": "YX"}
    training = {"patch_size": (64, 64), "batch_size": 1, "num_epochs": 1, "num_steps": 1, "n_val_patches": 1}
    noisy = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    folder = tempfile.mkdtemp(dir=os.environ["N2N_SCRATCH"])
    model_params = {"num_channels_init": channels}
    config = create_advanced_n2n_config(experiment_name="tiles", **data, **training, model_params=model_params)
    careamist = CAREamist(config, work_dir=folder, enable_progress_bar=False)
    pair = {"train_data": noisy[0], "train_data_target": noisy[1]}
    careamist.train(**pair, val_data=noisy[0], val_data_target=noisy[1])
    return Denoise(
        lambda image: careamist.predict(image, tile_size=(PIECE_PX, PIECE_PX), batch_size=1, **data),
        careamist.model.model,
    )


def start_topaz(_network: UNet, _precision: torch.dtype | None) -> Denoise:
    """Return what `topaz denoise` does with one micrograph, with its defaults."""
    from topaz.denoise import Denoise as Topaz
    from topaz.denoise import denoise_image

    models = [Topaz("unet")]
    return Denoise(lambda image: denoise_image(image, models, patch_size=1024, padding=500), models[0].model)


STARTS = {
    "n2n-pipeline": start_pipeline,
    "limit": start_limit,
    "monai": start_monai,
    "careamics": start_careamics,
    "careamics 48": partial(start_careamics, channels=48),
    "topaz": start_topaz,
}


def operations_per_pixel(network: torch.nn.Module) -> float:
    """Count a network's multiplications and additions per pixel of an image."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, 1, PIECE_PX, PIECE_PX))
    return counter.get_total_flops() / PIECE_PX**2


def measure(method: str, network: str, side: int) -> dict[str, float]:
    """Time one image in this process."""
    set_threads()
    chosen = None if method.endswith(" float32") else autocast_dtype(torch.device("cpu"))
    denoise = STARTS[method.removesuffix(" float32")](make_network(network), chosen)
    image = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    denoise.run(image[:PIECE_PX, :PIECE_PX].copy())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    denoise.run(image)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megapixels = image.size / 1e6
    return {
        "mpx_per_second": megapixels / wall,
        "mpx_per_cpu_second": megapixels / cpu,
        "peak_memory_mib_above_a_small_image": (peak - before) / 1024,
        "network_kflop_per_px": operations_per_pixel(denoise.network) / 1e3,
    }


def find_pythons(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Install every other library; return the Python of each, and why others could not be had."""
    pythons, missing = {}, {}
    for name in PEERS:
        try:
            pythons[name] = python_of(name, folder)
        except MissingPeer as error:
            missing[name] = str(error)
            print(error, flush=True)
    return pythons, missing


def run_in_fresh_process(python: Path, method: str, network: str, side: int) -> dict[str, float]:
    """Measure a method in a process of its own."""
    words = [python, __file__, "--child", method, "--network", network, "--side", str(side)]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "N2N_SCRATCH": scratch}
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=scratch)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(network: str, side: int, rounds: int, folder: Path) -> dict[str, object]:
    """Let the methods take turns, and sum up."""
    pythons, missing = find_pythons(folder)
    if "careamics" in pythons:
        pythons["careamics 48"] = pythons["careamics"]
    found: dict[str, list[dict[str, float]]] = {method: [] for method in (*OURS, *pythons)}
    for number in range(rounds):
        for method, measured in found.items():
            python = pythons.get(method, Path(sys.executable))
            measured.append(run_in_fresh_process(python, method, network, side))
            print(f"round {number + 1}: {method} {measured[-1]}", flush=True)

    def ratio(ours: str, theirs: str, key: str) -> float:
        pairs = zip(found[ours], found[theirs], strict=True)
        return round(statistics.median(one[key] / other[key] for one, other in pairs), 2)

    compared = [("n2n-pipeline", "limit"), ("n2n-pipeline float32", "limit float32")]
    compared += [(ours, theirs) for theirs in pythons for ours in OURS[::2]]
    keys = ("mpx_per_second", "mpx_per_cpu_second")
    ratios = {f"{key}: {ours} / {theirs}": ratio(ours, theirs, key) for key in keys for ours, theirs in compared}
    return {"ratios": ratios, "could_not_be_installed": missing, "rounds": found}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="paper")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    parser.add_argument("--child", metavar="METHOD", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        print(json.dumps(measure(told.child, told.network, told.side)))
        return
    result = compare(told.network, told.side, told.rounds, told.environments)
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result |= {"torch": torch.__version__, "side_px": told.side}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"tiles_{told.network}_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
