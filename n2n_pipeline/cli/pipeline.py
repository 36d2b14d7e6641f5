"""The whole road in one command: run, and demo on a movie that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from n2n_pipeline.cli import options, words
from n2n_pipeline.cli.faults import log_beside
from n2n_pipeline.cli.options import PATH, configured

if TYPE_CHECKING:
    from n2n_pipeline.config import RunConfig


@click.command()
@click.argument("movie", type=PATH)
@click.argument("outdir", required=False, type=PATH, metavar="[OUTDIR]")
@options.window
@options.steps
@options.init
@options.device
@options.ingest_options
@configured
def run(movie: Path, outdir: Path | None, config: RunConfig, restart: bool) -> None:
    """Denoise a camera's MOVIE and report on it, all in OUTDIR.

    A stage that was done is not done again. OUTDIR is by default the movie's name with _denoised, beside it.
    """
    from n2n_pipeline.run import run_pipeline

    folder = outdir or words.beside(movie, "_denoised")
    log_beside(folder / "movie.zarr")
    click.echo(f"report: {run_pipeline(movie, folder, config, restart=restart)}")


@click.command()
@click.argument("outdir", default="n2n-demo", type=PATH)
@options.device
@configured
def demo(outdir: Path, config: RunConfig, restart: bool) -> None:
    """Run everything on a small movie of the package itself.

    It is simulated, so that the result can be compared with its truth.
    """
    from n2n_pipeline import run as road

    log_beside(outdir / "movie.zarr")
    result = road.demo(outdir, config, restart)
    click.echo(f"before and after: {result.picture}")
    click.echo(f"report: {result.report}")


COMMANDS = (run, demo)
