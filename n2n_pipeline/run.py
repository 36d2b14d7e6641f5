"""``run`` and ``demo``: the stages one after another, all in one folder, each skipped where it is finished.

Ingest, training and denoising keep records of their own and continue where they stopped; they refuse settings
other than those they were started with. The other stages are short: ``run.json`` remembers what each was made
from, and one is done again when that changed. ``timings.json`` holds the seconds that each stage took.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from n2n_pipeline.checkpoint import load_model, weights_digest
from n2n_pipeline.config import IngestConfig, RunConfig, Window
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.device import choose_device
from n2n_pipeline.drift import align_store, describe_shifts
from n2n_pipeline.errors import ExitCode, InputError, printable
from n2n_pipeline.evaluation.evaluate import evaluate_store
from n2n_pipeline.evaluation.report import write_report
from n2n_pipeline.files import digest_file, digest_json, read_json, require_space, to_json, write_atomically
from n2n_pipeline.inference.denoise import COMPRESSION, denoise_store
from n2n_pipeline.ingest import ingest_movie
from n2n_pipeline.manifest import SHIFTS
from n2n_pipeline.pictures import before_after
from n2n_pipeline.progress import duration
from n2n_pipeline.records import catch_signals, store_digest
from n2n_pipeline.settings_file import dump_settings, load_settings
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.reduced import ReducedMovie
from n2n_pipeline.starting import describe_training
from n2n_pipeline.store import open_store
from n2n_pipeline.sweep import sweep_windows
from n2n_pipeline.training import train_model
from n2n_pipeline.training.plan import window_to_use

DEMO = Path(__file__).with_name("data")
"""Holds the demo's movie, its references and its truth; ``ORIGIN.md`` there says what they are."""

PICTURE_SCALE = 2  # pixels of the demo's picture per pixel of its movie

_log = logging.getLogger(__name__)


