"""Where each LLaVA-NeXT image token comes from, by asking Hugging Face's own packing code.

LLaVA-NeXT shows the vision tower an overview of the image (tile 0) and square tiles of a larger
copy, padded to one of a few shapes. `LlavaNextModel.pack_image_features` joins the tiles to one
grid, cuts padding off and ends every row with a learned newline vector. Its arithmetic is not
repeated here: the *indices* of the features take the way of the features, so the result is exact
by construction. The boxes follow the image processor: resize, pad, split, resize again, crop.

Limits, all of them of the model itself:

- The packing cuts whole rows or columns of patches, the processor pads single pixels. Up to half a
  patch of the image at each cut edge, and with extreme shapes (48 times as wide as high, for
  llava-v1.6) every high-resolution token, may be cut with the padding. The overview sees all.
- A token may see padding and image (its box is clipped to the image) or padding only (NaN box).
- A box is what the patch shows, not its receptive field: resizing blends in a few pixels around it,
  and the vision tower's attention mixes all patches of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextModel,
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from mm_lens.errors import InputError
from mm_lens.layout.layout import ImageGeometry, TokenLayout
from mm_lens_adapters.fitting import edge_sizes

Size = tuple[int, int]
"""(height, width)."""


def layout(inputs: Mapping[str, Any], model_or_config: Any, processor: Any) -> TokenLayout:
    """What every position of a processed batch is.

    Args:
        inputs: what the processor returned: `input_ids` [batch, pos], `attention_mask` (optional)
            and, with images, `image_sizes` [images, 2], (height, width) in pixels, row after row.
        model_or_config: a `LlavaNextConfig`, or a model that has one.
        processor: the `LlavaNextProcessor` of the same checkpoint.

    Raises:
        InputError: placeholders and images do not fit, or the processor does not fit the model.
    """
    config = getattr(model_or_config, "config", model_or_config)
    sizes = inputs.get("image_sizes")
    pairs = [] if sizes is None else torch.as_tensor(sizes).reshape(-1, 2).tolist()
    result = TokenLayout.build(
        inputs["input_ids"],
        inputs.get("attention_mask"),
        image_token_id=config.image_token_id,
        special_ids=processor.tokenizer.all_special_ids,
        images=[image_geometry(config, processor, (h, w)) for h, w in pairs],
    )
    check_runs(result)
    return result


def image_geometry(model_or_config: Any, processor: Any, image_size: Size) -> ImageGeometry:
    """Tile, row, column and pixel box of every token of an image of (height, width) pixels.

    `processor` may be the `LlavaNextProcessor` or its image processor alone. The result is cached
    and shared: do not write to its tensors.

    Raises:
        InputError: the image processor makes other tiles than the model expects, or the model's own
            packing refuses its configuration.
    """
    config = getattr(model_or_config, "config", model_or_config)
    tiling = _Tiling.of(config, getattr(processor, "image_processor", processor))
    return _geometry(tiling, (int(image_size[0]), int(image_size[1])))


class _Tiling(NamedTuple):
    """All that the geometry depends on besides the size of the image. Sizes in pixels."""

    window: int  # side of the square that the vision tower takes
    patch: int
    surplus: int  # features before the patches: 1 = the class token; -1 = a patch is dropped
    model_grid: tuple[Size, ...]
    processor_grid: tuple[Size, ...]
    overview: Size  # to which the image is resized for the overview
    tile: int  # side of the squares into which the large copy is split
    resized: Size | None  # of overview and tiles before the centre crop
    crop: Size | None

    @classmethod
    def of(cls, config: Any, image_processor: Any) -> _Tiling:
        vision = config.vision_config
        size, crop = edge_sizes(image_processor.size), edge_sizes(image_processor.crop_size)
        # The next two choices are those of LlavaNextImageProcessorPil._preprocess.
        square = (size.shortest_edge, size.shortest_edge)
        overview = (size.height, size.width) if size.height and size.width else square
        tile = (crop and crop.height) or size.height or size.shortest_edge
        return cls(
            window=vision.image_size,
            patch=vision.patch_size,
            surplus=int(vision.model_type == "clip_vision_model")
            - int(config.vision_feature_select_strategy == "default"),
            model_grid=_pairs(config.image_grid_pinpoints),
            processor_grid=_pairs(image_processor.image_grid_pinpoints),
            overview=overview,
            tile=tile,
            # Both are square (or of the size asked for) already, so "shortest edge" is exact too.
            resized=overview if image_processor.do_resize else None,
            crop=(crop.height, crop.width) if image_processor.do_center_crop else None,
        )

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        return self.window // self.patch

    @property
    def config(self) -> SimpleNamespace:
        """As much of a `LlavaNextConfig` as the packing reads."""
        vision = SimpleNamespace(image_size=self.window, patch_size=self.patch)
        return SimpleNamespace(
            vision_config=vision, image_grid_pinpoints=[list(pair) for pair in self.model_grid]
        )


@lru_cache(maxsize=256)
def _geometry(tiling: _Tiling, size: Size) -> ImageGeometry:
    _check_tiles(tiling, size)
    grid = [list(pair) for pair in tiling.model_grid]
    n_tiles = image_size_to_num_patches(size, grid, tiling.window)
    token = _packed_indices(tiling, size, n_tiles)
    tile, row, col = _places(token, tiling)
    newline = tile < 0

    grid_row, grid_col = row.clone(), col.clone()
    high = tile > 0
    across = get_anyres_image_grid_shape(size, grid, tiling.window)[1]
    grid_row[high] += (tile[high] - 1) // across * tiling.side
    grid_col[high] += (tile[high] - 1) % across * tiling.side
    # One newline ends each row; the first row that is left need not be row 0.
    first = int(grid_row[high][0].item()) if high.any() else 0
    grid_row[newline] = first + torch.arange(int(newline.sum().item()))

    box = _boxes(tiling, size, tile, row, col).float()
    empty = (row < 0) | (box[:, 0] >= box[:, 2]) | (box[:, 1] >= box[:, 3])
    box[empty] = torch.nan
    return ImageGeometry(
        size=size,
        tile=tile.short(),
        row=row.short(),
        col=col.short(),
        grid_row=grid_row.short(),
        grid_col=grid_col.short(),
        newline=newline,
        box=box,
    )


def _packed_indices(tiling: _Tiling, size: Size, n_tiles: int) -> Int64[Tensor, " n"]:
    """For each token the running number, from 1, of the feature it holds; 0 for a newline."""
    n_features = tiling.side**2 + tiling.surplus
    numbers = torch.arange(1, n_tiles * n_features + 1)
    features = rearrange(numbers, "(tile feature) -> tile feature 1", tile=n_tiles)
    try:
        packed, _ = LlavaNextModel.pack_image_features(
            cast(LlavaNextModel, SimpleNamespace(config=tiling.config)),
            [features],
            [size],
            vision_feature_select_strategy="full",  # read only to word a warning
            image_newline=torch.zeros(1, dtype=torch.long),
        )
    except RuntimeError as error:
        raise InputError(
            f"LLaVA-NeXT cannot pack {n_tiles} tiles of {tiling.side}×{tiling.side} patches with "
            f"{n_features} features each ({error}). Use vision_feature_select_strategy='default' "
            "with a vision tower that has a class token (CLIP), 'full' with one that has none, and "
            f"only image_grid_pinpoints that are multiples of {tiling.window}."
        ) from error
    indices: Tensor = rearrange(packed[0], "n 1 -> n")
    return indices


def _places(
    token: Int64[Tensor, " n"], tiling: _Tiling
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Tile, row and column of each feature number; -1 for newlines and class tokens."""
    n_features = tiling.side**2 + tiling.surplus
    # Floor division sends the newline, number 0, to tile -1.
    tile = (token - 1).div(n_features, rounding_mode="floor")
    patch = (token - 1) % n_features - tiling.surplus
    none = (tile < 0) | (patch < 0)
    row, col = patch // tiling.side, patch % tiling.side
    return tile, row.masked_fill(none, -1), col.masked_fill(none, -1)


