"""From a raw, noisy TEM movie to a denoised, time-resolved OME-Zarr movie by Noise2Noise.

A network learns to denoise from pairs of independent noisy averages of the same moment; nothing clean is needed.
The stages meet on disk, and each is a function of this package, imported when it is first used:

>>> import n2n_pipeline as n2n
>>> n2n.__all__[:4]
['align', 'denoise', 'evaluate', 'export']

``ingest`` turns a camera's file into a store of raw counts; ``align`` adds the drift; ``sweep`` chooses how many
frames to average; ``pairs`` are the even and odd averages, lazily; ``train`` and ``denoise`` are the network's;
``evaluate`` and ``report`` say whether to believe it; ``export`` hands it on; ``open_movie`` looks at any of it.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from n2n_pipeline.drift import align_store as align
    from n2n_pipeline.evaluation.evaluate import evaluate_store as evaluate
    from n2n_pipeline.evaluation.report import write_report as report
    from n2n_pipeline.export import export_store as export
    from n2n_pipeline.inference.denoise import denoise_store as denoise
    from n2n_pipeline.ingest import ingest_movie as ingest
    from n2n_pipeline.labelled import open_movie
    from n2n_pipeline.pairs import pairs
    from n2n_pipeline.sweep import sweep_windows as sweep
    from n2n_pipeline.training import train_model as train

__version__ = "0.1.0"

# Read by OpenMP when PyTorch loads. Threads that spin while they wait make a step of training seven times slower
# where another program wants the same cores; threads that sleep cost next to nothing where none does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "open_movie": ("labelled", "open_movie"),
    "ingest": ("ingest", "ingest_movie"),
    "align": ("drift", "align_store"),
    "sweep": ("sweep", "sweep_windows"),
    "pairs": ("pairs", "pairs"),
    "train": ("training", "train_model"),
    "denoise": ("inference.denoise", "denoise_store"),
    "evaluate": ("evaluation.evaluate", "evaluate_store"),
    "report": ("evaluation.report", "write_report"),
    "export": ("export", "export_store"),
}
__all__ = [
    "align",
    "denoise",
    "evaluate",
    "export",
    "ingest",
    "open_movie",
    "pairs",
    "report",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _HOMES[name]
    return _with_paths(getattr(import_module(f"{__name__}.{module}"), function))


def _with_paths(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that takes paths take their names too, and one path where it takes several."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            wanted = str(signature.parameters[name].annotation)
            if "Sequence[Path]" in wanted:
                names = [value] if isinstance(value, str | Path) else value
                given.arguments[name] = [Path(item) for item in names]
            elif "Path" in wanted and isinstance(value, str):
                given.arguments[name] = Path(value)
        return function(*given.args, **given.kwargs)

    return call


class _Package(ModuleType):
    """Keeps ``n2n_pipeline.pairs`` the function when the import system would put the module of that name there."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
