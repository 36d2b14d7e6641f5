import io
import re
import sys

import pytest

from n2n_pipeline import progress as progress_module
from n2n_pipeline.progress import progress, set_quiet


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_few_seconds_and_a_last_one(capsys, clock):
    with progress("train", total=100, unit="steps") as step:
        for _ in range(100):
            clock[0] += 0.125
            step(1)
    assert capsys.readouterr().err.splitlines() == [
        "train: 40 of 100 steps, 8 steps/s, 8 s left",
        "train: 80 of 100 steps, 8 steps/s, 2 s left",
        "train: 100 of 100 steps, 8 steps/s, 0 s left",
    ]


def test_a_short_job_leaves_no_line(capsys, clock):
    with progress("align", total=2) as step:
        step(2)
    assert capsys.readouterr().err == ""


def test_quiet_shows_nothing(capsys, clock):
    set_quiet()
    with progress("train", total=2) as step:
        clock[0] += 60
        step(1)
    assert capsys.readouterr().err == ""


def test_a_total_that_nobody_knows_is_not_promised(capsys, clock):
    with progress("read", total=None) as step:
        clock[0] += 10
        step(20)
    assert capsys.readouterr().err.splitlines()[0] == "read: 20 frames, 2 frames/s"


def test_a_terminal_gets_bars_that_may_nest_and_are_gone_at_the_end(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    progress_module.terminal.cache_clear()
    progress_module._bars.cache_clear()
    try:
        with progress("outer", total=2) as outer, progress("inner", total=4, unit="tiles") as inner:
            inner(4)
            outer(1)
            progress_module._bars().refresh()
    finally:
        progress_module.terminal.cache_clear()
        progress_module._bars.cache_clear()
    assert re.search(r"inner .*4/4 tiles", screen.getvalue())
    assert screen.getvalue().rpartition("tiles")[2].count("\x1b[2K") == 2  # both lines are erased
