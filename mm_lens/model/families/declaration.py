"""A model family is a declaration: what mm_lens needs to know of one.

Most of it are class attributes and one method, `tiles`: which rectangles of a picture its tokens
show. See docs/adding_a_family.md.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from mm_lens.errors import InputError, MMLensWarning
from mm_lens.layout.geometry import ImageGeometry
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.tiles import Size, Tile, lay
from mm_lens.model.families.components import (
    DEAD_HOOKS,
    INERT_HOOKS,
    NO_WEIGHTS,
    use_native_attention,
)

ORIGINAL_SIZES = "original_sizes"
"""(height, width) of each picture as given: travels in the inputs, and is no argument of models."""


def without_own(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as the native model takes them: without what only mm_lens reads."""
    return {name: value for name, value in inputs.items() if name != ORIGINAL_SIZES}


Row: TypeAlias = Literal["image", "tile", "patch"]
"""What one row of an image tensor is; a tensor that is not named has one for each prompt."""


NO_INPUTS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class TowerGrid:
    """What the vision tower sees: tiles of each image, in its order; patches along each side."""

    tiles: Sequence[int]
    rows: int
    cols: int


def make_noise(size: Size) -> Image.Image:
    """A picture of noise, of (height, width), always the same: runs are told apart by it."""
    noise = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    return Image.fromarray((noise * 255).byte().numpy())


