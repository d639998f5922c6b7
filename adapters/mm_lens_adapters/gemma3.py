"""Gemma 3: one square, and with pan-and-scan crops behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from mm_lens.layout.tiles import Size, Tile
from mm_lens_adapters.square_style import SquareFamily

SETTINGS = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")


class Gemma3Family(SquareFamily):
    """The family of `Gemma3ForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma3ForConditionalGeneration",)
    rows_of: ClassVar = {"pixel_values": "tile"}
    nested: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = True
    markers: ClassVar[str] = r"<(start|end)_of_image>"

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """The whole picture, then each crop."""
        side = self.side
        crops = [
            Tile(side, side, rect, number, self._place(rect, side))
            for number, rect in enumerate(self._crops(size), start=1)
        ]
        return [*super().tiles(size, inputs, k), *crops]

    def _crops(self, size: Size) -> list[tuple[float, float, float, float]]:
        """Coordinates go the way of pixels, through transformers' own function."""
        # What the processor passes on goes before what its image processor has.
        images, passed = self.processor.image_processor, self.processor.images_kwargs
        names = [f"pan_and_scan_{name}" for name in SETTINGS]

        def value(name: str) -> Any:
            return passed[name] if name in passed else getattr(images, name, None)

        if not value("do_pan_and_scan"):
            return []
        # Rows, then columns: arrays that take no memory.
        axes = [np.arange(size[0])[None, :, None], np.arange(size[1])[None, None, :]]
        pieces = [
            Gemma3ImageProcessorPil.pan_and_scan(
                images, np.broadcast_to(axis, (1, *size)), **{name: value(name) for name in names}
            )
            for axis in axes
        ]
        return [
            (float(x[0, 0, 0]), float(y[0, 0, 0]), float(x[0, -1, -1]) + 1, float(y[0, -1, -1]) + 1)
            for y, x in zip(*pieces, strict=True)
        ]

    @staticmethod
    def _place(rect: tuple[float, float, float, float], side: int) -> tuple[int, int]:
        """Crops follow each other along one edge and are of one size, but for the last."""
        x0, y0, x1, y1 = rect
        down, across = (round(y0 / (y1 - y0)), round(x0 / (x1 - x0)))
        return down * side, across * side
