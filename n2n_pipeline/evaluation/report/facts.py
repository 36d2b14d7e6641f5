"""The words and numbers of a report: what the movie is, what was measured, how it was made."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from n2n_pipeline import __version__
from n2n_pipeline.evaluation.report.gather import Run
from n2n_pipeline.evaluation.report.scenes import main_store, saw_all_windows, used_window
from n2n_pipeline.progress import duration
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.starting import describe_training

Rows = list[tuple[str, str]]

VERDICTS = ("fail", "look", "pass")
PACKAGES = ("torch", "zarr", "numpy", "scipy", "dask")
COMMAND = re.compile(r"n2n-pipeline \S+ on .*?: ((?:run|demo|ingest|align|sweep|train|denoise|evaluate) .*|demo)")
LONGEST_LOG = 2**24  # bytes read from its end


class Score(NamedTuple):
    """One measured number, with what it means."""

    name: str
    value: str
    meaning: str


class Verdict(NamedTuple):
    """One check in words."""

    check: str
    verdict: str
    sentence: str


def movie_name(run: Run) -> str:
    """Return the name of the movie's file, or of the folder when the store does not tell."""
    source = run.movie.provenance.get("source") if run.movie else None
    name = source.get("name") if isinstance(source, Mapping) else None
    return str(name or run.folder.resolve().name)


def headline_facts(run: Run) -> Rows:
    """Say what the movie is, in a line."""
    info = main_store(run).info
    n_frames, height, width = info.shape
    facts = [("Size", f"{n_frames} frames of {height} × {width} px")]
    facts += physical_facts(info)
    window = used_window(run)
    if saw_all_windows(run):
        facts.append(("Window", "all at once"))
    elif window is not None:
        facts.append(("Window", f"{window} frames"))
    if run.card is not None:
        facts.append(("Network", describe_training(run.card)))
    if run.movie is not None and run.movie.shifts is not None:
        shifts = run.movie.shifts.dy_dx
        facts.append(("Drift", f"{np.hypot(*(shifts - shifts[0]).T).max():.1f} px"))
    if isinstance(run.metrics.get("snr_db"), int | float):
        facts.append(("SNR against the truth", f"{run.metrics['snr_db']:.1f} dB"))
    return facts


def physical_facts(info: MovieInfo) -> Rows:
    """Name the physical quantities; one that is not known is said to be so, never guessed."""
    size, time, dose = info.pixel_size, info.frame_time, info.dose_per_frame
    facts = [("Pixel size", f"{size:.4g} Å" if size else "not known")]
    if time:
        facts.append(("Frame time", f"{time:.4g} s"))
    if dose:
        facts.append(("Dose per frame", f"{dose:.4g} e⁻/Å²"))
    return facts


def read_verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """List the checks, those that failed first; a verdict of an unknown kind is one to look at."""
    verdicts = [
        Verdict(
            str(item.get("check", "")).replace("_", " ").capitalize(),
            item["verdict"] if item.get("verdict") in VERDICTS else "look",
            str(item.get("sentence", "")),
        )
        for item in metrics.get("verdicts", [])
        if isinstance(item, Mapping)
    ]
    return sorted(verdicts, key=lambda item: VERDICTS.index(item.verdict))


def tally(verdicts: list[Verdict]) -> list[tuple[str, int]]:
    """Count the checks by verdict, leaving out kinds that do not occur."""
    counts = [(kind, sum(item.verdict == kind for item in verdicts)) for kind in VERDICTS]
    return [(kind, count) for kind, count in counts if count]


