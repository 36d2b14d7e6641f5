"""Train the weights that all windows at once start from, on simulated movies in which parts move, come and go.

    python benchmarks/scenes.py SCENES.npz --count 144   # in an environment with de-twin
    python benchmarks/pretrain_ladder.py SCENES.npz WORK     # on a GPU, 8 minutes
    python benchmarks/pretrain_ladder.py SCENES.npz MORE --begin WORK --minutes 3 --lr 5e-4 --seed 23
    python benchmarks/pretrain_ladder.py SCENES.npz MORE --install   # put the weights into the package

`simulated_patches` makes the movies. Then it is plain Noise2Noise: the ladder of one half is the input, frames of
the other half about the middle are the target, with noise of their own, of which there is little: what is not real
may be exposed for long. The noiseless frames make the noisy ones and are nothing else. Every movie is in units of
its own mean and spreads, as `train` measures them, so that the weights fit any movie. Both networks, that of a CPU
and that of a GPU, see the same patches. They begin by knowing one window, the longest, with the weights that the
package has for that. Scenes that are kept aside are validated on. On one H200 a batch of 48 patches takes 22 ms to
make, and 8 and 12 ms to train the two networks on.

What is made small is the mean logarithm of the movies' errors, not of their sum: with the latter, faint movies
hardly counted, and the preview of `apoferritin` was 1.3 dB worse than it is.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from simulated_patches import DOSES, PATCH_PX, TARGET, Generator, Samples, of_each_movie
from torch import Tensor

import n2n_pipeline as n2n
from n2n_pipeline import starting
from n2n_pipeline.checkpoint import WEIGHTS, ModelCard, load_model, save_model
from n2n_pipeline.files import digest_file
from n2n_pipeline.ladder import LADDER
from n2n_pipeline.model import UNet, start_from_last
from n2n_pipeline.training.loop import learning_rate
from n2n_pipeline.training.state import TrainingState, copy_into

RESULTS = Path(__file__).parent / "results"
NETWORKS = {name: network for name, network in starting.NETWORKS.items() if name.endswith("-all")}
EMA_DECAY = 0.999
KEPT_ASIDE = 12  # every so many scenes
VALIDATE_EVERY = 250
FLOOR = 0.005  # of the longest level's variance: an error below which it matters little


class Run:
    """One network in training."""

    def __init__(self, name: str, device: torch.device, told: argparse.Namespace) -> None:
        network = load_model(told.begin / name).network if told.begin else begin_with_one_window(name)
        self.name, self.device, self.lr = name, device, told.lr
        network = network.to(device, memory_format=torch.channels_last).requires_grad_(True)
        self.state = TrainingState(network.train())
        self.rows: list[list[float]] = []
        self.precision = torch.float32

    def choose_precision(self, samples: Samples) -> None:
        """Take the faster of bfloat16 and TF32 for this width."""
        if self.device.type != "cuda":
            return
        found = {}
        for self.precision in (torch.bfloat16, torch.float32):
            for attempt in range(8):
                if attempt == 3:
                    torch.cuda.synchronize()
                    start = time.monotonic()
                torch.autograd.grad(self.loss(samples), list(self.state.network.parameters()))
            torch.cuda.synchronize()
            found[self.precision] = (time.monotonic() - start) / 5
        print(self.name, found, flush=True)
        self.precision = min(found, key=lambda precision: found[precision])

    def step(self, samples: Samples, progress: float) -> None:
        """Update the weights once."""
        state = self.state
        state.optimizer.param_groups[0]["lr"] = learning_rate(self.lr, progress)
        state.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(samples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        state.optimizer.step()
        state.counters.step += 1
        state.average_weights(EMA_DECAY)

    def loss(self, samples: Samples) -> Tensor:
        """Return the squared error of each movie in units of what it is beyond the target's noise.

        Its gradient is that of the mean logarithm of the errors: a decibel is worth as much in a movie that shows
        little as in one that shows much.
        """
        found = self.measure(samples)
        return (found / beyond_noise(found.detach(), samples)).mean()

    def measure(self, samples: Samples) -> Tensor:
        """Return the mean squared error against the noisy targets of each movie."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            output = self.state.network(samples.inputs)[:, 0]
        return of_each_movie((output - samples.target).square())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network have the averaged weights inside the body."""
        parameters = list(self.state.network.parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        copy_into(parameters, self.state.averaged)
        yield
        copy_into(parameters, kept)

    @torch.no_grad()
    def validate(self, batches: list[Samples]) -> None:
        """Score the averaged weights."""
        with self.averaged():
            errors = [beyond_noise(self.measure(batch), batch) for batch in batches]
        score = float(10 * torch.cat(errors).log10().mean())
        self.rows.append([self.state.counters.step, score])
        print(self.name, *self.rows[-1], flush=True)

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Write the averaged weights, their card and the losses; the training may go on."""
        spreads = (1.0,) * len(LADDER)
        card = ModelCard(
            network=NETWORKS[self.name], mean=0.0, scale=1.0, window=LADDER[-1], ladder=LADDER, target=TARGET,
            level_scales=spreads, is_start=True, steps=self.state.counters.step, provenance=provenance,
        )  # fmt: skip
        with self.averaged():
            save_model(folder / self.name, self.state.network, card)
        with (folder / self.name / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["step", "validation_error_db"], *self.rows])


