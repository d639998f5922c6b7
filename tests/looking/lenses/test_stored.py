"""A file of another kind, a damaged one and what fails while one is read are told with its path."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mm_lens import DataError
from mm_lens.looking.lenses.stored import open_stored


def test_it_opens_what_is_of_its_format_alone(tmp_path):
    path = tmp_path / "stored"
    save_file({"x": torch.ones(2)}, path, {"format": "a 1"})
    with open_stored(path, "thing", "a 1") as file:
        assert file.get_tensor("x").tolist() == [1, 1]
    with (
        pytest.raises(DataError, match=r"stored is no thing of mm_lens"),
        open_stored(path, "thing", "a 2"),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"stored cannot be read as a thing: 'y'"),
        open_stored(path, "thing", "a 1") as file,
    ):
        file.metadata()["y"]
    path.write_bytes(b"no such file")
    with (
        pytest.raises(DataError, match=r"stored cannot be read as a thing"),
        open_stored(path, "thing", "a 1"),
    ):
        pass
