"""What a run holds: it says so, keeps within it, and the table does not depend on it."""

from __future__ import annotations

import pytest
from made_data import make_data, quick
from made_hooks import ALL_KINDS, same_bytes

import mm_lens
from mm_lens import InputError
from mm_lens.profiling import evaluation
from mm_lens.profiling import states as collecting
from mm_lens.profiling.processes import Processes


@pytest.fixture(scope="module")
def whole(model):
    """Of a run that holds all in memory, in one pass."""
    return quick(model, make_data(9), **ALL_KINDS)


def test_several_passes_give_the_table_of_one(model, whole, tmp_path):
    data = make_data(9)
    assert whole.provenance["memory"]["passes"] == 1
    small = quick(model, data, **ALL_KINDS, budget=2 * 2 * 60 * (24 + 44) * 4 / 2**30)
    assert small.provenance["memory"]["passes"] > 2
    assert small.provenance["memory"]["bytes"] <= small.provenance["memory"]["budget"]
    assert f"{small.provenance['memory']['passes']} passes" in small.provenance["memory"]["said"]
    same_bytes(tmp_path, whole, small)


def test_what_is_held_is_said_beforehand_and_no_more_is_held(model, monkeypatch, capsys):
    held = []
    collect_states = mm_lens.profiling.run.collect

    def watch(*args, **options):
        states = collect_states(*args, **options)
        (part,) = states.tokens.parts
        stores = [r.store.slots.values() for r in part.reservoirs.values()]
        held.append(sum(x.nbytes for store in stores for x in store))
        return states

    monkeypatch.setattr(mm_lens.profiling.run, "collect", watch)
    p = quick(model, make_data(9), **ALL_KINDS, budget=1e-4, progress=True)
    assert len(held) == p.provenance["memory"]["passes"] > 1
    assert max(held) <= p.provenance["memory"]["bytes"] <= 1e-4 * 2**30
    assert p.provenance["memory"]["said"] in capsys.readouterr().err


def test_fewer_tokens_where_not_even_a_pair_fits(model):
    p = quick(model, make_data(9), tokens=None, budget=2 * 2 * 2 * 30 * 24 * 4 / 2**30)
    assert p.provenance["memory"]["fewer_tokens"]
    assert p.provenance["options"]["tokens"] == 30
    assert "only 30 tokens" in p.provenance["memory"]["said"]
    with pytest.raises(InputError, match="GiB"):
        quick(model, make_data(9), tokens=60, budget=2 * 2 * 2 * 30 * 24 * 4 / 2**30)


def test_states_in_files_are_those_in_memory(model, whole, tmp_path):
    data = make_data(9)
    in_files = quick(model, data, **ALL_KINDS, run_dir=tmp_path / "run")
    same_bytes(tmp_path, whole, in_files)
    assert in_files.provenance["memory"]["budget"] is None


class Died(BaseException):
    """What stands for a kill."""


def test_a_killed_run_and_two_processes_end_with_the_bytes_of_one(model, tmp_path, monkeypatch):
    data, run = make_data(9), tmp_path / "run"
    monkeypatch.setattr(collecting, "COMMIT_SECONDS", 0.0)
    options = {**ALL_KINDS, "batch_size": 2}
    whole = quick(model, data, **options)

    class Second(Processes):
        """The other of two processes: it takes every second batch, and is gone before metrics."""

        def __init__(self):
            super().__init__()
            self.rank, self.count, self.waits = 1, 2, 0

        main = True

        def share(self, items):
            return [item for item in items if item % 2]

        def wait(self):
            self.waits += 1
            if self.waits == 2:
                raise Died

    with monkeypatch.context() as patch:
        patch.setattr(mm_lens.profiling.run, "Processes", Second)
        with pytest.raises(Died):
            quick(model, data, **options, run_dir=run)
    for after in (2, 1):
        left, take = [after], collecting._take

        def dies(*args, left=left, take=take):
            take(*args)
            left[0] -= 1
            if left[0] == 0:
                raise Died

        with monkeypatch.context() as patch:
            patch.setattr(collecting, "_take", dies)
            with pytest.raises(Died):
                quick(model, data, **options, run_dir=run)
    left = [5]

    def dies_measuring(*args, measure=evaluation.measure, **numbers):
        left[0] -= 1
        if left[0] == 0:
            raise Died
        return measure(*args, **numbers)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure", dies_measuring)
        with pytest.raises(Died):
            quick(model, data, **options, run_dir=run)
    assert len([*(run / "sites").iterdir()]) > 0
    assert len([*run.glob("part-*/index")]) == 2
    same_bytes(tmp_path, whole, quick(model, data, **options, run_dir=run))
    with pytest.raises(InputError, match=r"options\.spots"):
        quick(model, data, **{**options, "heads": [1]}, run_dir=run)
