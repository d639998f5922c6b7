"""Training material of the demo models: easy-VQA train images on canvases of several shapes."""

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import easy_vqa
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from demo_training.fusion import Fusion

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

Box: TypeAlias = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels."""

# (height, width): every grid of an anyres processor is used, with and without cropped padding.
SIZES = ((64, 64), (96, 96), (64, 128), (128, 64), (64, 192), (192, 64), (80, 112), (112, 80))


@dataclass(frozen=True)
class Bucket:
    """Images of one size, tiled by the real image processor.

    Attributes:
        size: Height and width of the images, in pixels.
        pixels: Tiles before normalisation; the first one is the overview.
        owner: easy-VQA train image that each one shows.
    """

    size: tuple[int, int]
    pixels: UInt8[Tensor, "image tile 3 height width"]
    owner: Int[Tensor, " image"]


def _own_questions() -> dict[int, list[tuple[str, str]]]:
    own: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, image in zip(*easy_vqa.get_train_questions(), strict=True):
        own[image].append((question, answer))
    return own


def asked_for(question: str, answer: str) -> str:
    """`shape`, `colour`, or, for a yes/no question, whether what it is about is present.

    >>> asked_for("is there a red shape?", "no"), asked_for("is no red shape present?", "no")
    ('absent', 'present, negated')
    """
    if answer in SHAPES:
        return "shape"
    if answer in COLOURS:
        return "colour"
    negated = not {"no", "not"}.isdisjoint(question.split())
    presence = "present" if (answer == "yes") != negated else "absent"
    return f"{presence}, negated" if negated else presence


def _kind(pairs: list[tuple[str, str]]) -> tuple[str, str] | None:
    """Shape and colour shown, from what is asked and answered; None if that leaves it open."""
    seen = {answer for _, answer in pairs}
    for question, answer in pairs:
        if not asked_for(question, answer).startswith("absent"):
            seen |= set(question.rstrip("?").split())
    shape = [s for s in SHAPES if s in seen]
    colour = [c for c in COLOURS if c in seen]
    return (shape[0], colour[0]) if len(shape) == len(colour) == 1 else None


@cache
def kinds() -> dict[int, tuple[str, str]]:
    """Shape and colour of every train image whose questions tell both."""
    found = {image: _kind(pairs) for image, pairs in _own_questions().items()}
    return {image: kind for image, kind in found.items() if kind is not None}


@cache
def questions() -> dict[int, dict[str, list[tuple[str, str]]]]:
    """Question-answer pairs that hold for each train image, grouped by what they ask for.

    Every image shows exactly one shape in one colour, so a pair asked about one image holds for
    all images of the same shape and colour.
    """
    own, known = _own_questions(), kinds()
    shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for image, kind in known.items():
        shared[kind] += own[image]
    grouped = {kind: _group_pairs(pairs) for kind, pairs in shared.items()}
    return {
        image: grouped[known[image]] if image in known else _group_pairs(own[image])
        for image in own
    }


def _group_pairs(pairs: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for question, answer in pairs:
        name = asked_for(question, answer)
        if answer in ("yes", "no"):
            about_shape = not set(SHAPES).isdisjoint(question.rstrip("?").split())
            name = f"{'shape' if about_shape else 'colour'} {name}"
        groups[name].append((question, answer))
    return dict(groups)


def canvas(
    image: Image.Image, size: tuple[int, int], rng: random.Random
) -> tuple[Image.Image, Box]:
    """`image` at a random place and scale (0.75 to 1.5) on a canvas of (height, width) `size`.

    Returns:
        The canvas and where on it the image lies.
    """
    height, width = size
    scale = rng.uniform(0.75, min(1.5, height / image.height, width / image.width))
    small = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    background = image.getpixel((0, 0))
    if rng.random() < 0.3:
        background = tuple(rng.randint(225, 255) for _ in range(3))
    sheet = Image.new("RGB", (width, height), background)
    x, y = rng.randint(0, width - small.width), rng.randint(0, height - small.height)
    sheet.paste(small, (x, y))
    return sheet, (x, y, x + small.width, y + small.height)


def pool(
    fusion: Fusion,
    copies: int = 3,
    limit: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> list[Bucket]:
    """Every train image as it is, mirrored, and on `copies` random canvases; one bucket per size.

    The canvases are the same for every fusion; one that crops images goes without those on which
    its crop would cut the image off.

    Args:
        fusion: whose image processor makes the tiles.
        copies: canvases per image.
        limit: only the first `limit` train images.
        seed: of the canvases.
        cache: file to keep the result in, and to take it from when it exists.
    """
    if cache is not None and cache.exists():
        return [Bucket(*fields) for fields in torch.load(cache, weights_only=True)]
    rng = random.Random(seed)
    tiles: dict[tuple[int, int], list[UInt8[Tensor, "tile 3 height width"]]] = defaultdict(list)
    owners: dict[tuple[int, int], list[int]] = defaultdict(list)
    paths = sorted(easy_vqa.get_train_image_paths().items())[:limit]
    for owner, path in tqdm(paths, desc="canvases"):
        image = Image.open(path).convert("RGB")
        whole = (0, 0, image.width, image.height)
        views = [(image, whole), (ImageOps.mirror(image), whole)]
        views += [canvas(image, rng.choice(SIZES), rng) for _ in range(copies)]
        for view, box in views:
            size = (view.height, view.width)
            if fusion.sees(size, box):
                tiles[size].append(fusion.tiles(view))
                owners[size].append(owner)
    buckets = [Bucket(s, torch.stack(tiles[s]), torch.tensor(owners[s])) for s in sorted(tiles)]
    if cache is not None:
        torch.save([(b.size, b.pixels, b.owner) for b in buckets], cache)
    return buckets


def normalise(
    pixels: UInt8[Tensor, "image tile 3 height width"], processor: Any
) -> Float[Tensor, "image tile 3 height width"]:
    """What the image processor does after tiling."""
    used = processor.image_processor
    mean, std = (
        rearrange(torch.tensor(x), "rgb -> rgb 1 1") for x in (used.image_mean, used.image_std)
    )
    return (pixels / 255 - mean) / std
