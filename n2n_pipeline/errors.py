"""What can go wrong for a user, in one line each, and the exit code that says which kind it was.

The codes follow ``sysexits.h`` so that a batch system can tell "run me again" (75) from "your file is bad" (65).
"""

from __future__ import annotations

import os
from enum import IntEnum


class ExitCode(IntEnum):
    """How the ``n2n-pipeline`` command ended."""

    DONE = 0
    BUG = 1
    USAGE = 2
    PEER = 3
    """Another process of the same training failed; its code, which is higher, says why."""
    BAD_DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    CANNOT_CREATE = 73
    IO = 74
    STOPPED = 75
    CORRUPT = 76
    REFUSED = 77
    CONFIG = 78


def printable(text: object) -> str:
    r"""Escape what could move a terminal's cursor or forge a line of a log.

    Examples
    --------
    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    >>> printable("Å and é stay")
    'Å and é stay'
    """
    raw = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in raw)


class InputError(Exception):
    """What a user gave cannot be used; shown as one line, never as a traceback.

    Parameters
    ----------
    subject : object
        The file, folder or setting at fault, as the user named it.
    what : str
        What was found and why it cannot be.
    todo : str, optional
        What the user can do about it.
    code : ExitCode
        How the command ends.
    """

    def __init__(
        self, subject: object, what: str, todo: str | None = None, code: ExitCode = ExitCode.BAD_DATA
    ) -> None:
        line = f"{printable(subject)}: {printable(what)}"
        super().__init__(f"{line}; {printable(todo)}" if todo else line)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Travel from a worker process with line and code."""
        return _restore, (type(self), str(self), self.code)


def _restore(kind: type[InputError], line: str, code: ExitCode) -> InputError:
    error = kind.__new__(kind, line)
    error.code = code
    return error


class Stopped(InputError):
    """The user or the batch system asked to stop; running the same command again continues."""

    def __init__(self, subject: object, what: str = "stopped; run the same command again to continue") -> None:
        super().__init__(subject, what, code=ExitCode.STOPPED)
