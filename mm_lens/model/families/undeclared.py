"""A family that nobody declared: what is visual is told by the image token id alone.

Modality hook points, metrics and whatever goes by modality or segment work. Where a token lies
nobody knows: boxes are NaN, and tiles, rows and columns are -1, so what needs places finds none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from mm_lens.errors import InputError, MMLensError
from mm_lens.layout.geometry import ImageGeometry
from mm_lens.layout.tiles import Size
from mm_lens.model.families.declaration import NO_INPUTS, Family

REMEDY = "A package declares its family: see docs/adding_a_family.md."


class Undeclared(Family):
    """Any model with an image token, opened with `geometry=False`."""

    architectures: ClassVar[tuple[str, ...]] = ()
    has_places: ClassVar[bool] = False

    def __init__(self, model: Any, processor: Any) -> None:
        names = ("image_token_id", "image_token_index")
        found = [getattr(model.config, name, None) for name in names]
        token = next((i for i in found if isinstance(i, int)), None)
        # Mllama names a token too: one for each picture, which its text looks at from outside.
        crosses = getattr(model.config.get_text_config(), "cross_attention_layers", None)
        if token is None or crosses:
            raise MMLensError(
                f"{type(model).__name__} has no image tokens: its configuration names "
                f"{'cross_attention_layers' if crosses else 'no image_token_id'}. Models that see "
                "pictures by cross-attention have no visual positions, and nothing here is of use "
                "for them."
            )
        self.config, self.processor, self.image_token_id = model.config, processor, token

    def geometry(
        self, size: Size, inputs: Mapping[str, Any] = NO_INPUTS, k: int = 0
    ) -> ImageGeometry:
        """As many tokens as the k-th image has, nowhere."""
        return _nowhere(size, self.image_token_counts(inputs)[k])  # type: ignore[index]

    def _geometries(self, inputs: Mapping[str, Any]) -> list[ImageGeometry]:
        counts = self.image_token_counts(inputs) or []
        sizes = self._told(inputs)
        known = sizes if sizes is not None and len(sizes) == len(counts) else [(0, 0)] * len(counts)
        return [_nowhere(size, count) for size, count in zip(known, counts, strict=True)]

    def image_token_counts(self, inputs: Mapping[str, Any]) -> list[int] | None:
        """Of each unbroken run of placeholders; of all those of a row, if an image is broken up."""
        if inputs.get("pixel_values") is None:
            return None
        runs = [_runs(row) for row in inputs["input_ids"] == self.image_token_id]
        sizes = self._told(inputs)
        if sizes is None or len(sizes) == sum(map(len, runs)):
            return [count for row in runs for count in row]
        rows = [sum(row) for row in runs if row]
        if len(rows) != len(sizes):
            raise InputError(
                f"{len(sizes)} images make {sum(map(len, runs))} runs of image tokens in "
                f"{len(rows)} rows, so which token is of which image is unknown: this model's "
                f"family is not declared. Give one image for each row. {REMEDY}"
            )
        return rows

    def _told(self, inputs: Mapping[str, Any]) -> list[Size] | None:
        sizes = inputs.get(self.sizes)
        return None if sizes is None else [(h, w) for h, w in torch.as_tensor(sizes).tolist()]

    def rows_per_image(self, name: str, inputs: Mapping[str, Any]) -> list[int] | None:
        """Told by the sizes of the tensors, where these leave no doubt."""
        value, counts = inputs[name], self.image_token_counts(inputs)
        if name in ("input_ids", "attention_mask") or counts is None:
            return None
        images, batch = len(counts), len(inputs["input_ids"])
        grid = inputs.get("image_grid_thw")
        if name == "pixel_values" and grid is not None and len(value) == int(grid.prod(1).sum()):
            patches: list[int] = grid.prod(1).tolist()
            return patches
        if name in (self.sizes, "image_sizes", "image_grid_thw") and len(value) == images:
            return [1] * images
        if images == batch and len(value) == batch and all(self._one_each(inputs)):
            return None
        if len(value) == batch and tuple(value.shape[:2]) == tuple(inputs["input_ids"].shape):
            return None
        if len(value) == images != batch:
            return [1] * images
        raise InputError(
            f"Which rows of {name} {list(value.shape)} belong to which of {images} images in "
            f"{batch} prompts is unknown: this model's family is not declared. Run one prompt at "
            f"a time. {REMEDY}"
        )

    def _one_each(self, inputs: Mapping[str, Any]) -> Sequence[bool]:
        found: list[bool] = (inputs["input_ids"] == self.image_token_id).any(1).tolist()
        return found


def _runs(placeholder: Bool[Tensor, " pos"]) -> list[int]:
    """Lengths of the unbroken runs."""
    values, lengths = torch.unique_consecutive(placeholder, return_counts=True)
    return [n for here, n in zip(values.tolist(), lengths.tolist(), strict=True) if here]


def _nowhere(size: Size, n: int) -> ImageGeometry:
    none = torch.full((n,), -1, dtype=torch.int16)
    return ImageGeometry(
        size, none, none, none, none, none,
        newline=torch.zeros(n, dtype=torch.bool),
        box=torch.full((n, 4), torch.nan),
    )  # fmt: skip
