"""The same on the workers of a cluster: one task for every block of shards.

A worker opens movie and network itself and keeps them for its next task. Nothing but words goes over the network,
and all that is done stands in the output's records, so workers and the scheduler may die at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.device import tune_allocator
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import to_json, write_atomically
from n2n_pipeline.frame_pass import run_on
from n2n_pipeline.inference.denoise import denoise_blocks, write_output
from n2n_pipeline.inference.job import Job, Order, plan_job
from n2n_pipeline.inference.plan import Block, Choice, memory_budget
from n2n_pipeline.manifest import FAILED
from n2n_pipeline.progress import progress
from n2n_pipeline.records import Ledger
from n2n_pipeline.sources.formats import is_zarr
from n2n_pipeline.starting import preview_model

if TYPE_CHECKING:
    from distributed import Client


def denoise_on_cluster(
    store: Path,
    model: Path,
    output: Path,
    client: Client,
    config: DenoiseConfig | None = None,
    restart: bool = False,
) -> int:
    """Denoise a store on the workers of a cluster; see `denoise.denoise_store`.

    Parameters
    ----------
    store, model, output : pathlib.Path
        As the workers see them too: movie or montage, trained model, store to write.
    client : distributed.Client
        The cluster; see `cluster.connect`. ``config.memory_gb`` is what each of its workers may use; by default a
        quarter to half of what it has for itself.
    config : DenoiseConfig, optional
        Tiles, frame of reference, type of the pixels, memory.
    restart : bool
        Throw away what was begun with other settings.

    Returns
    -------
    int
        Blocks of shards written now; 0 if all were there.

    Raises
    ------
    InputError
        As `denoise_store` does; or if blocks failed on several workers, which the records then list, while all
        others are done.
    Stopped
        If a signal asked for it, or the scheduler is gone.
    """
    if store.is_dir() and not is_zarr(store):
        raise InputError(
            store, "a folder of images is denoised by one process", "leave out --cluster", ExitCode.USAGE
        )
    config = config or DenoiseConfig()
    config = config.model_copy(update={"memory_gb": config.memory_gb or worker_memory_gb(client)})
    model = preview_model(model, store, output, "cpu", config.window)
    order = Order(store.absolute(), model.absolute(), output.absolute(), config)
    choice = client.submit(_choose_remotely, order, restart, pure=False).result()
    job = plan_job(order._replace(device="cpu"), choice=choice)

    def denoise_there(blocks: Sequence[Block], ledger: Ledger) -> None:
        task = partial(_denoise_remotely, order, choice, ledger.stamp)
        tasks = {block.unit.name: partial(task, block) for block in blocks}
        failed = {}
        with progress("denoise", len(blocks), "blocks") as step:
            for name, _, error in run_on(client, tasks, output):
                step(1)
                if error:
                    failed[name] = error
        if failed:
            write_atomically(output / FAILED, to_json(failed))
            name, error = next(iter(failed.items()))
            raise InputError(output, f"{len(failed)} blocks failed, first {name}: {error}", "all others are done")

    return write_output(job, restart, denoise_there)


def worker_memory_gb(client: Client) -> float | None:
    """Return what a worker may use, in GB: a part of its share of its machine or of its job, if it has a limit.

    Beyond the limit its nanny, or the batch system, would end it.
    """
    client.wait_for_workers(1)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] for worker in workers if worker["memory_limit"]]
    return memory_budget(None, min(limits)) / 1e9 if limits else None


def _choose_remotely(order: Order, restart: bool) -> Choice:
    """Let the machine that will do the work choose tile, device and precision."""
    tune_allocator()
    return plan_job(order, restart).choice


def _denoise_remotely(order: Order, choice: Choice, stamp: str, block: Block) -> None:
    denoise_blocks(_open_job(order, choice), [block], stamp, step=lambda _tiles: None)


@lru_cache(maxsize=1)
def _open_job(order: Order, choice: Choice) -> Job:
    tune_allocator()
    return plan_job(order._replace(device=choice.device), choice=choice)
