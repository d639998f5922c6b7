"""Questions about drawn squares, for random models."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mm_lens.data.samples import Sample
from mm_lens.recipes.questions import ask


def drawn(k):
    """A dark square in one of four corners, on light ground."""
    pixels = np.full((16, 16, 3), 230, dtype=np.uint8)
    y, x = 8 * (k % 2), 8 * (k // 2 % 2)
    pixels[y : y + 6, x : x + 6] = (30 + 9 * k, 60, 20)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def samples():
    return [
        Sample(f"q{k}", "What?", drawn(k % 4), "abc"[k % 3], about={"kind": "colour"})
        for k in range(6)
    ]


@pytest.fixture(scope="module")
def asked(model, samples):
    return ask(model, samples)
