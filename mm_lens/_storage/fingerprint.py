"""What tells two models with the same configuration apart: their weights."""

from __future__ import annotations

from typing import Any

from mm_lens._storage.checked import tensor_checksum
from mm_lens._storage.hashing import digest_entries


def weights_digest(model: Any) -> str:
    """Digest of all weights and buffers; of those on the meta device (kept on disk), the shapes."""
    native = model.original_model
    return digest_entries(
        (name, tuple(weight.shape) if weight.is_meta else tensor_checksum(weight))
        for name, weight in sorted([*native.named_parameters(), *native.named_buffers()])
    )
