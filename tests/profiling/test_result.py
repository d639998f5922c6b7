"""A profile is saved whole, loaded as it was, and says its warnings."""

from __future__ import annotations

import errno
import json
import os
import random
from dataclasses import replace
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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("scenes/test", "scenes/test"),
        ("scienceqa:/where/ever/it/is/far/away/set.parquet/test", "scienceqa:…/set.parquet/test"),
        ("/somewhere/far/away/in/the/house/pictures/set.csv", "…/pictures/set.csv"),
    ],
)  # fmt: skip
def test_a_long_name_of_data_keeps_what_it_is_known_by(profile, name, shown):
    data = {**profile.provenance["data"], "name": name, "n_samples": 7}
    one = replace(profile, provenance={**profile.provenance, "data": data})
    assert one.title.endswith(f" on {shown} (7 samples)")


def test_every_file_that_is_written_is_named(profile, tmp_path):
    samples = pd.DataFrame({"id": ["a"], "norm": [1.0]})
    named = replace(profile, samples=samples).write(tmp_path)
    assert {*named, "SHA256SUMS"} == {path.name for path in tmp_path.iterdir()}
    assert "samples.parquet" in named


def test_warnings_are_counted_by_kind(profile):
    table = profile.table.copy()
    table["warning"] = ""
    table.loc[0, "warning"] = "3 of 1,200 tokens dropped; no interval"
    table.loc[1, "warning"] = "17 of 99 tokens dropped"
    assert Profile(table, {}).warnings() == {"# of # tokens dropped": 2, "no interval": 1}


def test_every_flipped_bit_is_refused(profile, tmp_path):
    """Of 15 flips 7 were accepted."""
    profile.save(tmp_path / "run")
    rng = random.Random(0)
    for name in ("profile.parquet", "replicates.parquet", "provenance.json"):
        whole = (tmp_path / "run" / name).read_bytes()
        for _ in range(15):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            (tmp_path / "run" / name).write_bytes(damaged)
            with pytest.raises(DataError, match=rf"{name} is damaged or was edited"):
                Profile.load(tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(whole)
    Profile.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.drop(columns="value"), "no column 'value'"),
        (lambda t: t.assign(layer="first"), "'layer' holds something else than whole numbers"),
        (lambda t: t.assign(value="high"), "'value' holds something else than numbers"),
        (lambda t: t.assign(modality="sound"), "unknown modality 'sound'"),
        (lambda t: t.assign(stream="other"), "unknown stream 'other'"),
        (lambda t: t.assign(layer=-1), "impossible layers"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "two rows of one value"),
        (lambda t: t.iloc[:0], "no rows"),
    ],
)
def test_an_edited_table_is_one_line(profile, tmp_path, change, told):
    profile.save(tmp_path / "run")
    (tmp_path / "run" / "SHA256SUMS").unlink()
    change(profile.table).to_parquet(tmp_path / "run" / "profile.parquet", index=False)
    with pytest.raises(DataError, match=rf"holds no readable profile \(profile.parquet.*{told}"):
        Profile.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 10**5, "nested too deep"),
        ("[]", "no model.name"),
        ('{"model": {"name": 3}}', "no model.name that is a str"),
        (
            '{"model": {"name": "a", "n_layers": 0}, "data": {"name": "b", "n_samples": 3}}',
            "imposs",
        ),
        ('{"model": {"name": "a", "n_layers": 3}, "data": {"name": "b"}}', "no data.n_samples"),
    ],
)
def test_an_edited_provenance_is_one_line(profile, tmp_path, text, told):
    profile.save(tmp_path / "run")
    (tmp_path / "run" / "SHA256SUMS").unlink()
    (tmp_path / "run" / "provenance.json").write_text(text)
    with pytest.raises(DataError, match=rf"no readable profile \(.*{told}"):
        Profile.load(tmp_path / "run")


def test_names_that_are_no_utf_8_are_written_with_escapes(profile, tmp_path):
    named = {**profile.provenance, "command": f"mm-lens --out {os.fsdecode(bytes([255]))}"}
    Profile(profile.table, named, profile.replicates).save(tmp_path / os.fsdecode(b"\xff"))
    loaded = Profile.load(tmp_path / os.fsdecode(b"\xff"))
    assert loaded.provenance == named
