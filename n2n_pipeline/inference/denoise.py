"""A noisy store becomes a denoised one: both halves of every frame's window through the network, averaged.

One thread reads ahead, one computes, one writes. Each shard of the output is made from its own input and halo, in
one order, so that a run that was killed and started again ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.errors import Stopped
from n2n_pipeline.inference.forward import Canvas, run_network, turns_of
from n2n_pipeline.inference.images import denoise_images
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.inference.job import Job, Piece, plan_job
from n2n_pipeline.inference.pixels import as_stored
from n2n_pipeline.inference.plan import Block
from n2n_pipeline.inference.read_ahead import read_ahead
from n2n_pipeline.progress import progress
from n2n_pipeline.records import Ledger, stop_requested
from n2n_pipeline.sources.formats import is_zarr

Floats = npt.NDArray[np.float32]

AHEAD = 2  # tiles that wait for the network


def denoise_store(
    store: Path,
    model: Path,
    output: Path,
    config: DenoiseConfig | None = None,
    device: str = "auto",
    restart: bool = False,
) -> int:
    """Denoise a store into an OME-Zarr store of the same shape and units.

    Parameters
    ----------
    store : pathlib.Path
        A movie's store, or a folder of images, which becomes one of denoised images. The only frame of a store of
        one frame, such as a montage, is itself what is denoised.
    model : pathlib.Path
        Folder of a trained model, or its weights file.
    output : pathlib.Path
        Store to write; one that was begun with the same settings is continued.
    config : DenoiseConfig, optional
        Tiles, frame of reference, type of the pixels, memory.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    restart : bool
        Throw away what was begun with other settings.

    Returns
    -------
    int
        Shards, or images, written now; 0 if all were there.

    Raises
    ------
    InputError
        If the store or the model cannot be used, the output was begun with other settings, or the network
        returns numbers that are not finite.
    """
    config = config or DenoiseConfig()
    if store.is_dir() and not is_zarr(store):
        return denoise_images(store, model, output, config, device, restart)
    job = plan_job(store, model, output, config, device, restart)
    blocks = job.blocks
    with Ledger(output, job.fingerprint, [block.unit for block in blocks], restart) as ledger:
        if ledger.finished:
            return 0
        arrays = job.create_output(output)
        names = {unit.name for unit in ledger.pending}
        pending = [block for block in blocks if block.unit.name in names]
        _denoise_blocks(job, pending, arrays, ledger)
        ledger.complete()
    return len(pending)


def _denoise_blocks(job: Job, blocks: Sequence[Block], arrays: Sequence[zarr.Array[Any]], ledger: Ledger) -> None:
    """Read, denoise and write at once."""
    pieces = [piece for block in blocks for piece in job.plan_pieces(block)]
    written: Future[None] | None = None
    with (
        progress("denoise", len(pieces), "tiles") as step,
        ThreadPoolExecutor(1, "write") as writer,
        closing(read_ahead(job.read, pieces, AHEAD)) as inputs,
    ):
        for block, of_block in groupby(inputs, lambda one: one[0].block):
            plan = job.plan_block(block)
            canvases = [Canvas(plan, len(block.frames)) for _ in arrays]
            for piece, halves in of_block:
                if stop_requested():
                    raise Stopped(ledger.store)
                _denoise_piece(job, piece, halves, canvases)
                step(1)
            if written:
                written.result()
            written = writer.submit(_write_block, ledger, arrays, block, [canvas.image for canvas in canvases])
        if written:
            written.result()


def _denoise_piece(job: Job, piece: Piece, halves: Sequence[Half], canvases: Sequence[Canvas]) -> None:
    """Blend the mean of both denoised halves into the first canvas, and each half into its own, if it has one."""
    turns = turns_of(job.choice.passes)
    denoised = [run_network(job.denoiser, *half, turn) for half, turn in zip(halves, turns, strict=False)]
    mean = np.asarray(np.mean(denoised, axis=0, dtype=np.float32))
    first = piece.frames.start - job.part[0].start - piece.block.frames.start
    for canvas, image in zip(canvases, (mean, *denoised), strict=False):
        canvas.blend(piece.tile, image, slice(first, first + len(piece.frames)))


def _write_block(
    ledger: Ledger, arrays: Sequence[zarr.Array[Any]], block: Block, images: Sequence[Floats]
) -> None:
    rows, columns = (slice(*part) for part in block.region)
    pixels = [as_stored(image, array.dtype, ledger.store) for image, array in zip(images, arrays, strict=True)]
    with ledger.writing(block.unit):
        for array, image in zip(arrays, pixels, strict=True):
            array[block.frames.start : block.frames.stop, rows, columns] = image
