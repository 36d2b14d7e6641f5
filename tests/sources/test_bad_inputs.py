"""What people give by mistake, as they type it: one line that says what, why and what to do; odd things are taken.

Files that cannot be a movie are in ``test_refusals.py``; here are inputs that only a stage can judge.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from camera_files import counts, draw_electrons, patch, patch_mrc, write_eer, write_mrc
from processes import Order, run

from n2n_pipeline.checkpoint import ModelCard, save_model
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.errors import ExitCode
from n2n_pipeline.model import UNet
from n2n_pipeline.store import write_movie

FRAMES = counts(shape=(16, 32, 32)).astype(np.int16)
NETWORK = NetworkConfig(width=3, depth=2)
TRAIN = "train --window 4 --steps 1 --device cpu --threads 1 --set train.patch_px=16"
NAUGHTY = "-a\nb\x1b[2J.mrc"


def mrc(frames: np.ndarray, name: str = "x.mrc") -> Callable[[Path], object]:
    def make(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NaN
            return write_mrc(folder / name, frames)

    return make


def both(*makes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [make(folder) for make in makes]


def spoilt(where: object, value: float) -> np.ndarray:
    frames = FRAMES.astype("f4") if isinstance(value, float) else FRAMES.copy()
    frames[where] = value
    return frames


def store(frames: np.ndarray = FRAMES, name: str = "x.zarr") -> Callable[[Path], object]:
    return lambda folder: write_movie(folder / name, frames.astype("u1"))


def halves(even: dict[str, np.ndarray], odd: dict[str, np.ndarray]) -> Callable[[Path], object]:
    files = {
        f"x/{half}/{name}": frames for half, of in (("even", even), ("odd", odd)) for name, frames in of.items()
    }
    return both(*(mrc(frames, name) for name, frames in files.items()))


def model(folder: Path) -> Path:
    card = ModelCard(network=NETWORK, mean=3.0, scale=2.0, window=4)
    return save_model(folder / "model", UNet(NETWORK), card)


def newer_model(folder: Path) -> None:
    path = model(folder)
    path.write_bytes(re.sub(rb'(schema_version\\":)\d', rb"\g<1>9", path.read_bytes()))


def incomplete(folder: Path) -> None:
    (write_movie(folder / "x.zarr", FRAMES.astype("u1")).path / "0/c/0/0/0").unlink()


def several_datasets(folder: Path) -> None:
    with h5py.File(folder / "x.emd", "w") as hdf:
        for name in "abc":
            hdf[f"data/{name}"] = FRAMES


def cut_eer(folder: Path) -> None:
    path = write_eer(folder / "x.eer", draw_electrons(40, (64, 64)), (64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def with_settings(text: str) -> Callable[[Path], object]:
    return both(store(), lambda folder: (folder / "config.yaml").write_text(text))


def pickled(folder: Path) -> None:
    store()(folder)
    for suffix in ("pt", "pth", "ckpt", "sav"):
        (folder / f"m.{suffix}").write_bytes(b"\x80\x04.")


DATA, MISSING, CONFIG, REFUSED = ExitCode.BAD_DATA, ExitCode.NO_INPUT, ExitCode.CONFIG, ExitCode.REFUSED
NOT_WHOLE = r"x\.zarr: 1 of \d files missing or cut \(first 0/c/0/0/0\); run the command that made it again"
NO_CUDA = "no CUDA device; use --device cpu"
CASES = (
    {
        "B18 run": (mrc(FRAMES[:1]), "run x.mrc out", r"x\.mrc: 1 frame; pairs need at least 2", DATA),
        "B18 align": (store(FRAMES[:1]), "align x.zarr", r"x\.zarr: 1 frame; pairs need at least 2", DATA),
        "B18 sweep": (store(FRAMES[:1]), "sweep x.zarr", r"x\.zarr: 1 frame; pairs need at least 2", DATA),
        "B18 train": (store(FRAMES[:1]), "train x.zarr -o m", r"x\.zarr: 1 frame; pairs need at least 2", DATA),
        "B18 pairs": (store(FRAMES[:1]), "pairs x.zarr p.zarr", r"x\.zarr: 1 frame; pairs need at least 2", DATA),
        "B19 train": (
            store(FRAMES[:5]),
            "train x.zarr -o m --window 8",
            r"x\.zarr: 5 frames, window needs 8.*",
            DATA,
        ),
        "B19 pairs": (
            store(FRAMES[:5]),
            "pairs x.zarr p.zarr --window 8",
            r"x\.zarr: 5 frames, window needs 8.*",
            DATA,
        ),
        "B19 sweep": (store(FRAMES[:5]), "sweep x.zarr --windows 8", r"x\.zarr: 5 frames, window needs 8.*", DATA),
        "B22": (
            store(FRAMES[:, :16, :16]),
            f"{TRAIN} x.zarr -o m",
            r"x\.zarr: 16x16 image, the network needs 32; use a lower network\.depth",
            DATA,
        ),
        "B23": (
            mrc(spoilt((..., slice(4)), np.nan)),
            "ingest x.mrc",
            r"x\.mrc: 12\.5% of pixels are NaN or Inf.*",
            DATA,
        ),
        "B25 ingest": (
            mrc(np.full((4, 32, 32), 7, "i2")),
            "ingest x.mrc",
            r"x\.mrc: all pixels equal 7; nothing to learn",
            DATA,
        ),
        "B25 train": (
            store(np.full((8, 32, 32), 7, "u1")),
            f"{TRAIN} x.zarr -o m",
            "train: all pixels equal 7; nothing to learn",
            DATA,
        ),
        "B29": (
            both(mrc(FRAMES), mrc(np.ones((1, 48, 32), "f4"), "gain.mrc")),
            "ingest x.mrc --gain gain.mrc",
            r"gain\.mrc: shape \(48, 32\), movie is \(32, 32\).*",
            DATA,
        ),
        "B30 ingest": (
            halves({"a.mrc": FRAMES[:2], "b.mrc": FRAMES[:2]}, {"a.mrc": FRAMES[:2]}),
            "ingest x",
            r"x: even has 2 movies, odd 1; missing in odd: b\.mrc",
            DATA,
        ),
        "B30 train": (
            halves({"a.mrc": FRAMES[:2], "b.mrc": FRAMES[:2]}, {"a.mrc": FRAMES[:2]}),
            "train x -o m",
            r"x: even has 2 images, odd 1; missing in odd: b\.mrc",
            DATA,
        ),
        "B31 ingest": (
            halves({"a_1.mrc": FRAMES[:2]}, {"a_2.mrc": FRAMES[:2]}),
            "ingest x",
            r"x: no odd partner for even/a_1\.mrc",
            DATA,
        ),
        "B31 train": (
            halves({"a_1.mrc": FRAMES[:2]}, {"a_2.mrc": FRAMES[:2]}),
            "train x -o m",
            r"x: no odd partner for even/a_1\.mrc",
            DATA,
        ),
        "B32 shape": (
            halves({"a.mrc": FRAMES[:2]}, {"a.mrc": FRAMES[:2, :, :30]}),
            "ingest x",
            r"x/(even|odd)/a\.mrc: .*32.*30.*|x/odd/a\.mrc: 32x30, first movie was 32x32",
            DATA,
        ),
        "B32 type": (
            halves({"a.mrc": FRAMES[:2]}, {"a.mrc": FRAMES[:2].astype("f4")}),
            "ingest x",
            r"x/odd/a\.mrc: float32, first movie was int16",
            DATA,
        ),
        "B33": (
            both(mrc(FRAMES[:1], "x/a.mrc"), mrc(FRAMES[:1, :16], "x/b.mrc")),
            "ingest x",
            r"x/b\.mrc: 16x32, first movie was 32x32",
            DATA,
        ),
        "B34": (
            both(
                mrc(FRAMES[:1], "x/a.mrc"),
                mrc(FRAMES[:1], "x/b.mrc"),
                lambda folder: patch_mrc(folder / "x/b.mrc", word=11, value=0.8 * 32),
            ),
            "ingest x",
            r"x/b\.mrc: 0\.8 Å/px, first was 1\.25; give the true one with --pixel-size",
            DATA,
        ),
        "B43": (
            cut_eer,
            "ingest x.eer",
            r"x\.eer: .*frame.* cut.*; --allow-truncated keeps \d+",
            DATA,
        ),
        "B45": (
            several_datasets,
            "ingest x.emd",
            r"x\.emd: 3 datasets; choose with --dataset: /data/a, /data/b, /data/c",
            DATA,
        ),
        "B49": (
            lambda folder: (folder / "x.zarr").mkdir(),
            "train x.zarr -o m",
            r"x\.zarr: no image array found \(no zarr\.json, no \.zarray\)",
            DATA,
        ),
        "B50 align": (incomplete, "align x.zarr", NOT_WHOLE, DATA),
        "B50 sweep": (incomplete, "sweep x.zarr", NOT_WHOLE, DATA),
        "B50 train": (incomplete, "train x.zarr -o m", NOT_WHOLE, DATA),
        "B50 denoise": (both(incomplete, model), "denoise x.zarr -m model", NOT_WHOLE, DATA),
        "B50 pairs": (incomplete, "pairs x.zarr p.zarr", NOT_WHOLE, DATA),
        "B50 evaluate": (incomplete, "evaluate x.zarr", NOT_WHOLE, DATA),
        "B50 report": (incomplete, "report x.zarr", NOT_WHOLE, DATA),
        "B50 export": (incomplete, "export x.zarr x.mrc", NOT_WHOLE, DATA),
        "B51 newer": (
            both(store(), newer_model),
            "denoise x.zarr -m model",
            r"model/weights\.safetensors: made by schema 9, this is \d+.*",
            DATA,
        ),
        "B51 none": (store(), "denoise x.zarr -m m", r"m: no such file", MISSING),
        "B51 folder": (
            both(store(), mrc(FRAMES, "m/a.mrc")),
            "denoise x.zarr -m m",
            r"m/weights\.safetensors: no such file",
            MISSING,
        ),
    }
    | {
        f"B52 {suffix}": (
            pickled,
            f"denoise x.zarr -m m.{suffix}",
            rf"m\.{suffix}: pickle files are refused; convert with n2n-pipeline import-weights",
            REFUSED,
        )
        for suffix in ("pt", "pth", "ckpt", "sav")
    }
    | {
        "B52 init": (
            pickled,
            "train x.zarr -o m --init m.pt",
            r"m\.pt: pickle files are refused; convert with n2n-pipeline import-weights",
            REFUSED,
        ),
        "B53 key": (
            with_settings("denoise:\n  tiel: {core_px: 64}\n"),
            "train x.zarr -o m --config config.yaml",
            r"config\.yaml:2: unknown key 'tiel'; did you mean 'tile'\?",
            CONFIG,
        ),
        "B53 twice": (
            with_settings("seed: 1\nseed: 2\n"),
            "ingest x.zarr y.zarr --config config.yaml",
            r"config\.yaml:2: key 'seed' is given twice",
            CONFIG,
        ),
        "B54": (
            with_settings("train:\n  lr: no\n"),
            "train x.zarr -o m --config config.yaml",
            r"config\.yaml:2: train\.lr must be a number, got 'no'",
            CONFIG,
        ),
        "B55": (
            both(mrc(FRAMES), lambda folder: run(Order(["ingest", "x.mrc"]), folder)),
            "ingest x.mrc --bin 2",
            r"x\.zarr: made with other settings \(settings\.bin unset -> 2\); --restart or another output",
            ExitCode.CANNOT_CREATE,
        ),
        "B57 denoise": (
            both(store(), model),
            "denoise x.zarr -m model --device cuda",
            f".*{NO_CUDA}",
            ExitCode.UNAVAILABLE,
        ),
        "B57 train": (store(), "train x.zarr -o m --device cuda", f".*{NO_CUDA}", ExitCode.UNAVAILABLE),
        "B57 align": (store(), "align x.zarr --device cuda", f".*{NO_CUDA}", ExitCode.UNAVAILABLE),
        "B34 store": (
            mrc(FRAMES),
            "align x.mrc",
            r"x\.mrc: a file, not a store; n2n-pipeline ingest x\.mrc",
            DATA,
        ),
        "B57 run": (mrc(FRAMES), "run x.mrc out --device cuda", f".*{NO_CUDA}", ExitCode.UNAVAILABLE),
    }
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("make", "words", "line", "code"), CASES.values(), ids=CASES)
def test_a_bad_input_is_one_line_that_helps(here, make, words, line, code):
    make(here)
    end = run(Order(words.split()), here)
    told = [said for said in end.errors.splitlines() if not said.startswith("warning: ")]
    assert re.fullmatch(f"n2n-pipeline: error: {line}", "\n".join(told))
    assert end.code == code
    assert end.out == ""


TAKEN = {
    "B12": (
        lambda folder: patch(write_mrc(folder / "x.mrc", FRAMES), 211, b"\0"),
        "ingest x.mrc",
        r"warning: x\.mrc: .*format stamp.*",
    ),
    "B13": (
        lambda folder: patch(write_mrc(folder / "x.mrc", FRAMES), 212, b"\x12\x34\0\0"),
        "ingest x.mrc",
        r"warning: x\.mrc: .*12 34 00 00.*",
    ),
    "B15": (
        lambda folder: (folder / "x.mrc").write_bytes(mrc(FRAMES)(folder).read_bytes() + bytes(77)),
        "ingest x.mrc",
        r"warning: x\.mrc: 77 bytes more than header promises",
    ),
    "B16": (
        mrc((FRAMES - 2).astype("i1")),
        "ingest x.mrc",
        r"warning: x\.mrc: bytes read as signed, lowest -2: if they are 0\.\.255, give --unsigned",
    ),
    "B18": (mrc(FRAMES[:1]), "ingest x.mrc", ""),
    "B22": (
        store(FRAMES[:, :24, :24]),
        [
            *TRAIN.split(),
            "x.zarr",
            "-o",
            "m",
            "--set",
            "train.patch_px=64",
            "--set",
            "network={width: 3, depth: 2}",
        ],
        r"warning: patches are 24 px, not \d+: images hold 24x24, the network's stride is 4",
    ),
    "B24": (
        mrc(spoilt(3, np.nan)),
        "ingest x.mrc",
        r"warning: x\.mrc: frames 3 hold no finite number: they are left out",
    ),
    "B27": (
        mrc(spoilt((..., slice(8)), 32767)),
        "ingest x.mrc",
        r"warning: x\.mrc: 25\.0% of pixels are saturated",
    ),
    "B28": (
        mrc(spoilt(4, 0) + (np.arange(16) == 4)[:, None, None] * FRAMES[3]),
        "ingest x.mrc",
        r"warning: x\.mrc: frames 4 repeat earlier ones: they are left out",
    ),
    "B35": (
        lambda folder: patch_mrc(write_mrc(folder / "x.mrc", FRAMES), word=11, value=float("nan")),
        "ingest x.mrc",
        r"warning: x\.mrc: the pixel size is unknown; give it with --pixel-size",
    ),
    "B44": (
        lambda folder: write_eer(folder / "x.eer", draw_electrons(40, (64, 64)), (64, 64)),
        "ingest x.eer",
        r"warning: x\.eer: .*--group.*|.*--dose-per-frame.*",
    ),
    "B56 escapes": (mrc(FRAMES, NAUGHTY), ["ingest", "--", NAUGHTY], ""),
    "B56 250 bytes": (mrc(FRAMES, "n" * 240 + ".mrc"), f"ingest {'n' * 240}.mrc", ""),
    "B56 no UTF-8": (mrc(FRAMES, os.fsdecode(b"b\xff.mrc")), ["ingest", os.fsdecode(b"b\xff.mrc")], ""),
}


@pytest.mark.parametrize(("make", "words", "line"), TAKEN.values(), ids=TAKEN)
def test_an_odd_input_is_taken_and_what_is_odd_is_said(here, make, words, line):
    make(here)
    end = run(Order(words.split() if isinstance(words, str) else words), here)
    assert end.code == 0, end.errors
    warned = [said for said in end.errors.splitlines() if said.startswith("warning: ")]
    assert [said for said in warned if re.fullmatch(line, said)] or not line, end.errors
    assert line or not warned
    assert "\x1b" not in end.errors + end.out
    shutil.rmtree(here)
