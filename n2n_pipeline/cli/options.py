"""Options that commands share, and how words on the command line become one :class:`RunConfig`.

An option whose name holds two underscores is a setting: ``ingest__bin`` is ``ingest.bin``. Named options win over
``--set``, which wins over ``--config``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2n_pipeline import __version__
from n2n_pipeline.cli.words import ranges
from n2n_pipeline.files import force_space
from n2n_pipeline.progress import set_quiet

if TYPE_CHECKING:
    from n2n_pipeline.settings_file import Given

Function = Callable[..., Any]

PATH = click.Path(path_type=Path)


def _stack(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Put several options into one decorator; ``--help`` lists them in this order."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def setting(option: str, keys: str, text: str, **kwargs: Any) -> Callable[[Function], Function]:
    """Make an option that sets ``keys``, such as ``ingest.bin``, in the settings."""
    return click.option(option, keys.replace(".", "__"), help=text, **kwargs)


_common = _stack(
    click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Start of every random choice."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; default: all cores."),
    click.option("--quiet", is_flag=True, help="Show errors and warnings only."),
    click.option("--restart", is_flag=True, help="Throw away a half-done output made with other settings."),
    click.option("--force-space", "force", is_flag=True, help="Go on where the disk seems too small."),
    click.version_option(__version__, prog_name="n2n-pipeline"),
)
_settings = _stack(
    click.option("--config", "config_file", type=PATH, metavar="F", help="Settings, as a YAML file."),
    click.option("--set", "assignments", multiple=True, metavar="A.B=C", help="One setting; may be given again."),
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for programs.")
window = setting(
    "--window", "train.window", "Frames averaged as one sample; auto; several; or all.", metavar="W|auto|W,W,…|all"
)
steps = setting("--steps", "train.steps", "Length of the training.", metavar="N")
init = setting(
    "--init", "train.init", "What training starts from: starting, none, or a model.", metavar="starting|none|MODEL"
)
device = setting(
    "--device", "device", "Where the network runs.", type=click.Choice(["auto", "cpu", "cuda", "mps"])
)
cluster = click.option(
    "--cluster", default="threads", metavar="threads|local:N|slurm:F|tcp://…", help="Who does the work."
)
_flag: dict[str, Any] = {"is_flag": True, "default": None}
ingest_options = _stack(
    setting("--dark", "ingest.dark", "Mean dark frame, in the movie's own counts.", type=PATH, metavar="F"),
    setting("--gain", "ingest.gain", "Gain reference; multiplies each frame.", type=PATH, metavar="F"),
    setting("--gain-flip", "ingest.gain_flip", "Mirror the gain.", type=click.Choice(["none", "y", "x"])),
    setting(
        "--gain-rotate", "ingest.gain_rotate", "Turn the gain, anticlockwise, in degrees.", metavar="90|180|270"
    ),
    setting("--defects", "ingest.defects", "Mask or list of bad pixels.", type=PATH, metavar="F"),
    setting("--group", "ingest.group", "Sum so many frames into one.", metavar="N"),
    setting("--dose-per-frame", "ingest.dose_per_frame", "EER: group to E electrons per pixel.", metavar="E"),
    setting("--superres", "ingest.superres", "EER: sub-pixels per pixel.", metavar="1|2|4"),
    setting("--bin", "ingest.bin", "Sum N by N pixels into one.", metavar="N"),
    setting("--crop", "ingest.crop", "Keep a part of the field.", type=ranges(2), metavar="Y0:Y1,X0:X1"),
    setting("--frames", "ingest.frames", "Keep frames A to B - 1.", type=ranges(1), metavar="A:B"),
    setting("--pixel-size", "ingest.pixel_size_angstrom", "Å per pixel.", metavar="ANGSTROM"),
    setting("--unsigned", "ingest.unsigned", "MRC bytes are 0..255, against the standard.", **_flag),
    setting("--allow-truncated", "ingest.allow_truncated", "Keep the whole frames of a cut file.", **_flag),
    setting("--dataset", "ingest.dataset", "Which dataset of an EMD/HDF5 file.", metavar="NAME"),
)


def everywhere(function: Function) -> Function:
    """Add the options that every command takes; one that only reads has no use for most, and ignores them."""

    @_common
    @wraps(function)
    def command(
        *, seed: int | None, threads: int | None, quiet: bool, restart: bool, force: bool, **given: Any
    ) -> Any:
        set_quiet(quiet)
        with force_space(force):
            return function(**given)

    return command


def configured(function: Function) -> Function:
    """Add the options of every command and those for settings; hand on ``config`` and ``restart``."""

    @_settings
    @_common
    @wraps(function)
    def command(
        *, config_file: Path | None, assignments: tuple[str, ...], restart: bool, force: bool, **given: Any
    ) -> Any:
        from n2n_pipeline.settings_file import load_settings

        names = [name for name in given if "__" in name or name in ("seed", "threads", "device")]
        options = as_given({name: given.pop(name) for name in names})
        config = load_settings(config_file, assignments, options)
        set_quiet(given.pop("quiet"))
        if "device" in names:
            _prepare_network(config.threads)
        with force_space(force):
            return function(config=config, restart=restart, **given)

    return command


def as_given(values: Mapping[str, Any]) -> dict[str, Given]:
    """Say of every option that was given which setting it is, and how the user wrote it."""
    from n2n_pipeline.settings_file import Given

    written = {parameter.name: parameter.opts[0] for parameter in click.get_current_context().command.params}
    return {
        name.replace("__", "."): Given(value, written[name]) for name, value in values.items() if value is not None
    }


def _prepare_network(threads: int | None) -> None:
    """Settle memory and threads before the first tensor is made; for the commands that take ``--device``."""
    from n2n_pipeline.device import set_threads, tune_allocator

    tune_allocator()
    set_threads(threads)


@contextmanager
def workers(cluster: str) -> Iterator[Any]:
    """Connect to a cluster; Dask's own network code is loaded only where there is one."""
    if cluster == "threads":
        yield None
        return
    from n2n_pipeline.cluster import connect

    with connect(cluster) as client:
        yield client


def words_without(option: str) -> list[str]:
    """Return this command's words, less one option and its value."""
    words = sys.argv[1:]
    if option in words:
        place = words.index(option)
        return words[:place] + words[place + 2 :]
    return [word for word in words if not word.startswith(f"{option}=")]


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result for programs, on stdout."""
    click.echo(json.dumps(result, indent=1, allow_nan=False))


def print_lines(result: Mapping[str, Any], above: str = "") -> None:
    """Print a result for people, one ``name: value`` a line, on stdout."""
    from n2n_pipeline.errors import printable

    for name, value in result.items():
        if isinstance(value, Mapping):
            print_lines(value, f"{above}{name}.")
        elif value is not None:
            click.echo(f"{above}{name}: {printable(value)}")


def print_verdicts(verdicts: Iterable[Mapping[str, str]]) -> None:
    """Print what was found, the level first, on stdout."""
    for verdict in verdicts:
        click.echo(f"{verdict['verdict']:5} {verdict['check']}: {verdict['sentence']}")
