"""Trained networks on disk: ``weights.safetensors``, which holds the weights and all that is needed to use them.

The file's metadata has one entry, the JSON of a `ModelCard`. Nothing here runs code from a file: pickles are
refused, and a file's header is compared with the network it claims to be before any tensor is made.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from n2n_pipeline.config import NetworkConfig, Positive, Settings, Split
from n2n_pipeline.device import autocast, autocast_dtype, choose_device
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.ladder import check_ladder
from n2n_pipeline.model import UNet, stride
from n2n_pipeline.records import digest_file, write_atomically

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.number[Any]]

SCHEMA = 2
SCHEMAS = (1, 2)
"""Those that are read; 2 added the ladder."""
WEIGHTS = "weights.safetensors"
METADATA_KEY = "n2n_pipeline"
PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".sav", ".pkl", ".pickle", ".npy", ".npz", ".bin"}
MAX_HEADER_BYTES = 10_000_000


class ModelCard(Settings):
    """All that is needed to use a network's weights, saved in the same file."""

    schema_version: int = SCHEMA
    network: NetworkConfig
    mean: float
    """Mean of the corrected movies it was trained on, in their own units per frame."""
    scale: float = Field(gt=0)
    """Robust standard deviation of their half-window averages, in the same units."""
    window: Positive
    """Frames that an output frame is made from; each half holds half of them."""
    windows: tuple[Positive, ...] = ()
    """Those that training samples were drawn from, where there were several."""
    ladder: tuple[Positive, ...] = ()
    """Windows that the network sees at once, as so many channels; then ``window`` is the longest of them."""
    level_scales: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Spread of what each of them has over the next longer one, and of the longest; in the same units."""
    target: int = 0
    """Frames about the output frame that the network of a ladder was taught to predict."""
    split: Split = "random"
    is_start: bool = False
    """Weights to start training from, never trained on the movie at hand."""
    steps: int = 0
    """Optimiser updates it was trained for."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Digests of the movies, settings and version it was made with; no clock, no host name."""
    tensors_sha256: str = ""
    """Of the bytes behind the file's header; filled in when it is saved."""

    @model_validator(mode="after")
    def _ladder_fits_network(self) -> Self:
        if self.ladder:
            check_ladder(self.ladder)
            if not len(self.ladder) == len(self.level_scales) == self.network.in_channels:
                raise ValueError(f"{len(self.ladder)} windows, the network sees {self.network.in_channels}")
            if self.target not in self.ladder:
                raise ValueError(f"target {self.target} is not one of the windows")
        return self


@dataclass(frozen=True)
class Denoiser:
    """A network on a device with what it needs to be used on a movie's own units."""

    network: UNet
    card: ModelCard
    device: torch.device
    dtype: torch.dtype | None = None
    """Precision of the layers: bfloat16, or None for float32."""

    def prepare(self, values: Numbers, counts: Floats) -> Tensor:
        """Turn half-window averages into what the network sees.

        Parameters
        ----------
        values : numpy.ndarray
            ``(n, y, x)`` averages in the movie's units; for a network of a ladder ``(n, level, y, x)``.
        counts : numpy.ndarray
            Frames that each average holds.

        Returns
        -------
        torch.Tensor
            ``(n, c, y, x)`` float32 on the device.
        """
        averages = self._move(values)
        frames = self._move(counts) if self.card.network.in_channels == 2 else averages  # no other network asks
        return stack_channels(averages, frames, self.card)

    def _move(self, images: Numbers) -> Tensor:
        return torch.from_numpy(np.require(images, np.float32, "W")).to(self.device, non_blocking=True)

    def __call__(self, values: Floats, counts: Floats) -> Floats:
        """Denoise averages of ``counts`` frames, as `prepare` takes them, in one piece, in the movie's units."""
        height, width = values.shape[-2:]
        with torch.inference_mode(), autocast(self.device, self.dtype):
            denoised = self.network(self.pad(self.prepare(values, counts)))[:, 0, :height, :width]
        return self.restore(denoised)

    def pad(self, images: Tensor) -> Tensor:
        """Reflect ``(n, c, y, x)`` at its lower and right borders up to multiples of the network's stride.

        Raises
        ------
        InputError
            If a side is shorter than the stride.
        """
        step, (height, width) = stride(self.card.network), images.shape[-2:]
        if min(height, width) < step:
            raise InputError(f"{width}x{height} image", f"the network needs {step} pixels on a side")
        return functional.pad(images, (0, -width % step, 0, -height % step), mode="reflect")

    def restore(self, denoised: Tensor) -> Floats:
        """Return the network's output, of any shape, in the movie's own units, and in its memory if it can."""
        with torch.inference_mode():  # on the device, which does it in passing
            in_units = denoised.float().mul_(self.card.scale).add_(self.card.mean)
        return np.asarray(in_units.cpu().numpy())


def stack_channels(values: Tensor, counts: Tensor, card: ModelCard) -> Tensor:
    """Normalise averages ``(n, y, x)`` and put beside them, for a network that asks, where fewer frames were.

    Returns
    -------
    torch.Tensor
        ``(n, c, y, x)``: the averages; with two channels also the share of the half-window's frames that
        contributed to each pixel. Of a ladder ``(n, level, y, x)`` the longest level, as the last channel, and
        before it what each shorter one has over the next: nothing but noise where nothing changes.
    """
    if card.ladder:
        scales = torch.tensor(card.level_scales, dtype=torch.float32, device=values.device)
        return subtract_levels(values, card.mean).div_(scales[:, None, None])
    averages = (values - card.mean).div_(card.scale)  # in place: an image may be as large as memory allows
    if card.network.in_channels != 2:
        return averages[:, None]
    return torch.stack([averages, counts * (2 / max(card.windows, default=card.window))], dim=1)


