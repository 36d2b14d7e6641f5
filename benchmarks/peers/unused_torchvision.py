"""Let CAREamics import torchvision, which it does not use, where its wheel wants another build of PyTorch."""

from contextlib import suppress
from importlib.util import find_spec

from torch import library


def declare_operators() -> None:
    """Declare what torchvision looks for when it is imported, unless it is not there or brings them itself."""
    if find_spec("torchvision"):
        for name in ("nms", "qnms"):
            with suppress(RuntimeError):
                library.define(f"torchvision::{name}", "() -> ()")
