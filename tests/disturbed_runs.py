"""Runs to be disturbed, and what an undisturbed one gives.

A plugin of conftest.py: the fixtures are every test's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_data import make_data, profile

import mm_lens
from mm_lens.data.datasets import Sample
from mm_lens.profiling import states

N = 12


@pytest.fixture
def every_batch(monkeypatch):
    """Commit after every batch, so that small runs have something to resume from."""
    monkeypatch.setattr(states, "COMMIT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def data() -> list[Sample]:
    return make_data(N, text_only=(4, 5))


@pytest.fixture(scope="module")
def whole(model, data) -> mm_lens.Profile:
    """The profile of a run that nothing disturbs."""
    return profile(model, data)


@pytest.fixture(scope="module")
def _finished(model, data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    profile(model, data, path)
    return path


@pytest.fixture
def finished(_finished, tmp_path) -> Path:
    """The run directory of a finished run, to be spoilt."""
    return Path(shutil.copytree(_finished, tmp_path / "run"))


def written(found: mm_lens.Profile, directory: Path) -> list[bytes]:
    found.write(directory)
    return [(directory / f"{name}.parquet").read_bytes() for name in ("profile", "replicates")]


class Died(BaseException):
    """What stands for a kill inside of a test."""


@pytest.fixture
def begun(model, data, tmp_path, monkeypatch, every_batch):
    """A run directory of a run that has stopped half-way."""
    interrupt(model, data, tmp_path / "run", monkeypatch)
    return tmp_path / "run"


def interrupt(model, data, run_dir, monkeypatch, after=4, **options):
    left, take = [after], states._take

    def stops(*args):
        left[0] -= 1
        if left[0] == 0:
            raise Died
        take(*args)

    with monkeypatch.context() as patch:
        patch.setattr(states, "_take", stops)
        with pytest.raises(Died) as raised:
            profile(model, data, run_dir, **options)
    assert "run the same again" in raised.value.__notes__[0]
