"""Differences between JSON objects, spelled out by hand."""

from __future__ import annotations

from mm_lens._storage.differences import find_differences


def test_differences_are_named_by_the_keys_that_lead_to_them():
    earlier = {"model": {"dtype": "float32", "layers": [1, 2]}, "seed": 0, "only": None}
    now = {"model": {"dtype": "float16", "layers": [1, 2]}, "seed": 1, "new": {"a": 3}}
    assert list(find_differences(earlier, now)) == [
        ("model.dtype", "float32", "float16"),
        ("new", None, {"a": 3}),
        ("seed", 0, 1),
    ]
    assert not list(find_differences(earlier, earlier))
    assert list(find_differences(1, 2, "k")) == [("k", 1, 2)]
