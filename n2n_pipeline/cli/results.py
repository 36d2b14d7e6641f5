"""The commands that look at what the stages wrote, and take it elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from n2n_pipeline.cli import options
from n2n_pipeline.cli.faults import log_beside
from n2n_pipeline.cli.options import PATH, everywhere, print_json, print_lines, ranges


@click.command()
@click.argument("output", type=PATH, metavar="OUT.zarr")
@click.option("-o", "--report", "target", type=PATH, metavar="F", help="Default: report.html beside OUT.zarr.")
@everywhere
def report(output: Path, target: Path | None) -> None:
    """Put pictures and figures of OUT.zarr into one HTML file."""
    from n2n_pipeline.evaluation.report import write_report

    log_beside(output)
    click.echo(write_report(output, target))


@click.command()
@click.argument("store", type=PATH, metavar="OUT.zarr")
@click.argument("file", type=PATH)
@click.option("--frames", type=ranges(1), metavar="A:B", help="Frames A to B - 1; default: all.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), default=15, help="Of a video.")
@click.option("--scale-bar", is_flag=True, help="Draw one into pictures and videos.")
@everywhere
def export(store: Path, file: Path, frames: tuple[int, int] | None, fps: float, scale_bar: bool) -> None:
    """Write OUT.zarr to FILE: .mrc, .tif, .png or .mp4."""
    from n2n_pipeline.export import export_store

    export_store(store, file, frames=frames, fps=fps, scale_bar=scale_bar)
    click.echo(file)


@click.command()
@click.argument("stores", nargs=-1, required=True, type=PATH, metavar="OUT.zarr...")
@everywhere
def view(stores: tuple[Path, ...]) -> None:
    """Open stores side by side in a viewer in the browser; works offline."""
    from n2n_pipeline.view import serve

    serve(stores)


@click.command()
@click.argument("path", type=PATH)
@options.as_json
@everywhere
def info(path: Path, as_json: bool) -> None:
    """Tell what a movie or store is: shape, type, pixel size, dose, progress, provenance."""
    from n2n_pipeline.store import describe

    (print_json if as_json else print_lines)(describe(path))


@click.command()
@click.argument("store", type=PATH)
@options.as_json
@everywhere
def verify(store: Path, as_json: bool) -> None:
    """Hash every file of STORE again and compare; ends with 76 if anything is not as it was written."""
    from n2n_pipeline.records import verify as verify_store

    (print_json if as_json else print_lines)(verify_store(store))


@click.command()
@click.argument("store", type=PATH)
@options.as_json
@everywhere
def status(store: Path, as_json: bool) -> None:
    """Tell which parts of STORE are done, missing or failed."""
    from n2n_pipeline.records import status as status_of

    (print_json if as_json else print_lines)(status_of(store))


@click.command("import-weights")
@click.argument("file", type=PATH, metavar="FILE.pth")
@click.option("-o", "--output", required=True, type=PATH, metavar="MODEL", help="Folder for the model.")
@everywhere
def import_weights(file: Path, output: Path) -> None:
    """Convert a .pth state dict of the student project or the cryo-EM port; nothing in it is run."""
    from n2n_pipeline.checkpoint import import_weights as convert

    log_beside(output)
    click.echo(convert(file, output))


COMMANDS = (report, export, view, info, verify, status, import_weights)
