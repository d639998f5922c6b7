"""Tokens of images as they are met: correlated within an image, of unequal number, some massive."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_lens.metrics import Tokens

D = 8
TOKENS = 15
SHARED = 0.4
MASSIVE_IN = 1 / 8


def image_tokens(
    seed: int, n_images: int, equal: bool, massive: bool, d: int = D
) -> tuple[Tokens, Tokens]:
    """Two consecutive hooks of images drawn at random.

    Args:
        seed: of the draw.
        n_images: how many.
        equal: 15 tokens each; else 3 or more, lognormal about that.
        massive: whether one image in 8 has a token of 60 to 190 times the median norm.
        d: width of the states.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = torch.full((n_images,), TOKENS)
    if not equal:
        sizes = (TOKENS * (0.8 * normal(n_images) - 0.32).exp()).long().clamp(min=3)
    image = torch.arange(n_images).repeat_interleave(sizes)
    n = len(image)
    starts = sizes.cumsum(0) - sizes
    position = torch.arange(n) - starts[image]

    def clustered() -> Tensor:
        return SHARED**0.5 * normal(n_images, d)[image] + (1 - SHARED) ** 0.5 * normal(n, d)

    x = clustered() / torch.arange(1, d + 1).double().sqrt() + 0.5
    fixed = torch.Generator().manual_seed(0)
    turn = torch.randn(d, d, generator=fixed, dtype=torch.float64) / d**0.5
    y = x + 0.7 * torch.tanh(x @ turn) + 0.5 * clustered()
    if massive:
        has = torch.rand(n_images, generator=generator) < MASSIVE_IN
        where = starts[has]
        times = 60 * (190 / 60) ** torch.rand(len(where), generator=generator, dtype=torch.float64)
        median = x.square().sum(1).sqrt().median()
        direction = torch.randn(d, generator=fixed, dtype=torch.float64)
        direction /= direction.norm()
        x[where] += times[:, None] * median * direction
        y[where] += times[:, None] * median * (direction + 0.2 * turn[0])
    return Tokens(x, image, position, position % 7), Tokens(y, image, position, position % 7)
