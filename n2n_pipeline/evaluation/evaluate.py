"""A denoised movie in, figures and verdicts out: scores against a truth if there is one, and what needs none.

A truth is used for its own three scores and for nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.diagnostics import Verdict
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.evaluation.figures import evaluate_without_truth, write_verdicts
from n2n_pipeline.evaluation.samples import Subject
from n2n_pipeline.inference.forward import turns_of
from n2n_pipeline.inference.inputs import inputs_for
from n2n_pipeline.inference.plan import Choice, resolve_part, tiling_of
from n2n_pipeline.metrics.quality import BORDER_PX, Scores, score_movie
from n2n_pipeline.progress import progress
from n2n_pipeline.sources import open_movie
from n2n_pipeline.store import MovieStore, open_store

Json = dict[str, Any]
Frame = npt.NDArray[np.floating[Any]]


def evaluate_store(
    output: Path,
    truth: Path | None = None,
    movie: Path | None = None,
    model: Path | None = None,
    device: str = "auto",
) -> Json:
    """Tell how good a denoised movie is, and whether to believe it.

    Parameters
    ----------
    output : pathlib.Path
        A denoised store.
    truth : pathlib.Path, optional
        What the camera would have seen without noise, frame by frame; only a simulated movie has it.
    movie, model : pathlib.Path, optional
        The raw movie's store and the network, where they are no longer at the places that the output names.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns
    -------
    dict
        JSON values. With a truth ``snr_db``, ``psnr_db`` and ``ssim``. Without needing one: ``upsnr_db`` and
        ``umse`` with their 95 % intervals, ``frc``, ``residual``, ``camera``, ``halves``, ``fixed_pattern``,
        ``seams`` and ``motion``; ``verdicts``, each a ``check``, a ``verdict`` (``pass``, ``look`` or ``fail``)
        and a ``sentence``, and ``verdict``, the most serious of them.

    Raises
    ------
    InputError
        If the output or the truth cannot be read, they do not show the same, or there is no truth and the movie or
        the model is not found.
    """
    store = open_store(output)
    scores: Json = {}
    if truth is not None:
        scores = {**score_against(store, truth)._asdict(), "truth": os.path.relpath(truth, output.parent)}
    movie, model = movie or store.made_from("movie"), model or store.made_from("model")
    if scores and (movie is None or model is None):
        text = (
            "The movie or the model is no longer where the output names it, so that only the truth was looked at."
        )
        return {**scores, **write_verdicts([Verdict("output", "look", text)])}
    return {**scores, **evaluate_without_truth(open_subject(store, movie, model, device))}


def score_against(output: MovieStore, truth: Path) -> Scores:
    """Score every frame of an output against its truth.

    Raises
    ------
    InputError
        If they have not the same frames and field of view, or the output is not in the camera's frame of
        reference.
    """
    if output.provenance.get("frame_of_reference", "camera") != "camera":
        what = "in the stable frame of reference, where a truth of the camera's frames does not fit"
        raise InputError(output.path, what, "denoise with --frame-of-reference camera")
    n_frames, *sides = output.info.shape
    if min(sides) <= 2 * BORDER_PX:
        raise InputError(
            output.path, f"{sides[0]}x{sides[1]} image", f"scores leave {BORDER_PX} px out at each edge"
        )
    with _opened(truth) as (shape, read), progress("score", n_frames) as step:
        if shape != output.info.shape:
            what = f"shape {shape}, {output.path.name} is {output.info.shape}"
            raise InputError(truth, what, "a truth must show the same frames and field of view")

        def frames() -> Iterator[tuple[Frame, Frame]]:
            for t in range(n_frames):
                yield output.read(slice(t, t + 1))[0], read(t)
                step(1)

        return score_movie(frames())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[tuple[int, int, int], Callable[[int], Frame]]]:
    """Give the shape of a movie of any format, a store included, and a function that reads one of its frames."""
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        store = open_store(path)
        yield store.info.shape, lambda t: store.read(slice(t, t + 1))[0]
        return
    source = open_movie(path)
    try:
        yield source.info.shape, lambda t: source.read_frames(t, t + 1)[0]
    finally:
        source.close()


def open_subject(output: MovieStore, movie: Path | None, model: Path | None, device: str = "auto") -> Subject:
    """Open the movie and the network that an output was made of, and settle how it was made.

    Parameters
    ----------
    output : MovieStore
        The denoised store.
    movie, model : pathlib.Path or None
        Where they are.
    device : str
        Where the network runs.

    Raises
    ------
    InputError
        If one of them is not known or not there, or the output is no part of the movie.
    """
    made = output.provenance
    if "choice" not in made:
        raise InputError(
            output.path, "was not made by n2n-pipeline denoise", "only a truth can judge it: --truth F"
        )
    raw = open_store(_found(output, movie, "movie", "--movie STORE"))
    denoiser = load_model(_found(output, model, "model", "-m MODEL"), device)
    config = DenoiseConfig.model_validate(made.get("settings", {}))
    frame = made.get("frame_of_reference", config.frame_of_reference)
    window = None if denoiser.card.ladder else made.get("window")
    choice = Choice.model_validate(made["choice"])
    inputs = replace(inputs_for(CorrectedMovie(raw), denoiser.card, frame, window), noise=choice.noise)
    rows, cols = (config.region[:2], config.region[2:]) if config.region else (None, None)
    wanted = ((config.frames, "frames"), (rows, "rows"), (cols, "columns"))
    part = tuple(resolve_part(span, size, what) for (span, what), size in zip(wanted, raw.info.shape, strict=True))
    if tuple(axis.size for axis in part) != output.info.shape:
        what = f"shape {output.info.shape} is not that of {raw.path.name}, {raw.info.shape}"
        raise InputError(output.path, what, "name the movie that it was made of with --movie")
    tiling = tiling_of(choice, config.tile, denoiser.card.network)
    return Subject(output, inputs, denoiser, tiling, turns_of(choice.passes), (part[0], part[1], part[2]))


def _found(output: MovieStore, path: Path | None, what: str, option: str) -> Path:
    if path is None:
        told = f"its {what} is not where it was ({output.provenance.get(what, 'nothing tells where')})"
        raise InputError(output.path, told, f"say where it is with {option}", ExitCode.NO_INPUT)
    return path
