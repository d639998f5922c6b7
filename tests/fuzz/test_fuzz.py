"""A few cases of the fuzzer; `make fuzz` runs thousands."""

from __future__ import annotations

import random
import resource

import pytest
from fuzz import harness
from fuzz.mutations import damage_bytes, damage_json
from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_or_read_as_if_they_were_whole(name, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = harness.Outcome()
    harness.run(name, range(TARGETS[name].share // 2 + 1), tmp_path / "fuzz", outcome)
    assert not outcome.faults, f"\n{outcome}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < harness.BYTES / 1024
    assert not [*tmp_path.iterdir()]


class Careless(Target):
    """Reads anything, and notices nothing."""

    name = "careless"

    def write(self, directory):
        (directory / "number.txt").write_text("12")

    def damage(self, directory, rng):
        (directory / "number.txt").write_text(rng.choice(["13", "12", "x", "leave"]))
        return "edit", True

    def read(self, directory):
        text = (directory / "number.txt").read_text()
        if text == "leave":
            (directory.parent / "left").touch()
            return 12
        return int(text)


def test_the_fuzzer_sees_what_it_looks_for(tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "careless", Careless())
    outcome = harness.Outcome()
    harness.run("careless", range(40), tmp_path / "fuzz", outcome)
    told = " ".join(outcome.faults)
    assert "another result" in told
    assert "ValueError" in told
    assert "it left left" in told
    assert outcome.counts["careless", "same"]


def test_cases_are_the_same_for_the_same_seed():
    for damage, intact in ((damage_bytes, bytes(range(200))), (damage_json, {"a": [1, {"b": 2}]})):
        first, again = (
            [repr(damage(intact, random.Random(seed))) for seed in range(50)] for _ in range(2)
        )
        assert first == again
        assert len({*first}) > 20
