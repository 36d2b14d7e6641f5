"""The whole road as a user takes it: the command, each in a process, on a tiny movie whose truth is known."""

import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np
import pytest
import xarray as xr

from n2n_pipeline.config import RunConfig
from n2n_pipeline.pairs import pairs
from n2n_pipeline.run import DEMO, _describe_window
from n2n_pipeline.settings_file import load_settings
from n2n_pipeline.sources import open_movie, read_image
from n2n_pipeline.sources.simulated import Detector, simulate_movie
from n2n_pipeline.store import open_store

SHAPE = (12, 61, 70)
TINY = ["network.width=4", "network.depth=2", "train.steps=6", "train.batch=2", "train.patch_px=32"]
TINY += ["train.window=8"]
SETTINGS = [word for setting in TINY for word in ("--set", setting)]


class Files(NamedTuple):
    """A movie's files, as a camera leaves them."""

    movie: Path
    gain: Path
    truth: Path


def write_mrc(path: Path, array: np.ndarray) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(array)
        file.voxel_size = 2.5
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("camera")
    movie = simulate_movie(SHAPE, drift=(0.5, 0.3), detector=Detector(gain_spread=0.05, hot_pixels=3))
    return Files(
        write_mrc(folder / "movie.mrc", movie.counts),
        write_mrc(folder / "gain.mrc", movie.gain_reference),
        write_mrc(folder / "truth.mrc", movie.truth),
    )


@pytest.fixture(scope="module")
def outdir(files, n2n_pipeline, tmp_path_factory) -> Path:
    """What ``run`` leaves."""
    folder = tmp_path_factory.mktemp("run") / "out"
    end = n2n_pipeline("run", files.movie, folder, "--gain", files.gain, *SETTINGS)
    assert end.returncode == 0, end.stderr
    assert end.stdout == f"report: {folder / 'report.html'}\n"
    return folder


def test_run_leaves_every_file_it_promises(outdir):
    names = (
        "movie.zarr",
        "window.json",
        "model/weights.safetensors",
        "denoised.zarr",
        "metrics.json",
        "report.html",
    )
    for name in (*names, "log.txt", "config.yaml"):
        assert (outdir / name).exists(), name


def test_the_denoised_movie_has_every_frame_in_the_units_of_the_movie(outdir, files):
    movie, denoised = open_store(outdir / "movie.zarr"), open_store(outdir / "denoised.zarr")
    assert denoised.info.shape == movie.info.shape == SHAPE
    assert denoised.info.pixel_size == pytest.approx(2.5)
    values = denoised.read(slice(None))
    assert np.isfinite(values).all()
    counts = open_movie(files.movie).read_frames(0, SHAPE[0])
    assert values.mean() == pytest.approx(np.median(counts.mean(axis=(1, 2))), rel=0.5)


def test_raw_counts_are_kept_to_the_bit(outdir, files):
    counts = open_movie(files.movie).read_frames(0, SHAPE[0])
    np.testing.assert_array_equal(open_store(outdir / "movie.zarr").read(slice(None)), counts)


def test_timings_name_every_stage_once(outdir):
    timings = json.loads((outdir / "timings.json").read_text())
    assert set(timings) == {"ingest", "align", "sweep", "train", "denoise", "evaluate", "report"}
    assert all(seconds > 0 for seconds in timings.values())


def test_nothing_but_the_log_holds_a_clock_or_a_host_name(outdir):
    traces = [time.strftime("%Y-%m-%d").encode(), time.strftime("%Y%m%d").encode()]
    if len(platform.node()) >= 6:  # a shorter one may be there by chance
        traces.append(platform.node().encode())
    for path in outdir.rglob("*"):
        if path.is_file() and path.name != "log.txt":
            content = path.read_bytes()
            assert not [trace for trace in traces if trace in content], path
    assert traces[0] in (outdir / "log.txt").read_bytes()


def test_the_settings_that_are_saved_are_those_that_were_given(outdir):
    saved = load_settings(outdir / "config.yaml")
    assert saved.train.steps == 6
    assert saved.ingest.gain is not None
    assert saved.align == RunConfig().align


def test_a_finished_run_is_not_done_again(outdir, files, n2n_pipeline):
    def times():
        return {path: path.stat().st_mtime_ns for path in outdir.rglob("*") if path.suffix in (".json", ".html")}

    def results():
        return {path: when for path, when in times().items() if path.name != "timings.json"}

    weights = outdir / "model" / "weights.safetensors"
    before = results(), weights.stat().st_mtime_ns
    end = n2n_pipeline("run", files.movie, outdir, "--gain", files.gain, *SETTINGS)
    assert end.returncode == 0, end.stderr
    assert (results(), weights.stat().st_mtime_ns) == before


