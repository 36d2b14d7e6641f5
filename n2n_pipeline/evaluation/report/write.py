"""One HTML file that tells a microscopist whether to believe a denoised movie: pictures first, nothing to load."""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from n2n_pipeline import __version__
from n2n_pipeline.errors import printable
from n2n_pipeline.evaluation.report.facts import (
    headline_facts,
    movie_name,
    read_commands,
    read_scores,
    read_tables,
    read_verdicts,
    tally,
)
from n2n_pipeline.evaluation.report.figures import (
    movie_preview,
    movie_sheet,
    page_bar,
    scene_limits,
    scene_pictures,
    scene_slider,
)
from n2n_pipeline.evaluation.report.gather import Run, gather
from n2n_pipeline.evaluation.report.plots import draw_plots
from n2n_pipeline.evaluation.report.scenes import central_region, main_store, read_scene, used_window
from n2n_pipeline.files import one_line_errors, write_atomically

_log = logging.getLogger(__name__)

CUTS = tuple(range(0, 101, 2))
"""Where the slider's divider can stand, in per cent."""


def write_report(output: Path, report: Path | None = None) -> Path:
    """Write what a run has made, so far, into one HTML file.

    Parameters
    ----------
    output : Path
        ``denoised.zarr``, there or yet to come, or the run's folder.
    report : Path, optional
        The file; by default ``report.html`` in the run's folder.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If there is nothing to report on, or the file cannot be written.
    """
    run = gather(output)
    target = report or run.folder / "report.html"
    for part in run.missing:
        _log.warning("report: %s: %s", part.what, part.why)
    try:
        page = render(run)
    finally:
        if run.truth is not None:
            run.truth.close()
    with one_line_errors(target):
        write_atomically(target, page)
    return target


def render(run: Run) -> str:
    """Turn a run into HTML."""
    folder = files(__package__)
    template = environment().from_string((folder / "report.html").read_text("utf-8"))
    css = Markup((folder / "report.css").read_text("utf-8"))
    return template.render(page=describe(run), css=css, cuts=CUTS)


def environment() -> jinja2.Environment:
    """Make the one way in which text comes into the page: as text, whatever a file's name or metadata hold."""
    return jinja2.Environment(
        autoescape=True,
        finalize=_as_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _as_text(value: Any) -> Any:
    return printable(value) if type(value) is str and not value.isprintable() else value


def describe(run: Run) -> dict[str, Any]:
    """Collect all that the template shows."""
    verdicts = read_verdicts(run.metrics)
    return {
        "version": __version__,
        "title": movie_name(run),
        "facts": headline_facts(run),
        "missing": run.missing,
        "verdicts": verdicts,
        "tally": tally(verdicts),
        "scores": read_scores(run.metrics),
        "commands": read_commands(run),
        "tables": read_tables(run),
        **_describe_pictures(run),
    }


def _describe_pictures(run: Run) -> dict[str, Any]:
    """Show the middle frame at every stage, then the movie, then the plots."""
    store = main_store(run)
    n_frames, *whole = store.info.shape
    t, region = n_frames // 2, central_region(store.info.shape)
    scene = read_scene(run, t, region)
    limits = scene_limits(scene)
    tiles = scene_pictures(scene, limits, t, used_window(run))
    shape = scene.best.shape
    grey = f"black is {limits.black:.4g} and white {limits.white:.4g}, in units of the movie"
    return {
        "tiles": tiles,
        "slider": scene_slider(tiles, (shape[0], shape[1]), (whole[0], whole[1])),
        "scale_bar": page_bar(shape[1], store.info.pixel_size),
        "contrast": f"All pictures have the same contrast: {grey}.",
        "preview": movie_preview(run, limits),
        "sheet": movie_sheet(run, limits),
        "plots": draw_plots(run, scene, t, region),
    }
