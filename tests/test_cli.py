import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import mrcfile
import numpy as np
import pytest
from click.testing import CliRunner

import n2n_pipeline as n2n
from n2n_pipeline import __version__
from n2n_pipeline.cli import main
from n2n_pipeline.cli.faults import OneLineErrors, log_beside
from n2n_pipeline.cli.options import configured
from n2n_pipeline.errors import ExitCode, InputError, Stopped

COMMANDS = ["run", "demo", "ingest", "align", "sweep", "train", "denoise", "pairs", "evaluate"]
COMMANDS += ["report", "export", "view", "info", "verify", "status", "import-weights"]


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_help_lists_the_stages_in_their_order():
    listed = re.findall(r"^  ([a-z-]+)  ", invoke("--help").output.partition("Commands:")[2], re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_common_options(command):
    text = invoke(command, "--help").output
    for option in ("--seed", "--threads", "--quiet", "--restart", "--version", "--help"):
        assert option in text
    assert invoke(command, "--version").output.strip().endswith(__version__)


def test_help_answers_at_once_and_loads_nothing_heavy():
    program = (
        "import sys, runpy; sys.argv = ['n2n-pipeline', '--help']\n"
        "try: runpy.run_module('n2n_pipeline', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'zarr', 'dask', 'numpy', 'xarray') if name in sys.modules])"
    )
    start = time.perf_counter()
    end = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert end.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - start < 1.5


def test_ingest_loads_no_torch():
    program = "import sys, n2n_pipeline.ingest; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("words", "line", "code"),
    [
        (["info", "no.mrc"], "no.mrc: no such file", 66),
        (["verify", "no.zarr"], "no.zarr: no such file", 66),
        (["status", "no.zarr"], "no.zarr: no such file", 66),
        (["run", "no.mrc", "out"], "no.mrc: no such file", 66),
        (["ingest", "no.mrc", "no.zarr"], "no.mrc: no such file", 66),
        (["ingest", "a.mrc", "--bin", "x"], "--bin: ingest.bin must be a whole number, got 'x'", 78),
        (["ingest", "a.mrc", "--set", "x=1"], "--set x=1: unknown key 'x'", 78),
        (["ingest", "a.mrc", "--config", "no.yaml"], "no.yaml: no such file", 66),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_a_code(words, line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end = invoke(*words)
    assert end.stderr.startswith(f"n2n-pipeline: error: {line}")
    assert end.stderr.count("\n") == 1
    assert end.exit_code == code
    assert list(tmp_path.iterdir()) == []  # refused before anything is written


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "a.mrc", "b.mrc"],
        ["ingest", "a.mrc", "--crop", "1:2"],
        ["sweep", "a", "--windows", "2;4"],
        ["trian"],
    ],
)
def test_words_that_make_no_command_are_usage_errors(words):
    assert invoke(*words).exit_code == ExitCode.USAGE


def write_movie_file(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    with mrcfile.new(path) as file:
        file.set_data(np.random.default_rng(seed).poisson(5, (4, 16, 16)).astype(np.int16))
    return path


def test_of_several_movies_each_gets_a_store_and_one_that_fails_does_not_stop_the_others(tmp_path):
    movies = [write_movie_file(tmp_path / f"{name}.mrc", seed) for seed, name in enumerate("abc")]
    movies[1].write_bytes(movies[1].read_bytes()[:2000])
    end = invoke("ingest", *movies, "-o", tmp_path / "out", "--quiet", "--pixel-size", 1)
    assert end.exit_code == ExitCode.BAD_DATA
    assert end.stdout.splitlines() == [str(tmp_path / "out" / name) for name in ("a.zarr", "c.zarr")]
    assert f"n2n-pipeline: error: {movies[1]}: header promises 4 frames" in end.stderr
    assert end.stderr.endswith("1 of 3 movies failed\n")
    assert not (tmp_path / "out/b.zarr").exists()


def test_two_movies_that_would_become_one_store_are_refused(tmp_path):
    movies = [write_movie_file(tmp_path / folder / "a.mrc") for folder in ("one", "two")]
    end = invoke("ingest", *movies, "-o", tmp_path / "out")
    assert end.exit_code == ExitCode.USAGE
    assert "would both become" in end.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("movie", "store"),
    [
        (".", "run_1.5s.zarr"),  # the folder one is in, whole name and all
        ("*.mrc", "run_1.5s.zarr"),
        ("f0.mrc", "run_1.5s/f0.zarr"),
        ("../run_1.5s", "run_1.5s.zarr"),
    ],
)
def test_a_store_is_named_after_its_movie(movie, store, tmp_path, monkeypatch):
    for number in range(2):
        write_movie_file(tmp_path / f"run_1.5s/f{number}.mrc", number)
        frame = mrcfile.read(tmp_path / f"run_1.5s/f{number}.mrc")[:1]
        mrcfile.write(tmp_path / f"run_1.5s/f{number}.mrc", frame, overwrite=True)
    monkeypatch.chdir(tmp_path / "run_1.5s")
    assert invoke("ingest", movie, "--quiet", "--pixel-size", 1).exit_code == 0
    assert (tmp_path / store / "zarr.json").is_file()


