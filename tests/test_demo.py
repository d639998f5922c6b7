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


def test_which_models_have_an_autoencoder() -> None:
    folder = demo.dictionary_path("demo/llava-next")
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert {"README.md", "cfg.json", "sae_weights.safetensors"} == set(files)
    assert sum(files.values()) <= 500_000
    with pytest.raises(InputError, match=r"'demo/omnifusion' ships .* only of those of demo/lla"):
        demo.dictionary_path("demo/omnifusion")
    with pytest.raises(InputError, match="Available: demo/llava-next"):
        demo.dictionary_path("demo/none")