def test_a_run_with_other_settings_is_refused_and_named(outdir, files, n2n_pipeline):
    end = n2n_pipeline("run", files.movie, outdir, "--gain", files.gain, *SETTINGS, "--steps", "7")
    assert end.returncode == 73
    assert "steps 6 -> 7" in end.stderr
    assert end.stderr.splitlines()[-1].startswith("n2n-pipeline: error: ")
    assert load_settings(outdir / "config.yaml").train.steps == 6


def test_evaluation_against_the_truth_prints_its_scores_as_json(outdir, files, n2n_pipeline):
    end = n2n_pipeline("evaluate", outdir / "denoised.zarr", "--truth", files.truth, "--json", "--quiet")
    assert end.returncode == 0, end.stderr
    scores = json.loads(end.stdout)
    assert {"snr_db", "psnr_db", "ssim", "verdicts"} <= set(scores)
    assert all({"check", "verdict", "sentence"} <= set(verdict) for verdict in scores["verdicts"])


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("info", {"shape", "dtype", "pixel_size_angstrom"}),
        ("status", {"complete", "units", "done", "missing"}),
        ("verify", {"ok", "missing", "changed"}),
    ],
)
def test_looking_at_a_store_prints_json(command, keys, outdir, n2n_pipeline):
    end = n2n_pipeline(command, outdir / "denoised.zarr", "--json")
    assert end.returncode == 0, end.stderr
    assert keys <= set(json.loads(end.stdout))


