"""Weights that come with the package: what training starts from, and a preview without any training.

They were trained by Noise2Noise on simulated movies, each in units of its own mean and spread (see
``benchmarks/pretrain.py``), so that they fit any movie once its own are measured. They know what micrographs have
in common, not what this one shows: a preview is for looking, not for measuring.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from n2n_pipeline.averages import read_pairs
from n2n_pipeline.checkpoint import ModelCard, load_model, save_model, weights_digest
from n2n_pipeline.config import NetworkConfig, SweepConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.device import choose_device
from n2n_pipeline.errors import InputError
from n2n_pipeline.geometry import spread_evenly
from n2n_pipeline.ladder import LADDER
from n2n_pipeline.manifest import content_digest
from n2n_pipeline.metrics.noise import clipped_deviation
from n2n_pipeline.model import CPU_NETWORK, PAPER_NETWORK
from n2n_pipeline.sources.formats import is_zarr
from n2n_pipeline.store import open_store
from n2n_pipeline.sweep import compare_windows

STARTING = Path("starting")
"""In place of a model: these weights. A folder of that name is ``./starting``."""
FOLDER = Path(__file__).with_name("data") / "starting"
NETWORKS = {"cpu": CPU_NETWORK, "full": PAPER_NETWORK}
NETWORKS |= {
    f"{name}-all": network.model_copy(update={"in_channels": len(LADDER)}) for name, network in NETWORKS.items()
}
SAMPLE_FRAMES = 6
SAMPLE_PX = 512

_log = logging.getLogger(__name__)


def default_network(device: str) -> NetworkConfig:
    """Return the network of a kind of device, unless another is asked for."""
    return NETWORKS[_name(device)]


def starting_weights(network: NetworkConfig) -> Path | None:
    """Return the weights that come with the package for a network, if there are any."""
    return next((_file(name) for name, known in NETWORKS.items() if known == network), None)


def begun_with(card: ModelCard) -> Path | None:
    """Return the weights of the package that a model began with, if it did."""
    weights = starting_weights(card.network)
    return weights if weights is not None and card.provenance.get("init") == weights_digest(weights) else None


def _name(device: str) -> str:
    return "cpu" if device == "cpu" else "full"


def _file(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def describe_training(card: ModelCard) -> str:
    """Say how a model came to its weights, in a few words."""
    begun = card.provenance.get("init")
    if card.is_start:
        return "starting weights of the package, not trained on this movie"
    if begun is None:
        start = "random weights"
    elif begun_with(card):
        start = f"the package's starting weights ({begun[:8]})"
    else:
        start = f"another model ({begun[:8]})"
    return f"{card.steps} steps from {start}"


def preview_model(model: Path, store: Path, output: Path, device: str = "auto", window: int | None = None) -> Path:
    """Return a model as it was named or, in place of ``starting``, one of the starting weights fitted to a movie.

    Parameters
    ----------
    model : pathlib.Path
        What was named.
    store : pathlib.Path
        The movie's store.
    output : pathlib.Path
        What is denoised with the model; ``preview_model`` is made beside it.
    device : str
        Chooses which of the weights.
    window : int, optional
        Frames to average; by default what predicts held-out frames best.

    Raises
    ------
    InputError
        If there are no two frames to measure a window on.
    """
    if model != STARTING:
        return model
    todo = "train a model of it"
    if store.is_dir() and not is_zarr(store):
        raise InputError(store, "is no movie, and starting weights are for movies", todo)
    movie = CorrectedMovie(open_store(store))
    if movie.store.info.shape[0] < 2:
        raise InputError(store, "holds one frame, and starting weights are for movies", todo)
    if window is None:
        window = int(compare_windows(store, SweepConfig())["window"])
    weights = _file(_name(choose_device(device).type))
    mean, scale = _measure(movie, window)
    start = load_model(weights)
    fitted = {"mean": mean, "scale": scale, "window": window, "windows": ()}
    made_from = {"init": weights_digest(weights), "movies": [content_digest(store)]}
    card = start.card.model_copy(update={**fitted, "provenance": start.card.provenance | made_from})
    folder = output.with_name("preview_model")
    save_model(folder, start.network, ModelCard.model_validate(card.model_dump()))
    _log.warning("a preview: these weights were never trained on this movie; train before you measure anything")
    return folder


def _measure(movie: CorrectedMovie, window: int) -> tuple[float, float]:
    """Return mean and spread of half-window averages in the middle of some frames."""
    n_frames, *sides = movie.store.info.shape
    region = tuple(slice(max(side - SAMPLE_PX, 0) // 2, (side + min(side, SAMPLE_PX)) // 2) for side in sides)
    found: list[npt.NDArray[np.float32]] = []
    for t in spread_evenly(n_frames, SAMPLE_FRAMES):
        pair = read_pairs(movie, range(t, t + 1), (region[0], region[1]), window)
        found += [values[seen > 0] for values, seen in ((pair.even, pair.even_count), (pair.odd, pair.odd_count))]
    values = np.concatenate(found)
    scale = clipped_deviation(values)
    if not scale:
        raise InputError(movie.store.path, "all pixels are equal; there is nothing to denoise")
    return float(values.mean(dtype=np.float64)), scale
