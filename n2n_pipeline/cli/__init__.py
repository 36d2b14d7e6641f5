"""The ``n2n-pipeline`` command: parse words, call one function, say what came of it.

Nothing heavy is imported before a command runs, so that ``n2n-pipeline --help`` answers at once. What goes
wrong ends in one line on stderr and an exit code of :class:`n2n_pipeline.errors.ExitCode`.
"""

from __future__ import annotations

import click

from n2n_pipeline import __version__
from n2n_pipeline.cli import pipeline, results, stages
from n2n_pipeline.cli.faults import OneLineErrors

__all__ = ["main"]


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="n2n-pipeline")
def main() -> None:
    """From a raw, noisy TEM movie to a denoised, time-resolved OME-Zarr movie.

    "n2n-pipeline demo" shows what it does; "n2n-pipeline run MOVIE" does it to yours.
    The other commands are the stages of run, one by one.
    """


for _command in (*pipeline.COMMANDS, *stages.COMMANDS, *results.COMMANDS):
    main.add_command(_command)
