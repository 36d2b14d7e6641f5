"""Files of strangers run nothing, lead nowhere and fill no memory; nor does the code hold the calls that could."""

from __future__ import annotations

import ast
import csv
import json
import multiprocessing
import pickle
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import mrcfile
import numpy as np
import pytest
import tifffile
import torch
from processes import Order, run

import n2n_pipeline
from n2n_pipeline.checkpoint import METADATA_KEY, WEIGHTS, ModelCard, load_model, save_model
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.model import UNet
from n2n_pipeline.records import Ledger, Unit
from n2n_pipeline.sources import open_movie
from n2n_pipeline.store import write_movie

NETWORK = NetworkConfig(width=3, depth=2)
PACKAGE = Path(n2n_pipeline.__file__).parent


# No code is run


def dangers(tree: ast.AST) -> Iterator[str]:
    """Name calls that run what a file holds, and imports of modules that do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (name for name in names if name.split(".")[0] in RUNNERS)
        elif isinstance(node, ast.Call):
            settings = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__") or called.endswith(
                ("yaml.load", "yaml.load_all")
            ):
                yield called
            if called == "torch.load" and settings.get("weights_only") != "True":
                yield "torch.load without weights_only"
            if settings.get("allow_pickle") == "True" or settings.get("shell") == "True":
                yield f"{called} with pickles or a shell"
            if called == "np.load" and settings.get("allow_pickle", "False") != "False":
                yield called


RUNNERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_no_module_calls_what_runs_a_files_content():
    found = [
        (path.name, danger)
        for path in PACKAGE.rglob("*.py")
        for danger in dangers(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "eval(x)",
        "run(x, shell=True)",
    ],
)
def test_such_a_call_would_be_found(text):
    assert list(dangers(ast.parse(text)))


class Payload:
    """Leaves a marker where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def as_zip(path: Path, payload: Payload) -> None:
    torch.save(payload, path)


