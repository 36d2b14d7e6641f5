"""What all tests share: which of them this machine can run, the command as a user types it, example movies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faults import in_memory
from private_slurm import slurm

from n2n_pipeline.progress import set_quiet

__all__ = ["slurm"]  # a fixture

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


NEEDS = {
    "gpu": (_has_gpu, "no CUDA device"),
    "slurm": (lambda: shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin"), "no SLURM installed"),
    "browser": (lambda: bool(shutil.which("chromium") and find_spec("selenium")), "no Chromium with selenium"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, (is_there, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _loud_again():
    """A command run in this process may have been told to be quiet."""
    yield
    set_quiet(False)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a process that runs this package: one thread, warnings are errors."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error", "PYTHONPATH": path}


@pytest.fixture(scope="session")
def n2n_pipeline(environment) -> Command:
    """The command, in a process of its own: ``n2n_pipeline("info", path)``."""

    def run(*words: object, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "n2n_pipeline", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=timeout,
            env=environment,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def example_movies() -> Path:
    """The folder of larger example movies, where there is one."""
    folder = os.environ.get("N2N_DATA")
    if not folder:
        pytest.skip("N2N_DATA, a folder of example movies, is not set")
    return Path(folder)


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium of its own, that notes what its pages say and ask for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = (
        "headless=new no-sandbox disable-quic no-first-run disable-background-networking disable-component-update"
    )
    drawing = "disable-sync hide-scrollbars use-angle=swiftshader enable-unsafe-swiftshader ignore-gpu-blocklist"
    for flag in f"{flags} {drawing} window-size=1280,800 user-data-dir={tmp_path / 'profile'}".split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get("about:blank")
    driver.get_log("performance")
    yield driver
    driver.quit()


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of memory, for tests that flush thousands of times; an ordinary one elsewhere."""
    with TemporaryDirectory(dir=in_memory() or tmp_path) as folder:
        yield Path(folder)
