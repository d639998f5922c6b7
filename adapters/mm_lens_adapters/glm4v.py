"""GLM-4V and GLM-4.1V."""

from __future__ import annotations

from typing import ClassVar

from mm_lens_adapters.grid_style import GridFamily


class Glm4vFamily(GridFamily):
    """The family of `Glm4vForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Glm4vForConditionalGeneration",)
    markers: ClassVar[str] = r"<\|(begin|end)_of_image\|>"
