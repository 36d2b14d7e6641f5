"""The commands that look at what the stages wrote, and take it elsewhere."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from n2n_pipeline.cli import options
from n2n_pipeline.cli.faults import log_beside
from n2n_pipeline.cli.options import PATH, everywhere, print_json, print_lines
from n2n_pipeline.cli.words import ranges
from n2n_pipeline.errors import ExitCode


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
@click.option("--region", type=ranges(2), metavar="Y0:Y1,X0:X1", help="Part of the image; default: all.")
@click.option("--bin", metavar="N", help="Average N by N pixels into one.")
@click.option("--half", is_flag=True, default=None, help="MRC of 16-bit floats.")
@click.option("--fps", metavar="N", help="Frames shown per second in a video.")
@click.option("--scale-bar/--no-scale-bar", default=None, help="In pictures and videos; default: yes.")
@everywhere
def export(store: Path, file: Path, **given: Any) -> None:
    """Write OUT.zarr to FILE: .mrc, .tif, .png or .mp4."""
    from n2n_pipeline.config import ExportConfig
    from n2n_pipeline.export import export_store
    from n2n_pipeline.settings_file import check_options

    click.echo(export_store(store, file, check_options(ExportConfig, options.as_given(given))))


@click.command()
@click.argument("stores", nargs=-1, required=True, type=PATH, metavar="OUT.zarr...")
@click.option("--address", default="127.0.0.1", show_default=True, help="Network address to listen on.")
@click.option("--expose", is_flag=True, help="Allow an address that other machines can reach.")
@click.option("--no-browser", is_flag=True, help="Print the address and leave opening it to you.")
@everywhere
def view(stores: tuple[Path, ...], address: str, expose: bool, no_browser: bool) -> None:
    """Show stores side by side in the browser, until Ctrl-C.

    Works offline.
    """
    from n2n_pipeline.view import serve

    with serve(stores, address, expose) as viewing:
        click.echo(viewing.url)
        click.echo(f"in napari: {viewing.napari}")
        if not no_browser:
            click.launch(viewing.url)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


@click.command()
@click.argument("path", type=PATH)
@options.as_json
@everywhere
def info(path: Path, as_json: bool) -> None:
    """Tell what a movie or store is, and how far it has come."""
    from n2n_pipeline.info import read_info

    (print_json if as_json else print_lines)(read_info(path))


@click.command()
@click.argument("store", type=PATH)
@options.as_json
@everywhere
def verify(store: Path, as_json: bool) -> None:
    """Hash every file of STORE again and compare.

    Ends with 76 if anything is not as it was written.
    """
    from n2n_pipeline import manifest

    manifest.check_ours(store)
    found = manifest.verify(store)
    (print_json if as_json else print_lines)(found)
    if not found["ok"]:
        raise SystemExit(ExitCode.CORRUPT)


@click.command()
@click.argument("store", type=PATH)
@options.as_json
@everywhere
def status(store: Path, as_json: bool) -> None:
    """Tell which parts of STORE are done, missing or failed."""
    from n2n_pipeline import manifest

    manifest.check_ours(store)
    (print_json if as_json else print_lines)(manifest.status(store))


@click.command("import-weights")
@click.argument("file", type=PATH, metavar="FILE.pth")
@click.option("-o", "--output", required=True, type=PATH, metavar="MODEL", help="Folder for the model.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Value that the network saw as 1.")
@click.option("--window", type=click.IntRange(min=2), default=2, show_default=True, help="Frames to average.")
@everywhere
def import_weights(file: Path, output: Path, scale: float, window: int) -> None:
    """Convert a .pth state dict of an older project.

    Those of the student project and of the cryo-EM port are known. Nothing in the file is run.
    """
    from n2n_pipeline import old_weights

    log_beside(output)
    click.echo(old_weights.import_weights(file, output, scale, window))


COMMANDS = (report, export, view, info, verify, status, import_weights)
