"""Content that cannot be wrong in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from disturbed_runs import Died
from made_data import plain_mixed_key, profile, same

from mm_lens._storage.checked import row_checksums, tensor_checksum


def plain_checksum(row: bytes) -> int:
    """Σ word · weight modulo 2^64 in Python's own integers; weights as documented."""
    words = [int.from_bytes(row[i : i + 8], "little", signed=True) for i in range(0, len(row), 8)]
    total = sum(w * (plain_mixed_key(i, i, 2) | 1) for i, w in enumerate(words)) % (1 << 64)
    return total - (1 << 64) if total >> 63 else total


def test_an_index_is_the_old_one_or_the_new_one(
    model, data, whole, tmp_path, monkeypatch, every_batch
):
    """Dying between the bytes and the name of a file leaves the earlier file."""
    left = [3]

    def dies(self, target, replace=Path.replace):
        if self.name == "index.new":
            left[0] -= 1
            if left[0] == 0:
                raise Died
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(Died):
            profile(model, data, tmp_path / "run")
    same(profile(model, data, tmp_path / "run"), whole)


def test_row_checksums_are_what_they_are_said_to_be():
    x = torch.randn(5, 12, dtype=torch.float32)
    assert row_checksums(x).tolist() == [plain_checksum(row.numpy().tobytes()) for row in x]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_every_flipped_bit_is_found(dtype):
    x = torch.randint(0, 255, (1, 40), dtype=torch.uint8).view(dtype)
    clean = row_checksums(x)
    for bit in range(320):
        flipped = x.view(torch.uint8).clone()
        flipped[0, bit // 8] ^= 1 << bit % 8
        assert row_checksums(flipped.view(dtype)) != clean
        assert tensor_checksum(flipped.view(dtype)) != tensor_checksum(x)
