"""Scenes in the language model's own words: which image token says what.

An image token says where it stands, and of an object whose centre is near what its shape and its
colour are called: the nearest four tokens say it, the nearer the louder (bilinear weights, 1 in
sum), so that what is said changes as little as the picture when an object moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from demo_training.scenes.starting import SCALE
from mm_lens.data.sets.scenes.drawing import COLOURS, SHAPES, Scene

WORDS = (*SHAPES, *COLOURS)


@dataclass(frozen=True)
class Window:
    """A part of a picture that becomes one square tile, in pixels of the picture."""

    left: float
    top: float
    width: float
    height: float


def whole(scene: Scene) -> Window:
    """All of it, squeezed into the tile."""
    return Window(0, 0, scene.width, scene.height)


def places(scene: Scene, window: Window, grid: int) -> Float[Tensor, "token name"]:
    """How loud each token of a tile of `grid` x `grid` says each of `WORDS`."""
    said = torch.zeros(grid, grid, len(WORDS))
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        across = ((x0 + x1) / 2 - window.left) / window.width
        down = ((y0 + y1) / 2 - window.top) / window.height
        if not (0 <= across < 1 and 0 <= down < 1):
            continue
        names = [WORDS.index(thing.shape), WORDS.index(thing.colour)]
        for x, loud in _split(across, grid):
            for y, louder in _split(down, grid):
                said[y, x, names] += loud * louder
    return rearrange(said, "y x name -> (y x) name")


def _split(along: float, grid: int) -> list[tuple[int, float]]:
    at = min(max(along * grid - 0.5, 0.0), grid - 1.0)
    first = min(int(at), grid - 2)
    return [(first, 1 - (at - first)), (first + 1, at - first)]


class Describer(nn.Module):
    """What image tokens say, as vectors that the language model reads.

    Args:
        words: the language model's embeddings.
        ids: of the `WORDS`.
    """

    def __init__(self, words: nn.Embedding, ids: Int[Tensor, " name"]) -> None:
        super().__init__()
        width = words.embedding_dim
        self._words = (words,)  # not a part of this module
        self.register_buffer("ids", ids)
        self.ground, self.thing, self.across, self.down, self.newline = (
            nn.Parameter(SCALE * torch.randn(width)) for _ in range(5)
        )
        self.loud = nn.Parameter(torch.tensor(3.0))

    def forward(self, said: Float[Tensor, "*batch token name"]) -> Float[Tensor, "*batch token d"]:
        """The tokens of square tiles."""
        grid = round(said.shape[-2] ** 0.5)
        ruler = torch.linspace(-1, 1, grid, device=said.device)
        across, down = ruler.repeat(grid), ruler.repeat_interleave(grid)
        names = self._words[0](self.ids)
        spoken = einsum(said, names, "... token name, name d -> ... token d")
        things = said.sum(-1, keepdim=True) / 2 * self.thing
        place = across[:, None] * self.across + down[:, None] * self.down
        return self.ground + place + self.loud * (things + spoken)
