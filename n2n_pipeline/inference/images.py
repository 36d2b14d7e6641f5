"""A folder of images becomes a folder of denoised images of the same names, each denoised by itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import imagecodecs
import mrcfile
import numpy as np
import numpy.typing as npt
import tifffile
import zarr

from n2n_pipeline import __version__
from n2n_pipeline.checkpoint import Denoiser, load_model, weights_digest
from n2n_pipeline.config import DenoiseConfig, IngestConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import ExitCode, InputError, Stopped
from n2n_pipeline.files import write_atomically
from n2n_pipeline.geometry import plan_tiles
from n2n_pipeline.inference.choice import as_chosen, choose
from n2n_pipeline.inference.forward import Canvas, denoise_rows, turns_of
from n2n_pipeline.inference.inputs import Inputs, inputs_for
from n2n_pipeline.inference.job import Order
from n2n_pipeline.inference.pixels import as_stored
from n2n_pipeline.inference.plan import Choice, begun_choice, tiling_of
from n2n_pipeline.inference.read_ahead import read_ahead
from n2n_pipeline.progress import progress
from n2n_pipeline.records import Ledger, Unit, stop_requested
from n2n_pipeline.sources.formats import open_file
from n2n_pipeline.sources.images import list_images
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import MovieStore, References

Pixels = npt.NDArray[Any]

AHEAD = 2  # files that wait for the network


class _File(NamedTuple):
    """An image file, or a stack of images in one, to be denoised."""

    path: Path
    info: MovieInfo
    output: str
    """Name of what it becomes."""

    unit: Unit


def denoise_images(order: Order, restart: bool = False) -> int:
    """Denoise every image of a folder by itself into a folder of images.

    PNG and TIFF stay what they are, PNG with its type of pixels; every other format becomes MRC.

    Parameters
    ----------
    order : Order
        Folder of images of one format and any sizes, where a file may hold several; model; folder to write.
    restart : bool
        Throw away what was begun with other settings.

    Returns
    -------
    int
        Images files written now; 0 if all were there.
    """
    folder, model, output, config, device = order
    if config.frames or config.region:
        raise InputError(folder, "a folder of images has no frames or region to choose", code=ExitCode.USAGE)
    files, denoiser = _survey(folder), load_model(model, device)
    settled = {
        "kind": "denoised images",
        "images": [[file.path.name, file.path.stat().st_size] for file in files],
        "weights_sha256": weights_digest(model),
        "settings": config.model_dump(mode="json", exclude={"memory_gb"}),
    }
    choice = None if restart else begun_choice(output, settled, denoiser.device.type)
    if choice is None:
        n_pixels = sum(int(np.prod(file.info.shape)) for file in files)
        choice = choose(denoiser, _as_inputs(_read(files[0])[:1], denoiser), config, n_pixels)
    fingerprint = {**settled, "choice": choice.model_dump()}
    with Ledger(output, fingerprint, [file.unit for file in files], restart) as ledger:
        if ledger.finished:
            return 0
        pending = [file for file in files if file.unit in ledger.pending]
        _denoise_files(pending, _Task(as_chosen(denoiser, choice), choice, config), ledger)
        ledger.complete()
    return len(pending)


@dataclass(frozen=True)
class _Task:
    """How every image is denoised."""

    denoiser: Denoiser
    choice: Choice
    config: DenoiseConfig

    def denoise(self, image: Pixels) -> npt.NDArray[np.float32]:
        """Denoise one ``(1, y, x)`` image."""
        inputs = _as_inputs(image, self.denoiser)
        plan = plan_tiles(inputs.shape, tiling_of(self.choice, self.config.tile, self.denoiser.card.network))
        canvas = Canvas(plan, 1)
        for tile in plan.tiles:
            (half,) = inputs.read(range(1), tile)
            canvas.blend(tile, denoise_rows(self.denoiser, *half, turns_of(self.choice.passes).even))
        return canvas.image


def _denoise_files(files: Sequence[_File], task: _Task, ledger: Ledger) -> None:
    with progress("denoise", len(files), "images") as step, closing(read_ahead(_read, files, AHEAD)) as stacks:
        for file, stack in stacks:
            if stop_requested():
                raise Stopped(ledger.store)
            denoised = np.concatenate([task.denoise(image[None]) for image in stack])
            is_png = file.output.lower().endswith(".png")
            name = "source" if is_png else task.config.dtype
            dtype = file.info.dtype if name == "source" else np.dtype(name)
            pixels = as_stored(denoised, dtype, ledger.store / file.output)
            with ledger.writing(file.unit):
                encode = ENCODERS[Path(file.output).suffix.lower()]
                write_atomically(ledger.store / file.output, encode(pixels, file.info))
            step(1)


def _survey(folder: Path) -> list[_File]:
    """Look at every file once, so that one that cannot be read is named before work starts."""
    files = []
    for number, path in enumerate(list_images(folder)):
        with closing(open_file(path, IngestConfig())) as source:
            output = path.name if path.suffix.lower() in ENCODERS else f"{path.stem}.mrc"
            files.append(_File(path, source.info, output, Unit(f"image-{number:06d}", (output,))))
    return files


def _read(file: _File) -> Pixels:
    with closing(open_file(file.path, IngestConfig())) as source:
        return source.read_frames(0, source.info.shape[0])


def _as_inputs(image: Pixels, denoiser: Denoiser) -> Inputs:
    """Take a ``(1, y, x)`` image for a movie of one frame."""
    info = MovieInfo((1, *image.shape[1:]), image.dtype, "image")
    store = MovieStore(Path(), info, cast("zarr.Array[Any]", image), References(), None, {})
    return inputs_for(CorrectedMovie(store), denoiser.card)


def _encode_png(pixels: Pixels, _info: MovieInfo) -> bytes:
    return bytes(imagecodecs.png_encode(pixels[0]))


def _encode_tiff(pixels: Pixels, _info: MovieInfo) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="minisblack", software=f"n2n_pipeline {__version__}")
    return buffer.getvalue()


def _encode_mrc(pixels: Pixels, info: MovieInfo) -> bytes:
    header = np.zeros((), mrcfile.dtypes.HEADER_DTYPE.newbyteorder("<"))
    header["nz"], header["ny"], header["nx"] = pixels.shape
    header["mz"], header["my"], header["mx"] = 1, *pixels.shape[1:]  # with space group 0: a stack of images
    header["mode"] = mrcfile.utils.mode_from_dtype(pixels.dtype)
    header["nversion"], header["map"], header["machst"] = 20141, b"MAP ", (0x44, 0x44, 0, 0)
    header["mapc"], header["mapr"], header["maps"], header["cellb"] = 1, 2, 3, 90
    header["label"][0], header["nlabl"] = f"n2n_pipeline {__version__}".encode(), 1
    if info.pixel_size:
        header["cella"] = tuple(info.pixel_size * side for side in (pixels.shape[2], pixels.shape[1], 1))
    header["dmin"], header["dmax"], header["dmean"] = pixels.min(), pixels.max(), pixels.mean(dtype=np.float64)
    header["rms"] = pixels.std(dtype=np.float64)
    return header.tobytes() + pixels.tobytes()


ENCODERS: dict[str, Callable[[Pixels, MovieInfo], bytes]] = {
    ".png": _encode_png,
    ".tif": _encode_tiff,
    ".tiff": _encode_tiff,
    ".mrc": _encode_mrc,
    ".mrcs": _encode_mrc,
}
