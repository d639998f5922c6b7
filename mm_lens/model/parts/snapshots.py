"""Whether a hook has written into the tensor that it was given, instead of returning another."""

from __future__ import annotations

import torch
from torch import Tensor


class Snapshot:
    """Tells whether a tensor was written to in place."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # Tensors of inference mode count no versions.
        self.before = tensor.clone() if tensor.is_inference() else tensor._version

    def changed(self) -> bool:
        """Whether it was, since this was made."""
        if isinstance(self.before, int):
            return self.tensor._version != self.before
        return not torch.equal(self.tensor, self.before)
