"""What is said of a failure."""

from __future__ import annotations

import errno

import pytest
import torch

import mm_lens
from mm_lens.cli import commands as cli
from mm_lens.cli import failures
from mm_lens.errors import DamageError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: Permission"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), "The GPU is out of memory"),
        (MemoryError(), "Out of memory"),
        (mm_lens.DataError("Image 7 cannot be read."), "Image 7"),
    ],
)
def test_every_failure_says_what_is_kept(tmp_path, error, message):
    (tmp_path / "part-3").mkdir()
    (tmp_path / "part-3" / "index").touch()
    with pytest.raises(type(error)), failures.note_kept(tmp_path):
        raise error
    code, line = failures.explain(error)
    assert code == 1
    assert line.startswith(message)
    assert f"What was done is in {tmp_path}" in line


def test_a_bug_keeps_its_traceback(monkeypatch):
    assert failures.explain(RuntimeError("no idea")) is None
    monkeypatch.setattr(cli, "app", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.run([])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory"),
            "Out of memory",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "Out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Out of memory"),
        (RuntimeError("CUDA error: out of memory"), "The GPU is out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), "The GPU is out of memory"),
        (RuntimeError("std::bad_alloc"), "Out of memory"),
    ],
)
def test_memory_that_ran_out_in_a_kernel_is_told_as_such(error, line):
    code, told = failures.explain(error)
    assert code == 1
    assert told.startswith(line)


def test_a_torchvision_of_another_torch_is_told():
    cause = RuntimeError("operator torchvision::nms does not exist")
    error = ModuleNotFoundError("Could not import module 'PreTrainedModel'.")
    error.__cause__ = cause
    code, told = failures.explain(error)
    assert code == 1
    assert "built for another torch" in told
    assert "operator torchvision::nms does not exist" in told
    assert "pip uninstall torchvision" in told
    assert failures.explain(ModuleNotFoundError("No module named 'numpy'")) is None


def test_damage_is_not_to_be_resumed(tmp_path):
    """It said both: begin anew, and run the same again to resume."""
    (tmp_path / "part-0").mkdir()
    (tmp_path / "part-0" / "index").touch()
    error = DamageError("x is damaged. Begin anew: give restart=True (--restart).")
    with pytest.raises(DamageError), failures.note_kept(tmp_path):
        raise error
    assert failures.explain(error)[1] == str(error)