def test_a_changed_byte_is_found_by_verify(outdir, n2n_pipeline, tmp_path):
    copy = tmp_path / "denoised.zarr"
    shutil.copytree(outdir / "denoised.zarr", copy)
    shard = next(path for path in (copy / "0" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    end = n2n_pipeline("verify", copy, "--json")
    assert end.returncode == 76
    assert json.loads(end.stdout)["changed"] == [str(shard.relative_to(copy))]


def test_pairs_are_what_the_library_gives_and_can_be_trained_on(outdir, n2n_pipeline, tmp_path):
    store = outdir / "movie.zarr"
    for name in ("pairs.zarr", "pairs"):
        end = n2n_pipeline("pairs", store, tmp_path / name, "--window", "8", "--stride", "4")
        assert end.returncode == 0, end.stderr
    halves = pairs(store, window=8, stride=4)
    with xr.open_zarr(tmp_path / "pairs.zarr", consolidated=False) as written:
        xr.testing.assert_identical(written.load(), halves.compute())
    for t, image in zip((0, 4, 8), halves["odd"].to_numpy(), strict=True):
        np.testing.assert_array_equal(read_image(tmp_path / "pairs" / "odd" / f"{t:05d}.tif"), image)
    end = n2n_pipeline("train", tmp_path / "pairs", "-o", tmp_path / "model", *SETTINGS, "--window", "auto")
    assert end.returncode == 0, end.stderr


def test_align_and_sweep_print_what_programs_rely_on(outdir, n2n_pipeline, tmp_path):
    shifts = json.loads(n2n_pipeline("align", outdir / "movie.zarr", "--json").stdout)["shifts"]
    assert [shift["t"] for shift in shifts] == list(range(SHAPE[0]))
    assert set(shifts[0]) == {"t", "dy", "dx", "confidence"}
    end = n2n_pipeline(
        "sweep", outdir / "movie.zarr", "--windows", "2,4,8", "--json", "-o", tmp_path / "window.json"
    )
    result = json.loads(end.stdout)
    assert [score["window"] for score in result["scores"]] == [2, 4, 8]
    assert {"window", "filter_px", "risk", "low", "high"} == set(result["scores"][0])
    assert result["window"] in (2, 4, 8)


def test_an_exported_mrc_has_the_right_pixel_size(outdir, n2n_pipeline, tmp_path):
    end = n2n_pipeline("export", outdir / "denoised.zarr", tmp_path / "denoised.mrc")
    assert end.returncode == 0, end.stderr
    with mrcfile.open(tmp_path / "denoised.mrc") as file:
        assert file.data.shape == SHAPE
        assert file.voxel_size.x == pytest.approx(2.5)


def test_the_stages_one_by_one_give_the_bytes_that_run_gives(outdir, files, n2n_pipeline, tmp_path):
    store, model, denoised = tmp_path / "movie.zarr", tmp_path / "model", tmp_path / "denoised.zarr"
    for words in (
        ["ingest", files.movie, store, "--gain", files.gain],
        ["align", store],
        ["train", store, "-o", model, *SETTINGS],
        ["denoise", store, "-m", model, "-o", denoised],
        ["report", denoised],
    ):
        end = n2n_pipeline(*words)
        assert end.returncode == 0, end.stderr
    together = open_store(outdir / "denoised.zarr").read(slice(None))
    np.testing.assert_array_equal(open_store(denoised).read(slice(None)), together)


def cut(path: Path, folder: Path) -> Path:
    """A movie whose file ends in the middle."""
    copy = folder / "cut.mrc"
    copy.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return copy


def one_frame(path: Path, folder: Path) -> Path:
    return write_mrc(folder / "single.mrc", open_movie(path).read_frames(0, 1))


def empty(path: Path, folder: Path) -> Path:
    (folder / "empty.mrc").touch()
    return folder / "empty.mrc"


def missing(path: Path, folder: Path) -> Path:
    return folder / "missing.mrc"


@pytest.mark.parametrize(
    ("make", "what", "code"),
    [
        (missing, "no such file", 66),
        (empty, "empty file", 65),
        (cut, "header promises 12 frames", 65),
        (one_frame, "1 frame; pairs need at least 2", 65),
    ],
)
def test_a_movie_that_cannot_be_used_is_one_line_and_leaves_nothing(
    make, what, code, files, n2n_pipeline, tmp_path
):
    bad = make(files.movie, tmp_path)
    end = n2n_pipeline("run", bad, tmp_path / "out")
    assert end.stderr.startswith(f"n2n-pipeline: error: {bad}: {what}")
    assert end.stderr.count("\n") == 1
    assert end.returncode == code
    assert not (tmp_path / "out").exists()


def test_a_missing_gain_is_one_line(files, n2n_pipeline, tmp_path):
    end = n2n_pipeline("run", files.movie, tmp_path / "out", "--gain", tmp_path / "gain.mrc")
    assert end.stderr.splitlines()[-1] == f"n2n-pipeline: error: {tmp_path}/gain.mrc: no such file"
    assert end.returncode == 66


def test_an_output_that_cannot_be_made_is_one_line(files, n2n_pipeline, tmp_path):
    (tmp_path / "out").touch()
    end = n2n_pipeline("run", files.movie, tmp_path / "out")
    assert end.stderr.splitlines()[-1].startswith(f"n2n-pipeline: error: {tmp_path}/out: ")
    assert end.returncode == 73
    assert "Traceback" not in end.stderr


@pytest.mark.slow
def test_a_run_that_is_stopped_in_training_continues_to_the_same_weights(
    files, n2n_pipeline, environment, tmp_path
):
    words = ["run", files.movie, "out", "--gain", files.gain, *SETTINGS, "--steps", "400", "--threads", "1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    end = n2n_pipeline(*words, cwd=whole)
    assert end.returncode == 0, end.stderr
    command = [sys.executable, "-m", "n2n_pipeline", *map(str, words)]
    with subprocess.Popen(command, cwd=cut, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (cut / "out" / "model" / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    end = n2n_pipeline(*words, cwd=cut)
    assert end.returncode == 0, end.stderr
    weights = [(folder / "out" / "model" / "weights.safetensors").read_bytes() for folder in (whole, cut)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("use", "asked", "expected"),
    [
        (8, {}, "8 frames predict held-out frames best (4 as well within the interval)"),
        (
            8,
            {"train": {"window": 4}},
            "best (4 as well within the interval); windows of 4 frames are used, as asked for",
        ),
        ("all", {}, "all at once predict held-out frames better than any one of them (the best has 8)"),
        (
            "all",
            {"network": {"width": 6}},
            "(the best has 8); windows of 8 frames are used, because of the network asked for",
        ),
    ],
)
def test_a_run_says_which_window_is_used_and_why(use, asked, expected):
    found = {"window": 8, "use": use, "as_good": [4, 8]}
    assert _describe_window(found, RunConfig.model_validate(asked)).endswith(expected)


def test_the_demo_movie_is_small_and_complete():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 3_000_000
    movie, truth = (open_movie(DEMO / name).info for name in ("movie.tif", "truth.tif"))
    assert movie.shape == truth.shape
    assert movie.pixel_size == pytest.approx(3.25)
    for name in ("dark.tif", "gain.tif"):
        assert read_image(DEMO / name).shape == movie.shape[1:]


@pytest.mark.slow
def test_the_demo_ends_with_a_report_and_a_picture(n2n_pipeline, tmp_path):
    end = n2n_pipeline("demo", tmp_path / "demo", *SETTINGS)
    assert end.returncode == 0, end.stderr
    assert end.stdout.splitlines() == [
        f"before and after: {tmp_path}/demo/before_after.png",
        f"report: {tmp_path}/demo/report.html",
    ]
    assert (tmp_path / "demo" / "before_after.png").read_bytes().startswith(b"\x89PNG")
    assert "snr_db" in json.loads((tmp_path / "demo" / "metrics.json").read_text())
