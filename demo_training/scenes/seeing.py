"""Stage *see*: each token of the tower names the object whose centre is near."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import CLIPVisionModel

from demo_training.canvases import normalise
from demo_training.fusions import FUSIONS
from demo_training.parts import vision_config
from demo_training.scenes.pictures import draw
from demo_training.scenes.reading import tokenizer
from demo_training.train import Training
from mm_lens.data.sets.scenes.drawing import COLOURS, SHAPES


def features(tower: CLIPVisionModel, pixels: Float[Tensor, "tile 3 height width"]) -> Tensor:
    """What a fusion reads, without the last layer, which none does."""
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        states = layer(states, attention_mask=None)
    found: Tensor = states[:, 1:]
    return found


@dataclass(frozen=True)
class Seen:
    """How well tokens name.

    Attributes:
        loss: cross-entropy per object.
        shapes: share of the objects' shapes that the token nearest to the centre names right.
        colours: the same of colours.
        marks: share of these tokens that know of the object at all.
        ghosts: tokens that name something where nothing is, per object.
    """

    loss: Float[Tensor, ""]
    shapes: float
    colours: float
    marks: float
    ghosts: float


class DenseReader(nn.Module):
    """Says of each token whether it lies on the ground, and else which shape and which colour.

    Only for training, as `demo_training.learning.Reader`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(n)) for n in (SHAPES, COLOURS))

    def forward(
        self, features: Float[Tensor, "tile token d"], said: Float[Tensor, "tile token name"]
    ) -> Seen:
        """Against what they have to say."""
        parts = said.split([len(SHAPES), len(COLOURS)], -1)
        objects = said.sum() / 2 + 1e-6
        loss, right = torch.zeros((), device=said.device), []
        near = parts[0].sum(-1) > 0.4
        for head, truth in zip(self.heads, parts, strict=True):
            ground = (1 - truth.sum(-1, keepdim=True)).clamp(min=0)
            logs = log_softmax(head(features), -1)
            loss = loss - (torch.cat([ground, truth], -1) * logs).sum() / objects
            named = logs[near][:, 1:].argmax(-1) == truth[near].argmax(-1)
            right.append(named.float().mean().item())
            known = 1 - logs[..., 0].exp()
        marks = (known[near] > 0.25).float().mean().item()
        nothing = parts[0].sum(-1) == 0
        ghosts = (known[nothing] > 0.25).sum().item() / objects.item()
        return Seen(loss, *right, marks, ghosts)


BARE = 0.3
"""Of the tiles on which nothing is to be named, this share is kept."""


class Seeing(Training):
    """The tower alone, on whole pictures and, a third as many, on tiles cut out of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.tower = CLIPVisionModel(vision_config(args.size)).to(self.device)
        self.reader = DenseReader(args.size.width).to(self.device)
        if args.again:
            state = torch.load(args.out / "tower.pt", weights_only=True)
            self.tower.load_state_dict(state["tower"])
            self.reader.load_state_dict(state["reader"])
        tiles, said = [], []
        for name, n, first in (("omnifusion", args.images, 0), ("llava-next", args.images // 3, 1)):
            self.fusion = FUSIONS[name](tokenizer(), args.size)
            for picture in draw(self.fusion, n, args.seed + 1):
                tiles.append(picture.tiles[first:])
                said.append(picture.said()[first:])
        self.tiles, self.said = torch.cat(tiles), torch.cat(said)
        self.chosen = (self.said.sum((1, 2)) > 0) | (torch.rand(len(self.said)) < BARE)
        self.chosen = self.chosen.nonzero().squeeze(1)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Tiles and what they have to say, mirrored half of the time."""
        some = self.chosen[torch.randint(len(self.chosen), (4 * self.args.batch,))]
        pixels, said = normalise(self.tiles[some], self.fusion.processor), self.said[some]
        if random.random() < 0.5:
            grid = round(said.shape[1] ** 0.5)
            rows = rearrange(said, "tile (y x) name -> tile y x name", x=grid).flip(2)
            pixels, said = pixels.flip(-1), rearrange(rows, "tile y x name -> tile (y x) name")
        return pixels.to(self.device), said.to(self.device)

    def run(self) -> None:
        """The stage; the result goes to `tower.pt`."""

        def loss(step: int) -> tuple[Tensor, float]:
            pixels, said = self.draw()
            seen = self.reader(features(self.tower, pixels), said)
            return seen.loss, seen.shapes

        def after(step: int) -> None:
            if (step + 1) % 100 == 0 or step + 1 == self.args.see:
                state = {"tower": self.tower.state_dict(), "reader": self.reader.state_dict()}
                torch.save(state, self.args.out / "tower.pt")

        trained = [*used(self.tower), *self.reader.parameters()]
        self.loop("see", self.args.see, trained, self.args.lr, loss, after)


def used(tower: CLIPVisionModel) -> list[nn.Parameter]:
    """The weights that a fusion reads through."""
    parts = (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:-1])
    return [weight for part in parts for weight in part.parameters()]
