"""Weights of the student project and the cryo-EM port: state dicts of theirs become models of ours."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from n2n_pipeline.checkpoint import ModelCard, save_model
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.model import UNet
from n2n_pipeline.records import digest_file

MAX_IMPORTED_BYTES = 500_000_000
MAX_IMPORTED_WIDTH = 512


def import_weights(file: Path, output: Path, scale: float = 1.0, window: int = 2) -> Path:
    """Turn a ``.pth`` file of the student project or the cryo-EM port into a model.

    The one place that opens a pickle, and only as plain tensors: PyTorch refuses anything else in it.

    Parameters
    ----------
    file : pathlib.Path
        The state dict that those programs saved.
    output : pathlib.Path
        Folder for the model.
    scale : float
        Value that the network saw as 1: 1 if images will be given in [0, 1], 255 for the counts of 8-bit files.
    window : int
        Frames that denoising shall average, both halves together.

    Returns
    -------
    pathlib.Path
        The weights file.

    Raises
    ------
    InputError
        If the file holds anything but tensors [77], or not exactly those of that network.
    """
    found = _read_pickled_tensors(file)
    first = found.get("encode1.0.weight", torch.empty(0))
    if first.ndim != 4 or not 1 <= first.shape[0] <= MAX_IMPORTED_WIDTH or first.shape[1] != 1:
        raise InputError(file, "not a state dict of the student project's network for one-channel images")
    config = NetworkConfig(kind="unet-transpose", width=first.shape[0])
    network = UNet(config)
    expected = network.state_dict()
    renamed = {_their_name(name, config.depth): name for name in expected}
    for name in sorted(renamed.keys() ^ found.keys()):
        raise InputError(file, f"tensor {name!r} is {'missing' if name in renamed else 'not one of that network'}")
    for theirs, ours in renamed.items():
        if found[theirs].shape != expected[ours].shape:
            shapes = f"{list(found[theirs].shape)}, that network has {list(expected[ours].shape)}"
            raise InputError(file, f"tensor {theirs!r} is {shapes}")
    network.load_state_dict({ours: found[theirs].float() for theirs, ours in renamed.items()}, strict=True)
    provenance = {"imported_from": digest_file(file)}
    card = ModelCard(network=config, mean=0.0, scale=scale, window=window, split="balanced", provenance=provenance)
    return save_model(output, network, card)


def _read_pickled_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(file, "no such file", code=ExitCode.NO_INPUT)
    if file.stat().st_size > MAX_IMPORTED_BYTES:
        raise InputError(file, f"{file.stat().st_size / 1e6:.0f} MB, more than that network can need")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can raise anything
        todo = "save the state dict alone: torch.save(model.state_dict(), file)"
        raise InputError(file, "holds more than tensors, or is damaged", todo, ExitCode.REFUSED) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(
            file, "not a state dict", "save the state dict alone: torch.save(model.state_dict(), file)"
        )
    return {str(name): tensor for name, tensor in found.items()}


def _their_name(name: str, depth: int) -> str:
    """Return what the student project calls one of our tensors.

    Examples
    --------
    >>> [_their_name(name, 5) for name in ("encoders.0.0.bias", "encoders.1.0.bias", "bottom.0.bias")]
    ['encode1.2.bias', 'encode2.0.bias', 'encode6.0.bias']
    >>> [_their_name(f"decoders.{name}.bias", 5) for name in ("0.grow", "0.first.0", "1.grow", "4.second.0")]
    ['encode6.1.bias', 'decode1.0.bias', 'decode1.4.bias', 'decode5.2.bias']
    """
    part, *rest, kind = name.split(".")
    if part == "leave":
        return f"output_layer.{kind}"
    if part in ("enter", "bottom"):
        return f"encode{1 if part == 'enter' else depth + 1}.0.{kind}"
    level = int(rest[0])
    if part == "encoders":
        return f"encode{level + 1}.{2 if level == 0 else 0}.{kind}"
    if rest[1] == "grow":
        return f"encode{depth + 1}.1.{kind}" if level == 0 else f"decode{level}.4.{kind}"
    return f"decode{level + 1}.{0 if rest[1] == 'first' else 2}.{kind}"
