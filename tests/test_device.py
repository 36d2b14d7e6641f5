"""The device is the one asked for, or a line that says why not; settings that a platform lacks degrade quietly."""

import ctypes

import pytest
import torch

from n2n_pipeline import device
from n2n_pipeline.errors import ExitCode, InputError


def test_auto_always_finds_a_device():
    assert device.choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device; use --device cpu") as error:
        device.choose_device(name)
    assert error.value.code == ExitCode.UNAVAILABLE


def test_a_gpu_comes_before_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.choose_device("auto").type == "cuda"


def test_threads_are_as_told_else_as_the_batch_system_says_else_the_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert device.set_threads(2) == torch.get_num_threads() == 2
        assert device.set_threads() == torch.get_num_threads() == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert device.set_threads() == device.usable_cores()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_a_platform_without_mallopt_goes_on_without(monkeypatch, error):
    def refuse(_name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert device.tune_allocator() is False


def test_no_precision_means_no_autocast():
    with device.autocast(torch.device("cpu"), None):
        assert not torch.is_autocast_enabled("cpu")
    with device.autocast(torch.device("cpu"), torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
