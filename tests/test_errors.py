"""One root; messages that are safe to print."""

from __future__ import annotations

import pytest

import mm_lens
from mm_lens.errors import show_safely

ROOT = mm_lens.MMLensError
ERRORS = [mm_lens.InputError, mm_lens.HookError, mm_lens.DataError]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_of_the_root(error):
    assert issubclass(error, ROOT)
    assert issubclass(error, ValueError)
    assert str(error("no such\x1b[31m file\udc80")) == "no such\\x1b[31m file\\udc80"


def test_what_can_be_read_stays():
    text = "größe 57×31 px, “red” – 𝛼\n\tnext line"
    assert show_safely(text) == text
    assert show_safely("a\x07b\r\u202ec") == "a\\x07b\\r\\u202ec"
    show_safely("\udcff").encode("utf-8")
