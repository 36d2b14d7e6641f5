"""One denoising job: a movie, a network and settings, resolved to what decides every byte of the output."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.checkpoint import Denoiser, load_model, weights_digest
from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import digest_json
from n2n_pipeline.geometry import Range, Tile, TilePlan, plan_tiles
from n2n_pipeline.inference.choice import as_chosen, choose
from n2n_pipeline.inference.inputs import Half, Inputs, inputs_for, keep_chunks
from n2n_pipeline.inference.plan import (
    Block,
    Choice,
    begun_choice,
    cut_layout,
    fit_layout,
    memory_budget,
    plan_blocks,
    resolve_part,
    tiling_of,
)
from n2n_pipeline.layout import Layout, default_layout
from n2n_pipeline.placing import move
from n2n_pipeline.pyramid import plan_levels
from n2n_pipeline.records import store_digest
from n2n_pipeline.shifted import stable_origin, whole_shifts
from n2n_pipeline.store import MovieStore, add_array, create_store, open_store

Floats = npt.NDArray[np.float32]

HALVES = ("even", "odd")
WINDOW_MAP = "window"
SHARED_BYTES = 2**25  # of chunks that neighbouring tiles share


class Piece(NamedTuple):
    """What is read at once: one tile of some frames of a block."""

    block: Block
    tile: Tile
    frames: range
    """Frames of the movie."""


class Order(NamedTuple):
    """What was asked for."""

    store: Path
    """Movie or montage."""
    model: Path
    """Folder of a trained model, or its weights file."""
    output: Path
    config: DenoiseConfig
    device: str = "auto"


@dataclass(frozen=True)
class Job:
    """All that is needed to denoise any block."""

    order: Order
    inputs: Inputs
    denoiser: Denoiser
    choice: Choice
    part: tuple[Range, Range, Range]
    """Frames, rows and columns of the movie that come out."""
    layout: Layout
    fingerprint: dict[str, Any]
    """What decides the output's bytes."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Arrays of the output: the mean of the halves, and the halves and the map where they are kept."""
        halves = HALVES if self.order.config.halves and self.inputs.has_pairs else ()
        return ("0", *halves, *((WINDOW_MAP,) if self.order.config.window_map else ()))

    @property
    def blocks(self) -> list[Block]:
        """Every block, in order."""
        return plan_blocks(self.layout, self.arrays)

    def plan_block(self, block: Block) -> TilePlan:
        """Return how a block's frames are tiled, with what surrounds them where that is needed to `place` them."""
        tiling = tiling_of(self.choice, self.order.config.tile, self.denoiser.card.network)
        rows, columns = (
            part.moved(whole.start).grown(self.inputs.reach_px, size)
            for part, whole, size in zip(block.region, self.part[1:], self.inputs.shape, strict=True)
        )
        return plan_tiles(self.inputs.shape, tiling, (rows, columns))

    def place(self, block: Block, name: str, image: Floats) -> Floats:
        """Move a block's frames to where each has the scene, and cut off what was denoised around them.

        Parameters
        ----------
        block : Block
            The block.
        name : str
            Of the array, one of `arrays`.
        image : numpy.ndarray
            ``(t, y, x)``, the region of `plan_block`; it is changed.
        """
        if not self.inputs.reach_px:
            return image
        for number, frame in enumerate(block.frames):
            even, odd = self.inputs.list_offsets(frame + self.part[0].start)
            offsets = {"0": (even + odd) / 2, "even": even, "odd": odd, WINDOW_MAP: np.zeros(2)}
            image[number] = move(image[number], offsets[name])
        rows, columns = (
            part.moved(whole.start).within(around.start)
            for part, whole, around in zip(block.region, self.part[1:], self.plan_block(block).region, strict=True)
        )
        return image[:, rows, columns]

    def plan_pieces(self, block: Block) -> list[Piece]:
        """Return a block's tiles in the order in which they are blended."""
        first, at_once = self.part[0].start, self.choice.frames
        frames = range(block.frames.start + first, block.frames.stop + first)
        spans = [frames[start : start + at_once] for start in range(0, len(frames), at_once)]
        return [Piece(block, tile, span) for tile in self.plan_block(block).tiles for span in spans]

    def read(self, piece: Piece) -> tuple[Half, ...]:
        """Read what a piece needs."""
        halves = self.inputs.read(piece.frames, piece.tile)
        if self.inputs.ladder and WINDOW_MAP not in self.arrays:  # no one asks how many frames are in a level
            return tuple(half.without_counts() for half in halves)
        return halves

    def create_output(self) -> None:
        """Write the output's metadata, and where movie and model lie, seen from there."""
        store, model, output = self.order[:3]
        places = {"movie": os.path.relpath(store, output), "model": os.path.relpath(model, output)}
        info, levels = self.inputs.movie.store.info, plan_levels(self.layout)
        made_from = {**self.fingerprint, **places, "origin_px": self._origin()}
        create_store(output, info, self.layout, made_from, levels)
        for name in self.arrays[1:]:
            add_array(output, name, self.layout)

    def _origin(self) -> list[int]:
        """Where the first pixel lies ``(y, x)`` in the movie's first frame."""
        is_stable = self.order.config.frame_of_reference == "stable"
        moved = stable_origin(whole_shifts(self.inputs.movie)).tolist() if is_stable else (0, 0)
        return [axis.start - by for axis, by in zip(self.part[1:], moved, strict=True)]


