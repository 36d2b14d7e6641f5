"""Files of real instruments, stored as RosettaSciIO reads them."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.ingest import ingest_movie
from n2n_pipeline.store import open_store

pytest.importorskip("rsciio", reason="RosettaSciIO is not installed")
FOLDER = Path(os.environ.get("N2N_DATA", "")) / "formats"
if "N2N_DATA" not in os.environ or not FOLDER.is_dir():
    pytest.skip("N2N_DATA names no folder with example movies", allow_module_level=True)

READERS = {".mrc": "mrc", ".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".emd": "emd"}
READERS |= {".ser": "tia", ".emi": "tia"}
ANGSTROM = {"nm": 10.0, "n_m": 10.0, "pm": 0.01, "um": 1e4, "µm": 1e4}
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in READERS)


def read_peer(path: Path) -> tuple[np.ndarray, float | None, float | None]:
    """Read pixels with axes in the order t y x, Å per pixel and seconds per frame."""
    reader = importlib.import_module(f"rsciio.{READERS[path.suffix]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signal = reader.file_reader(str(path))[0]
    axes = signal["axes"]
    names = [str(axis["name"]).lower() for axis in axes]
    order = [axis for axis in range(len(axes)) if names[axis] not in "yx"] + [names.index("y"), names.index("x")]
    frames = np.asarray(signal["data"]).transpose(order)
    x_axis = axes[names.index("x")]
    pixel_size = x_axis["scale"] * ANGSTROM[x_axis["units"]] if x_axis["units"] in ANGSTROM else None
    times = [axis["scale"] for axis in axes if axis["units"] == "s"]
    frames = frames if frames.ndim == 3 else frames[None]
    return frames, pixel_size if pixel_size and pixel_size > 0 else None, times[0] if times else None


@pytest.mark.parametrize("name", FILES)
def test_pixels_axes_and_pixel_size_are_those_of_rosettasciio(name, tmp_path):
    expected, pixel_size, frame_time = read_peer(FOLDER / name)
    if expected.dtype.kind == "c":
        with pytest.raises(InputError, match="complex data; expected real counts") as caught:
            ingest_movie(FOLDER / name, tmp_path / "movie.zarr")
        assert caught.value.code == ExitCode.BAD_DATA
        return
    store = open_store(ingest_movie(FOLDER / name, tmp_path / "movie.zarr"))
    assert store.array.dtype == expected.dtype.newbyteorder("=")
    assert np.array_equal(store.array[...], expected)
    assert store.info.pixel_size == (pixel_size and pytest.approx(pixel_size))
    assert store.info.frame_time == frame_time
    multiscale = zarr.open_group(store.path, mode="r").attrs["ome"]["multiscales"][0]
    steps = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert steps == pytest.approx([frame_time or 1.0, pixel_size or 1.0, pixel_size or 1.0])
    units = [axis.get("unit") for axis in multiscale["axes"]]
    assert units == ["second" if frame_time else None, *["angstrom" if pixel_size else None] * 2]