class Family(ABC):
    """One way of building a vision-language model, for one loaded model and its processor."""

    architectures: ClassVar[tuple[str, ...]]
    """Names of the Hugging Face model classes of the family."""

    rows_of: ClassVar[Mapping[str, Row]] = {"pixel_values": "image"}
    """What a row of each image tensor of the processor is: an image, a tile or a patch."""

    sizes: ClassVar[str] = ORIGINAL_SIZES
    """Where (height, width) of the pictures as given stands: `prepare` adds `original_sizes`, some
    processors return them under a name of their own."""

    nested: ClassVar[bool] = False
    """Whether the processor takes a list of images for each prompt, instead of one of all."""

    drop: ClassVar[frozenset[str]] = frozenset()
    """What the processor returns and the model must not get."""

    padding_side: ClassVar[Literal["left", "right"] | None] = None
    """Where shorter rows must be padded; None leaves it to the tokenizer."""

    needs_image: ClassVar[str] = ""
    """Why every prompt must have an image; empty where it need not."""

    behind_image: ClassVar[str] = "\n"
    """What stands between an image and a text that no chat template puts together."""

    markers: ClassVar[str] = ""
    """Regular expression of tokens that the processor writes around images: begin and end of one,
    row breaks, tags of tiles."""

    bidirectional: ClassVar[bool] = False
    """Whether image tokens see those behind them."""

    probe_size: ClassVar[Size] = (40, 56)
    """(height, width) of the picture for the check at load: one that makes few tokens."""

    exceptions: ClassVar[Mapping[str, str]] = {}
    """Checks of the conformance suite that do not hold, and why; see `mm_lens.check`."""

    has_places: ClassVar[bool] = True
    """Whether tokens have places in pictures; `Undeclared` has none."""

    image_token_id: int
    """Id of the image placeholder in `input_ids`."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.config, self.processor = model.config, processor
        self.image_token_id = self.config.image_token_id
        self.require_fit()

    def require_fit(self) -> None:  # noqa: B027  most have nothing to refuse
        """Refuse a processor that is not the model's; by default none.

        Raises:
            InputError: naming what differs, and what to mend.
        """

    def require_size(self, size: Size) -> None:  # noqa: B027  most processors bound what they make
        """Refuse a picture of which the processor would make an enormous one; by default none.

        Args:
            size: (height, width) of the picture as given.

        Raises:
            InputError: naming both sizes.
        """

    # ---- where tokens lie ----

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> Sequence[Tile]:
        """The rectangles of tokens of the k-th image of a batch, in the order of the tokens.

        Args:
            size: (height, width) of the picture as given.
            inputs: the keyword arguments of the forward pass.
            k: index of the image in the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no tiles.")

    def geometry(
        self, size: Size, inputs: Mapping[str, Any] = NO_INPUTS, k: int = 0
    ) -> ImageGeometry:
        """Where each token of the k-th image lies; most families need only its size."""
        return lay(size, self.tiles(size, inputs, k))

    def shown_sizes(self, inputs: Mapping[str, Any]) -> Sequence[Size] | None:
        """(height, width) to take for pictures whose own size nobody tells; None refuses."""
        return None

    def image_sizes(self, inputs: Mapping[str, Any]) -> list[Size]:
        """(height, width) of each picture of the batch.

        Raises:
            InputError: nobody tells them.
        """
        told = inputs.get(self.sizes)
        found = self.shown_sizes(inputs) if told is None else torch.as_tensor(told).tolist()
        if found is None:
            raise InputError(
                f"{self.sizes} is missing, so where image tokens lie is unknown. Pass all that "
                "model.prepare(text, images) returns."
            )
        if told is None:
            warnings.warn(
                f"{self.sizes} is missing: places of image tokens are given in pixels of the "
                "resized picture, not of the picture itself. Pass all that model.prepare(text, "
                "images) returns.",
                MMLensWarning,
                stacklevel=2,
            )
        return [(int(height), int(width)) for height, width in found]

    def layout(self, inputs: Mapping[str, Any]) -> TokenLayout:
        """What every position of a forward pass with these keyword arguments is."""
        sees = inputs.get("pixel_values") is not None
        return TokenLayout.build(
            inputs["input_ids"],
            self.mask(inputs),
            # Without pixels, a placeholder was sampled: it is text.
            image_token_id=self.image_token_id if sees else -1,
            special_ids=self.processor.tokenizer.all_special_ids,
            marker_ids=self.marker_ids,
            images=self._geometries(inputs) if sees else (),
        )

    def _geometries(self, inputs: Mapping[str, Any]) -> list[ImageGeometry]:
        sizes = self.image_sizes(inputs)
        return [self.geometry(size, inputs, k) for k, size in enumerate(sizes)]

    @cached_property
    def marker_ids(self) -> frozenset[int]:
        """Ids of the tokens that `markers` names."""
        added = self.processor.tokenizer.get_added_vocab() if self.markers else {}
        return frozenset(i for token, i in added.items() if re.fullmatch(self.markers, token))

    def image_token_counts(self, inputs: Mapping[str, Any]) -> list[int] | None:
        """How many tokens each image makes; None if the inputs hold no image."""
        if inputs.get("pixel_values") is None:
            return None
        if self.sizes == ORIGINAL_SIZES and inputs.get(self.sizes) is None:
            # Inputs that `prepare` did not make: the model itself compares them with its features.
            return [int((inputs["input_ids"] == self.image_token_id).sum())]
        return [len(geometry) for geometry in self._geometries(inputs)]

    @staticmethod
    def mask(inputs: Mapping[str, Any]) -> Tensor | None:
        """Attention mask of the tokens themselves, without what is in the key-value cache."""
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return None
        return mask[:, -inputs["input_ids"].shape[1] :]

    # ---- rows of a batch ----

    def rows_per_image(self, name: str, inputs: Mapping[str, Any]) -> list[int] | None:
        """How many rows of a tensor each image has; None if it has one for each prompt."""
        kind = "image" if name in (ORIGINAL_SIZES, self.sizes) else self.rows_of.get(name)
        if kind is None:
            return None
        if kind == "patch":
            grids: list[int] = inputs["image_grid_thw"].prod(1).tolist()
            return grids
        sizes = self.image_sizes(inputs)
        if kind == "image":
            return [1] * len(sizes)
        tiles = [self.tiles(size, inputs, k) for k, size in enumerate(sizes)]
        return [len({tile.number for tile in found}) for found in tiles]

    def take(
        self, inputs: Mapping[str, Any], rows: Sequence[int], n_images: Sequence[int]
    ) -> dict[str, Any]:
        """The tensors of some rows of a batch, with their images, in the order asked for.

        Args:
            inputs: keyword arguments of the model; what is no tensor of the batch stays as it is.
            rows: of the batch; they may repeat.
            n_images: number of images of each row of the batch.
        """
        ends = [0, *accumulate(n_images)]
        images = [k for row in rows for k in range(ends[row], ends[row + 1])]
        taken = {}
        for name, value in inputs.items():
            if not isinstance(value, Tensor) or not value.ndim:
                taken[name] = value
            elif (counts := self.rows_per_image(name, inputs)) is not None:
                spans = list(pairwise([0, *accumulate(counts)]))
                chosen = [i for k in images for i in range(*spans[k])]
                taken[name] = value[chosen] if spans and len(value) == spans[-1][1] else value
            elif name == "position_ids" and value.ndim == 3:  # axes of positions come first
                taken[name] = value[:, list(rows)]
            else:
                taken[name] = value[list(rows)] if len(value) == len(n_images) else value
        return taken

    def pixels(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the keyword tensors that are the images'."""
        names = {*self.rows_of, ORIGINAL_SIZES, self.sizes, "pixel_values"}
        return {k: v for k, v in inputs.items() if k in names and v is not None}

    # ---- hook points ----

    @classmethod
    def customise(cls, adapter: Any, attention: str) -> None:
        """Change the TransformerLens architecture adapter before the bridge is built.

        By default attention is the native model's, unless its scores are wanted.

        Args:
            adapter: of the architecture.
            attention: "sdpa" or "eager".
        """
        adapter.cfg.attn_implementation = attention
        if attention == "sdpa":
            use_native_attention(adapter)

    def inert_hooks(self) -> Mapping[str, str]:
        """Hook points whose edits cannot reach the output: regular expression and remedy."""
        return INERT_HOOKS

    def dead_hooks(self, attention: str) -> Mapping[str, str]:
        """Hook points that exist in the bridge but never fire: regular expression and remedy."""
        return DEAD_HOOKS if attention == "eager" else {**DEAD_HOOKS, **NO_WEIGHTS}

    def tower_grid(self, inputs: Mapping[str, Any]) -> TowerGrid | None:
        """Tiles and patches that the tower sees, in the order of the images.

        None: it does not run (no image), or the family does not say; then hooks of the tower have
        no profile.
        """
        return None

    def probe_image(self) -> Image.Image:
        """A synthetic image that makes few tokens, for the check at load: the same each time."""
        return make_noise(self.probe_size)
