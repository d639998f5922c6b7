"""Rows that take the way through buffers and a thread. The pinned way needs a GPU."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from conftest import load_tiny
from made_data import make_data, profile, same

from mm_lens.profiling import states
from mm_lens.profiling.collecting.staging import Staging

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_rows_come_in_order_and_a_few_at_a_time(device):
    """The last of several rows for one slot stays; the taker waits while all buffers are in use."""
    go, found, held = threading.Event(), torch.zeros(4), []

    def put(i, rows):
        go.wait(60)
        held.append(rows.data_ptr())
        found.copy_(rows)

    with Staging(buffers=3, always=True) as staging:
        for i in range(3):
            staging.take(torch.full((4,), float(i), device=device), partial(put, i))
        late = threading.Thread(target=staging.take, args=(torch.ones(4) * 9, partial(put, 3)))
        late.start()
        late.join(0.05)
        assert late.is_alive()
        go.set()
        late.join()
        staging.take(
            torch.full((2, 2), 5.0, dtype=torch.float64), lambda rows: held.append(rows.sum())
        )
        staging.drain()
        assert found.tolist() == [9.0] * 4
        assert held[-1] == 20
        assert len(set(held[:4])) == 3


def test_what_fails_in_the_thread_fails_the_taker():
    def fails(rows):
        raise OSError("disk full")

    def run(then):
        with Staging(always=True) as staging:
            staging.take(torch.zeros(2), fails)
            then(staging)

    def other(staging):
        raise KeyError

    for then in (Staging.drain, lambda staging: None):
        with pytest.raises(OSError, match="disk full"):
            run(then)
    with pytest.raises(KeyError):  # what came first
        run(other)


@pytest.mark.parametrize("in_files", [False, True])
def test_staged_or_not_the_table_is_the_same(
    model, data, whole, tmp_path, monkeypatch, in_files, every_batch
):
    monkeypatch.setattr(states, "Staging", partial(Staging, always=True))
    same(profile(model, data, tmp_path / "run" if in_files else None), whole)


@GPU
def test_on_a_gpu_states_are_those_copied_at_once(monkeypatch):
    model, data = load_tiny(check=False), make_data(12, text_only=(4, 5))
    model.to("cuda")
    staged = profile(model, data)

    class AtOnce(Staging):
        def take(self, rows, put):
            put(rows.cpu())

    monkeypatch.setattr(states, "Staging", AtOnce)
    same(profile(model, data), staged)
