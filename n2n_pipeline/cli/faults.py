"""How a command ends: errors become one line and an exit code; the traceback goes to the log file.

The log file lies beside what a command writes (``OUTDIR/log.txt``), is appended to, and is the one place that
knows clock and host name.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

from n2n_pipeline import __version__
from n2n_pipeline.errors import ExitCode, InputError, printable
from n2n_pipeline.progress import is_quiet, terminal

_LOG = "log file"  # key in the root context's meta
LOGGER = logging.getLogger("n2n_pipeline")
WARNINGS = logging.getLogger("py.warnings")  # what libraries warn of is for the log, not for the user
_CANNOT_CREATE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


class OneLineErrors(click.Group):
    """A group of commands, listed in the order of the pipeline, that never ends in a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order in which they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; show its notices, and its end, on stderr."""
        notices = _Notices()
        LOGGER.addHandler(notices)
        LOGGER.setLevel(logging.DEBUG)
        ctx.call_on_close(lambda: LOGGER.removeHandler(notices))
        logging.captureWarnings(True)
        ctx.call_on_close(lambda: logging.captureWarnings(False))
        _end_like_interrupt(ctx)
        try:
            return self._invoke(ctx)
        except KeyboardInterrupt:  # a second signal, while the first one is being answered
            ctx.exit(ExitCode.STOPPED)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            LOGGER.debug("done")
            return result
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if getattr(error, "errno", None) == errno.EPIPE:
                raise  # whoever read our output has had enough; click ends quietly
            line, code = explain(error)
            if code is ExitCode.BUG:
                line += f"; please report it with {_keep_traceback(error)}"
            elif _log_file() is not None:
                LOGGER.debug("%s", line, exc_info=error)
            click.echo(f"n2n-pipeline: error: {line}", err=True)
            ctx.exit(code)


def _end_like_interrupt(ctx: click.Context) -> None:
    """Let a batch system's signals end a command the way Ctrl-C does; long stages catch them themselves."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            number = getattr(signal, name)
            ctx.call_on_close(partial(signal.signal, number, signal.signal(number, interrupt)))


def explain(error: BaseException) -> tuple[str, ExitCode]:
    """Say in one line what an error means to the user, and how the command shall end.

    Examples
    --------
    >>> explain(OSError(errno.ENOSPC, "No space left on device", "out.zarr/0/c/1"))
    ('out.zarr/0/c/1: no space left on device; run the same command again to continue', <ExitCode.IO: 74>)
    """
    if isinstance(error, InputError):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "stopped; run the same command again to continue", ExitCode.STOPPED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is PyTorch's
        return "not enough memory; close other programs, or crop or bin the movie", ExitCode.IO
    if isinstance(error, OSError) and error.errno:
        return _explain_os(error)
    return f"our bug: {type(error).__name__}: {printable(error)}", ExitCode.BUG


def _explain_os(error: OSError) -> tuple[str, ExitCode]:
    what = (error.strerror or "failed").lower()
    if error.filename is not None:
        what = f"{printable(error.filename)}: {what}"
    if error.errno == errno.ENOENT:
        return what, ExitCode.NO_INPUT
    if error.errno in _CANNOT_CREATE:
        return what, ExitCode.CANNOT_CREATE
    return f"{what}; run the same command again to continue", ExitCode.IO


class _Notices(logging.Handler):
    """Shows what the stages tell on stderr, above the bars; with ``--quiet`` warnings only."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= (logging.WARNING if is_quiet() else logging.INFO):
            prefix = "warning: " if record.levelno >= logging.WARNING else ""
            terminal().print(prefix + printable(record.getMessage()))


class _LogFile(logging.Handler):
    """Appends records, and first the command's words, to a file; waits while its folder does not exist."""

    def __init__(self, path: Path, words: str) -> None:
        super().__init__()
        self.path = path
        self.waiting = [words]
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(self.format(record) + "\n")
        if self.path.parent.is_dir():
            with suppress(OSError):  # a log that cannot be written must not stop the work
                _append(self.path, "".join(self.waiting))
                self.waiting.clear()


def log_beside(output: Path) -> None:
    """Log this command to ``log.txt`` in the folder that holds, or will hold, its output."""
    root = click.get_current_context().find_root()
    path = output.absolute().parent / "log.txt"
    before = root.meta.get(_LOG)
    root.meta[_LOG] = path, output
    if before is not None and before[0] == path:
        return
    job = os.environ.get("SLURM_JOB_ID")
    where = f"{platform.node()} pid {os.getpid()}" + (f" job {job}" if job else "")
    words = printable(" ".join(sys.argv[1:]))
    handler = _LogFile(path, f"n2n-pipeline {__version__} on {where}: {words}\n")
    for logger in (LOGGER, WARNINGS):
        root.call_on_close(partial(logger.removeHandler, handler))
        logger.addHandler(handler)


def _log_file() -> Path | None:
    """Return the command's log file, once it or the output is there; one that is refused at once leaves none."""
    path, output = click.get_current_context().find_root().meta.get(_LOG, (None, None))
    return path if path is not None and (path.is_file() or output.exists()) else None


def _keep_traceback(error: BaseException) -> Path:
    """Write a traceback to the command's log file, or to a new file where it has none, and name the file."""
    LOGGER.debug("stopped by a bug", exc_info=error)
    path = _log_file()
    if path is None:
        handle, name = tempfile.mkstemp(prefix="n2n-pipeline-", suffix=".log")
        os.close(handle)
        path = Path(name)
        _append(path, "".join(traceback.format_exception(error)))
    return path


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