def as_legacy(path: Path, payload: Payload) -> None:
    torch.save(payload, path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def as_object_array(path: Path, payload: Payload) -> None:
    with path.open("wb") as file:  # NumPy would add its own ending to another name
        np.save(file, np.array([payload], object), allow_pickle=True)


def as_object_arrays(path: Path, payload: Payload) -> None:
    with path.open("wb") as file:
        np.savez(file, weights=np.array([payload], object))


HOSTILE = {
    "m.pt": as_zip,
    "m.pth": as_legacy,
    "m.ckpt": as_zip,
    "m.sav": as_pickle,
    "m.npy": as_object_array,
    "m.npz": as_object_arrays,
    "m.safetensors": as_zip,
    "m.mrc": as_pickle,
    "m.zarr": as_legacy,
}
USES = [
    "run {} out",
    "ingest {} out.zarr",
    "ingest movie.mrc out.zarr --gain {}",
    "ingest movie.mrc out.zarr --dark {}",
    "ingest movie.mrc out.zarr --defects {}",
    "ingest movie.mrc out.zarr --config {}",
    "align {}",
    "sweep {}",
    "sweep movie.zarr -m {} --windows 2",
    "train {} -o out",
    "train movie.zarr -o out --init {}",
    "train movie.zarr -o out --slurm {}",
    "denoise {} -m model",
    "denoise movie.zarr -m {}",
    "pairs {} out.zarr",
    "evaluate {}",
    "evaluate denoised.zarr --truth {}",
    "evaluate denoised.zarr -m {}",
    "report {}",
    "export {} out.mrc",
    "view {} --no-browser",
    "info {}",
    "verify {}",
    "status {}",
    "import-weights {} -o out",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a movie, a model and files that run something when they are unpickled."""
    folder = tmp_path_factory.mktemp("hostile") / "here"
    folder.mkdir()
    frames = np.random.default_rng(0).poisson(5, (8, 48, 48)).astype("i2")
    write_movie(folder / "movie.zarr", frames)
    write_mrc(folder / "movie.mrc", frames)
    save_model(folder / "model", UNet(NETWORK), ModelCard(network=NETWORK, mean=5.0, scale=2.0, window=4))
    words = "denoise movie.zarr -m model -o denoised.zarr --device cpu --threads 1"
    assert run(Order(words.split()), folder).code == 0
    for name, write in HOSTILE.items():
        write(folder / name, Payload(folder / "marker"))
    return folder


@pytest.mark.parametrize("name", ["m.pt", "m.sav", *(pytest.param(n, marks=pytest.mark.slow) for n in HOSTILE)])
@pytest.mark.parametrize("use", USES)
def test_no_command_runs_what_a_pickle_holds(place, use, name):
    end = run(Order(use.format(name).split()), place)
    assert not (place / "marker").exists()
    assert end.code != ExitCode.BUG, end.errors
    assert "Traceback" not in end.errors
    if not use.startswith("report"):  # which shows what lies beside it, and says what it could not open
        assert end.code != 0
        assert end.errors.splitlines()[-1].startswith("n2n-pipeline: error: ")


def test_the_payload_would_run(tmp_path):
    as_pickle(tmp_path / "m.sav", Payload(tmp_path / "marker"))
    pickle.loads((tmp_path / "m.sav").read_bytes())
    assert (tmp_path / "marker").exists()


# Weights


def tensors(header: dict[str, dict[str, object]], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "offsets",
    [
        {"leave.bias": [0, 10**9]},  # past the end
        {"leave.bias": [0, 4]},  # over another tensor
        {"leave.bias": [4, 0]},
        {"leave.bias": [-4, 0]},
        {"leave.bias": [2**63, 2**63 + 4]},
        {"leave.bias": "everything"},
    ],
    ids=str,
)
def test_weights_whose_header_lies_about_places_are_refused(tmp_path, offsets):
    path = save_model(tmp_path, UNet(NETWORK), ModelCard(network=NETWORK, mean=5.0, scale=2.0, window=4))
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert METADATA_KEY in header["__metadata__"]
    for name, place in offsets.items():
        header[name]["data_offsets"] = place
    path.write_bytes(tensors(header, raw[8 + length :]))
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / WEIGHTS}: ")
    assert caught.value.code == ExitCode.BAD_DATA


# TIFF files that claim, or inflate to, more than they can hold


def write_mrc(path: Path, frames: np.ndarray) -> None:
    with mrcfile.new(path) as file:
        file.set_data(frames)


def write_tag(path: Path, code: int, value: object) -> Path:
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags[code].overwrite(value)
    return path


def bomb(path: Path) -> Path:
    """A page of 16 x 16 pixels whose only strip inflates to 256 MB."""
    packed = imagecodecs.zlib_encode(bytes(256 << 20))
    tifffile.imwrite(path, np.zeros((16, 16), "u1"), photometric="minisblack", compression="zlib")
    raw = path.read_bytes()
    path.write_bytes(raw + packed)
    write_tag(path, 273, (len(raw),))
    return write_tag(path, 279, (len(packed),))


def many_samples(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((16, 16), "u1"), photometric="minisblack")
    return write_tag(path, 277, 60_000)


@pytest.mark.parametrize("make", [bomb, many_samples], ids=lambda make: make.__name__)
def test_a_tiff_that_holds_more_than_its_pixels_is_refused_in_little_memory(tmp_path, make, peak_memory):
    def read() -> None:
        with pytest.raises(InputError):
            open_movie(make_it).read_frames(0, 1)

    make_it = make(tmp_path / "x.tif")
    assert peak_memory(read) < 64 << 20


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], None]], int]:
    """Measure how far the resident memory of a child grows above its start, in bytes."""

    def measure(action: Callable[[], None]) -> int:
        receive, send = multiprocessing.Pipe(duplex=False)

        def child() -> None:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            action()
            send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        return 1024 * int(receive.recv())

    return measure


# Links


def test_a_store_that_is_thrown_away_takes_nothing_with_it_that_a_link_leads_to(tmp_path):
    unit, store, elsewhere = Unit("only", ("data",)), tmp_path / "out.zarr", tmp_path / "elsewhere"
    with Ledger(store, {}, [unit]):
        pass
    elsewhere.mkdir()
    (elsewhere / "thesis.json").write_text("years of work")
    (store / "records/units").rmdir()
    (store / "records/units").symlink_to(elsewhere)
    with (
        pytest.raises(InputError, match="symbolic link") as caught,
        Ledger(store, {"new": 1}, [unit], restart=True),
    ):
        pass
    assert caught.value.code == ExitCode.REFUSED
    assert (elsewhere / "thesis.json").read_text() == "years of work"


# Tables


def test_the_only_table_holds_numbers_and_no_names(tmp_path):
    """A spreadsheet runs a cell that begins with =."""
    folder = tmp_path / "=cmd|' calc'!A0"
    folder.mkdir()
    write_movie(folder / "=1+1.zarr", np.random.default_rng(0).poisson(5, (8, 16, 16)).astype("u1"))
    words = "train =1+1.zarr -o =2+2 --window 4 --steps 2 --device cpu --threads 1 --set train.patch_px=16"
    end = run(Order([*words.split(), "--set", "network={width: 3, depth: 2}"]), folder)
    assert end.code == 0, end.errors
    (table,) = (folder / "=2+2").rglob("*.csv")
    with table.open() as file:
        head, *rows = csv.reader(file)
    assert rows
    assert all(name.isidentifier() for name in head)
    for cell in (cell for row in rows for cell in row if cell):
        float(cell)
