"""How many images a second training sees, against the student project's loop and against no data path at all.

    python benchmarks/training.py                        # 4 x 256², the paper's network, 3 rounds
    python benchmarks/training.py --network default      # with the network that a CPU gets by default
    python benchmarks/training.py --device cuda --steps 200

Every method runs in a fresh process, for the allocator's settings hold for a whole process. They take turns, so
that a noisy machine is unfair to none; ratios are medians over rounds of the ratio within a round. Start-up and
first steps are not counted. Images per CPU second hold on a machine that others use too.

    n2n-pipeline   patches drawn from a stored movie (64 x 512 x 512 counts, window 32), corrected, halved, turned
    synthetic      the same network, optimiser, layout, precision and allocator on one batch of random numbers
    student        the student project's loop: pairs of 8-bit PNGs in [0, 1], Adam with AMSGrad, float32, no layout
    compiled       only with --compiled: synthetic, with the network through torch.compile; needs a C++ compiler
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from environments import with_package
from PIL import Image

from n2n_pipeline import model
from n2n_pipeline.config import NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.device import autocast, autocast_dtype, choose_device, set_threads, tune_allocator
from n2n_pipeline.model import CPU_NETWORK, PAPER_NETWORK, UNet, as_channels_last
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.store import write_movie
from n2n_pipeline.training.distributed import Ranks
from n2n_pipeline.training.loop import BatchQueue, Task, Trainer
from n2n_pipeline.training.patches import PatchSampler
from n2n_pipeline.training.plan import describe_model, make_plan, open_movies
from n2n_pipeline.training.pool import Pool
from n2n_pipeline.training.state import TrainingState
from n2n_pipeline.training.validation import read_validation

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"paper": PAPER_NETWORK, "default": CPU_NETWORK}
METHODS = ("n2n-pipeline", "synthetic", "student", "compiled")
WARM_UP_STEPS = 2


def prepare(folder: Path, side: int) -> None:
    """Write the movie, and the PNG pairs that the student project would have made of it."""
    simulated = simulate_movie((64, 512, 512), dose=1.0)
    write_movie(folder / "movie.zarr", simulated.counts, simulated.info)
    for half in (0, 1):
        means = [simulated.counts[2 * number + half :: 32, :side, :side].mean(axis=0) for number in range(16)]
        write_pngs(folder / ("even", "odd")[half], np.stack(means))


def write_pngs(folder: Path, images: np.ndarray) -> None:
    """Write averages as the student project keeps them: 8 bits, from nothing to the brightest pixel of each."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(to_grey(image)).save(folder / f"{number:03d}.png")


def to_grey(image: np.ndarray) -> np.ndarray:
    """Scale an image to 8 bits by its brightest pixel."""
    return np.clip(image / image.max() * 255, 0, 255).astype(np.uint8)


def start_pipeline(folder: Path, config: RunConfig) -> Callable[[int], object]:
    """Return what `n2n-pipeline train` does in one step."""
    memory = int(config.train.memory_gb * 1e9)
    movies = open_movies([folder / "movie.zarr"])
    plan = make_plan(movies, config, memory)
    device = choose_device(config.device)
    network = UNet(plan.network).to(device).to(memory_format=torch.channels_last)
    pool = Pool(movies.frames, plan.windows, plan.seed, memory)
    task = Task(
        config.train,
        plan.steps,
        plan.lr,
        describe_model(plan, movies, config, 0),
        PatchSampler(pool, plan.recipe, plan.held_out),
        read_validation(movies.frames, plan.held_out, plan.recipe),
        plan.precision,
        folder / "model",
    )
    trainer = Trainer(TrainingState(network), task, Ranks(device=device))
    batches = BatchQueue(trainer.make_batch, 1 if device.type == "cpu" else 8)
    return lambda step: trainer.train_step(batches.get(step))


def start_compiled(folder: Path, config: RunConfig) -> Callable[[int], object]:
    """Return a step on numbers that are there already, through a compiled network."""
    return start_synthetic(folder, config, torch.compile)


