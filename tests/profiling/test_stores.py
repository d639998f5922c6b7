"""States in files."""

from __future__ import annotations

import random

import psutil
import pytest
import torch
from disturbed_runs import interrupt
from made_data import profile, same

from mm_lens import DataError
from mm_lens.profiling.stores import FileStore


def test_states_in_files_give_the_table_of_states_in_memory(model, data, tmp_path, every_batch):
    streams = ["residual", "main"]
    in_memory = profile(model, data, streams=streams)
    in_files = profile(model, data, tmp_path / "run", streams=streams)
    same(in_files, in_memory)
    for key in ("fingerprint", "n_samples", "n_skipped"):
        assert in_files.provenance["data"][key] == in_memory.provenance["data"][key]
    assert in_files.provenance["tokens"] == in_memory.provenance["tokens"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [24, 25, 3])
def test_a_file_store_gives_back_what_was_last_put_into_each_slot(tmp_path, dtype, d):
    generator = torch.Generator().manual_seed(d)
    store, truth = FileStore(tmp_path, "text"), {}
    for n in (40, 1, 7, 0, 12):
        slots = torch.randperm(60, generator=generator)[:n].sort().values
        keys = torch.randint(-(2**62), 2**62, (n,), generator=generator)
        rows = torch.randn(n, d, generator=generator).to(dtype)
        store.write("main", 2, slots, keys, rows)
        truth |= {int(s): (k, r) for s, k, r in zip(slots, keys, rows, strict=True)}
    order = random.Random(0).sample(sorted(truth), len(truth))
    keys = torch.stack([truth[slot][0] for slot in order])
    found = store.read("main", 2, torch.tensor(order), keys)
    assert torch.equal(found, torch.stack([truth[slot][1] for slot in order]))
    with pytest.raises(DataError, match=r"1 of 1 states do not match"):
        store.read("main", 2, torch.tensor(order[:1]), keys[1:2])


def test_files_are_closed(model, data, tmp_path, monkeypatch, every_batch):
    def opened():
        return [f.path for f in psutil.Process().open_files() if str(tmp_path) in f.path]

    profile(model, data, tmp_path / "run")
    assert opened() == []
    interrupt(model, data, tmp_path / "two", monkeypatch)
    assert opened() == []
