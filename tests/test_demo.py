"""The models that ship with the package."""

from __future__ import annotations

import pytest
from built_demos import NAMES

from mm_lens import demo
from mm_lens.errors import InputError


def test_unknown_name_lists_what_there_is() -> None:
    assert demo.available() == [f"demo/{name}" for name in NAMES]
    for name in ("demo/none", "llava-next", "demo/", "demo/../demo/llava-next"):
        with pytest.raises(InputError, match="Available: demo/llava-next, demo/omnifusion"):
            demo.path(name)
