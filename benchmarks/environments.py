"""The Pythons of the libraries that this package is compared with, in the environments that ``peers.sh`` makes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parent / ".venv-peers"


class MissingPeer(Exception):
    """A library cannot be installed here; the message says why."""


def with_package() -> dict[str, str]:
    """Return the environment for a process of its own that finds this copy of the package before any other.

    It may keep compiled modules, even if this process must not: pip leaves them of all that it installs, so that
    the package alone, in a clone, would be compiled anew at each start.
    """
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a script be told where the environments are."""
    text = "of other libraries, made where they are missing; default: benchmarks/.venv-peers"
    parser.add_argument("--environments", type=Path, metavar="DIR", default=HOME, help=text)


def python_of(peer: str, folder: Path) -> Path:
    """Return the Python of a library's environment, made if it is not there.

    Parameters
    ----------
    peer : str
        A name that ``peers.sh`` knows.
    folder : pathlib.Path
        Where the environments are.

    Raises
    ------
    MissingPeer
        If it cannot be made.
    """
    words = ["bash", str(Path(__file__).with_name("peers.sh")), str(folder), peer]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingPeer((done.stderr.strip().splitlines() or [f"peers.sh ended with {done.returncode}"])[-1])
    return folder / peer / "bin" / "python"