def plan_job(order: Order, restart: bool = False, choice: Choice | None = None) -> Job:
    """Open a movie and a network and settle how one is denoised with the other.

    Parameters
    ----------
    order : Order
        What was asked for.
    restart : bool
        Choose anew, though a run with the same settings has chosen for this output.
    choice : Choice, optional
        What another process has chosen.
    """
    movie, denoiser = open_store(order.store), load_model(order.model, order.device)
    config, card, budget = order.config, denoiser.card, memory_budget(order.config.memory_gb)
    part = _resolve_part(movie, config)
    shape = (part[0].size, part[1].size, part[2].size)
    layout = default_layout(shape, movie.info.dtype if config.dtype == "source" else config.dtype)
    # The next window shows most frames again; of a single frame only what tiles share is read twice.
    kept_bytes = budget // 4 if movie.info.shape[0] > 1 else min(budget // 4, SHARED_BYTES)
    back = layout.shards[0] + max((*card.ladder, config.window or card.window))
    kept = CorrectedMovie(keep_chunks(movie, kept_bytes, back))
    inputs = inputs_for(kept, card, config.frame_of_reference, config.window)
    if config.window_map and not inputs.ladder:
        what = f"averages {inputs.window} frames everywhere, so that there is nothing to map"
        raise InputError(order.model, what, "train with --window all", ExitCode.CONFIG)
    settled = {
        "kind": "denoised",
        "movie_digest": _movie_digest(movie),
        "weights_sha256": weights_digest(order.model),
        "window": list(inputs.ladder) or inputs.window,
        "frame_of_reference": config.frame_of_reference,
        "settings": config.model_dump(mode="json", exclude={"memory_gb", "window"}),
    }
    choice = choice or (None if restart else begun_choice(order.output, settled, denoiser.device.type))
    if choice is None:
        shards = fit_layout(layout, budget // (1 + 2 * config.halves + config.window_map)).shards
        choice = choose(denoiser, inputs, config, math.prod(shape)).model_copy(update={"shards": shards})
    layout = cut_layout(layout, choice.shards or layout.shards)
    fingerprint = {**settled, "choice": choice.model_dump(mode="json")}
    inputs = replace(inputs, noise=choice.noise)
    return Job(order, inputs, as_chosen(denoiser, choice), choice, part, layout, fingerprint)


def _resolve_part(movie: MovieStore, config: DenoiseConfig) -> tuple[Range, Range, Range]:
    n_frames, height, width = movie.info.shape
    rows, columns = (config.region[:2], config.region[2:]) if config.region else (None, None)
    return (
        resolve_part(config.frames, n_frames, "frames"),
        resolve_part(rows, height, "rows"),
        resolve_part(columns, width, "columns"),
    )


def _movie_digest(movie: MovieStore) -> str:
    """Digest a movie's content and shifts; of a store made elsewhere, which has none, what is known of it."""
    content = store_digest(movie.path) or [movie.path.name, movie.info.shape, str(movie.info.dtype)]
    return digest_json([content, None if movie.shifts is None else movie.shifts.dy_dx.tolist()])