def _boxes(
    tiling: _Tiling,
    size: Size,
    tile: Int64[Tensor, " n"],
    row: Int64[Tensor, " n"],
    col: Int64[Tensor, " n"],
) -> Float64[Tensor, "n 4"]:
    """(x0, y0, x1, y1) in pixels of the original image, clipped to it: the processor backwards."""
    best = select_best_resolution(size, list(tiling.processor_grid))
    # Only the shape of this array is read; it takes no memory.
    large = get_patch_output_size(np.broadcast_to(0, (1, *size)), best, ChannelDimension.FIRST)
    number = (tile - 1).clamp(min=0)
    across = best[1] // tiling.tile
    edges = []
    for axis, (place, origin) in enumerate(
        [(row, number // across * tiling.tile), (col, number % across * tiling.tile)]
    ):
        padding = (best[axis] - large[axis]) // 2
        for end in (0, 1):
            window = (place + end).double() * tiling.patch
            overview = _uncrop(window, tiling, tiling.overview[axis], axis)
            high = _uncrop(window, tiling, tiling.tile, axis) + origin - padding
            scaled = torch.where(
                tile > 0,
                high * size[axis] / large[axis],
                overview * size[axis] / tiling.overview[axis],
            )
            edges.append(scaled.clamp(0, size[axis]))
    y0, y1, x0, x1 = edges
    return torch.stack([x0, y0, x1, y1], dim=1)


def _uncrop(
    window: Float64[Tensor, " n"], tiling: _Tiling, before: int, axis: int
) -> Float64[Tensor, " n"]:
    """From pixels of what the tower sees back to before the last resize and the centre crop."""
    resized = before if tiling.resized is None else tiling.resized[axis]
    cropped = resized if tiling.crop is None else tiling.crop[axis]
    # Floors towards the top left also where the "crop" pads, as transformers' center_crop does;
    # what it pads shows nothing, least of all the neighbouring tile.
    return ((window + (resized - cropped) // 2) * (before / resized)).clamp(0, before)


def _check_tiles(tiling: _Tiling, size: Size) -> None:
    """Refuse an image processor whose tiles are not those that the model will unpack."""
    model_best = select_best_resolution(size, list(tiling.model_grid))
    processor_best = select_best_resolution(size, list(tiling.processor_grid))
    seen = {
        tiling.crop or tiling.resized or shape for shape in (tiling.overview, (tiling.tile,) * 2)
    }
    model = (*model_best, tiling.window, {(tiling.window, tiling.window)})
    if (*processor_best, tiling.tile, seen) != model:
        raise InputError(
            f"For an image of {size[1]}×{size[0]} px the image processor makes tiles of "
            f"{tiling.tile} px from a grid of {processor_best}, shown as {sorted(seen)}, but the "
            f"model unpacks tiles of {tiling.window} px from a grid of {model_best} (height, "
            "width). Use the processor of the same checkpoint, with its own size, crop_size and "
            "image_grid_pinpoints, or mend its preprocessor_config.json."
        )


def check_runs(tokens: TokenLayout) -> None:
    """Refuse images that change place: each must fill one unbroken run of placeholders."""
    for i, sizes in enumerate(tokens.image_sizes):
        for k, (height, width) in enumerate(sizes):
            places = (tokens.image[i] == k).nonzero()
            run = int((places[-1] - places[0]).item()) + 1
            if run != len(places):
                raise InputError(
                    f"Image {k} of row {i} ({width}×{height} px) makes {len(places)} tokens, but "
                    f"its placeholders are broken up by other tokens. Give the images in the order "
                    "in which the prompt names them."
                )


def _pairs(resolutions: Sequence[Sequence[int]]) -> tuple[Size, ...]:
    return tuple((int(height), int(width)) for height, width in resolutions)