def run_pipeline(
    movie: Path,
    outdir: Path,
    config: RunConfig | None = None,
    *,
    truth: Path | None = None,
    restart: bool = False,
) -> Path:
    """Take a movie from the camera's file to a denoised store and a report.

    Parameters
    ----------
    movie : pathlib.Path
        Anything that `sources.open_movie` reads, of at least two frames.
    outdir : pathlib.Path
        Folder for ``movie.zarr``, ``window.json``, ``model``, ``denoised.zarr``, ``metrics.json``,
        ``report.html`` and more; a run that was stopped there is continued.
    config : RunConfig, optional
        Settings of all stages.
    truth : pathlib.Path, optional
        The noise-free movie, if there is one; evaluation alone reads it.
    restart : bool
        Throw away what was made with other settings.

    Returns
    -------
    pathlib.Path
        The report.

    Raises
    ------
    InputError
        If the movie, the settings or the folder cannot be used.
    Stopped
        If a signal asked to stop; the same call continues.
    """
    config = config or RunConfig()
    choose_device(config.device)  # or refuse it now, not when it is needed
    if outdir.exists() and not outdir.is_dir():
        raise InputError(outdir, "is a file", "choose another output", ExitCode.CANNOT_CREATE)
    pixels = _check_movie(movie, config.ingest)
    if not (outdir / "denoised.zarr").exists():
        require_space(outdir, pixels * np.dtype(np.float32).itemsize // COMPRESSION)
    outdir.mkdir(parents=True, exist_ok=True)
    run = Run(movie, outdir, config, truth, restart)
    start = time.monotonic()
    for stage in (run.ingest, run.align, run.sweep, run.train, run.denoise, run.evaluate, run.report):
        stage()
    _log.info("finished in %s", duration(time.monotonic() - start))
    write_atomically(outdir / "config.yaml", dump_settings(config))
    return run.outdir / "report.html"


def _check_movie(movie: Path, config: IngestConfig) -> int:
    """Refuse what cannot be paired, before anything is written; return the pixels of all frames that are kept."""
    with closing(open_movie(movie, config)) as source:
        kept = ReducedMovie(source, config).info.shape
        if kept[0] < 2:
            raise InputError(movie, f"{kept[0]} frame; pairs need at least 2")
        t, y, x = source.info.shape
        size = source.info.pixel_size
        scale = f"{size:.4g} Å per pixel" if size else "pixel size unknown"
        _log.info("%s: %d frames of %d x %d px, %s, %s", printable(movie), t, y, x, source.info.dtype, scale)
        return math.prod(kept)


@dataclass(frozen=True)
class Run:
    """One movie on its way; every method is a stage and leaves its result in ``outdir``."""

    movie: Path
    outdir: Path
    config: RunConfig
    truth: Path | None = None
    restart: bool = False

    @property
    def store(self) -> Path:
        """Raw counts."""
        return self.outdir / "movie.zarr"

    @property
    def denoised(self) -> Path:
        """Denoised values."""
        return self.outdir / "denoised.zarr"

    def ingest(self) -> None:
        """Store the raw counts and find the defects."""
        with self._timed("ingest"), catch_signals():
            ingest_movie(self.movie, self.store, self.config.ingest, self.restart, threads=self.config.threads)
        defects = open_store(self.store).references.defects
        if defects is not None:
            _log.info("bad pixels: %d masked (%.2g %%)", defects.sum(), 100 * defects.mean())

    def align(self) -> None:
        """Estimate the drift."""

        def work() -> None:
            align_store(self.store, self.config.align, str(choose_device(self.config.device)))

        made_from = [self.config.align.model_dump(mode="json"), store_digest(self.store)]
        self._unless_same("align", self.store / SHIFTS, made_from, work)
        shifts = open_store(self.store).shifts
        if shifts is not None:
            _log.info("align: %s", describe_shifts(shifts))

    def sweep(self) -> None:
        """Choose the averaging window, unless one was given."""
        file = self.outdir / "window.json"
        made_from = [self.config.sweep.model_dump(mode="json"), self._aligned()]
        self._unless_same("sweep", file, made_from, lambda: sweep_windows(self.store, self.config.sweep, file))
        result = read_json(file)
        _log.info("window: %s", _describe_window(result, self.config))
        for verdict in result["diagnostics"]:
            if verdict["verdict"] == "fail":
                _log.warning("%s: %s", verdict["check"], verdict["sentence"])

    def train(self) -> None:
        """Train the network on the pairs of this movie."""
        config = self.config
        if config.train.window == "auto":
            window = window_to_use(read_json(self.outdir / "window.json"), config)
            config = config.model_copy(update={"train": config.train.model_copy(update={"window": window})})
        model = self.outdir / "model"
        with self._timed("train"), catch_signals():
            train_model([self.store], model, config, restart=self.restart)
        _log.info("train: %s", _describe_training(model))

    def denoise(self) -> None:
        """Denoise every frame."""
        with self._timed("denoise"), catch_signals():
            denoise_store(
                self.store,
                self.outdir / "model",
                self.denoised,
                self.config.denoise,
                device=self.config.device,
                restart=self.restart,
            )

    def evaluate(self) -> None:
        """Measure how far the result can be believed."""
        file = self.outdir / "metrics.json"

        def work() -> None:
            found = evaluate_store(self.denoised, self.truth, device=self.config.device)
            write_atomically(file, to_json(found))

        truth = None if self.truth is None else digest_file(self.truth)
        self._unless_same("evaluate", file, [store_digest(self.denoised), self._aligned(), truth], work)
        found = read_json(file)
        if "snr_db" in found:
            _log.info("against the truth: SNR %.1f dB, SSIM %.3f", found["snr_db"], found["ssim"])
        _log.info("verdict: %s", found["verdict"])
        for verdict in found["verdicts"]:
            if verdict["verdict"] != "pass":
                _log.info("  %s: %s", verdict["check"], verdict["sentence"])

    def report(self) -> None:
        """Put it all into one file to look at."""
        files = [self.outdir / name for name in ("window.json", "metrics.json")]
        made_from = [
            store_digest(self.denoised),
            weights_digest(self.outdir / "model"),
            *(digest_file(file) for file in files if file.exists()),
        ]
        target = self.outdir / "report.html"
        self._unless_same("report", target, made_from, lambda: write_report(self.denoised, target))

    def _aligned(self) -> list[str | None]:
        shifts = self.store / SHIFTS
        return [store_digest(self.store), digest_file(shifts) if shifts.exists() else None]

    def _unless_same(self, name: str, output: Path, made_from: object, work: Callable[[], Any]) -> None:
        """Do a stage that keeps no records, unless its output is there and was made from the same."""
        record = self.outdir / "run.json"
        made = read_json(record) or {}
        digest = digest_json(made_from)
        if self.restart or not output.exists() or made.get(name) != digest:
            with self._timed(name):
                work()
            write_atomically(record, to_json(made | {name: digest}))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Add the seconds a stage takes to ``timings.json``; a stage that was stopped counts too."""
        file = self.outdir / "timings.json"
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            timings = read_json(file) or {}
            timings[name] = round(timings.get(name, 0.0) + seconds, 3)
            write_atomically(file, to_json(timings))
            _log.debug("%s took %s", name, duration(seconds))


def _describe_window(result: dict[str, Any], config: RunConfig) -> str:
    best, asked = result["window"], config.train.window
    as_good = [str(window) for window in result["as_good"] if window != best]
    text = f"{best} frames predict held-out frames best"
    text += f" ({' and '.join(as_good)} as well within the interval)" if as_good else ""
    if result["use"] == "all":
        text = f"all at once predict held-out frames better than any one of them (the best has {best})"
    if asked != "auto":
        return f"{text}; {_name(asked)} are used, as asked for"
    used = window_to_use(result, config)
    return text if used == result["use"] else f"{text}; {_name(used)} are used, because of the network asked for"


def _name(window: Window) -> str:
    if window == "all":
        return "all windows at once"
    lengths = " and ".join(map(str, window)) if isinstance(window, tuple) else str(window)
    return f"windows of {lengths} frames"


def _describe_training(model: Path) -> str:
    card, used = load_model(model).card, load_settings(model / "config.yaml")
    shape = f"U-Net of width {card.network.width} and depth {card.network.depth}"
    return f"{shape}, {describe_training(card)}, on {used.device}, {_name(used.train.window)}"


class Demonstration(NamedTuple):
    """What the demo leaves to look at."""

    report: Path
    picture: Path


def demo(outdir: Path, config: RunConfig | None = None, restart: bool = False) -> Demonstration:
    """Run everything on a small simulated movie that comes with the package.

    Parameters
    ----------
    outdir : pathlib.Path
        Folder for the results.
    config : RunConfig, optional
        Settings; the movie's references are added.
    restart : bool
        Throw away what was made with other settings.

    Returns
    -------
    Demonstration
        Report, in which the result is compared with the truth, and a picture of one frame before and after.
    """
    config = config or RunConfig()
    references = {"dark": DEMO / "dark.tif", "gain": DEMO / "gain.tif"}
    config = config.model_copy(update={"ingest": config.ingest.model_copy(update=references)})
    report = run_pipeline(DEMO / "movie.tif", outdir, config, truth=DEMO / "truth.tif", restart=restart)
    return Demonstration(report, _draw_before_after(outdir))


def _draw_before_after(outdir: Path) -> Path:
    """Draw the middle frame, corrected and denoised, side by side and large enough to look at."""
    movie, denoised = open_store(outdir / "movie.zarr"), open_store(outdir / "denoised.zarr")
    t, whole = movie.info.shape[0] // 2, slice(None)
    corrected, _ = CorrectedMovie(movie).read(slice(t, t + 1), whole, whole)
    enlarged = np.ones((PICTURE_SCALE, PICTURE_SCALE), np.float32)
    before, after = (np.kron(frames[0], enlarged) for frames in (corrected, denoised.read(slice(t, t + 1))))
    pixel_size = movie.info.pixel_size
    picture = outdir / "before_after.png"
    write_atomically(picture, before_after(before, after, pixel_size and pixel_size / PICTURE_SCALE))
    return picture
