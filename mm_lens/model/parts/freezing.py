"""Gradients of activations alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No gradients of weights: nothing is kept for them, below the first differentiated activation
    nothing at all."""
    taken = [p for p in model.original_model.parameters() if p.requires_grad]
    for parameter in taken:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in taken:
            parameter.requires_grad_(True)
