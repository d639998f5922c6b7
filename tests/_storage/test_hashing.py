"""Hashes against hashlib and against Python's own integers."""

from __future__ import annotations

import subprocess
import sys
from hashlib import blake2b

import torch
from hypothesis import given
from hypothesis import strategies as st
from made_data import plain_mixed_key

from mm_lens._storage.hashing import digest, digest_entries, sampling_key

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.text())
def test_a_digest_is_63_bits_of_blake2b(content):
    expected = int(blake2b(content.encode(), digest_size=8).hexdigest(), 16) // 2
    assert digest(content) == digest(content.encode()) == expected < 2**63


def test_entries_are_told_apart_however_they_are_cut():
    lists = [["ab", "c"], ["a", "bc"], ["abc"], [], ["c", "ab"], [("ab", "c")], ["'ab'", "c"]]
    assert len({digest_entries(entries) for entries in lists}) == len(lists)


@given(sample=INT64, position=st.integers(0, 2**31), seed=st.integers(0, 2**32))
def test_keys_are_splitmix64(sample, position, seed):
    found = sampling_key(torch.tensor([sample]), torch.tensor([position]), seed)
    assert found.tolist() == [plain_mixed_key(sample, position, seed)]


def test_another_process_with_another_hash_seed_gives_the_same():
    code = (
        "import torch; from mm_lens._storage.hashing import *;"
        "print(digest('x'), digest_entries(['x', 1]),"
        "sampling_key(torch.tensor([5]), torch.tensor([7]), 3).item())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    key = sampling_key(torch.tensor([5]), torch.tensor([7]), 3).item()
    assert run.stdout.split() == [str(digest("x")), digest_entries(["x", 1]), str(key)]


def test_names_that_are_no_utf_8_have_digests():
    assert digest("a\udcff") != digest("a\udcfe")