def read_scores(metrics: Mapping[str, Any]) -> list[Score]:
    """Pick the numbers to show large: against the truth where there is one, and those that need none."""
    gaussian = metrics.get("best_gaussian") or {}
    camera = metrics.get("camera") or {}
    truth = "Against the truth, mean over all frames."
    unseen = "Of the scene as the camera records it, blur and all, where all frames of a window overlap."
    wanted = [
        ("SNR", metrics.get("snr_db"), "dB", truth),
        ("PSNR", metrics.get("psnr_db"), "dB", truth),
        ("SSIM", metrics.get("ssim"), "", "Structural similarity with the truth; 1 is the same."),
        ("SNR without a truth, at least", metrics.get("usnr_db_low"), "dB", unseen),
        (
            "Gain over smoothing, at least",
            gaussian.get("gain_db_low"),
            "dB",
            "Over the best Gaussian filter of the window average.",
        ),
        (
            "Camera gain",
            camera.get("gain_counts_per_electron"),
            "counts/e⁻",
            "From how noise grows with intensity.",
        ),
    ]
    return [
        Score(name, f"{value:.3g} {unit}".strip(), meaning)
        for name, value, unit, meaning in wanted
        if isinstance(value, int | float)
    ]


def read_commands(run: Run) -> list[str]:
    """Return the commands that made the run, as the log has them, or else those that would."""
    log = run.folder / "log.txt"
    given = read_log(log) if log.is_file() else []
    whole = [words for words in given if words.split()[0] in ("run", "demo")]
    if whole:
        return [f"n2n-pipeline {whole[-1]}"]
    if given:
        return [f"n2n-pipeline {words}" for words in dict.fromkeys(given)]
    config = " --config config.yaml" if (run.folder / "config.yaml").is_file() else ""
    return [f"n2n-pipeline run {movie_name(run)} {run.folder.resolve().name}{config}"]


def read_log(log: Path) -> list[str]:
    """Return the words of each command that wrote to a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LONGEST_LOG))
        lines = file.read().decode("utf-8", "backslashreplace").splitlines()
    return [match.group(1) for line in lines if (match := COMMAND.fullmatch(line))]


def read_tables(run: Run) -> list[tuple[str, Rows]]:
    """Collect what was set, what was used and what was measured, as tables."""
    timings = [
        (stage, duration(seconds)) for stage, seconds in run.timings.items() if isinstance(seconds, int | float)
    ]
    total = sum(seconds for seconds in run.timings.values() if isinstance(seconds, int | float))
    return [
        ("Time taken", [*timings, ("all together", duration(total))] if timings else []),
        ("Movie", movie_rows(run)),
        ("Network", network_rows(run)),
        ("Measured", list(flatten({key: value for key, value in run.metrics.items() if key != "verdicts"}))),
        ("Settings", list(flatten(run.config))),
        ("Versions of this report", version_rows()),
    ]


def movie_rows(run: Run) -> Rows:
    """Say where the movie came from."""
    if run.movie is None:
        return []
    info, provenance = run.movie.info, run.movie.provenance
    known = {"format": info.format, "camera": info.camera, "software": info.software, "voltage_kv": info.voltage}
    rows = list(flatten({**known, **{key: provenance.get(key) for key in ("source", "frames", "version")}}))
    defects = run.movie.references.defects
    if defects is not None:
        rows.append(("defects", f"{int(defects.sum())} pixels"))
    return rows + [("warning", warning) for warning in info.warnings]


def network_rows(run: Run) -> Rows:
    """Say which network made the denoised store, by digest, and how it was used."""
    if run.denoised is None:
        return []
    skipped = ("kind", "movie", "movie_info")
    return list(flatten({key: value for key, value in run.denoised.provenance.items() if key not in skipped}))


def version_rows() -> Rows:
    """Name the programs that write this page; those that made the stores stand with the stores."""
    libraries = [(name, version(name)) for name in PACKAGES]
    return [("n2n_pipeline", __version__), ("python", platform.python_version()), *libraries]


def flatten(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Turn nested settings into rows of a table; lists of many numbers are for the plots and left out.

    Examples
    --------
    >>> list(flatten({"train": {"steps": 600, "lr": 0.001}, "seed": None, "curve": [0.0] * 99}))
    [('train.steps', '600'), ('train.lr', '0.001')]
    """
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list) and (
            len(value) > 8 or any(isinstance(item, Mapping | list) for item in value)
        ):
            continue
        elif value is not None and value != []:
            yield name, f"{value:.6g}" if isinstance(value, float) else str(value)
