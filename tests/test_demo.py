"""The models that ship with the package."""

from __future__ import annotations

import pytest
from built_demos import NAMES

from mm_lens import demo
from mm_lens.errors import InputError


def test_unknown_name_lists_what_there_is() -> None:
    names = [*NAMES, *(f"{name}-scenes" for name in NAMES)]
    assert demo.available() == sorted(f"demo/{name}" for name in names)
    for name in ("demo/none", "llava-next", "demo/", "demo/../demo/llava-next"):
        with pytest.raises(
            InputError, match="Available: demo/llava-next, demo/llava-next-scenes, demo/omn"
        ):
            demo.path(name)
