"""What a run has left on disk so far, found beside its denoised store; what is not there is said, not raised."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from n2n_pipeline.checkpoint import ModelCard, load_model
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import read_json
from n2n_pipeline.settings_file import load_settings
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.movie import MovieSource
from n2n_pipeline.store import MovieStore, open_store

Json = dict[str, Any]

LARGEST_RECORD = 64 * 2**20  # bytes; a larger file is not one that this package wrote
TRUTHS = ("truth.zarr", "truth.mrc", "truth.tif")


class Missing(NamedTuple):
    """A part of the run that the report has to do without."""

    what: str
    why: str
    command: str | None
    """What makes it."""


@dataclass
class Run:
    """The files of one run; None or empty where a stage has not been, with the reason in ``missing``."""

    folder: Path
    movie: MovieStore | None = None
    denoised: MovieStore | None = None
    truth: MovieSource | None = None
    model: Path | None = None
    """Folder of the network that was used."""
    card: ModelCard | None = None
    """What the network says of itself."""
    window: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    timings: Json = field(default_factory=dict)
    training: dict[str, list[float]] = field(default_factory=dict)
    """Columns of ``metrics.csv``; NaN where a row has no value."""
    missing: list[Missing] = field(default_factory=list)


def gather(output: Path) -> Run:
    """Find what belongs to a denoised store, or to the run whose folder is given.

    Parameters
    ----------
    output : Path
        ``denoised.zarr``, which may not be there yet, or its folder.

    Raises
    ------
    InputError
        If there is neither a denoised store nor a movie to report on.
    """
    store, folder = (output, output.parent) if output.suffix == ".zarr" else (output / "denoised.zarr", output)
    run = Run(folder)
    run.denoised = _open(
        run, store, "The denoised movie", f"denoise {_word(folder / 'movie.zarr')} -m {_word(folder / 'model')}"
    )
    movie = _made_from(run, "movie") or folder / "movie.zarr"
    run.movie = _open(run, movie, "The movie", f"ingest MOVIE {_word(movie)}")
    if run.denoised is None and run.movie is None:
        if store.exists():
            open_store(store)  # and hear why it cannot be shown
        raise InputError(output, "no store to report on here", "run the pipeline first", ExitCode.NO_INPUT)
    if run.movie is not None and run.movie.shifts is None:
        run.missing.append(Missing("Drift", "not estimated, taken as none", f"n2n-pipeline align {_word(movie)}"))
    run.window = _read(run, folder / "window.json", "The choice of window", f"sweep {_word(movie)}", _read_json)
    _gather_model(run, _made_from(run, "model") or folder / "model")
    run.metrics = _read(run, folder / "metrics.json", "The checks", f"evaluate {_word(store)}", _read_json)
    run.timings = read_json(folder / "timings.json") or {}
    run.truth = _find_truth(run)
    return run


def _gather_model(run: Run, model: Path) -> None:
    folder = model.parent if model.is_file() else model
    if not (folder / "weights.safetensors").is_file():
        command = f"n2n-pipeline train {_word(run.folder / 'movie.zarr')} -o {_word(folder)}"
        run.missing.append(Missing("The network", f"{folder.name} holds no weights.safetensors", command))
        return
    run.model = folder
    run.card = _read(run, folder / "weights.safetensors", "The network", None, _read_card) or None
    run.training = _read(run, folder / "metrics.csv", "The training curve", None, read_columns) or {}
    run.config = _read(run, folder / "config.yaml", "The settings", None, _read_settings) or {}


def _open(run: Run, path: Path, what: str, command: str) -> MovieStore | None:
    try:
        return open_store(path)
    except InputError as error:
        run.missing.append(Missing(what, str(error), f"n2n-pipeline {command}"))
        return None


def _read(run: Run, path: Path, what: str, command: str | None, reader: Callable[[Path], Any]) -> Any:
    """Read a record, or note why it cannot be read and return an empty one."""
    remedy = f"n2n-pipeline {command}" if command else None
    if not path.is_file():
        run.missing.append(Missing(what, f"there is no {path.name}", remedy))
        return {}
    try:
        if path.stat().st_size > LARGEST_RECORD:
            raise ValueError("too large")
        return reader(path)
    except (OSError, ValueError, InputError) as error:
        run.missing.append(Missing(what, f"{path.name} cannot be read: {error}", remedy))
        return {}


def _read_json(path: Path) -> Json:
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _read_card(path: Path) -> ModelCard:
    return load_model(path).card


def _read_settings(path: Path) -> Json:
    return load_settings(path).model_dump(mode="json", exclude_none=True)


def read_columns(path: Path) -> dict[str, list[float]]:
    """Read a CSV file of numbers by its column names; what is no number becomes NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else ()) if name}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _find_truth(run: Run) -> MovieSource | None:
    """Open the truth of a simulated movie: the one it was evaluated against, or one kept in the run's folder."""
    named = run.metrics.get("truth")
    candidates = [run.folder / named] if isinstance(named, str) else []
    for path in (*candidates, *(run.folder / name for name in TRUTHS)):
        if path.exists():
            try:
                return open_movie(path)
            except InputError as error:
                run.missing.append(Missing("The truth", str(error), None))
                return None
    return None


def _made_from(run: Run, name: str) -> Path | None:
    return run.denoised.made_from(name) if run.denoised else None


def _word(path: Path) -> str:
    return shlex.quote(str(path))
