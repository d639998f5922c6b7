"""A profile is saved whole, loaded as it was, and says its warnings."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from made_data import CHEAP, make_data, quick

from mm_lens import DataError, InputError
from mm_lens.profiling.result import Profile


@pytest.fixture(scope="module")
def profile(model) -> Profile:
    return quick(model, make_data(4), data_name="made up")


def test_saved_and_loaded_profile_is_the_same(profile, tmp_path):
    profile.save(tmp_path / "new" / "run")
    loaded = Profile.load(tmp_path / "new" / "run")
    pd.testing.assert_frame_equal(loaded.table, profile.table, check_exact=True)
    assert loaded.provenance == profile.provenance
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == [
        "SHA256SUMS",
        "profile.parquet",
        "provenance.json",
        "replicates.parquet",
    ]


def test_provenance_says_what_was_done(profile):
    p = json.loads(json.dumps(profile.provenance))
    assert p["model"]["n_layers"] == 3
    assert p["model"]["attention"] == "sdpa"
    assert p["model"]["dtype"] == "float32"
    assert len(p["data"].pop("fingerprint")) == 16
    assert p["data"] == {
        "name": "made up",
        "n_available": 4,
        "n_samples": 4,
        "n_skipped": 0,
        "n_templated": 4,
        "skipped": [],
    }
    # The build behind the plus is in one of the two alone, where pip has a build of its own.
    assert p["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert p["options"]["seed"] == 0
    assert p["options"]["tokens"] == 60
    assert p["options"]["metrics"] == list(CHEAP)


def test_only_an_earlier_profile_is_overwritten(profile, tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not written by mm-lens"):
            profile.save(other, overwrite=overwrite)
    profile.save(tmp_path / "run")
    with pytest.raises(InputError, match="exists already"):
        profile.save(tmp_path / "run")
    profile.save(tmp_path / "run", overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        profile.save(other / "chapter.txt")
    assert (other / "chapter.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "thesis"]


@pytest.mark.parametrize("earlier", [False, True])
def test_full_disk_leaves_what_was_there(profile, tmp_path, monkeypatch, earlier):
    run = tmp_path / "new" / "run"
    if earlier:
        profile.save(run)
    before = sorted(tmp_path.rglob("*"))

    def full(self: Path, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        profile.save(run, overwrite=True)
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*")) == before
    if earlier:
        Profile.load(run)


def test_loading_what_is_no_profile(tmp_path):
    with pytest.raises(DataError, match="no readable profile"):
        Profile.load(tmp_path)


def test_warnings_are_counted_by_kind(profile):
    table = profile.table.copy()
    table["warning"] = ""
    table.loc[0, "warning"] = "3 of 1,200 tokens dropped; no interval"
    table.loc[1, "warning"] = "17 of 99 tokens dropped"
    assert Profile(table, {}).warnings() == {"# of # tokens dropped": 2, "no interval": 1}
