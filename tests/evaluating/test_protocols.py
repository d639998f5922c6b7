"""Protocols by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mm_lens.data.samples import Sample
from mm_lens.errors import InputError
from mm_lens.evaluating.protocols import EXACT, PROTOCOLS, find_protocol


def test_by_name_or_as_it_is():
    own = replace(EXACT, name="mine", tokens=3)
    assert find_protocol(own) is own
    for name, protocol in PROTOCOLS.items():
        assert find_protocol(name) is protocol
        assert protocol.name == name
    with pytest.raises(InputError, match="No protocol is called 'llama'"):
        find_protocol("llama")


@pytest.mark.parametrize(
    ("written", "right"), [("red", True), (" red\n", True), ("Red", False), ("red.", False)]
)
def test_exact_is_exact(written, right):
    sample = Sample("0", "Which?", None, "red")
    assert (EXACT.read(written, sample) == EXACT.right(sample)) == right
    assert EXACT.ask(sample) == "Which?"


def test_lengths_are_those_of_the_programs():
    assert (PROTOCOLS["llava"].tokens, PROTOCOLS["lmms-eval"].tokens) == (1024, 16)
