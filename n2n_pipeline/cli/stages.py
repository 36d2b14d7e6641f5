"""The stages that write: ingest, align, sweep, train, denoise, pairs, evaluate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from n2n_pipeline.cli import options, words
from n2n_pipeline.cli.faults import log_beside
from n2n_pipeline.cli.options import PATH, configured, everywhere, print_json, print_lines, print_verdicts
from n2n_pipeline.errors import InputError, Stopped

if TYPE_CHECKING:
    from n2n_pipeline.config import RunConfig, Split


@click.command()
@click.argument("movies", nargs=-1, required=True, type=PATH, metavar="MOVIE... [OUT.zarr]")
@click.option("-o", "--output", "folder", type=PATH, metavar="DIR", help="Where several movies' stores go.")
@options.ingest_options
@options.cluster
@configured
def ingest(movies: tuple[Path, ...], folder: Path | None, cluster: str, config: RunConfig, restart: bool) -> None:
    """Store the raw counts of a camera's MOVIE as OME-Zarr.

    OUT.zarr is by default the movie's name with .zarr, beside it. Of several movies, each gets a store in DIR.
    """
    from n2n_pipeline.files import expect

    expect(movies[0])  # the disk works while code is loaded
    from n2n_pipeline.ingest import ingest_movie
    from n2n_pipeline.records import catch_signals

    plan, failures = _plan_stores(movies, folder), []
    with options.workers(cluster) as client:
        for movie, output in plan:
            log_beside(output)
            try:
                with catch_signals():
                    ingest_movie(movie, output, config.ingest, restart, threads=config.threads, client=client)
                click.echo(output)
            except InputError as error:
                if len(plan) == 1 or isinstance(error, Stopped):
                    raise
                failures.append(error)  # the other movies are no worse for it
                click.echo(f"n2n-pipeline: error: {error}", err=True)
    if failures:
        click.echo(f"{len(failures)} of {len(plan)} movies failed", err=True)
        click.get_current_context().exit(failures[0].code)


def _plan_stores(paths: tuple[Path, ...], folder: Path | None) -> list[tuple[Path, Path]]:
    """Pair every movie with the store it becomes."""
    if folder is None:
        if len(paths) == 1:
            return [(paths[0], words.beside(paths[0], ".zarr"))]
        if len(paths) == 2 and paths[1].suffix == ".zarr":
            return [(paths[0], paths[1])]
        raise click.UsageError("the output must end in .zarr; several movies need -o DIR")
    movies: dict[Path, Path] = {}
    for movie in paths:
        store = folder / words.beside(movie, ".zarr").name
        other = movies.setdefault(store, movie)
        if other != movie:
            raise click.UsageError(f"{other} and {movie} would both become {store}")
    return [(movie, store) for store, movie in movies.items()]


@click.command()
@click.argument("store", type=PATH)
@options.as_json
@options.device
@configured
def align(store: Path, as_json: bool, config: RunConfig, restart: bool) -> None:
    """Estimate the drift in STORE, and save it there."""
    from n2n_pipeline.device import choose_device
    from n2n_pipeline.drift import align_store, describe_shifts

    log_beside(store)
    shifts = align_store(store, config.align, str(choose_device(config.device)))
    if as_json:
        rows = zip(shifts.dy_dx.tolist(), shifts.confidence.tolist(), strict=True)
        print_json(
            {"shifts": [{"t": t, "dy": dy, "dx": dx, "confidence": c} for t, ((dy, dx), c) in enumerate(rows)]}
        )
    else:
        click.echo(describe_shifts(shifts))


@click.command()
@click.argument("store", type=PATH)
@options.setting("--windows", "sweep.windows", "Windows to score.", type=words.numbers, metavar="2,4,8,…")
@click.option("-m", "--model", type=PATH, help="Score this network instead of a filtered mean.")
@click.option("-o", "--output", type=PATH, help="Save the scores; default: window.json beside STORE.")
@options.as_json
@options.device
@configured
def sweep(
    store: Path, model: Path | None, output: Path | None, as_json: bool, config: RunConfig, restart: bool
) -> None:
    """Score averaging windows on STORE, and name the best.

    No clean reference is needed: frames that were left out are predicted.
    """
    from n2n_pipeline.sweep import sweep_windows

    log_beside(store)
    result = sweep_windows(store, config.sweep, output or store.with_name("window.json"), model)
    if as_json:
        print_json(result)
        return
    for score in result["scores"]:
        click.echo("{window:5} frames: risk {risk:.4g} ({low:.4g} to {high:.4g})".format(**score))
    if result["all"]:
        click.echo("  all at once: risk {risk:.4g} ({low:.4g} to {high:.4g})".format(**result["all"]))
    at_once = "; all at once are better" if result["use"] == "all" else ""
    click.echo(f"window: {result['window']} frames{at_once}")
    print_verdicts(result["diagnostics"])


@click.command()
@click.argument("stores", nargs=-1, required=True, type=PATH, metavar="STORE...")
@click.option("-o", "--output", required=True, type=PATH, metavar="MODEL", help="Folder for the model.")
@options.window
@options.steps
@options.device
@options.setting("--pair", "train.pair", "STORE STORE are exposures of one scene.", is_flag=True, default=None)
@options.init
@options.setting(
    "--time", "train.time_minutes", "Train so long instead, as 10m or 2h.", type=words.minutes, metavar="T"
)
@click.option("--slurm", type=PATH, metavar="F", help="Write and submit this training as a SLURM job.")
@click.option("--dry-run", is_flag=True, help="With --slurm: print the job instead.")
@configured
def train(
    stores: tuple[Path, ...], output: Path, slurm: Path | None, dry_run: bool, config: RunConfig, restart: bool
) -> None:
    """Train a network on the halves of one STORE or more.

    A store may also be a folder with even/ and odd/ images. With --pair, STORE STORE are two exposures of one
    montage, as stores or camera files; they need not be aligned.
    """
    if slurm is not None:
        _submit(slurm, output, dry_run)
        return
    from n2n_pipeline.records import catch_signals
    from n2n_pipeline.training import train_model

    log_beside(output)
    with catch_signals():
        model = train_model(stores, output, config, restart=restart)
    if os.environ.get("RANK", "0") == "0":
        click.echo(model)


def _submit(slurm: Path, output: Path, dry_run: bool) -> None:
    """Hand this command, less what makes it a job, to SLURM; or show what would be handed over."""
    from n2n_pipeline.cluster import job_script, submit_job
    from n2n_pipeline.config import SlurmConfig
    from n2n_pipeline.settings_file import read_settings

    command = [word for word in options.words_without("--slurm") if word != "--dry-run"]
    text = job_script(read_settings(SlurmConfig, slurm), command, output.name)
    if dry_run:
        click.echo(text, nl=False)
        return
    script = output.with_suffix(".sbatch")
    script.write_text(text)
    click.echo(f"job {submit_job(script)}")


@click.command()
@click.argument("store", type=PATH)
@click.option("-m", "--model", required=True, type=PATH, help="Model folder or file; starting: a preview.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT.zarr",
    help="Default: denoised.zarr, or STORE_denoised for images, beside STORE.",
)
@options.setting("--frames", "denoise.frames", "Frames A to B - 1 only.", type=words.ranges(1), metavar="A:B")
@options.setting("--region", "denoise.region", "A part only.", type=words.ranges(2), metavar="Y0:Y1,X0:X1")
@options.setting(
    "--frame-of-reference",
    "denoise.frame_of_reference",
    "Where frames lie: as the camera saw them (default), or with drift taken out.",
    type=click.Choice(["camera", "stable"]),
)
@options.setting("--window", "denoise.window", "Frames averaged; default: as trained.", metavar="W")
@options.setting("--halves", "denoise.halves", "Keep both denoised halves.", is_flag=True, default=None)
@options.setting(
    "--dtype",
    "denoise.dtype",
    "Type of the pixels; source: the movie's.",
    type=click.Choice(["float32", "float16", "source"]),
)
@options.setting(
    "--window-map", "denoise.window_map", "Keep a map of the frames averaged.", is_flag=True, default=None
)
@options.setting(
    "--memory",
    "denoise.memory_gb",
    "Memory to use; default: up to half of what is free.",
    type=words.gigabytes,
    metavar="4GB",
)
@options.cluster
@options.device
@configured
def denoise(store: Path, model: Path, output: Path | None, cluster: str, config: RunConfig, restart: bool) -> None:
    """Denoise STORE with MODEL, resuming where it stopped.

    STORE may be a montage or a folder of images.
    """
    from n2n_pipeline.inference.denoise import denoise_store
    from n2n_pipeline.records import catch_signals

    is_store = store.suffix == ".zarr"
    target = output or store.with_name("denoised.zarr" if is_store else f"{store.name}_denoised")
    log_beside(target)
    with options.workers(cluster) as client, catch_signals():
        if client is None:
            shards = denoise_store(store, model, target, config.denoise, config.device, restart)
        else:
            from n2n_pipeline.inference.remote import denoise_on_cluster

            shards = denoise_on_cluster(store, model, target, client, config.denoise, restart)
    click.echo(f"{target}: {shards} shards written")


@click.command()
@click.argument("store", type=PATH)
@click.argument("output", type=PATH, metavar="OUT")
@click.option("--window", type=click.IntRange(min=2), default=8, show_default=True, help="Frames per sample.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Frames between samples.")
@click.option(
    "--split",
    type=click.Choice(["balanced", "interleaved", "adjacent", "random"]),
    default="balanced",
    show_default=True,
    help="How a window is halved.",
)
@everywhere
def pairs(store: Path, output: Path, window: int, stride: int, split: Split) -> None:
    """Write the even and odd averages of STORE.

    OUT is a Zarr store, or a folder with even/ and odd/ images.
    """
    from n2n_pipeline.export.halves import export_pairs

    log_beside(output)
    click.echo(export_pairs(store, output, window, stride, split))


@click.command()
@click.argument("output", type=PATH, metavar="OUT.zarr")
@click.option("--truth", type=PATH, metavar="F", help="The noise-free movie, if it was simulated.")
@click.option("--movie", type=PATH, metavar="STORE", help="The raw movie; default: as OUT.zarr remembers.")
@click.option("-m", "--model", type=PATH, help="The model; default: as OUT.zarr remembers.")
@options.as_json
@options.device
@configured
def evaluate(
    output: Path,
    truth: Path | None,
    movie: Path | None,
    model: Path | None,
    as_json: bool,
    config: RunConfig,
    restart: bool,
) -> None:
    """Measure how far the denoised OUT.zarr can be believed."""
    from n2n_pipeline.evaluation.evaluate import evaluate_store
    from n2n_pipeline.files import to_json, write_atomically

    log_beside(output)
    result = evaluate_store(output, truth, movie, model, config.device)
    write_atomically(output.with_name("metrics.json"), to_json(result))
    if as_json:
        print_json(result)
        return
    print_lines({key: result[key] for key in ("snr_db", "psnr_db", "ssim", "upsnr_db") if key in result})
    print_verdicts(result["verdicts"])


COMMANDS = (ingest, align, sweep, train, denoise, pairs, evaluate)
