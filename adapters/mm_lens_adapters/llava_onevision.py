"""LLaVA-OneVision: an overview, then a grid of all tiles, cut and shrunk; rows end in newlines."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from types import SimpleNamespace
from typing import Any, ClassVar

from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.modeling_llava_onevision import (
    image_size_to_num_patches,
)

from mm_lens.layout.tiles import Size, Tile, whole
from mm_lens_adapters.llava_style import LlavaStyleFamily


class LlavaOnevisionFamily(LlavaStyleFamily):
    """The family of `LlavaOnevisionForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("LlavaOnevisionForConditionalGeneration",)
    rows_of: ClassVar = {"pixel_values": "image", "image_sizes": "image"}
    sizes: ClassVar[str] = "image_sizes"

    def require_fit(self) -> None:
        """Nothing that the model does not refuse itself."""

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """The whole picture, then the grid, whose tokens blend their neighbours where it shrank."""
        side = isqrt(self.processor.num_image_tokens)
        rows, cols = self._grid(size, side, self.processor.vision_aspect_ratio)
        # The grid before it shrank tells where the padding was cut.
        kept = self._grid(size, side, "anyres_max_1000000")
        best, patch = self._best(size), self.config.vision_config.image_size / side
        rect = []
        for axis in (1, 0):
            # The picture, as large as fits and centred, in pixels of the canvas.
            scale = min(best[0] / size[0], best[1] / size[1])
            padding = (best[axis] - int(size[axis] * scale)) / 2
            cut = (best[axis] / patch - kept[axis]) / 2 * patch
            rect.append([(x - padding) / scale for x in (cut, best[axis] - cut)])
        (x0, x1), (y0, y1) = rect
        return [
            Tile(side, side, whole(size)),
            Tile(rows, cols, (x0, y0, x1, y1), 1, newline=True),
        ]

    def tiles_of(self, inputs: Mapping[str, Any]) -> list[int]:
        """The overview and the tiles of each image, by transformers' own count."""
        window = self.config.vision_config.image_size
        grid = self.processor.image_processor.image_grid_pinpoints
        return [image_size_to_num_patches(s, grid, window) for s in self.image_sizes(inputs)]

    def _best(self, size: Size) -> Size:
        """(height, width) of the canvas that the picture is put on."""
        grid = self.processor.image_processor.image_grid_pinpoints
        height, width = select_best_resolution(list(size), grid)
        return height, width

    def _grid(self, size: Size, side: int, most: str) -> tuple[int, int]:
        """Rows and columns, by the processor's own count; `most` says how far it shrinks."""
        window = self.config.vision_config.image_size
        rows, cols = (edge // window for edge in self._best(size))
        unpadded, newlines = type(self.processor)._get_unpadded_features(
            SimpleNamespace(vision_aspect_ratio=most), *size, side, side, rows, cols
        )
        return newlines, unpadded // newlines
