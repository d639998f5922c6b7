"""Training pictures: scenes as a fusion shows them to the tower, and where each tile is from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm
from transformers.image_processing_utils import select_best_resolution

from demo_training.fusion import Fusion
from demo_training.parts import PATCH
from demo_training.prompts import prompt
from demo_training.scenes.describing import Window, places, whole
from mm_lens.data.sets.scenes.drawing import Scene, make_scene

_QUESTION = "\0"


@dataclass(frozen=True)
class Picture:
    """One scene.

    Attributes:
        scene: it.
        tiles: before normalisation; the first one is the whole picture.
        prefix: token ids of a prompt up to the question.
        windows: where each tile is from.
    """

    scene: Scene
    tiles: UInt8[Tensor, "tile 3 height width"]
    prefix: list[int]
    windows: tuple[Window, ...]

    def said(self) -> Float[Tensor, "tile token name"]:
        """What each token of each tile has to say."""
        grid = self.tiles.shape[-1] // PATCH
        return torch.stack([places(self.scene, window, grid) for window in self.windows])


def windows(fusion: Fusion, scene: Scene) -> tuple[Window, ...]:
    """Where on the picture each tile comes from."""
    images = fusion.processor.image_processor
    grids = getattr(images, "image_grid_pinpoints", None)
    if grids is None:
        return (whole(scene),)
    side = images.crop_size["height"]
    height, width = select_best_resolution((scene.height, scene.width), grids)
    scale = min(width / scene.width, height / scene.height)
    # As the processor rounds, pads, and cuts.
    left = (width - min(ceil(scene.width * scale), width)) // 2
    top = (height - min(ceil(scene.height * scale), height)) // 2
    return (
        whole(scene),
        *(
            Window((x - left) / scale, (y - top) / scale, side / scale, side / scale)
            for y in range(0, height, side)
            for x in range(0, width, side)
        ),
    )


def show(fusion: Fusion, scene: Scene) -> Picture:
    """A scene as a fusion shows it."""
    image = scene.draw()
    head, _ = prompt(fusion.processor, _QUESTION).split(_QUESTION)
    as_is = {"do_normalize": False, "do_rescale": False, "return_tensors": "pt"}
    inputs = fusion.processor(text=[head], images=[image], **as_is)
    tiles = rearrange(inputs["pixel_values"][0], "... rgb height width -> (...) rgb height width")
    ids = inputs["input_ids"][0].tolist()
    return Picture(scene, tiles.round().to(torch.uint8), ids, windows(fusion, scene))


def draw(fusion: Fusion, n: int, seed: int, cache: Path | None = None) -> list[Picture]:
    """`n` scenes at random; kept in the file `cache`, and taken from it when it is there."""
    if cache is not None and cache.exists():
        found: list[Picture] = torch.load(cache, weights_only=False)  # our own, made below
        return found
    chance = random.Random(seed)
    drawn = [show(fusion, make_scene(chance)) for _ in tqdm(range(n), desc="scenes", mininterval=9)]
    if cache is not None:
        torch.save(drawn, cache)
    return drawn


def stack(pictures: Sequence[Picture]) -> UInt8[Tensor, "image tile 3 height width"]:
    """The tiles of several."""
    return torch.stack([picture.tiles for picture in pictures])