def failing(error):
    """A command that fails, in the group that the real ones are in."""

    @click.command()
    @click.option("--output", type=Path)
    def fail(output):
        if output:
            log_beside(output)
        raise error

    group = OneLineErrors(commands=[fail])
    return lambda *words: CliRunner().invoke(group, ["fail", *map(str, words)])


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (InputError("x.mrc", "empty file"), "x.mrc: empty file", 65),
        (Stopped("out.zarr"), "out.zarr: stopped; run the same command again to continue", 75),
        (KeyboardInterrupt(), "stopped; run the same command again to continue", 75),
        (OSError(errno.ENOSPC, "No space left", "a/c"), "a/c: no space left; run the same command again", 74),
        (OSError(errno.EIO, "Input/output error"), "input/output error; run the same command again", 74),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: permission denied", 73),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\n\x1b[2J"), r"a\n\x1b[2J: no such file", 66),
        (MemoryError(), "not enough memory", 74),
        (ZeroDivisionError("division\nby zero"), r"our bug: ZeroDivisionError: division\nby zero", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_ends_in_one_line_and_its_code(error, line, code):
    end = failing(error)()
    assert end.stderr.startswith(f"n2n-pipeline: error: {line}")
    assert end.stderr.count("\n") == 1
    assert end.exit_code == code


def test_a_traceback_goes_to_the_log_beside_the_output(tmp_path):
    end = failing(ZeroDivisionError())("--output", tmp_path / "out.zarr")
    log = (tmp_path / "log.txt").read_text()
    assert f"report it with {tmp_path}/log.txt" in end.stderr
    assert "Traceback" in log
    assert "Traceback" not in end.output


def test_a_bug_without_an_output_gets_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    end = failing(ZeroDivisionError())()
    (log,) = tmp_path.iterdir()
    assert str(log) in end.stderr
    assert "Traceback" in log.read_text()


def test_a_refused_command_makes_no_folder_for_its_log(tmp_path):
    failing(InputError("x", "y"))("--output", tmp_path / "new" / "out.zarr")
    assert not (tmp_path / "new").exists()


def test_what_libraries_warn_of_goes_to_the_log_alone(tmp_path):
    @click.command()
    def warn():
        log_beside(tmp_path / "out.zarr")
        warnings.warn("deprecated", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        end = CliRunner().invoke(OneLineErrors(commands=[warn]), ["warn"])
    assert end.output == ""
    assert "deprecated" in (tmp_path / "log.txt").read_text()


def test_a_log_that_cannot_be_written_does_not_stop_the_work(tmp_path):
    (tmp_path / "log.txt").mkdir()
    end = failing(InputError("x", "y"))("--output", tmp_path / "out.zarr")
    assert end.stderr == "n2n-pipeline: error: x: y\n"


def test_settings_come_from_file_set_and_options_and_the_option_wins(tmp_path):
    @click.command()
    @click.option("--steps", "train__steps")
    @configured
    def show(config, restart):
        click.echo(json.dumps([config.train.steps, config.train.batch, config.seed, config.threads, restart]))

    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\nthreads: 4\ntrain: {steps: 1, batch: 1}")
    words = ["--config", file, "--set", "train.steps=2", "--set", "train.batch=2", "--steps", "3", "--seed", "7"]
    end = CliRunner().invoke(show, [*map(str, words), "--restart"])
    assert json.loads(end.output) == [3, 2, 7, 4, True]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_command_with_75(number, tmp_path):
    program = (
        "import click, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from n2n_pipeline.cli.faults import OneLineErrors\n"
        "@click.command()\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "OneLineErrors(commands=[wait])(['wait'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == ExitCode.STOPPED
    assert errors == "n2n-pipeline: error: stopped; run the same command again to continue\n"


def test_public_names_are_functions_even_where_modules_have_the_same_name():
    program = (
        "import n2n_pipeline.ingest, n2n_pipeline.sweep, n2n_pipeline.export, n2n_pipeline as n2n\n"
        "print(all(callable(getattr(n2n, name)) for name in n2n.__all__))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "True"


def test_public_functions_take_names_of_files_and_one_store_where_they_take_several(tmp_path):
    path = tmp_path / "movie.zarr"
    for function in (n2n.align, n2n.sweep, n2n.pairs, n2n.evaluate):
        with pytest.raises(InputError, match=r"movie\.zarr: no such"):
            function(str(path))
    with pytest.raises(InputError, match=r"movie\.zarr: no such"):
        n2n.train(str(path), str(tmp_path / "model"))


def test_the_package_itself_imports_nothing_heavy():
    program = "import sys, n2n_pipeline; print('numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"
