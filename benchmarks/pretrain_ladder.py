"""Train the weights that all windows at once start from, on simulated movies in which parts move, come and go.

    python benchmarks/scenes.py SCENES.npz --count 144   # in an environment with de-twin
    python benchmarks/pretrain_ladder.py SCENES.npz WORK     # on a GPU, 8 minutes
    python benchmarks/pretrain_ladder.py SCENES.npz WORK --install   # put the weights into the package

`simulated_patches` makes the movies. Then it is plain Noise2Noise: the ladder of one half is the input, frames of
the other half about the middle are the target, with noise of their own. The noiseless frames make the noisy ones
and are nothing else. Every movie is in units of its own mean and spreads, as `train` measures them, so that the
weights fit any movie. Both networks, that of a CPU and that of a GPU, see the same patches. Scenes that are kept
aside are validated on. On one H200 a batch of 48 patches takes 18 ms to make, and 9 and 12 ms to train the two
networks on.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from simulated_patches import DOSES, PATCH_PX, TARGET, Generator, Samples
from torch import Tensor

import n2n_pipeline as n2n
from n2n_pipeline import starting
from n2n_pipeline.checkpoint import WEIGHTS, ModelCard, load_model, save_model
from n2n_pipeline.files import digest_file
from n2n_pipeline.ladder import LADDER
from n2n_pipeline.model import UNet, predict_mean, start_from_last
from n2n_pipeline.training.loop import learning_rate
from n2n_pipeline.training.state import TrainingState, copy_into

RESULTS = Path(__file__).parent / "results"
NETWORKS = {name: network for name, network in starting.NETWORKS.items() if name.endswith("-all")}
SEED = 19
LEARNING_RATE = 1e-3
EMA_DECAY = 0.999
KEPT_ASIDE = 12  # every so many scenes
VALIDATE_EVERY = 250


class Run:
    """One network in training."""

    def __init__(self, name: str, device: torch.device) -> None:
        torch.manual_seed(SEED)
        network = UNet(NETWORKS[name])
        predict_mean(network)
        start_from_last(network)
        self.name, self.device = name, device
        self.state = TrainingState(network.to(device, memory_format=torch.channels_last).train())
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
        state.optimizer.param_groups[0]["lr"] = learning_rate(LEARNING_RATE, progress)
        state.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(samples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
        state.optimizer.step()
        state.counters.step += 1
        state.average_weights(EMA_DECAY)

    def loss(self, samples: Samples) -> Tensor:
        """Return the weighted mean of squared errors against the noisy target."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            output = self.state.network(samples.inputs)[:, 0]
        return (samples.weight[:, None, None] * (output - samples.target).square()).mean()

    @torch.no_grad()
    def validate(self, batches: list[Samples]) -> None:
        """Score the averaged weights, and leave the others as they are."""
        parameters = list(self.state.network.parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        copy_into(parameters, self.state.averaged)
        score = float(np.mean([float(self.loss(batch)) for batch in batches]))
        copy_into(parameters, kept)
        self.rows.append([self.state.counters.step, score])
        print(self.name, *self.rows[-1], flush=True)

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Write the averaged weights, their card and the losses."""
        copy_into(list(self.state.network.parameters()), self.state.averaged)
        spreads = (1.0,) * len(LADDER)
        card = ModelCard(
            network=NETWORKS[self.name], mean=0.0, scale=1.0, window=LADDER[-1], ladder=LADDER, target=TARGET,
            level_scales=spreads, is_start=True, steps=self.state.counters.step, provenance=provenance,
        )  # fmt: skip
        save_model(folder / self.name, self.state.network, card)
        with (folder / self.name / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["step", "validation_loss"], *self.rows])


def pretrain(told: argparse.Namespace) -> None:
    """Train all networks that are asked for, each step on the same patches, until the time is spent."""
    device = torch.device(told.device)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    file = np.load(told.scenes)
    scenes = torch.from_numpy(file["scenes"].astype(np.float32)).to(device)
    aside = torch.arange(len(scenes)) % KEPT_ASIDE == KEPT_ASIDE // 2
    others = Generator(scenes[aside], SEED + 1)
    validation = [others.draw(told.movies) for _ in range(told.validation)]
    generator = Generator(scenes[~aside], SEED)
    runs = [Run(name, device) for name in told.networks]
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
    provenance = {
        "version": n2n.__version__,
        "purpose": "to start training from; alone they give a preview, which is no result",
        "data": "movies simulated from scenes of de-twin 0.3.0; Noise2Noise, no truth as target",
        "scenes": digest_file(told.scenes),
        "never_shown": "in-situ heating, droplet crystallisation, steel lamellae, anything atomically resolved",
        "limits": f"{DOSES[0]} to {DOSES[1]} electrons per pixel and frame, 80 000 x, 1.2 px of drift per frame",
        "settings": {"minutes": told.minutes, "movies": told.movies, "lr": LEARNING_RATE, "patch_px": PATCH_PX},
        "seed": SEED,
    }
    for run in runs:
        run.validate(validation)
        run.save(told.work, provenance)


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
    parser.add_argument("--minutes", type=float, default=8.0)
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
