"""What tests of the shipped models share."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

NAMES = ("llava-next", "omnifusion")


CPU = torch.device("cpu")


def picture(size: tuple[int, int] = (64, 64), seed: int = 0) -> Image.Image:
    """Noise of (height, width) `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
