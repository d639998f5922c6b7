"""Tables of results are what their readers take for granted, or refused."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from mm_lens._storage.frames import read_frame, require_columns, require_entries

FRAME = pd.DataFrame({"name": ["a", "b"], "layer": [0, 1], "value": [0.5, float("nan")]})
KINDS = {"name": str, "layer": int, "value": float}


def test_a_table_that_is_right(tmp_path):
    FRAME.to_parquet(tmp_path / "a.parquet")
    found = read_frame(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(found, FRAME)
    require_columns("a", found, KINDS)
    require_columns("a", found, {**KINDS, "layer": float})  # whole numbers are numbers


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop(columns="name"), "no column 'name'"),
        (lambda f: f.assign(name=[1, 2]), "'name' holds something else than texts"),
        (lambda f: f.assign(name=["a", None]), "'name' holds something else than texts"),
        (lambda f: f.assign(layer=[0.5, 1]), "'layer' holds something else than whole numbers"),
        (lambda f: f.assign(value=["a", "b"]), "'value' holds something else than numbers"),
        (lambda f: f.assign(value=[True, False]), "'value' holds something else than numbers"),
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: pd.concat([f, f.name], axis=1), "a column twice"),
    ],
)
def test_a_table_that_is_not(change, told):
    with pytest.raises(ValueError, match=told):
        require_columns("a", change(FRAME), KINDS)


def test_files_that_cannot_be_tables(tmp_path):
    path = tmp_path / "a.parquet"
    ones = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2 * 10**7, np.int8)), pa.array(["x"]))
    pa.parquet.write_table(pa.table({"name": ones}), path)
    with pytest.raises(ValueError, match="20,000,000 rows are more than"):
        read_frame(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        read_frame(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        read_frame(tmp_path / "pipe")


def test_entries():
    found = {"model": {"name": "a", "n": 3}}
    require_entries("p", found, {"model.name": str, "model.n": int})
    for wrong in (None, [], {"model": 1}, {"model": {"name": None, "n": 3}}):
        with pytest.raises(ValueError, match=r"p has no model\.name that is a str"):
            require_entries("p", wrong, {"model.name": str})
    with pytest.raises(ValueError, match="n that is a int"):
        require_entries("p", {"n": True}, {"n": int})
