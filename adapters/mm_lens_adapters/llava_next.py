"""LLaVA-NeXT (1.6): CLIP tower, two-layer projector, anyres tiles, Llama or Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from mm_lens.errors import InputError
from mm_lens.layout.layout import ImageGeometry, TokenLayout
from mm_lens.layout.tiles import Size
from mm_lens.model.families import NO_INPUTS
from mm_lens.model.families.declaration import make_noise
from mm_lens_adapters import llava_next_layout
from mm_lens_adapters.llava_style import LlavaStyleFamily


class LlavaNextFamily(LlavaStyleFamily):
    """The family of `LlavaNextForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("LlavaNextForConditionalGeneration",)

    sizes: ClassVar[str] = "image_sizes"

    def require_fit(self) -> None:
        """Pictures are cut as the model puts them together."""
        super().require_fit()
        self.require_select()
        grids = [
            [list(map(int, pair)) for pair in owner.image_grid_pinpoints]
            for owner in (self.processor.image_processor, self.config)
        ]
        if grids[0] != grids[1]:
            raise InputError(
                f"The image processor has image_grid_pinpoints={grids[0]}, but config.json has "
                f"{grids[1]}: they cut pictures in two ways. Use the processor of the same "
                "checkpoint, or mend image_grid_pinpoints in its preprocessor_config.json."
            )
        # Asked for in every forward pass: a look into a dict, not a key made of the configuration.
        self._known: dict[Size, ImageGeometry] = {}
        side = self.config.vision_config.image_size
        self.geometry((side, side))  # refuses other tiles

    def geometry(
        self, size: Size, inputs: Mapping[str, Any] = NO_INPUTS, k: int = 0
    ) -> ImageGeometry:
        """See `llava_next_layout`: high-resolution tokens run across tiles."""
        if size not in self._known:
            found = llava_next_layout.image_geometry(self.config, self.processor, size)
            self._known[size] = found
        return self._known[size]

    def layout(self, inputs: Mapping[str, Any]) -> TokenLayout:
        """What every position is; images that changed place are refused."""
        layout = super().layout(inputs)
        llava_next_layout.check_runs(layout)
        return layout

    def tiles_of(self, inputs: Mapping[str, Any]) -> list[int]:
        """The overview and the high-resolution tiles of each image, by transformers' own count."""
        window, grid = self.config.vision_config.image_size, self.config.image_grid_pinpoints
        return [image_size_to_num_patches(s, grid, window) for s in self.image_sizes(inputs)]

    def probe_image(self) -> Image.Image:
        """Noise of an extreme aspect ratio: most of its tiles is padding, which makes no tokens."""
        side = self.config.vision_config.image_size
        return make_noise((side // 5, 2 * side))