def begin_with_one_window(name: str) -> UNet:
    """Return a network with the weights of one window for the last of its levels, and none for the others."""
    known = load_model(starting.FOLDER / f"{name.removesuffix('-all')}.safetensors").network.state_dict()
    network = UNet(NETWORKS[name])
    start_from_last(network)
    with torch.no_grad():
        for key, weight in network.state_dict().items():
            given = known[key]
            if weight.shape == given.shape:
                weight.copy_(given)
            else:  # inputs of the levels before the last lie between those that both have
                last = network.config.fold**2
                weight[:, : given.shape[1] - last] = given[:, :-last]
                weight[:, -last:] = given[:, -last:]
    return network


def beyond_noise(errors: Tensor, samples: Samples) -> Tensor:
    """Return how far an output is from what its noisy target is of, a movie each, and at least `FLOOR`."""
    return (errors - samples.noise).clamp(min=0) + FLOOR


def pretrain(told: argparse.Namespace) -> None:
    """Train all networks that are asked for, each step on the same patches, until the time is spent."""
    device = torch.device(told.device)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    file = np.load(told.scenes)
    scenes = torch.from_numpy(file["scenes"].astype(np.float32)).to(device)
    aside = torch.arange(len(scenes)) % KEPT_ASIDE == KEPT_ASIDE // 2
    others = Generator(scenes[aside], told.seed + 1)
    validation = [others.draw(told.movies) for _ in range(told.validation)]
    generator = Generator(scenes[~aside], told.seed)
    runs = [Run(name, device, told) for name in told.networks]
    samples = generator.draw(told.movies)
    for run in runs:
        run.choose_precision(samples)
    start = time.monotonic()
    for step in itertools.count():
        progress = (time.monotonic() - start) / (60 * told.minutes)
        if progress >= 1:
            break
        samples = generator.draw(told.movies)
        for run in runs:
            run.step(samples, progress)
        if step % VALIDATE_EVERY == 0:
            print(f"{time.monotonic() - start:.0f} s", flush=True)
            for run in runs:
                run.validate(validation)
            save(runs, told)
    for run in runs:
        run.validate(validation)
    save(runs, told)


def save(runs: list[Run], told: argparse.Namespace) -> None:
    """Write what there is of all networks, so that a machine that is taken away leaves something."""
    for run in runs:
        run.save(told.work, describe(told, run.name))


def describe(told: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the card's account of what the weights have seen, and of what they began with."""
    begun = told.begin / name if told.begin else starting.FOLDER / f"{name.removesuffix('-all')}.safetensors"
    return {
        "version": n2n.__version__,
        "purpose": "to start training from; alone they give a preview, which is no result",
        "data": "movies simulated from scenes of de-twin 0.3.0; Noise2Noise, no truth as target",
        "scenes": digest_file(told.scenes),
        "never_shown": "in-situ heating, droplet crystallisation, steel lamellae, anything atomically resolved",
        "limits": f"{DOSES[0]} to {DOSES[1]} electrons per pixel and frame, 80 000 x, 1.2 px of drift per frame",
        "settings": {"minutes": told.minutes, "movies": told.movies, "lr": told.lr, "patch_px": PATCH_PX},
        "seed": told.seed,
        "begun_with": load_model(begun).card.tensors_sha256,
    }


def install(work: Path) -> None:
    """Copy weights into the package, and the losses of the run into the results."""
    for name in NETWORKS:
        steps = load_model(work / name).card.steps
        (starting.FOLDER / f"{name}.safetensors").write_bytes((work / name / WEIGHTS).read_bytes())
        (RESULTS / f"pretrain_{name}.csv").write_bytes((work / name / "metrics.csv").read_bytes())
        print(f"{name}: {steps} steps, {(starting.FOLDER / f'{name}.safetensors').stat().st_size} bytes")


def main() -> None:
    """Train, or install what was trained."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenes", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--begin", type=Path, help="where weights of an earlier round are")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=19)
    parser.add_argument("--movies", type=int, default=12, help="in a batch, with 4 patches of each")
    parser.add_argument("--validation", type=int, default=8, help="batches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--install", action="store_true")
    told = parser.parse_args()
    if told.install:
        install(told.work)
    else:
        pretrain(told)


if __name__ == "__main__":
    main()