def start_synthetic(
    _folder: Path, config: RunConfig, wrap: Callable[[UNet], Callable[[torch.Tensor], torch.Tensor]] | None = None
) -> Callable[[int], object]:
    """Return a step on numbers that are there already."""
    device = choose_device(config.device)
    network = UNet(config.network or CPU_NETWORK).to(device).to(memory_format=torch.channels_last)
    forward = wrap(network) if wrap else network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    averages = [parameter.detach().clone() for parameter in network.parameters()]
    shape = (config.train.batch, 1, config.train.patch_px, config.train.patch_px)
    inputs, target = as_channels_last(torch.rand(shape, device=device)), torch.rand(shape, device=device)

    def step(_number: int) -> None:
        with autocast(device, autocast_dtype(device)):
            output = forward(inputs)
        loss = (output - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(averages, network.parameters(), strict=True):
                average.lerp_(parameter, 0.02)
        float(loss.detach())

    return step


class Student:
    """The student project's recipe, rebuilt from its description: its network, its data and its loop.

    Pairs of 8-bit PNGs scaled to [0, 1], random crops, Adam with AMSGrad at a constant rate of 0.001, mean squared
    error, float32, and the memory layout that PyTorch chooses.

    Parameters
    ----------
    folder : pathlib.Path
        Holds ``even`` and ``odd``, whose images are paired by name.
    network : NetworkConfig
        Shape of the network.
    train : TrainConfig
        Batch and patch are used.
    device : torch.device
        Where it runs.
    """

    def __init__(self, folder: Path, network: NetworkConfig, train: TrainConfig, device: torch.device) -> None:
        model.as_channels_last = lambda images: images  # its network leaves the layout to PyTorch
        self.device, self.network = device, UNet(network).to(device)
        rates = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
        self.optimizer = torch.optim.Adam(self.network.parameters(), **rates, amsgrad=True)
        pairs = Pairs(folder, train.patch_px)
        self.loader = torch.utils.data.DataLoader(pairs, batch_size=train.batch, shuffle=True)
        self.criterion = torch.nn.MSELoss()
        self._batches = iter(self.loader)

    def step(self, _number: int = 0) -> None:
        """Make one update."""
        try:
            source, target = next(self._batches)
        except StopIteration:
            self._batches = iter(self.loader)
            source, target = next(self._batches)
        source, target = source.to(self.device), target.to(self.device)
        self.optimizer.zero_grad()
        loss = self.criterion(self.network(source), target)
        loss.backward()
        self.optimizer.step()
        loss.item()


class Pairs(torch.utils.data.Dataset):
    """The student project's data: the same crop of one pair of PNGs an item."""

    def __init__(self, folder: Path, side: int) -> None:
        self.even, self.odd = (sorted((folder / half).iterdir()) for half in ("even", "odd"))
        self.side = side

    def __len__(self) -> int:
        return len(self.even)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a pair, scaled to [0, 1]."""
        paths = self.even[index], self.odd[index]
        even, odd = (torch.from_numpy(np.array(Image.open(path))).float()[None] / 255 for path in paths)
        y, x = (int(torch.randint(max(1, length - self.side + 1), ())) for length in even.shape[1:])
        place = (slice(None), slice(y, y + self.side), slice(x, x + self.side))
        return even[place], odd[place]


def start_student(folder: Path, config: RunConfig) -> Callable[[int], object]:
    """Return a step of the student project's loop."""
    return Student(folder, config.network or CPU_NETWORK, config.train, choose_device(config.device)).step


STARTS = dict(zip(METHODS, (start_pipeline, start_synthetic, start_student, start_compiled), strict=True))


def measure(method: str, folder: Path, config: RunConfig) -> dict[str, float]:
    """Time the steps of one method in this process."""
    if method != "student":
        tune_allocator()
    set_threads(config.threads)
    start = time.perf_counter()
    step = STARTS[method](folder, config)
    for number in range(WARM_UP_STEPS):
        step(number)
    start_seconds = time.perf_counter() - start
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(WARM_UP_STEPS, WARM_UP_STEPS + config.train.steps):
        step(number)
    if config.device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    images = config.train.steps * config.train.batch
    return {
        "images_per_second": images / wall,
        "images_per_cpu_second": images / cpu,
        "start_seconds": start_seconds,
    }


def run_in_fresh_process(method: str, folder: Path, config: RunConfig) -> dict[str, float]:
    """Measure a method in a process of its own."""
    words = [sys.executable, __file__, "--child", method, str(folder), config.model_dump_json()]
    done = subprocess.run(words, env=with_package(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(config: RunConfig, rounds: int, methods: Sequence[str]) -> dict[str, object]:
    """Let the methods take turns, and sum up."""
    found: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), config.train.patch_px)
        for number in range(rounds):
            for method in methods:
                found[method].append(run_in_fresh_process(method, Path(folder), config))
                print(f"round {number + 1}: {method} {found[method][-1]}", flush=True)

    def ratio(other: str, key: str) -> float:
        pairs = zip(found["n2n-pipeline"], found[other], strict=True)
        return statistics.median(ours[key] / theirs[key] for ours, theirs in pairs)

    summary: dict[str, object] = {
        f"{key} / {other}": round(ratio(other, key), 2)
        for key in ("images_per_second", "images_per_cpu_second")
        for other in methods[1:]
    }
    return {"ratios": summary, "rounds": found}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="paper")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="measure torch.compile, too")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "FOLDER", "CONFIG"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        method, folder, config = told.child
        print(json.dumps(measure(method, Path(folder), RunConfig.model_validate_json(config))))
        return
    network: NetworkConfig = NETWORKS[told.network]
    train = TrainConfig(window=32, steps=told.steps, batch=4, patch_px=256)
    config = RunConfig(network=network, train=train, threads=told.threads, device=told.device)
    result = compare(config, told.rounds, METHODS if told.compiled else METHODS[:-1])
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result |= {"torch": torch.__version__, "network": network.model_dump()}
    RESULTS.mkdir(exist_ok=True)
    name = f"training_{told.network}_{told.device}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
