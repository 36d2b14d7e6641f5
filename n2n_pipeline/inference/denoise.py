"""A noisy store becomes a denoised one: both halves of every frame's window through the network, averaged.

Some threads read ahead, one or two compute, some write. Each shard of the output is made from its own input and
halo, in one order, so that a run that was killed and started again ends in the same bytes, on however many
workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import groupby, repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.device import NetworkThreads, trim_memory
from n2n_pipeline.errors import InputError, Stopped
from n2n_pipeline.files import require_space
from n2n_pipeline.inference.forward import Canvas, denoise_rows, run_network, turns_of
from n2n_pipeline.inference.images import denoise_images
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.inference.job import HALVES, WINDOW_MAP, Job, Order, Piece, plan_job
from n2n_pipeline.inference.pixels import as_stored
from n2n_pipeline.inference.plan import Block
from n2n_pipeline.inference.read_ahead import read_ahead
from n2n_pipeline.inference.window_map import effective_frames
from n2n_pipeline.progress import Step, progress
from n2n_pipeline.pyramid import plan_level_units, write_level_shard
from n2n_pipeline.records import Ledger, stop_requested, write_unit
from n2n_pipeline.shards import write_shard
from n2n_pipeline.sources.formats import is_zarr
from n2n_pipeline.starting import preview_model

Floats = npt.NDArray[np.float32]

AHEAD = 1  # tile that waits for the network, per reader
THREADS = ((1, 1), (4, 4))  # that read and that write, beside a network on the CPU and beside one on a GPU
COMPRESSION = 3  # at least, of floats rounded to 10 bits of mantissa


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
        Folder of a trained model, or its weights file; ``starting`` for a preview without training.
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
        Blocks of shards, or images, written now; 0 if all were there.

    Raises
    ------
    InputError
        If the store or the model cannot be used, the output was begun with other settings, or the network
        returns numbers that are not finite.
    Stopped
        If a signal asked to stop.
    """
    if store.is_file():
        raise InputError(store, "a file, not a store or a folder of images", f"n2n-pipeline ingest {store}")
    config = config or DenoiseConfig()
    order = Order(store, preview_model(model, store, output, device, config.window), output, config, device)
    if store.is_dir() and not is_zarr(store):
        return denoise_images(order, restart)
    job = plan_job(order, restart)

    def denoise_here(blocks: Sequence[Block], ledger: Ledger) -> None:
        with progress("denoise", sum(len(job.plan_pieces(block)) for block in blocks), "tiles") as step:
            denoise_blocks(job, blocks, ledger.stamp, step)

    return write_output(job, restart, denoise_here)


def write_output(job: Job, restart: bool, denoise: Callable[[Sequence[Block], Ledger], None]) -> int:
    """Write a job's output: what is pending of its blocks, then the halved copies of a large image.

    Parameters
    ----------
    job : Job
        What is denoised, and how.
    restart : bool
        Throw away what was begun with other settings.
    denoise : callable
        Denoises blocks and writes them as units of a ledger.

    Returns
    -------
    int
        Blocks written now.
    """
    output, blocks, levels = job.order.output, job.blocks, plan_level_units(job.layout)
    with Ledger(output, job.fingerprint, [*(block.unit for block in blocks), *levels], restart) as ledger:
        if ledger.finished:
            return 0
        names = {unit.name for unit in ledger.pending}
        pending = [block for block in blocks if block.unit.name in names]
        pixels = sum(len(block.frames) * block.region[0].size * block.region[1].size for block in pending)
        require_space(output, pixels * job.layout.dtype.itemsize * len(job.arrays) // COMPRESSION)
        job.create_output()
        denoise(pending, ledger)
        for unit in ledger.pending:
            if unit in levels:
                with ledger.writing(unit):
                    write_level_shard(output, job.layout, levels[unit])
                trim_memory()
        ledger.complete()
    return len(pending)


def denoise_blocks(job: Job, blocks: Sequence[Block], stamp: str, step: Step) -> None:
    """Read, denoise and write blocks, all three at once.

    Parameters
    ----------
    job : Job
        What is denoised, and how.
    blocks : sequence of Block
        Which of its blocks, in order.
    stamp : str
        Of the output's ledger.
    step : callable
        Told of every tile.
    """
    pieces = [piece for block in blocks for piece in job.plan_pieces(block)]
    readers, writers = THREADS[job.denoiser.device.type == "cuda"]
    written: deque[Future[None]] = deque()
    with (
        ThreadPoolExecutor(writers, "write") as pool,
        NetworkThreads(1 + job.choice.side_by_side, job.choice.threads) as networks,
        closing(read_ahead(job.read, pieces, AHEAD * readers, readers)) as inputs,
    ):
        for block, of_block in groupby(inputs, lambda one: one[0].block):
            plan = job.plan_block(block)
            canvases = {name: Canvas(plan, len(block.frames)) for name in job.arrays}
            for piece, halves in of_block:
                for first, part in _cut_frames(job, halves):
                    if stop_requested():
                        raise Stopped(job.order.output)
                    _denoise_piece(job, networks, piece, first, part, canvases)
                step(1)
            if len(written) == writers:
                written.popleft().result()
            trim_memory()
            images = {name: canvas.image for name, canvas in canvases.items()}
            written.append(pool.submit(_write_block, job, block, images, stamp))
            del canvases, images  # once written they are free, not only when the next block is
        for future in written:
            future.result()


def _cut_frames(job: Job, halves: Sequence[Half]) -> Iterator[tuple[int, list[Half]]]:
    """Yield what goes through the network at once, and the number of its first frame: one frame without a GPU."""
    n_frames = len(halves[0].values)
    at_once = n_frames if job.denoiser.device.type == "cuda" else 1
    for first in range(0, n_frames, at_once):
        part = slice(first, first + at_once)
        yield first, [Half(values[part], counts[part]) for values, counts in halves]


def _denoise_piece(
    job: Job,
    networks: NetworkThreads,
    piece: Piece,
    first: int,
    halves: Sequence[Half],
    canvases: Mapping[str, Canvas],
) -> None:
    """Blend the mean of both denoised halves of a piece's frames from ``first`` on, and what else has a canvas."""
    turns = turns_of(job.choice.passes)
    first += piece.frames.start - job.part[0].start - piece.block.frames.start
    frames = slice(first, first + len(halves[0].values))
    if len(halves) == 1:
        canvases["0"].blend(piece.tile, denoise_rows(job.denoiser, *halves[0], turns.even), frames)
        return
    run_both = networks.map if job.choice.side_by_side else map
    denoised = list(run_both(run_network, repeat(job.denoiser), *zip(*halves, strict=True), turns))
    images = dict(zip(HALVES, denoised, strict=True)) | {"0": np.mean(denoised, axis=0, dtype=np.float32)}
    if WINDOW_MAP in canvases:
        images[WINDOW_MAP] = np.sum([effective_frames(job.denoiser, *half) for half in halves], axis=0)
    for name, canvas in canvases.items():
        canvas.blend(piece.tile, [images[name]], frames)


def _write_block(job: Job, block: Block, images: dict[str, Floats], stamp: str) -> None:
    output = job.order.output
    placed = {name: job.place(block, name, image) for name, image in images.items()}
    pixels = {name: as_stored(image, job.layout.dtype, output) for name, image in placed.items()}
    with write_unit(output, block.unit, stamp):
        for name, image in pixels.items():
            write_shard(output / name, job.layout, block.shard, image)
