"""Families that show a picture as one grid of patches of its own shape, some merged to a token."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

from mm_lens.layout.tiles import Size, Tile, whole
from mm_lens.model.families import Family


class GridFamily(Family, ABC):
    """The picture is stretched to whole patches; `image_grid_thw` says how many."""

    rows_of: ClassVar = {"pixel_values": "patch", "image_grid_thw": "image"}

    @property
    def merge(self) -> int:
        """Patches along each side of what becomes one token."""
        side: int = self.config.vision_config.spatial_merge_size
        return side

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """One grid over the whole picture."""
        _, rows, cols = inputs["image_grid_thw"][k].tolist()
        return [Tile(rows // self.merge, cols // self.merge, whole(size))]

    def shown_sizes(self, inputs: Mapping[str, Any]) -> list[Size]:
        """The pictures as resized."""
        patch: int = self.config.vision_config.patch_size
        return [(h * patch, w * patch) for _, h, w in inputs["image_grid_thw"].tolist()]