def subtract_levels(levels: Tensor, mean: float) -> Tensor:
    """Subtract from each level of ``(n, level, y, x)`` averages the next longer one, from the longest the mean."""
    differences = levels.clone()
    differences[:, :-1] -= levels[:, 1:]
    differences[:, -1] -= mean
    return differences


def save_model(folder: Path, network: torch.nn.Module, card: ModelCard) -> Path:
    """Write ``folder/weights.safetensors`` in one atomic step and return its path.

    Raises
    ------
    InputError
        If a weight is NaN or infinite: such a file is never written.
    """
    path = folder / WEIGHTS
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_finite(path, weights)
    folder.mkdir(parents=True, exist_ok=True)
    bare = save(weights)
    card = card.model_copy(update={"tensors_sha256": _digest_tensors(bare)})
    write_atomically(path, save(weights, metadata={METADATA_KEY: card.model_dump_json()}))
    return path


def load_model(path: Path, device: str = "cpu") -> Denoiser:
    """Read a model, the folder or the weights file in it, onto a device.

    Raises
    ------
    InputError
        If there is no such file, if it is a pickle (exit code 77), if it is damaged or from a newer version,
        or if its tensors are not those of the network it claims to be.
    """
    weights_path = find_weights(path)
    data = weights_path.read_bytes()
    header = read_header(weights_path, data)
    card = _parse_card(weights_path, header.get("__metadata__", {}))
    with torch.device("meta"):
        skeleton = UNet(card.network)
    expected = {name: list(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    check_tensors(weights_path, header, expected)
    if card.tensors_sha256 != _digest_tensors(data):
        raise InputError(weights_path, "weights are not those that were saved", "train again, or restore a copy")
    weights = _load_tensors(weights_path, data)
    _check_finite(weights_path, weights)
    skeleton.load_state_dict(weights, strict=True, assign=True)
    chosen = choose_device(device)
    network = place_network(skeleton, chosen).eval().requires_grad_(False)
    return Denoiser(network, card, chosen, autocast_dtype(chosen))


def place_network(network: UNet, device: torch.device) -> UNet:
    """Move a network to a device, with its channels last in memory: twice as fast on a CPU."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def find_weights(path: Path) -> Path:
    """Return the weights file of a model given as its folder or as the file itself.

    Raises
    ------
    InputError
        If there is none, or if it is a pickle by its name.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if weights.suffix.lower() in PICKLE_SUFFIXES:
        todo = "convert with n2n-pipeline import-weights"
        raise InputError(weights, "pickle files are refused", todo, ExitCode.REFUSED)
    if not weights.is_file():
        raise InputError(weights, "no such file", code=ExitCode.NO_INPUT)
    return weights


def weights_digest(path: Path) -> str:
    """Return the digest of a model's weights file: what really was used."""
    return digest_file(find_weights(path))


def read_header(path: Path, data: bytes) -> dict[str, Any]:
    """Return the JSON header of a safetensors file, checked against the bytes that follow it.

    The library accepts a header with one key twice, and then reads the last; here that is refused.

    Raises
    ------
    InputError
        If the header is damaged or repeats a key, or if the file is longer or shorter than it says.
    """
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        todo = "convert with n2n-pipeline import-weights"
        raise InputError(path, "pickle files are refused", todo, ExitCode.REFUSED)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise InputError(path, f"not a whole safetensors file ({len(data)} bytes)")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_refuse_repeats)
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(path, f"damaged safetensors header ({error})") from error
    if end != len(data) - 8 - length:
        raise InputError(path, f"header promises {end} bytes of weights, file holds {len(data) - 8 - length}")
    return header  # type: ignore[no-any-return]


def check_tensors(path: Path, header: dict[str, Any], expected: dict[str, list[int]]) -> None:
    """Compare a header's names and shapes with a network's, before anything is allocated.

    Raises
    ------
    InputError
        If a tensor is missing, unknown, of another shape or not float32.
    """
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name in sorted(expected.keys() ^ entries.keys()):
        raise InputError(
            path, f"tensor {name!r} is {'missing' if name in expected else 'not one of this network'}"
        )
    for name, shape in expected.items():
        entry = entries[name]
        if entry.get("shape") != shape or entry.get("dtype") != "F32":
            raise InputError(
                path, f"tensor {name!r} is {entry.get('dtype')} {entry.get('shape')}, the network has F32 {shape}"
            )


def _digest_tensors(data: bytes) -> str:
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _load_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise InputError(path, f"damaged safetensors file ({error})") from error


def _parse_card(path: Path, metadata: object) -> ModelCard:
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise InputError(
            path, "holds weights, but not how to use them", "use a model that n2n-pipeline train made"
        )
    try:
        version = json.loads(text).get("schema_version")
        if version not in SCHEMAS:
            raise InputError(path, f"made by schema {version}, this is {SCHEMA}")
        return ModelCard.model_validate_json(text)
    except (ValidationError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(path, f"damaged model card ({str(error).splitlines()[0]})") from error


def _check_finite(path: Path, weights: dict[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not math.isfinite(float(tensor.float().abs().sum())):
            raise InputError(path, f"weights {name!r} hold NaN or Inf", "train with a lower --set train.lr")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("one name twice")
    return dict(pairs)
